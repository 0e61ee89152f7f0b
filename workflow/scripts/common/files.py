"""Small file helpers of the scripts: whole files or none, checksums, JSON Lines. Standard library only."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path


@contextlib.contextmanager
def replacing(path):
    """Yields a path beside `path` to write to, and renames it to `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def refuse_full_disk(directory, size):
    """Exits where fewer than `size` bytes are free for an existing directory's files."""
    if (free := shutil.disk_usage(directory).free) < size:
        needs = f"needs {size / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free"
        sys.exit(f"{directory}: {needs}. Make room, or let `pathvars` in the configuration point elsewhere.")


def sha256(path):
    """The sha256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def size_of(directory):
    """The bytes of all files in a directory and below."""
    return sum(file.stat().st_size for file in Path(directory).rglob("*") if file.is_file())


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_json(path, value, **options):
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, **options), encoding="utf-8")


def rows_of(path):
    """The rows of JSON Lines one by one: there may be too many for memory."""
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


def read_jsonl(path):
    return list(rows_of(path))


def write_jsonl(path, rows):
    """rows: any number, each written as it comes."""
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)

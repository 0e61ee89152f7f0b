"""Small file helpers of the scripts: whole files or none, checksums, JSON Lines. Standard library only."""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

from common.ending import full_disk, is_full

LEFT = 600  # seconds without a write, after which a file that was being written counts as left by a killed process


@functools.lru_cache  # predict writes a file for each of very many batches to one directory
def left_in(directory):
    """The files that killed processes had begun there, when this one first asks."""
    left = []
    for file in directory.glob(".*.partial"):
        with contextlib.suppress(FileNotFoundError):  # it has just been finished
            if time.time() - file.stat().st_mtime > LEFT:
                left.append(file)
    return left


@contextlib.contextmanager
def replacing(path, size=None):
    """Yields a path beside `path` to write to, and renames it to `path` when the block ends without an error.

    Exits where the disk is full. size: the bytes that are to be written, where they are known.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in left_in(path.parent):
        if re.fullmatch(rf"\.{re.escape(path.name)}\.\d+\.partial", left.name):
            left.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except Exception as error:
        if is_full(error):
            written = partial.stat().st_size if partial.exists() else 0
            sys.exit(full_disk(path, size, written))
        raise
    finally:
        partial.unlink(missing_ok=True)


def refuse_full_disk(directory, size):
    """Exits where fewer than `size` bytes are free for an existing directory's files."""
    if shutil.disk_usage(directory).free < size:
        sys.exit(full_disk(directory, size))


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


def write_text(path, text):
    content = text.encode()
    with replacing(path, len(content)) as partial:
        partial.write_bytes(content)


def refuse_broken(path, problem):
    """Exits where a file that a step wrote is no longer as that wrote it."""
    sys.exit(f"{path}: {problem}. Remove it and run Snakemake again, which makes it anew.")


def refuse_unlike(path, known, what):
    """Exits where a file, `what` in words, has not the sha256 that is known of it."""
    if not path.is_file() or sha256(path) != known:
        refuse_broken(path, f"is not {what}")


def read_json(path, *keys):
    """A JSON file that a step wrote; exits where it is damaged or, an object, lacks one of the keys."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        refuse_broken(path, f"is damaged, it holds no JSON ({error})")
    if missing := [key for key in keys if not isinstance(value, dict) or key not in value]:
        refuse_broken(path, f"is damaged, it has no {missing[0]}")
    return value


def write_json(path, value, **options):
    write_text(path, json.dumps(value, **options))


def rows_of(path):
    """The rows of JSON Lines that a step wrote, one by one: there may be too many for memory. Exits where a line is
    damaged."""
    whole = 0
    with open(path, encoding="utf-8") as file:
        try:
            for line in file:
                row = json.loads(line)
                whole += 1
                yield row
        except ValueError as error:
            refuse_broken(path, f"is damaged in line {whole + 1} ({error})")


def read_jsonl(path):
    return list(rows_of(path))


def write_jsonl(path, rows):
    """rows: any number, each written as it comes."""
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)

"""What Snakemake does not see by itself: a change of the user's own files, and of code whose edit repeats nothing."""

import hashlib
import importlib.util
import re
from pathlib import Path

LARGE = 10_000_000  # bytes; of larger files, size and time of the last change stand for the contents


def state_of_file(file):
    if (stat := file.stat()).st_size > LARGE:
        return f"{file.name} {stat.st_size} {int(stat.st_mtime)}"
    return f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}"


def state(place):
    """A checksum of a user's file, of the files in a directory, or of the *.gguf in an installed package (by its size,
    as each installation has another time). The path is not in it. Empty where there is nothing."""
    path = Path(place)
    if path.is_dir():
        states = [state_of_file(file) for file in sorted(path.iterdir()) if file.is_file()]
    elif path.is_file():
        states = [state_of_file(path)]
    elif place.isidentifier() and (spec := importlib.util.find_spec(place)):
        files = [file for folder in spec.submodule_search_locations or () for file in Path(folder).glob("*.gguf")]
        states = [f"{file.name} {file.stat().st_size}" for file in files]
    else:
        states = []
    return hashlib.sha256("\n".join(states).encode()).hexdigest()[:16] if states else ""


def made_by_other_code(provenances, digest):
    """Those of the provenance files that are there and name another digest of the code."""
    for file in provenances:
        try:
            code = re.search(r'"code": "(\w+)"', Path(file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        if code and code[1] != digest:
            yield file


def without_defaults(values, properties):
    """The values that differ from the default in the schema's `properties`.

    So a key that comes later re-runs nothing where it stands at its default; the defaults themselves never change.
    """
    defaults = {key: entry["default"] for key, entry in properties.items() if "default" in entry}
    return {key: value for key, value in values.items() if key not in defaults or defaults[key] != value}

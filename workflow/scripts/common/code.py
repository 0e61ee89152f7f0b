"""Of which files a step's code consists, worked out from its imports, and one digest of them. Standard library only."""

import ast
import hashlib
import re
from functools import lru_cache
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1]
DATA = re.compile(r"[\w./-]+\.(yaml|j2)")


def parts_of(file):
    """What one module of the project needs: the modules that it imports, anywhere in it, and the YAML files and
    templates beside it that it names by a string, as "train_lora.yaml" or "../report/licences.yaml"."""
    names = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = list(file.relative_to(SCRIPTS).parts[: -node.level]) if node.level else []  # from . import
            module = ".".join(above + [node.module] * bool(node.module))
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and DATA.fullmatch(node.value):
            yield file.parent / node.value
    for name in names:
        module = SCRIPTS.joinpath(*name.split("."))
        yield from (module.with_suffix(".py"), *(package / "__init__.py" for package in (module, module.parent)))


def sources(script):
    """The files of the project that a script's code consists of, itself among them."""
    found, waiting = set(), [Path(script).resolve()]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            if file.suffix == ".py":
                waiting += [part.resolve() for part in parts_of(file) if part.is_file()]
    return found


@lru_cache
def digest(script):
    """A checksum of a script's code, by its files' contents. No path is in it: moved, the code is the same."""
    parts = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in sources(script))
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]

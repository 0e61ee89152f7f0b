"""Models on this machine, `snapshot:` and `gguf:`: what is refused of them before any job."""

import importlib.util
import os
from pathlib import Path

from ..scripts.model_formats import config_json
from ..scripts.model_formats.manifest import belongs


def is_package(name):
    return name.isidentifier() and importlib.util.find_spec(name) is not None


def check(checks, name):
    """Raises Problem where the model is not there, or can be told to be none without its weights."""
    model, path = checks.config["models"][name], ["models", name]
    if "snapshot" in model and (problem := problem_of_snapshot(Path(model["snapshot"]))):
        checks.refuse([*path, "snapshot"], problem)
    if "gguf" in model and (problem := problem_of_gguf(model["gguf"])):
        checks.refuse([*path, "gguf"], f"{model['gguf']}: {problem}")


def problem_of_snapshot(directory):
    if not directory.is_dir() or not os.path.lexists(directory / "config.json"):
        return f"{directory}: no Hugging Face snapshot is there, as it has no config.json"
    for file in sorted(file for file in directory.iterdir() if belongs(file.name)):
        if not file.is_file():
            return f"{file} " + (
                f"is a link to {os.readlink(file)}, which is not there" if file.is_symlink() else "is no file"
            )
        if not file.stat().st_size:
            return f"{file} is empty. Fetch it again"
    try:
        problem = config_json.unsupported(config_json.read_whole(directory / "config.json"))
    except ValueError as error:
        problem = error
    return f"{directory / 'config.json'}: {problem}" if problem else None


def problem_of_gguf(place):
    if not Path(place).is_file():
        return None if is_package(place) else "no such file, and no installed Python package"
    if not place.endswith(".gguf"):
        return "its name does not end in .gguf: name it so"
    with open(place, "rb") as file:
        return None if file.read(4) == b"GGUF" else "no GGUF file. Fetch it again"

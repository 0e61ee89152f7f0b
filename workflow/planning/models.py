"""Models on this machine, `snapshot:`, `gguf:` and those that were fetched: what is refused of them before any job."""

import importlib.util
import json
import os
import struct
from pathlib import Path

from ..scripts.model_formats import config_json, tokenizer
from ..scripts.model_formats.manifest import belongs, counts, other_weights, shapes_of_weights, weight_files
from . import Problem, places
from .machine import shapes

TOKENIZER = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")  # of tokenizer*, those that are read


def is_package(name):
    return name.isidentifier() and importlib.util.find_spec(name) is not None


def holds_gguf(package):
    places = importlib.util.find_spec(package).submodule_search_locations or ()
    return any(file for place in places for file in Path(place).glob("*.gguf"))


def check(checks, name, fetched):
    """Raises Problem where the model is not there, or not whole, as far as can be told without reading its weights.
    fetched: the directory of the workflow's own snapshots."""
    model, path = checks.config["models"][name], ["models", name]
    for key in {"snapshot", "gguf"} & model.keys():
        if problem := places.unreadable(model[key]):
            checks.refuse([*path, key], problem)
    if "snapshot" in model and Path(model["snapshot"]).resolve() == Path(fetched, name).resolve():
        problem = f"{model['snapshot']} is where the workflow keeps its own files: move the snapshot elsewhere"
        checks.refuse([*path, "snapshot"], problem)
    if "snapshot" in model and (problem := problem_of_snapshot(Path(model["snapshot"]))):
        checks.refuse([*path, "snapshot"], problem)
    if "gguf" in model and (problem := problem_of_gguf(model["gguf"])):
        checks.refuse([*path, "gguf"], f"{model['gguf']}: {problem}")


def problem_of_snapshot(directory):
    """The first, or None."""
    if not directory.is_dir() or not os.path.lexists(directory / "config.json"):
        if directory.is_file():
            return f"{directory}: no Hugging Face snapshot is there, as it is a file. Name the directory that holds it"
        cached = sorted(file.parent for file in directory.glob("snapshots/*/config.json"))
        instead = f". Name {cached[-1]}" if cached else ""
        return f"{directory}: no Hugging Face snapshot is there, as it has no config.json{instead}"
    return next(filter(None, problems(directory)), None)


def problems(directory):
    """Of a snapshot, each with its file; None where there is none. Its weights are not read, only their headers."""
    try:
        weights, broken = weight_files(directory), None
    except (ValueError, OSError) as error:
        weights, broken = None, str(error)
    files = sorted(file for file in directory.iterdir() if belongs(file.name) and counts(file.name, weights))
    yield from (problem_of_file(file) for file in files if not is_spare(file))
    yield of_file(directory / "config.json", lambda file: config_json.unsupported(config_json.read_whole(file)))
    yield of_file(directory, lambda _: other_weights([file.name for file in directory.iterdir()]))
    yield broken
    named, tensors = weights or {file.name for file in files if file.suffix == ".safetensors"}, {}

    def read(file):
        tensors.update(shapes_of_weights(file))

    for file in map(directory.joinpath, sorted(named)):
        yield of_file(file, read) if file.exists() else f"{file} is not there. Fetch it again"
    config = config_json.read(directory / "config.json")
    yield of_file(directory, lambda _: config_json.problem_of_shapes(config, tensors))
    yield of_file(directory, tokenizer.problem)


def is_spare(file):
    """Of a tokenizer, nothing that is read here, and nothing that is brought, or empty."""
    other = file.name.startswith(("tokenizer", "vocab.", "merges.")) and file.name not in TOKENIZER
    return other and not (file.is_file() and file.stat().st_size)


def problem_of_file(file):
    if not file.is_file():
        link = f"is a link to {os.readlink(file)}, which is not there" if file.is_symlink() else "is no file"
        return f"{file} {link}"
    if not file.stat().st_size:
        return f"{file} is empty. Fetch it again"
    return None if os.access(file, os.R_OK) else f"{file} can't be read: you have no permission"


def of_file(file, problem):
    """What problem(file) returns or raises, with the file before it."""
    try:
        found = problem(file)
    except ValueError as error:
        found = error
    return f"{file}: {found}" if found else None


def problem_of_gguf(place):
    if not Path(place).is_file():
        if not is_package(place):
            return "no such file, and no installed Python package"
        return None if holds_gguf(place) else "an installed Python package without a *.gguf in it"
    if not place.endswith(".gguf"):
        return "its name does not end in .gguf: name it so"
    with open(place, "rb") as file:
        magic, *numbers = struct.unpack("<4sIQQ", file.read(24).ljust(24, b"\0"))  # version, tensors, key-values
        return None if magic == b"GGUF" and all(numbers) else "no GGUF file. Fetch it again"


def source_of(manifest):
    """The repository of what download_model brought. Problem where its file is damaged."""
    try:
        return json.loads(manifest.read_text(encoding="utf-8"))["source"]
    except (ValueError, TypeError, KeyError):
        again = "Remove it and run Snakemake again, which makes it anew"
        raise Problem(f"{manifest}: is damaged. {again}") from None


def directory_of(checks, name, fetched):
    """A model's files on this machine, the user's or fetched ones; None where they are not there."""
    model, manifest = checks.config["models"][name], Path(fetched, name, "manifest.json")
    if "repo" in model and (not manifest.exists() or source_of(manifest) != model["repo"]):
        return None
    found = Path(model.get("snapshot", manifest.parent))
    return found if (found / "config.json").is_file() else None


def check_heads(checks, name, run, fetched):
    """The model's heads can be shared out; a model that is not there yet is checked by the job itself."""
    if (found := directory_of(checks, run["model"], fetched)) is None:
        return
    file = found / "config.json"
    try:
        heads = config_json.read(file)
    except ValueError as error:
        checks.refuse(["models", run["model"]], f"{file}: {error}")
    numbers = {key: heads.get(key) for key in ("num_attention_heads", "num_key_value_heads")}
    for path, tp, *_ in shapes(name, run):
        for key, count in numbers.items():
            if isinstance(count, int) and count % tp:
                checks.refuse(path, f"{tp} does not divide the {count} {key} of {run['model']} ({file})")

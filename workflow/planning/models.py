"""Models on this machine, `snapshot:`, `gguf:` and those that were fetched: what is refused of them before any job."""

import importlib.util
import json
import os
from pathlib import Path

from ..scripts.model_formats import config_json, tokenizer
from ..scripts.model_formats.manifest import belongs, indexed_files, other_weights, problem_of_weights
from . import Problem, places
from .machine import shapes


def is_package(name):
    return name.isidentifier() and importlib.util.find_spec(name) is not None


def holds_gguf(package):
    places = importlib.util.find_spec(package).submodule_search_locations or ()
    return any(file for place in places for file in Path(place).glob("*.gguf"))


def check(checks, name):
    """Raises Problem where the model is not there, or not whole, as far as can be told without reading its weights."""
    model, path = checks.config["models"][name], ["models", name]
    for key in {"snapshot", "gguf"} & model.keys():
        if problem := places.unreadable(model[key]):
            checks.refuse([*path, key], problem)
    if "snapshot" in model and (problem := problem_of_snapshot(Path(model["snapshot"]))):
        checks.refuse([*path, "snapshot"], problem)
    if "gguf" in model and (problem := problem_of_gguf(model["gguf"])):
        checks.refuse([*path, "gguf"], f"{model['gguf']}: {problem}")


def problem_of_snapshot(directory):
    """The first, or None."""
    if not directory.is_dir() or not os.path.lexists(directory / "config.json"):
        return f"{directory}: no Hugging Face snapshot is there, as it has no config.json"
    return next(filter(None, problems(directory)), None)


def problems(directory):
    """Of a snapshot, each with its file; None where there is none. Its weights are not read, only where they lie."""
    files = sorted(file for file in directory.iterdir() if belongs(file.name))
    yield from map(problem_of_file, files)
    yield of_file(directory / "config.json", lambda file: config_json.unsupported(config_json.read_whole(file)))
    yield of_file(directory, lambda _: other_weights([file.name for file in directory.iterdir()]))
    try:
        indexed = indexed_files(directory)
    except ValueError as error:
        yield str(error)
    named = [file.name for file in files if file.suffix == ".safetensors"] if indexed is None else sorted(indexed)
    for file in map(directory.joinpath, named):
        yield of_file(file, problem_of_weights) if file.exists() else f"{file} is not there. Fetch it again"
    yield of_file(directory, tokenizer.problem)


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
        return None if file.read(4) == b"GGUF" else "no GGUF file. Fetch it again"


def source_of(manifest):
    """The repository of what download_model brought. Problem where its file is damaged."""
    try:
        return json.loads(manifest.read_text(encoding="utf-8"))["source"]
    except (ValueError, TypeError, KeyError):
        again = "Remove it and run Snakemake again, which makes it anew"
        raise Problem(f"{manifest}: is damaged. {again}") from None


def check_heads(checks, name, run, fetched):
    """The model's heads can be shared out; a model that is not there yet is checked by the job itself."""
    model, manifest = checks.config["models"][run["model"]], Path(fetched, run["model"], "manifest.json")
    if "repo" in model and (not manifest.exists() or source_of(manifest) != model["repo"]):
        return
    file = Path(model.get("snapshot", manifest.parent), "config.json")
    try:
        heads = config_json.read(file) if file.is_file() else {}
    except ValueError as error:
        checks.refuse(["models", run["model"]], f"{file}: {error}")
    counts = {key: heads.get(key) for key in ("num_attention_heads", "num_key_value_heads")}
    for path, tp, *_ in shapes(name, run):
        for key, count in counts.items():
            if isinstance(count, int) and count % tp:
                checks.refuse(path, f"{tp} does not divide the {count} {key} of {run['model']} ({file})")

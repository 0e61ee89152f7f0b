"""What Snakemake does not see by itself: a change of the user's own files, and of code whose edit repeats nothing."""

import hashlib
import importlib.util
import itertools
import json
import re
from pathlib import Path

import yaml

from ..scripts.common import code
from ..scripts.common.later_keys import without_later_keys
from ..scripts.model_formats.manifest import belongs

PUBMEDQA = "ori_pqal.json", "test_ground_truth.json"
LARGE = 10_000_000  # bytes; of larger files, size and time of the last change stand for the contents


def contents(file):
    if (stat := file.stat()).st_size > LARGE:
        return f"{stat.st_size} {int(stat.st_mtime)}"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def state_of_file(file):
    return f"{file.name} {contents(file)}"


def state_of_contents(place):
    """A checksum of a user's file whatever its name, but for the ending, by which it is read. Empty where it is not."""
    if not (file := Path(place)).is_file():
        return ""
    return hashlib.sha256(f"{file.suffix.lower()} {contents(file)}".encode()).hexdigest()[:16]


def state(place):
    """A checksum of a user's file, of a snapshot's or PubMedQA's files in a directory (no step reads another, such as a
    README), or of the *.gguf in an installed package (by its size, as each installation has another time). The path is
    not in it. Empty where there is nothing."""
    path = Path(place)
    if path.is_dir():
        files = sorted(path.iterdir())
        read = [file for file in files if belongs(file.name) or file.name in PUBMEDQA or file.suffix == ".parquet"]
        states = [state_of_file(file) for file in read if file.is_file()]
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
            named = re.search(r'"code": "(\w+)"', Path(file).read_text(encoding="utf-8"))
        except OSError:  # not there, or not for this user
            continue
        if named and named[1] != digest:
            yield file


def edited_steps(steps, scripts, config, place):
    """(step, the provenance files of its results that are there from other code) for those of the steps that have any.

    A download is not among them: its results are checked by their sha256. place: puts path variables in.
    """
    adapters = [
        f"<results>/runs/{name}/fold{fold}/seed{seed}/adapter.provenance.json"
        for name, run in config["runs"].items()
        for fold, seed in itertools.product(run["folds"], run["seeds"])
        if "train" in run
    ]
    bases = [f"<results>/base/{model}.provenance.json" for model in config["models"]]
    provenances = {"convert_model": bases, "train_lora": adapters}
    for step in filter(provenances.get, steps):
        digest = code.digest(scripts / f"{step}.py")
        if files := list(made_by_other_code(map(place, provenances[step]), digest)):
            yield step, files


def values_of(file):
    """A checksum of the values in a step's YAML; comments, the order of keys and later_keys are not in it."""
    values = without_later_keys(yaml.safe_load(file.read_text(encoding="utf-8")))
    del values["settings"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def without_defaults(values, properties):
    """The values that differ from the default in the schema's `properties`.

    So a key that comes later re-runs nothing where it stands at its default; the defaults themselves never change.
    """
    defaults = {key: entry["default"] for key, entry in properties.items() if "default" in entry}
    return {key: value for key, value in values.items() if key not in defaults or defaults[key] != value}

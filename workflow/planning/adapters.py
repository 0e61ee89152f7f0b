"""Adapters that were trained elsewhere, `adapter:` of a run: what the rules are told of them, and what is refused."""

import os
import shlex
import tarfile
from pathlib import Path

from ..scripts.model_formats.manifest import ADAPTER, shapes_of_weights
from ..scripts.model_formats.peft_config import PeftConfig
from . import places
from .changes import state
from .speed import quickly


def name_of(adapter):
    """Of an adapter from the Hub its directory in resources/hf/. No model's name has an @."""
    return f"{adapter['repo'].replace('/', '--')}@{adapter['revision']}"


def fetched(config):
    """{name: what download_model is told} of all adapters from the Hub."""
    adapters = [run["adapter"] for run in config["runs"].values() if "repo" in run.get("adapter", {})]
    return {name_of(adapter): {"adapter": adapter["repo"], "revision": adapter["revision"]} for adapter in adapters}


class Adapters:
    """Of one configuration, for rules. A method returns a function of wildcards, as those of parameters.py do."""

    def __init__(self, config):
        self.runs = config["runs"]

    def manifest(self, pattern):
        """The path of what download_model brings, as {model}; none of a local adapter."""

        def of_job(wildcards):
            adapter = self.runs[wildcards.run]["adapter"]
            return pattern.format(model=name_of(adapter)) if "repo" in adapter else []

        return quickly(of_job)

    def flags(self):
        """Command-line flags of import_adapter."""

        def of_job(wildcards, input):
            flags = dict(self.runs[wildcards.run]["adapter"])
            if "repo" in flags:
                source = f"{flags['repo']}@{flags['revision']}"
                flags = {"directory": os.path.dirname(input.manifest), "source": source}
            return " ".join(f"--{key} {shlex.quote(value)}" for key, value in flags.items())

        return quickly(of_job)

    def state(self):
        """A checksum of the user's own files."""

        def of_job(wildcards):
            return "".join(map(state, local_files(self.runs[wildcards.run]["adapter"])))

        return quickly(of_job)


def local_files(adapter):
    """The user's own files that are read."""
    if "directory" in adapter:
        return [os.path.join(adapter["directory"], name) for name in ADAPTER]
    return [adapter["nemo"]] if "nemo" in adapter else []


def check(checks, name):
    """Refuses, of a run, what can be told without its weights. checks: of the configuration."""
    run = checks.config["runs"][name]
    path = ["runs", name, "adapter"]
    for key in ("folds", "seeds"):
        if len(run[key]) > 1:
            checks.refuse(["runs", name, key], f"{len(run[key])} of them, but an adapter from elsewhere is one model")
    if checks.is_needed("run", name):
        check_files(checks, path, run["adapter"], checks.config["models"][run["model"]])


def check_files(checks, path, adapter, model):
    """Refuses a local adapter that is not there, or whose adapter_config.json tells of more than LoRA."""
    for key in {"directory", "nemo"} & adapter.keys():
        if problem := places.unreadable(adapter[key]):
            checks.refuse([*path, key], problem)
    directory = Path(adapter.get("directory", ""))
    if "directory" in adapter and not (directory / ADAPTER[1]).is_file() and (directory / "adapter_model.bin").exists():
        problem = f"{directory} has its weights as adapter_model.bin, which may run any code when it is opened"
        checks.refuse(path, f"{problem}; save it as {ADAPTER[1]}, as PEFT does by default")
    if missing := next((file for file in local_files(adapter) if not os.path.isfile(file)), None):
        checks.refuse(path, f"there is no {missing}")
    if "nemo" in adapter and not tarfile.is_tarfile(adapter["nemo"]):
        checks.refuse(path, f"{adapter['nemo']}: is no adapter.nemo, which is a tar file")
    if "directory" in adapter:
        for name, problem in zip(ADAPTER, problems_of_peft(directory, model)):
            if problem:
                checks.refuse(path, f"{directory / name}: {problem}")


def problems_of_peft(directory, model):
    """What is wrong with adapter_config.json, then what with the weights' header; each None where nothing is."""
    try:
        config = PeftConfig(directory / ADAPTER[0])
        yield config.problem(model.get("repo"), model.get("revision"))
    except ValueError as error:
        yield error
    try:
        yield config.problem_of_tensors(shapes_of_weights(directory / ADAPTER[1]))
    except ValueError as error:
        yield error

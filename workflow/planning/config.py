"""Checks the configuration before anything runs: by the schema, then what no schema can say."""

import os
import re
from contextlib import suppress
from functools import reduce
from operator import getitem
from pathlib import Path

import yaml

from . import Problem, adapters, datasets, models, nodes, places, prompts, questions, warm_start
from .defaults import share, without_nulls
from .machine import shapes
from .nemo_keys import has, needs_gpus
from .nemo_keys import problem_of_all as problem_of_overrides
from .schema import problems
from .sweeps import unfold, unknown
from .table import ADAPTED, needed

DEMO = Path(__file__).parents[2].joinpath("config/demo.yaml")


class Checks:
    """The checks of one configuration. files: what it was read from, later ones over earlier ones. module: its name,
    where a Snakefile of the user gives the configuration, of which nobody knows from where it has it. given: what the
    command line has by --config, over all files.

    Each method raises Problem, which names the file that has the last word on the key.
    """

    def __init__(self, config, files, module=None, given=None):
        self.config, self.files, self.module = config, [os.path.relpath(file) for file in files], module
        self.given, self.sweeps = given or {}, {}

    def refuse(self, path, problem):
        path = [part for part in path if isinstance(part, str)]  # without places in a list
        in_files = [self.sweeps.get(part, part) for part in path]
        trees = [(file, yaml.safe_load(Path(file).read_text(encoding="utf-8"))) for file in self.files]
        having = [file for file, tree in trees if has(tree, in_files)]
        shared = ["runs", "defaults", *path[2:]]
        unsaid = not having and not has(self.given, in_files) and path[:1] == ["runs"] and len(path) > 2
        if unsaid and (having := [file for file, tree in trees if has(tree, shared)]):
            path = in_files = shared
        if len(path) > 2 and not having:  # the key is at its default
            having = [file for file, tree in trees if has(tree, in_files[:-1])]
        if path and has(self.given, in_files):
            place = "--config"
            if len(path) > 1 and re.search("is text to YAML|is not of type", problem):
                said = re.split(r"[;.] ", problem)[0]
                problem = f"{said}; within braces --config has nothing but text: write it to a file for --configfile"
        elif self.module and not (path and having):
            place = f"config of module {self.module}"
        else:
            place = (having or self.files[:1])[-1]
        raise Problem(": ".join(filter(None, [place, ".".join(path), problem])))

    def written(self, path):
        """The text in a file that YAML reads as the value at a path; None where no file has it."""
        for file in reversed(self.files):
            node = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
            with suppress(KeyError, IndexError, TypeError):
                return reduce(getitem, path, node)

    def check_schema(self, schema):
        if isinstance(self.config.get("runs"), dict):
            share(self.config["runs"], self.refuse)
            self.sweeps = unfold(self.config, self.refuse)
        for section in ("models", "datasets", "runs"):
            entries = self.config.get(section)
            for name in entries if isinstance(entries, dict) else ():
                entries[name] = without_nulls(entries[name])
        for path, problem in problems(schema, self.config, self.written):
            self.refuse(path, problem)
        places.check(self)
        datasets.check_labels_of_runs(self)

    def check_runs(self, nemo_keys, fetched, asked=(), made="results/runs"):
        """nemo_keys: train_lora.yaml as a dict. fetched, made: the directories of the snapshots that are there, and of
        the runs' results. asked: what the files on the command line are of, as ("run", its name)."""
        self.asked = {*asked}
        self.needed = needed(self.config, [name for kind, name in self.asked if kind == "run"])
        datasets.complete(self.config)
        prompts.complete(self.config)
        for name in self.config["datasets"]:
            datasets.check(self, name)
        for name in self.config["targets"]:
            if name not in self.config["runs"]:
                self.refuse(["targets"], unknown(name, self.config["runs"]))
        self.check_models(fetched)
        for name, run in self.config["runs"].items():
            self.check_run(name, run, nemo_keys)
        for name, run in self.config["runs"].items():
            models.check_heads(self, name, run, fetched)
            prompts.check(self, name, run)
            if "adapter" in run:
                adapters.check(self, name)
            if "choose" in run:
                self.check_choice(name, run)
            if "start_from" in run.get("train", {}):
                warm_start.check(self, name)
        prompts.check_marks(self, fetched, made)

    def is_needed(self, kind, name):
        """Whether what a model, data set or run names on this machine must be there. It must for runs that this call
        may build; others may be of another machine. Of a module, its caller may have rules that make it."""
        if self.module or (kind, name) in self.asked:
            return not self.module
        return name in self.needed if kind == "run" else any(run.get(kind) == name for run in self.needed.values())

    def check_models(self, fetched):
        for name in self.config["models"]:
            if self.is_needed("model", name):
                models.check(self, name, fetched)

    def elsewhere(self, section, name):
        """A hint at the demonstration's configuration, where that has what is missing."""
        if self.module or not DEMO.is_file() or not has(yaml.safe_load(DEMO.read_text()), [section, name]):
            return ""
        return f"; {os.path.relpath(DEMO)} defines it: write that file after --configfile, too"

    def check_run(self, name, run, nemo_keys):
        path = ["runs", name]
        if name in ("majority", "human"):
            self.refuse(path, "is a line of the table that needs no model: give the run another name")
        for kind in ("model", "dataset"):
            if run[kind] not in self.config[f"{kind}s"]:
                there = f"{', '.join(self.config[f'{kind}s'])}{self.elsewhere(f'{kind}s', run[kind])}"
                self.refuse([*path, kind], f"{run[kind]} is not among {kind}s: {there}")
        first, *others = [key for key in ADAPTED if key in run] or [None]
        if others:
            self.refuse([*path, others[-1]], f"stands beside {first}:; a run has one of them")
        datasets.check_run(self, name, run)
        questions.check_run(self, name)
        devices, tp = run.get("nodes", 1) * run["devices"], run["tensor_model_parallel_size"]
        for place, ranks, number, of_each in shapes(name, run):
            if number * of_each % ranks:
                self.refuse(place, f"{ranks} does not divide the {number * of_each} devices")
            if number > 1:
                nodes.check(self, place, ranks, number, of_each)
            if (rank := run.get("train", {}).get("adapter_dim", 0)) % ranks:
                problem = f"{rank} is no multiple of tensor_model_parallel_size {ranks}, which share it out"
                self.refuse([*path, "train", "adapter_dim"], problem)
        if run["precision"] == 16 and run["megatron_amp_O2"]:
            self.refuse([*path, "precision"], "with 16, NeMo trains without megatron_amp_O2 only: set that to false")
        room = run["max_seq_length"] - 1  # a prompt has a token at least
        if (tokens := run["predict"]["tokens_to_generate"]) >= room:
            problem = f"{tokens} leaves no room for a prompt in max_seq_length {run['max_seq_length']}"
            self.refuse([*path, "predict", "tokens_to_generate"], problem)
        if not (train := run.get("train")):
            return
        if problem := problem_of_overrides(train, nemo_keys):
            self.refuse([*path, "train", "nemo"], problem)
        if self.config["accelerator"] == "cpu" and (override := next(filter(needs_gpus, train["nemo"]), None)):
            self.refuse([*path, "train", "nemo"], f"{override} needs GPUs, but accelerator is cpu: remove it")
        if train["global_batch_size"] % (train["micro_batch_size"] * devices // tp):
            size = f"{train['global_batch_size']} is no multiple of micro_batch_size {train['micro_batch_size']}"
            self.refuse([*path, "train", "global_batch_size"], f"{size} on {devices // tp} copies of the model")
        for key in ("val_check_interval", "warmup_steps"):
            if train[key] > train["max_steps"]:
                problem = f"{train[key]} steps, but training ends after max_steps {train['max_steps']}"
                self.refuse([*path, "train", key], problem)

    def check_choice(self, name, run):
        """Validation losses compare only where model, items and answers are the same."""
        path = ["runs", name, "choose"]
        for candidate in run["choose"]:
            if candidate not in self.config["runs"] or "train" not in self.config["runs"][candidate]:
                self.refuse(path, f"{candidate} is not among the runs that have train:")
            if candidate in self.config["targets"]:
                problem = f"{candidate} is under targets: that would be choosing on test; take it out of one of them"
                self.refuse(path, problem)
            other = self.config["runs"][candidate]
            for key in run | other:
                unset = 1 if key == "nodes" else None
                if key not in ("choose", "train", "predict") and run.get(key, unset) != other.get(key, unset):
                    self.refuse(path, f"{candidate} and {name} differ in {key}, in which they must agree")

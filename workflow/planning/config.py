"""Checks the configuration before anything runs: by the schema, then what no schema can say."""

import difflib
import json
import os
import re
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator as Validator

from . import Problem
from .nemo_keys import has
from .nemo_keys import problem as problem_of_override


class Checks:
    """The checks of one configuration. files: what it was read from, later ones over earlier ones. module: its name,
    where a Snakefile of the user gives the configuration, of which nobody knows from where it has it.

    Each method raises Problem, which names the file that has the last word on the key.
    """

    def __init__(self, config, files, module=None):
        self.config, self.files, self.module = config, [os.path.relpath(file) for file in files], module

    def refuse(self, path, problem):
        path = [part for part in path if isinstance(part, str)]  # without places in a list
        trees = [(file, yaml.safe_load(Path(file).read_text())) for file in self.files]
        having = [file for file, tree in trees if has(tree, path)]
        if len(path) > 2 and not having:  # the key is at its default
            having = [file for file, tree in trees if has(tree, path[:-1])]
        if self.module and not (path and having):
            place = f"config of module {self.module}"
        else:
            place = (having or self.files[:1])[-1]
        raise Problem(": ".join(filter(None, [place, ".".join(path), problem])))

    def check_schema(self, schema):
        for section in ("models", "datasets"):  # by null a further configuration file takes a key away
            entries = self.config.get(section)
            for name, entry in entries.items() if isinstance(entries, dict) else ():
                if isinstance(entry, dict):
                    entries[name] = {key: value for key, value in entry.items() if value is not None}
        for error in Validator(schema).iter_errors(self.config):
            self.explain(error)

    def explain(self, error):
        path, value = list(error.absolute_path), error.instance
        if error.validator == "additionalProperties":
            known = error.schema.get("properties", {})
            unknown = next(key for key in value if key not in known)
            close = difflib.get_close_matches(unknown, known, n=1)
            hint = f"is it {close[0]}?" if close else f"there are {', '.join(known)}"
            self.refuse([*path, unknown], f"no such key; {hint}")
        if error.validator == "required":
            missing = next(key for key in error.validator_value if key not in value)
            self.refuse(path, f"{missing} is missing: {error.schema['properties'][missing]['description']}")
        if error.validator == "oneOf":
            ways = " or ".join(" and ".join(way["required"]) for way in error.validator_value)
            self.refuse(path, f"has {', '.join(value) or 'nothing'}; it needs {ways}")
        if error.validator_value in ("number", "integer") and isinstance(value, str):
            self.refuse(path, f"'{value}' is text to YAML; write a plain number, as 1.0e-4 for 1e-4")
        self.refuse(path, ". ".join(filter(None, [error.message, error.schema.get("description")])))

    def check_runs(self, nemo_keys, fetched):
        """nemo_keys: train_lora.yaml as a dict. fetched: the directory of the snapshots that are there."""
        for name in self.config["targets"]:
            if name not in self.config["runs"]:
                self.refuse(["targets"], f"{name} is not among runs: {', '.join(self.config['runs'])}")
        for name, run in self.config["runs"].items():
            self.check_run(name, run, nemo_keys)
        for name, run in self.config["runs"].items():
            self.check_heads(name, run, fetched)
            if "choose" in run:
                self.check_choice(name, run)

    def check_run(self, name, run, nemo_keys):
        path = ["runs", name]
        for kind in ("model", "dataset"):
            if run[kind] not in self.config[f"{kind}s"]:
                self.refuse([*path, kind], f"{run[kind]} is not among {kind}s: {', '.join(self.config[f'{kind}s'])}")
        devices, tp = run["devices"], run["tensor_model_parallel_size"]
        if devices % tp:
            self.refuse([*path, "tensor_model_parallel_size"], f"{tp} does not divide the {devices} devices")
        if run["precision"] == 16 and run["megatron_amp_O2"]:
            self.refuse([*path, "precision"], "with 16, NeMo trains without megatron_amp_O2 only: set that to false")
        if not (train := run.get("train")):
            return
        for problem in filter(None, (problem_of_override(override, nemo_keys) for override in train["nemo"])):
            self.refuse([*path, "train", "nemo"], problem)
        if train["global_batch_size"] % (train["micro_batch_size"] * devices // tp):
            size = f"{train['global_batch_size']} is no multiple of micro_batch_size {train['micro_batch_size']}"
            self.refuse([*path, "train", "global_batch_size"], f"{size} on {devices // tp} copies of the model")
        for key in ("val_check_interval", "warmup_steps"):
            if train[key] > train["max_steps"]:
                problem = f"{train[key]} steps, but training ends after max_steps {train['max_steps']}"
                self.refuse([*path, "train", key], problem)

    def check_heads(self, name, run, fetched):
        """The model's heads can be shared out; a model that is not there yet is checked by the job itself."""
        model, tp = self.config["models"][run["model"]], run["tensor_model_parallel_size"]
        manifest = Path(fetched, run["model"], "manifest.json")
        if "repo" in model and not (manifest.exists() and json.loads(manifest.read_text())["source"] == model["repo"]):
            return
        file = Path(model.get("snapshot", manifest.parent), "config.json")
        heads = json.loads(file.read_text()) if file.is_file() else {}
        for key in ("num_attention_heads", "num_key_value_heads"):
            if heads.get(key, tp) % tp:
                problem = f"{tp} does not divide the {heads[key]} {key} of {run['model']} ({file})"
                self.refuse(["runs", name, "tensor_model_parallel_size"], problem)

    def check_choice(self, name, run):
        """Validation losses compare only where model, items and answers are the same."""
        path = ["runs", name, "choose"]
        if "train" in run:
            self.refuse(path, "stands beside train:; a run has one of them")
        for candidate in run["choose"]:
            if candidate not in self.config["runs"] or "train" not in self.config["runs"][candidate]:
                self.refuse(path, f"{candidate} is not among the runs that have train:")
            if candidate in self.config["targets"]:
                problem = f"{candidate} is under targets: that would be choosing on test; take it out of one of them"
                self.refuse(path, problem)
            for key in run:
                if key not in ("choose", "predict") and run[key] != self.config["runs"][candidate].get(key):
                    self.refuse(path, f"{candidate} and {name} differ in {key}, in which they must agree")

    def check_target(self, target, directory):
        """A file under `directory`, results/runs, that is asked for is of a run, fold and seed that there can be."""
        if Path(directory) not in Path(target).parents:
            return
        run, fold, seed = (*Path(target).relative_to(directory).parts, "", "")[:3]
        if run not in self.config["runs"]:
            raise Problem(f"{target}: {run} is not among runs: {', '.join(self.config['runs'])}")
        choice = next((name for name, entry in self.config["runs"].items() if run in entry.get("choose", [])), None)
        if choice and not Path(target).name.startswith("adapter."):
            why = "only what is chosen gets answers to the test items"
            raise Problem(f"{target}: {run} is a candidate of {choice}: {why}")
        if not re.fullmatch(r"fold\d", fold) or not re.fullmatch(r"seed\d+", seed):
            raise Problem(f"{target}: {fold}/{seed} is none of fold0/seed0, fold0/seed1, …, fold9/…")

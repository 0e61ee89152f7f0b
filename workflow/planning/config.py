"""Checks the configuration before anything runs: by the schema, then what no schema can say."""

import difflib
import importlib.util
import json
import math
import os
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator
from jsonschema.validators import extend

from . import Problem, adapters, warm_start
from .machine import shapes
from .nemo_keys import has
from .nemo_keys import problem as problem_of_override
from .sweeps import unfold

# To JSON Schema 1.0 is an integer, to Python none; and .inf and .nan are numbers.
TYPES = Draft202012Validator.TYPE_CHECKER.redefine_many(
    {
        "integer": lambda _, value: isinstance(value, int) and not isinstance(value, bool),
        "number": lambda _, value: type(value) in (int, float) and math.isfinite(value),
    }
)
Validator = extend(Draft202012Validator, type_checker=TYPES)


def is_package(name):
    return name.isidentifier() and importlib.util.find_spec(name) is not None


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
        if len(path) > 2 and not having:  # the key is at its default
            having = [file for file, tree in trees if has(tree, in_files[:-1])]
        if path and has(self.given, in_files):
            place = "--config"
        elif self.module and not (path and having):
            place = f"config of module {self.module}"
        else:
            place = (having or self.files[:1])[-1]
        raise Problem(": ".join(filter(None, [place, ".".join(path), problem])))

    def check_schema(self, schema):
        if isinstance(self.config.get("runs"), dict):
            self.sweeps = unfold(self.config, self.refuse)
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
            unknown = str(next(key for key in value if key not in known))
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
        self.check_models()
        for name, run in self.config["runs"].items():
            self.check_run(name, run, nemo_keys)
        for name, run in self.config["runs"].items():
            self.check_heads(name, run, fetched)
            if "adapter" in run:
                adapters.check(self, name)
            if "choose" in run:
                self.check_choice(name, run)
            if "start_from" in run.get("train", {}):
                warm_start.check(self, name)

    def check_models(self):
        """What is named on this machine is there, for the runs in the table; others may be of another machine. Of a
        module, its caller may have rules that make it."""
        if self.module:
            return
        runs = [self.config["runs"][name] for name in self.config["targets"]]
        for name in {run["model"]: None for run in runs if run["model"] in self.config["models"]}:
            model = self.config["models"][name]
            if "snapshot" in model and not Path(model["snapshot"], "config.json").is_file():
                problem = f"{model['snapshot']}: no Hugging Face snapshot is there, as it has no config.json"
                self.refuse(["models", name, "snapshot"], problem)
            if "gguf" in model and not (Path(model["gguf"]).is_file() or is_package(model["gguf"])):
                self.refuse(["models", name, "gguf"], f"{model['gguf']}: no such file, and no installed Python package")

    def check_run(self, name, run, nemo_keys):
        path = ["runs", name]
        if name in ("majority", "human"):
            self.refuse(path, "is a line of the table that needs no model: give the run another name")
        for kind in ("model", "dataset"):
            if run[kind] not in self.config[f"{kind}s"]:
                self.refuse([*path, kind], f"{run[kind]} is not among {kind}s: {', '.join(self.config[f'{kind}s'])}")
        devices, tp = run["devices"], run["tensor_model_parallel_size"]
        for place, ranks, number in shapes(name, run):
            if number % ranks:
                self.refuse(place, f"{ranks} does not divide the {number} devices")
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
        model, manifest = self.config["models"][run["model"]], Path(fetched, run["model"], "manifest.json")
        if "repo" in model and not (manifest.exists() and json.loads(manifest.read_text())["source"] == model["repo"]):
            return
        file = Path(model.get("snapshot", manifest.parent), "config.json")
        try:
            heads = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            counts = {key: int(heads.get(key) or 0) for key in ("num_attention_heads", "num_key_value_heads")}
        except (ValueError, TypeError, AttributeError) as error:
            self.refuse(["models", run["model"]], f"{file} is no model's configuration: {error}")
        for path, tp, _ in shapes(name, run):
            for key, count in counts.items():
                if count % tp:
                    self.refuse(path, f"{tp} does not divide the {count} {key} of {run['model']} ({file})")

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

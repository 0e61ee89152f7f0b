"""Checks the configuration before anything runs: by the schema, then what no schema can say."""

import difflib
import sys
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator as Validator

DEFAULT = "config/config.yaml"
SCHEMA = "workflow/schemas/config.schema.yaml"
NEMO_KEYS = yaml.safe_load(Path(workflow.basedir, "workflow/scripts/train_lora.yaml").read_text())


def has(tree, path):
    return not path or (isinstance(tree, dict) and path[0] in tree and has(tree[path[0]], path[1:]))


def file_of(path):
    """The configuration file that has the last word on a key."""
    files = sorted(map(os.path.relpath, reversed(workflow.configfiles)), key=DEFAULT.__eq__)
    return next((file for file in files if has(yaml.safe_load(Path(file).read_text()), path)), DEFAULT)


def refuse(path, problem):
    path = [part for part in path if isinstance(part, str)]  # without places in a list
    sys.exit(f"{file_of(path)}: {'.'.join(path)}: {problem}")  # a WorkflowError would come with a traceback


def explain(error):
    path, value = list(error.absolute_path), error.instance
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = next(key for key in value if key not in known)
        close = difflib.get_close_matches(unknown, known, n=1)
        refuse([*path, unknown], f"no such key; {f'is it {close[0]}?' if close else 'there are ' + ', '.join(known)}")
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in value)
        refuse(path, f"{missing} is missing: {error.schema['properties'][missing]['description']}")
    if error.validator == "oneOf":
        ways = " or ".join(" and ".join(way["required"]) for way in error.validator_value)
        refuse(path, f"has {', '.join(value) or 'nothing'}; it needs {ways}")
    if error.validator_value in ("number", "integer") and isinstance(value, str):
        refuse(path, f"'{value}' is text to YAML; write a plain number, as 1.0e-4 for 1e-4")
    refuse(path, f"{error.message}. {error.schema.get('description', '')}")


def check_run(name, run):
    path = ["runs", name]
    for kind in ("model", "dataset"):
        if run[kind] not in config[f"{kind}s"]:
            refuse([*path, kind], f"{run[kind]} is not among {kind}s: {', '.join(config[f'{kind}s'])}")
    devices, tp = run["devices"], run["tensor_model_parallel_size"]
    if devices % tp:
        refuse([*path, "tensor_model_parallel_size"], f"{tp} does not divide the {devices} devices")
    if run["precision"] == 16 and run["megatron_amp_O2"]:
        refuse([*path, "precision"], "with 16, NeMo trains without megatron_amp_O2 only: set that to false")
    if not (train := run.get("train")):
        return
    for override in train["nemo"]:
        key = override.split("=")[0]
        if not key.startswith("+") and not has(NEMO_KEYS, key.split(".")):
            refuse([*path, "train", "nemo"], f"train_lora.yaml has no {key}; to add it, write +{override}")
    if train["global_batch_size"] % (train["micro_batch_size"] * devices // tp):
        size = f"{train['global_batch_size']} is no multiple of micro_batch_size {train['micro_batch_size']}"
        refuse([*path, "train", "global_batch_size"], f"{size} on {devices // tp} copies of the model")
    for key in ("val_check_interval", "warmup_steps"):
        if train[key] > train["max_steps"]:
            refuse([*path, "train", key], f"{train[key]} steps, but training ends after max_steps {train['max_steps']}")


for section in filter(lambda section: isinstance(section, dict), (config.get("models"), config.get("datasets"))):
    for name, entry in section.items():  # by null a further configuration file takes a key away
        section[name] = {k: v for k, v in entry.items() if v is not None} if isinstance(entry, dict) else entry
for error in Validator(yaml.safe_load(Path(workflow.basedir, SCHEMA).read_text())).iter_errors(config):
    explain(error)
validate(config, str(Path(workflow.basedir, SCHEMA)))  # puts the schema's defaults into config
for name in config["targets"]:
    if name not in config["runs"]:
        refuse(["targets"], f"{name} is not among runs: {', '.join(config['runs'])}")
for name, run in config["runs"].items():
    check_run(name, run)

"""How prompts reach the model, by a run's `chat_template:` and `add_bos:`: what rules are told, and what is refused."""

import json
import shlex
from pathlib import Path

from ..scripts.common import pubmedqa, template
from ..scripts.common.chat import FILE
from ..scripts.model_formats.tokenizer import unlike_tokens
from .changes import state
from .models import directory_of
from .speed import quickly

INSTEAD = "Take it out; chat_template: true in the run puts such marks around the prompt, add_bos: true the first"
KEYS = ("add_bos", "chat_template")


def complete(config):
    """A key that says false is none, so that runs with and without it are the same."""
    for run in config["runs"].values():
        for key in KEYS:
            if run.get(key) is False:
                del run[key]


def check(checks, name, run):
    """Refuses what the tokenizer of a local `snapshot:` has not; that of another model the job itself."""
    model = checks.config["models"][run["model"]]
    if run.keys().isdisjoint(KEYS) or "snapshot" not in model:
        return
    here, config = Path(model["snapshot"]), {}
    if not (here / "config.json").is_file():  # of another machine, or of the caller's rules
        return
    for file in (here / "special_tokens_map.json", here / "tokenizer_config.json"):
        try:
            config |= json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except (ValueError, TypeError, RecursionError) as error:
            checks.refuse(["models", run["model"]], f"{file} is no tokenizer's configuration: {error}")
    unsaid = None if config.get("tokenizer_class") == "PreTrainedTokenizerFast" else "that of its class"
    if "add_bos" in run and config.get("bos_token", unsaid) is None:
        checks.refuse(["runs", name, "add_bos"], f"the tokenizer of {run['model']} has no BOS ({here})")
    if "chat_template" in run and not (has_template(config) or (here / FILE).is_file()):
        problem = f"{run['model']} has none, neither in {FILE} nor in tokenizer_config.json ({here})"
        if config.get("chat_template"):
            problem = f"{run['model']} has several in tokenizer_config.json, none of them named default ({here})"
        checks.refuse(["runs", name, "chat_template"], f"{problem}; take an Instruct model")


def has_template(config):
    """Has tokenizer_config.json one template, or among several the one to take?"""
    found = config.get("chat_template")
    if isinstance(found, list):
        return any(isinstance(entry, dict) and entry.get("name") == "default" for entry in found)
    return bool(found)


def check_marks(checks, fetched, made):
    """Refuses a prompt whose own text holds a token, as [INST], that transformers reads as one and NeMo does not, where
    the model is there; else the training does. Not of a run that has results: they would be lost. fetched, made: the
    directories of the workflow's own snapshots and of the runs' results."""
    new = [name for name in checks.config["runs"] if checks.is_needed("run", name) and not Path(made, name).exists()]
    runs = [checks.config["runs"][name] for name in new]
    pairs = {(run["model"], run["dataset"]): None for run in runs if "chat_template" not in run}
    tokens = {model: tokens_of(directory_of(checks, model, fetched)) for model in {model: None for model, _ in pairs}}
    for model, dataset in pairs:
        prompt = checks.config["datasets"][dataset].get("prompt", pubmedqa.PROMPT)
        text = "\0".join(text for text, _ in template.parts(prompt))
        if found := next((token for token in tokens[model] if token in text), None):
            problem = f"{found} is one token to transformers and vLLM, but text to NeMo, by {model}'s tokenizer.model"
            checks.refuse(["datasets", dataset, "prompt"], f"{problem}. {INSTEAD}")


def tokens_of(directory):
    """What unlike_tokens finds; nothing where a model is not there, or broken, which is told elsewhere."""
    try:
        return unlike_tokens(directory) if directory else []
    except (ValueError, TypeError, LookupError, AttributeError, OSError, RuntimeError):
        return []


class Prompts:
    """What rules are told. A method with `of_job` in it returns a function of wildcards."""

    def __init__(self, config):
        self.config = config

    def template(self):
        """The path of the chat template of a run that has `chat_template:`; none of others."""

        def of_job(wildcards):
            run = self.config["runs"][wildcards.run]
            return f"<resources>/hf/{run['model']}/{FILE}" if "chat_template" in run else []

        return quickly(of_job)

    def flags(self):
        """The same, and `add_bos:`, on a command line."""

        def of_job(wildcards, input):
            flags = ["--add-bos"] if "add_bos" in self.config["runs"][wildcards.run] else []
            flags += ["--chat-template", str(input.chat_template)] if input.chat_template else []
            return shlex.join(flags)

        return quickly(of_job)

    def state_of_template(self, wildcards):
        """A checksum of a local snapshot's own template; download_model looks at its other files."""
        model = self.config["models"][wildcards.model]
        return state(str(Path(model["snapshot"], FILE))) if "snapshot" in model else ""

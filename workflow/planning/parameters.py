"""How rules read the configuration: what they give to their scripts, and what of it Snakemake remembers.

A method with `of_job` in it returns a function of wildcards, which Snakemake calls for each job.
"""

import itertools
import json
import re
import shlex

from ..scripts.common import code
from . import prompts
from .adapters import fetched
from .changes import edited_steps, state, values_of, without_defaults
from .container import kept_checksum
from .machine import commit_of
from .speed import quickly
from .table import ADAPTED

SHARED = ("nodes", "devices", "tensor_model_parallel_size", "precision", "megatron_amp_O2", "max_seq_length")
SHARED = (*SHARED, *prompts.KEYS)


def without_one_node(settings):
    """A run on one node has the settings that it had before there were several."""
    return {key: value for key, value in settings.items() if (key, value) != ("nodes", 1)}


class Unrecorded:
    """A parameter for the shell that Snakemake does not remember: whatever it is, it re-runs nothing."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return str(self.text)


class Parameters:
    """Of one configuration, checked and with the schema's defaults. scripts: the clone's directory of scripts;
    not_repeated: the steps that an edit of their code alone does not repeat; images: the checksums of images."""

    def __init__(self, workflow, config, schema, scripts, not_repeated, images):
        self.workflow, self.schema, self.scripts = workflow, schema["$defs"], scripts
        self.config = config | {"models": config.get("models", {}) | fetched(config)}  # download_model brings both
        self.not_repeated = not_repeated
        # For provenance.json. The checksum is kept before the first job, so that a job reads it, not the plan.
        kept = shlex.quote(str(kept_checksum(config["image"], images))) if config.get("image") else "/dev/null"
        self.origin = Unrecorded(f"WORKFLOW_COMMIT={commit_of(scripts)} IMAGE_SHA256=$(cut -c-64 {kept} 2>&-)")

    def script(self, step):
        """The step's script in the clone, wherever that lies."""
        return Unrecorded(self.scripts / f"{step}.py")

    def code(self, step):
        """A checksum of the step's code: its script, what this imports of the project, YAML files and templates."""
        return "" if step in self.not_repeated else code.digest(self.scripts / f"{step}.py")

    def edited_code(self, place):
        """A line for each step that is not repeated and whose code is another than the results that are there have."""
        for step, files in edited_steps(self.not_repeated, self.scripts, self.config, place):
            first = files[0].removesuffix(".provenance.json") + ", …" * (len(files) > 1)
            made = f"{len(files)} of the existing results ({first})"
            kept = f"{'They are' if len(files) > 1 else 'It is'} kept"
            rule = self.workflow.modifier.modify_rulename(step)
            repeat = f"to repeat {'them' if len(files) > 1 else 'it'}, add --forcerun {rule}"
            yield f"The code of {step} has changed since it made {made}. {kept}; {repeat}."

    def train_yaml(self):
        """A checksum of the values in train_lora.yaml, which are settings as the run's own are."""
        return values_of(self.scripts / "train_lora.yaml")

    def having(self, section, *keys):
        """A regular expression of the names in config[section] whose entry has one of the keys; of very many by those
        that have none, as Snakemake goes through the whole expression for each job. A / follows in all paths."""
        names = [name for name, entry in self.config[section].items() if not entry.keys().isdisjoint(keys)]
        others = self.config[section].keys() - {*names}
        if len(names) > 100 and len(others) < len(names):
            return rf"(?!(?:{'|'.join(map(re.escape, sorted(others)))})/)[\w.-]+"
        return "|".join(map(re.escape, names)) or "(?!)"

    def flags(self, kind, *keys):
        """Command-line flags for those of the keys that the wildcard's model or dataset has in the configuration."""

        def of_job(wildcards):
            entry = self.config[f"{kind}s"][wildcards[kind]]
            return " ".join(f"--{key} {shlex.quote(str(entry[key]))}" for key in keys if key in entry)

        return quickly(of_job)

    def state_of(self, kind, *keys):
        """A checksum of the user's own files behind those of the keys that the model or dataset has."""

        def of_job(wildcards):
            entry = self.config[f"{kind}s"][wildcards[kind]]
            return "".join(state(entry[key]) for key in keys if key in entry)

        return quickly(of_job)

    def of_run(self, pattern, group=None):
        """A path or number with the run's own {model}, {dataset}, {label}, … put in, or the group's, as `predict:`."""

        def of_job(wildcards):
            run = self.config["runs"][wildcards.run]
            return pattern.format(**run | run.get(group, {}) | dict(wildcards.items()))

        return quickly(of_job)

    def language(self):
        """The report's, where the configuration names one."""
        return f"--language {self.config['language']}" if "language" in self.config else Unrecorded("")

    def train_jsonl(self):
        """The path of the run's training items, where it has `repeat_maybe:` with these more often than once."""

        def of_job(wildcards):
            run = self.config["runs"][wildcards.run]
            split = f"train-maybe{run['train']['repeat_maybe']}" if "repeat_maybe" in run["train"] else "train"
            return f"<results>/data/{run['dataset']}/{run['label']}/fold{wildcards.fold}/{split}.jsonl"

        return quickly(of_job)

    def start_adapter(self):
        """The path of the adapter that training begins with; none where it makes a new one."""

        def of_job(wildcards):
            start = self.config["runs"][wildcards.run]["train"].get("start_from")
            return f"<results>/runs/{start}/fold{wildcards.fold}/seed{wildcards.seed}/adapter.nemo" if start else []

        return quickly(of_job)

    def of_trained(self, pattern):
        """A path of a run that has an adapter, by `train:`, `choose:` or `adapter:`; none of the base alone."""

        def of_job(wildcards):
            run = self.config["runs"][wildcards.run]
            return [] if run.keys().isdisjoint(ADAPTED) else pattern.format(**wildcards)

        return quickly(of_job)

    def of_candidates(self, file):
        """The path of a file for each fold and seed of a run's candidates."""

        def of_job(wildcards):
            run = self.config["runs"][wildcards.run]
            models = itertools.product(run["choose"], run["folds"], run["seeds"])
            return [f"<results>/runs/{candidate}/fold{fold}/seed{seed}/{file}" for candidate, fold, seed in models]

        return quickly(of_job)

    def settings(self, group, **fixed):
        """A run's settings for its script, as one JSON string; those in `fixed` as they are there."""

        def of_job(wildcards):
            run = self.config["runs"][wildcards.run]
            shared = {key: run[key] for key in SHARED if key in run}
            return Unrecorded(json.dumps(without_one_node(shared | run[group] | fixed), sort_keys=True))

        return quickly(of_job)

    def own_settings(self, group):
        """Those that are not at their default, which Snakemake remembers: a change of theirs, and no other, re-runs."""

        def of_job(wildcards):
            run = self.config["runs"][wildcards.run]
            own = without_defaults({key: run[key] for key in SHARED if key in run}, self.schema["run"]["properties"])
            own |= without_defaults(run[group], self.schema[group]["properties"])
            return json.dumps(without_one_node(own), sort_keys=True)

        return quickly(of_job)

    def sources_of_run(self, wildcards):
        """The entries of the run's model and data set in the configuration, as one JSON string."""
        run = self.config["runs"][wildcards.run]
        entries = {kind: self.config[f"{kind}s"][run[kind]] for kind in ("model", "dataset")}
        return json.dumps(entries, sort_keys=True)

"""Data sets, PubMedQA or the user's own files: what is checked of them, and what rules tell the scripts of them."""

import json
import os
import shlex
from pathlib import Path

from ..scripts.common import pubmedqa, template
from ..scripts.common.user_files.items import seen
from . import places
from .changes import PUBMEDQA, state_of_contents
from .own_files import KEYS as OWN
from .own_files import check_file, columns_of
from .parameters import Unrecorded
from .speed import quickly

FOLDS = range(10)
ANSWER = "answer"  # the label, as a wildcard, of data that is not PubMedQA


def is_own(entry):
    return not entry.keys().isdisjoint(OWN)


def labels_of(entry):
    """The closed set of answers, or None: they are free text."""
    return entry.get("labels") if is_own(entry) else pubmedqa.LABELS


def folds_of(entry):
    """Those that there are: files for training, validation and test are one."""
    return FOLDS if "items" in entry or not is_own(entry) else FOLDS[:1]


def check_labels_of_runs(checks):
    """Before the schema's defaults: which answer is learned is chosen of PubMedQA only."""
    for name, run in checks.config["runs"].items():
        if "label" in run and is_own(checks.config["datasets"].get(run["dataset"], {})):
            problem = f"is for PubMedQA; {run['dataset']} names its column of answers by answer:"
            checks.refuse(["runs", name, "label"], problem)


def complete(config):
    """Puts in what the schema's defaults can't: they would be PubMedQA's, too."""
    for entry in filter(is_own, config["datasets"].values()):
        entry.setdefault("prompt", "{input}")
        entry.setdefault("answer", "output")
    for run in config["runs"].values():
        entry = config["datasets"].get(run["dataset"], {})
        run["folds"] = list(folds_of(entry)) if run["folds"] == "all" else run["folds"]
        if is_own(entry):
            run["label"] = ANSWER


def check(checks, name):
    """The data set's keys fit together; its files have the columns, where their first line tells, and are there where
    they are needed."""
    entry, path = checks.config["datasets"][name], ["datasets", name]
    try:
        named = template.columns(entry.get("prompt", pubmedqa.PROMPT))
    except ValueError as error:
        checks.refuse([*path, "prompt"], str(error))
    if not named:
        checks.refuse([*path, "prompt"], "has no column, as {input}: it would ask the same of each item")
    if "truncate" in entry and named.count(entry["truncate"]) != 1:
        checks.refuse([*path, "truncate"], f"{entry['truncate']} must be once in the prompt, of {', '.join(named)}")
    if not is_own(entry):
        if of_others := next((key for key in ("answer", "id", "labels") if key in entry), None):
            checks.refuse([*path, of_others], "PubMedQA has its own; the key is for files of yours")
        for column in named:
            if column not in pubmedqa.COLUMNS:
                checks.refuse([*path, "prompt"], f"no column {column}: there are {', '.join(pubmedqa.COLUMNS)}")
        if entry.get("sample", 0) > 500:
            checks.refuse([*path, "sample"], f"{entry['sample']} of 500 test items")
        needed = "directory" in entry and checks.is_needed("dataset", name)
        if needed and (problem := problem_of_directory(entry["directory"])):
            checks.refuse([*path, "directory"], problem)
        return
    labels = entry.get("labels", [])
    if "malformed" in labels:
        checks.refuse([*path, "labels"], "no label can be called malformed: the tables say so of texts that are none")
    if twice := next((label for label in labels if [*map(seen, labels)].count(seen(label)) > 1), None):
        checks.refuse([*path, "labels"], f"{twice} stands twice, in two Unicode forms or with other blanks")
    if entry["answer"] in named:
        checks.refuse([*path, "prompt"], f"has {{{entry['answer']}}}, which is the answer")
    for key in filter(entry.__contains__, OWN):
        if checks.is_needed("dataset", name) or (os.path.isfile(entry[key]) and os.access(entry[key], os.R_OK)):
            check_file(checks, [*path, key], entry, named, answered=key != "test")


def problem_of_directory(place):
    """Why it is none with PubMedQA, or None."""
    if problem := places.unreadable(place):
        return problem
    there, of_hub = [Path(place, file).is_file() for file in PUBMEDQA], [*Path(place).glob("*.parquet")]
    if all(there) or (len(of_hub) == 1 and not there[0]):
        return None
    found = f", but {len(of_hub)} of them" if of_hub[1:] else ""
    return f"{place}: holds neither {' and '.join(PUBMEDQA)} nor one *.parquet of the Hub{found}"


def check_run(checks, name, run):
    """The run asks of its data set only what that has."""
    entry, path = checks.config["datasets"][run["dataset"]], ["runs", name]
    if missing := next((fold for fold in run["folds"] if fold not in folds_of(entry)), None):
        problem = f"{run['dataset']} has fold 0 only; of one file, as items:, ten are drawn"
        checks.refuse([*path, "folds"], f"{missing}: {problem}")
    if "train" not in run:
        return
    if "test" in entry and "train" not in entry:
        checks.refuse([*path, "dataset"], f"{run['dataset']} has no train: and val:, and the run has train:")
    if "repeat_maybe" in run["train"] and is_own(entry) and "maybe" not in entry.get("labels", ()):
        checks.refuse([*path, "train", "repeat_maybe"], f"{run['dataset']} has no label maybe")


def flag(name, values):
    """A script's flag. A value that begins with a dash, as -1, would be taken for a flag itself."""
    if any(value.startswith("-") for value in values):
        return shlex.join(f"--{name}={value}" for value in values)
    return f"--{name} {shlex.join(values)}"


class DataSets:
    """What rules tell their scripts. A method with `of_job` in it returns a function of wildcards."""

    def __init__(self, config):
        self.config = config

    def of_run(self, wildcards):
        return self.config["datasets"][self.config["runs"][wildcards.run]["dataset"]]

    def task(self, *names):
        """Flags for those of `labels`, `gold` and `human` that the run's data set has: the closed set of answers, the
        items' keys of the gold answer and of a person's."""

        def of_job(wildcards):
            entry = self.of_run(wildcards)
            if is_own(entry):
                flags = {"labels": labels_of(entry), "gold": [entry["answer"]]}
            else:
                flags = {"labels": labels_of(entry), "gold": ["final_decision"], "human": ["reasoning_required_pred"]}
            return " ".join(flag(name, flags[name]) for name in names if flags.get(name))

        return quickly(of_job)

    def columns(self, *names):
        """The data set's own columns as one JSON string, for --columns."""

        def of_job(wildcards):
            found = columns_of(self.config["datasets"][wildcards.dataset], *names)
            return shlex.quote(json.dumps(found, ensure_ascii=False))

        return quickly(of_job)

    def question(self, wildcards):
        """What write_jsonl is to ask: by PubMedQA's label and prompt, or by the columns of one's own."""
        entry = self.config["datasets"][wildcards.dataset]
        if is_own(entry):
            asked, more = f"--columns {self.columns('prompt', 'answer', 'labels')(wildcards)}", ["truncate"]
        else:
            asked, more = f"--label {wildcards.label}", ["prompt", "truncate"]
        return " ".join([asked, *(f"--{key}={shlex.quote(entry[key])}" for key in more if key in entry)])

    def files(self, wildcards):
        """The user's file of a split, and those that may have none of its prompts."""
        entry = self.config["datasets"][wildcards.dataset]
        first = OWN.index(wildcards.split.split("/")[-1])
        return [entry[key] for key in OWN[first:] if key in entry]

    def file_flags(self, wildcards):
        file, *others = self.files(wildcards)
        test = " --test" if wildcards.split == "test" else ""
        return Unrecorded(f"--file {shlex.quote(file)}{test}" + (f" --unlike {shlex.join(others)}" if others else ""))

    def states(self, wildcards):
        return "".join(map(state_of_contents, self.files(wildcards)))

    def file(self, key):
        """The flag of the user's one file, of which its contents count alone: another name re-runs nothing."""
        return quickly(lambda wildcards: Unrecorded(f"--{key} {shlex.quote(self.entry(wildcards)[key])}"))

    def state(self, key):
        return quickly(lambda wildcards: state_of_contents(self.entry(wildcards)[key]))

    def entry(self, wildcards):
        return self.config["datasets"][wildcards.dataset]

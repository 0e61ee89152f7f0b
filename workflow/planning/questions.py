"""Questions: a data set with `test:` alone, of which a run's models are asked the answers, results/answers/."""

import os
import re

from ..scripts.common import template
from ..scripts.common.user_files.items import answer_of, cut
from ..scripts.common.user_files.reading import rows
from . import Problem
from .datasets import flag, folds_of, labels_of
from .own_files import check_file, check_items, is_large
from .speed import quickly
from .sweeps import unknown
from .table import ADAPTED
from .targets import below


def are_in(entry):
    """Whether a data set has `test` alone; there may be answers in it."""
    return "test" in entry and "train" not in entry


def labels_of_answers(config, run, dataset):
    """Those of the questions; where they have none, of the run's own data set. None: free text."""
    datasets = config["datasets"]
    return labels_of(datasets[dataset]) or labels_of(datasets[config["runs"][run]["dataset"]])


def models_of(run):
    return [f"fold{fold}/seed{seed}/" for fold in run["folds"] for seed in run["seeds"]]


def check_run(checks, name):
    """A run in the table has answers to be scored by; of a file that is not there nobody knows."""
    dataset = checks.config["runs"][name]["dataset"]
    entry = checks.config["datasets"][dataset]
    if name not in checks.config["targets"] or not os.path.isfile(file := entry.get("test", "")):
        return
    if file.lower().endswith(".json") and is_large(file):
        return
    try:
        item = next((item for _, _, item in rows(file, [entry["answer"]])), None)
    except ValueError as error:
        checks.refuse(["datasets", dataset, "test"], str(error))
    if item is None or str(answer_of(item, entry["answer"]) or "").strip():  # then all items have one
        return
    columns = cut(", ".join(item), 300)
    none = f"{dataset} has no answers, as {file} has none under {entry['answer']}; its columns are {columns}"
    ask = f". Take {name} out of targets: and ask it: snakemake results/answers/{name}/{dataset}.tsv"
    checks.refuse(["runs", name, "dataset"], f"{none}: nothing can be scored{ask if are_in(entry) else ''}")


def check_target(target, checks, directory):
    """A file under `directory`, results/answers, is of a run and of questions. Free text is of one model."""
    if not (parts := below(target, directory)):
        return
    runs, datasets = checks.config["runs"], checks.config["datasets"]
    form = r"([^/]+)/(?:fold(\d)/seed(?:0|[1-9]\d*)/)?([^/]+)(?:\.tsv|/predictions\.[^/]+)"
    if not (match := re.fullmatch(form, "/".join(parts))):
        files = f"{directory}/RUN/DATASET.tsv, and of one model {directory}/RUN/fold0/seed0/DATASET.tsv"
        raise Problem(f"{target}: answers are in {files}")
    run, fold, dataset = match.groups()
    if run not in runs:
        raise Problem(f"{target}: {unknown(run, runs)}")
    if dataset not in datasets or not are_in(datasets[dataset]):
        asked = ", ".join(name for name, entry in datasets.items() if are_in(entry)) or "none yet"
        raise Problem(f"{target}: {dataset} is not among the datasets with test: alone, which can be asked: {asked}")
    entry, own = datasets[dataset], runs[run]["dataset"]
    if fold and int(fold) not in folds_of(datasets[own]):
        raise Problem(f"{target}: {own} has fold 0 only")
    if not fold and len(models := models_of(runs[run])) > 1 and not labels_of_answers(checks.config, run, dataset):
        one = f"{directory}/{run}/{models[0]}{dataset}.tsv"
        raise Problem(f"{target}: without labels: {len(models)} models have no answer together. Ask one: {one}")
    check_file(checks, ["datasets", dataset, "test"], entry, template.columns(entry["prompt"]), answered=False)
    check_items(checks, dataset, scored=False)


class Questions:
    """Of one configuration, for rules. A method with `of_job` in it returns a function of wildcards."""

    def __init__(self, config):
        self.config = config

    def names(self):
        """A regular expression of the data sets of questions."""
        names = [name for name, entry in self.config["datasets"].items() if are_in(entry)]
        return "|".join(map(re.escape, names)) or "(?!)"

    def labels(self):
        """A flag for predict."""

        def of_job(wildcards):
            labels = labels_of_answers(self.config, wildcards.run, wildcards.dataset)
            return flag("labels", labels) if labels else ""

        return quickly(of_job)

    def models(self, wildcards):
        """The {one} model or, where that is empty, all of the run."""
        return [wildcards.one] if wildcards.one else models_of(self.config["runs"][wildcards.run])

    def predictions(self, name="predictions.jsonl"):
        """The paths of these models' predictions, or of a file beside them."""

        def of_job(wildcards):
            directory = f"<results>/answers/{wildcards.run}"
            return [f"{directory}/{one}{wildcards.dataset}/{name}" for one in self.models(wildcards)]

        return quickly(of_job)

    def adapters(self):
        """The paths of what is recorded of these models' adapters; none of the base."""

        def of_job(wildcards):
            if self.config["runs"][wildcards.run].keys().isdisjoint(ADAPTED):
                return []
            directory = f"<results>/runs/{wildcards.run}"
            return [f"{directory}/{one}adapter.provenance.json" for one in self.models(wildcards)]

        return quickly(of_job)

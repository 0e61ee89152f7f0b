"""Data sets: what rules tell the scripts of them."""

import shlex

from ..scripts.common import pubmedqa
from .speed import quickly

OWN = ("train", "val", "test", "items")  # keys that name a file of the user


def is_own(entry):
    return not entry.keys().isdisjoint(OWN)


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
            entry, flags = self.of_run(wildcards), {}
            if is_own(entry):
                flags = {"labels": entry.get("labels"), "gold": [entry["answer"]]}
            else:
                flags = {"labels": pubmedqa.LABELS, "gold": ["final_decision"], "human": ["reasoning_required_pred"]}
            return " ".join(f"--{name} {shlex.join(flags[name])}" for name in names if flags.get(name))

        return quickly(of_job)

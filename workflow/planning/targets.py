"""Checks what is asked for on the command line, before Snakemake looks for a rule that makes it."""

import os
import re
from pathlib import Path

from . import Problem
from .datasets import folds_of


def below(target, directory):
    """The parts of a target's path below a directory; none where it is elsewhere."""
    results = Path.cwd() / Path(directory).parent
    if not os.path.isabs(directory) and results != Path.cwd() and results in Path(target).parents:
        raise Problem(f"{target}: a target is a path from here: {os.path.relpath(target)}")
    return Path(target).relative_to(directory).parts if Path(directory) in Path(target).parents else ()


def check(target, runs, datasets, directory, before=""):
    """A file under `directory`, results/runs, is of one of the runs, and of a fold and seed that there can be.

    before: the argument before it; after an option, it may be its value.
    """
    if target in runs and not target.startswith("-") and (not before.startswith("-") or before in ("-n", "--dry-run")):
        one = f"{directory}/{target}/fold0/seed0/metrics.json"
        raise Problem(f"{target}: is a run and no target. Put it under targets:, or ask for a file of it: {one}")
    if not (parts := below(target, directory)):
        return
    run, fold, seed = (*parts, "", "")[:3]
    if run not in runs:
        raise Problem(f"{target}: {run} is not among runs: {', '.join(runs)}")
    choice = next((name for name, entry in runs.items() if run in entry.get("choose", [])), None)
    if choice and not re.fullmatch(r"(adapter\.|(peft|merged)[/.])[^/]+", "/".join(parts[3:])):
        why = "only what is chosen gets answers to the test items"
        raise Problem(f"{target}: {run} is a candidate of {choice}: {why}")
    if not re.fullmatch(r"fold\d", fold) or not re.fullmatch(r"seed(0|[1-9]\d*)", seed):
        raise Problem(f"{target}: {fold}/{seed} is none of fold0/seed0, fold0/seed1, …, fold9/…")
    if int(fold[4:]) not in folds_of(datasets.get(runs[run]["dataset"], {})):
        raise Problem(f"{target}: {runs[run]['dataset']} has fold 0 only")

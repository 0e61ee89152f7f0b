"""What a run with `start_from:` asks of the run whose adapter its training begins with."""

from .sweeps import runs_of, unknown
from .table import ADAPTED, parents


def check(checks, name):
    """Raises Problem where that run makes none of this form for these folds and seeds, or not without this run."""
    runs, path = checks.config["runs"], ["runs", name, "train", "start_from"]
    run, start = runs[name], runs[name]["train"]["start_from"]
    if start not in runs and runs_of(start, runs):
        checks.refuse(path, unknown(start, runs))
    if start not in runs or runs[start].keys().isdisjoint(ADAPTED):
        kinds = " or ".join(f"{key}:" for key in ADAPTED)
        checks.refuse(path, f"{start} is not among the runs that have {kinds}")
    other, needed = runs[start], [start]
    for before in needed:  # grows
        needed += [run for run in parents(runs[before]) if run in runs and run not in needed]
    if name in needed:
        checks.refuse(path, f"{start} itself needs the adapter of {name}; a training can't start from its own")
    for key in ("folds", "seeds"):
        if missing := set(run[key]) - set(other[key]):
            checks.refuse(path, f"{start} has no {min(missing)} among its {key}, but {name} has")
    for key in ("model", "target_modules", "adapter_dim"):
        own, its = (entry.get(key, entry.get("train", {}).get(key)) for entry in (run, other))
        own, its = (sorted(value) if isinstance(value, list) else value for value in (own, its))
        if its is not None and own != its:  # of a run that trains nothing, the job sees it
            checks.refuse(path, f"{start} and {name} differ in {key}, in which they must agree")

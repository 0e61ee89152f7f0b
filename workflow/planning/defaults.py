"""runs.defaults: what runs share, put into each of them."""

import copy


def without_nulls(tree):
    """By null a further configuration file, or a run, takes a key away."""
    if not isinstance(tree, dict):
        return tree
    return {key: without_nulls(value) for key, value in tree.items() if value is not None}


def with_defaults(run, defaults, above="runs"):
    """A run with the defaults for what it does not say itself, key by key; those of train: only where it has train:."""
    if not isinstance(run, dict) or not isinstance(defaults, dict):
        return run
    missing = {key: value for key, value in defaults.items() if key not in run and (above, key) != ("runs", "train")}
    return copy.deepcopy(missing) | {key: with_defaults(value, defaults.get(key), key) for key, value in run.items()}


def share(runs, refuse):
    """Takes `defaults`, which is no run, out of the runs and puts it into each. What is wrong in it is wrong in them.

    refuse(path, problem) ends the call.
    """
    if not (defaults := runs.pop("defaults", None)):
        return
    if not isinstance(defaults, dict):
        refuse(["runs", "defaults"], "is not of the form of a run, as {devices: 1, train: {lr: 1.0e-4}}")
    for key in {"choose", "adapter"} & defaults.keys():
        refuse(["runs", "defaults", key], "stands in a run, which it makes another kind of run")
    for name in runs:
        runs[name] = with_defaults(runs[name] or {}, defaults)

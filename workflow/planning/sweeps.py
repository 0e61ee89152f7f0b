"""Sweeps: of a run whose `train:` has keys with several values, as `lr: {sweep: [1.0e-4, 2.0e-4]}`, one run for each
combination of the values, named after them: lora-lr-0.0001, lora-lr-0.0002."""

import itertools
import json
import math
import re

LARGEST = 5000  # runs of a sweep: Snakemake plans them in a minute


def values_of(value):
    """The values of a sweep, or None where it is none. Raises ValueError where it is one without values."""
    if not isinstance(value, dict) or "sweep" not in value:
        return None
    values = value["sweep"]
    if list(value) != ["sweep"] or not isinstance(values, list) or not values:
        raise ValueError(f"{json.dumps(value)}: write it as {{sweep: [1.0e-4, 2.0e-4]}}, with the values to try")
    if len({json.dumps(one) for one in values}) < len(values):
        raise ValueError(f"{json.dumps(value)}: a value stands there twice")
    return values


def name_of(value, number):
    """In a run's name; what is no plain word or number there goes by its number, from 1."""
    text = json.dumps(value).strip('"')
    return text if re.fullmatch(r"[\w.-]+", text) else str(number)


def runs_of(name, runs):
    """The names of the runs that a sweep of this name has become; none where there was no such sweep."""
    return [
        run for run, entry in runs.items() if any(run.startswith(f"{name}-{key}-") for key in entry.get("train", ()))
    ]


def unknown(name, runs):
    """What is said of a name that is no run's."""
    if own := runs_of(name, runs):
        return f"{name} is a sweep: name one of its runs, as {own[0]}"
    there = [*runs][:20]
    return f"{name} is not among runs: {', '.join(there)}{', …' * (len(runs) > len(there))}"


def unfold(config, refuse):
    """Puts the runs that sweeps stand for in their place, under `runs`, `targets` and `choose`.

    Returns {the name of such a run: that of the sweep}. refuse(path, problem) ends the call.
    """
    runs, origin = {}, {}
    for name, run in config["runs"].items():
        train = run.get("train") if isinstance(run, dict) else None
        sweeps = {}
        for key, value in train.items() if isinstance(train, dict) else ():
            try:
                values = values_of(value)
            except ValueError as error:
                refuse(["runs", name, "train", key], str(error))
            if values:
                sweeps[key] = list(enumerate(values, start=1))
        if (number := math.prod(map(len, sweeps.values()))) > LARGEST:
            refuse(["runs", name, "train"], f"its sweeps make {number:,} runs; {LARGEST:,} at most: name fewer values")
        for chosen in itertools.product(*sweeps.values()) if sweeps else ():
            parts = [f"{key}-{name_of(value, number)}" for key, (number, value) in zip(sweeps, chosen)]
            one = "-".join([name, *parts])
            if one in config["runs"]:
                refuse(["runs", one], f"is also the name of a run of the sweep {name}: name it otherwise")
            runs[one] = run | {"train": train | {key: value for key, (_, value) in zip(sweeps, chosen)}}
            origin[one] = name
        if not sweeps:
            runs[name] = run
    of_sweep = {}
    for one, name in origin.items():
        of_sweep.setdefault(name, []).append(one)

    def unfolded(names):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return names  # the schema tells of it
        return [one for name in names for one in of_sweep.get(name, [name])]

    if "targets" in config:
        config["targets"] = unfolded(config["targets"])
    for name, run in runs.items():
        if isinstance(run, dict) and "choose" in run:
            runs[name] = run | {"choose": unfolded(run["choose"])}
    config["runs"] = runs
    return origin

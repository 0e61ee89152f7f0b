"""What the rules share: the wildcards' forms, and how a rule reads the configuration."""

import itertools
import shlex


include: "planning.smk"


wildcard_constraints:
    model=r"[\w.-]+",
    dataset=r"[\w.-]+",
    run=r"[\w.-]+",
    label="final_decision|reasoning_required_pred|reasoning_free_pred",
    fold=r"\d",
    seed=r"\d+",
    split=r"test|fold\d/(train|train-maybe\d|val)",


def having(section, *keys):
    """A regular expression of the names in config[section] whose entry has one of the keys."""
    names = [name for name, entry in config[section].items() if not entry.keys().isdisjoint(keys)]
    return "|".join(map(re.escape, names)) or "(?!)"


@of_wildcards
def flags(wildcards, kind, *keys):
    """Command-line flags for those of the keys that the wildcard's model or dataset has in the configuration."""
    entry = config[f"{kind}s"][wildcards[kind]]
    return " ".join(f"--{key} {shlex.quote(str(entry[key]))}" for key in keys if key in entry)


@of_wildcards
def of_run(wildcards, pattern):
    """A path whose {model}, {dataset} and {label} are the run's."""
    return pattern.format(**config["runs"][wildcards.run], **wildcards)


@of_wildcards
def train_jsonl(wildcards):
    """The path of the run's training items, where it has `repeat_maybe:` with these more often than once."""
    run = config["runs"][wildcards.run]
    split = f"train-maybe{run['train']['repeat_maybe']}" if "repeat_maybe" in run["train"] else "train"
    return f"<results>/data/{run['dataset']}/{run['label']}/fold{wildcards.fold}/{split}.jsonl"


@of_wildcards
def of_trained(wildcards, pattern):
    """A path of a run that has `train:` or `choose:`; none of the base alone."""
    return [] if config["runs"][wildcards.run].keys().isdisjoint(("train", "choose")) else pattern.format(**wildcards)


@of_wildcards
def of_candidates(wildcards, file):
    """The path of a file for each fold and seed of a run's candidates."""
    run = config["runs"][wildcards.run]
    models = itertools.product(run["choose"], run["folds"], run["seeds"])
    return [f"<results>/runs/{candidate}/fold{fold}/seed{seed}/{file}" for candidate, fold, seed in models]


@of_wildcards
def settings(wildcards, group):
    """A run's settings as one JSON string: whatever changes in them, and nothing else, re-runs the rule."""
    shared = ("devices", "tensor_model_parallel_size", "precision", "megatron_amp_O2", "max_seq_length")
    run = config["runs"][wildcards.run]
    return json.dumps({key: run[key] for key in shared} | run[group], sort_keys=True)


def of_targets(file):
    """The paths of a file of each model in the table."""
    return [
        f"<results>/runs/{run}/fold{fold}/seed{seed}/{file}"
        for run in config["targets"]
        for fold in config["runs"][run]["folds"]
        for seed in config["runs"][run]["seeds"]
    ]


def entries_of_targets(kind):
    """{name: entry} of the models or data sets, by `kind`, of the runs in the table."""
    names = sorted({config["runs"][run][kind] for run in config["targets"]})
    return {name: config[f"{kind}s"][name] for name in names}

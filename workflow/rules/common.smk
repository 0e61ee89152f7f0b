"""What the rules share: the wildcards' forms, and how a rule reads the configuration."""

import shlex


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


def flags(kind, *keys):
    """Command-line flags for those of the keys that the wildcard's model or dataset has in the configuration."""

    def of_entry(wildcards):
        entry = config[f"{kind}s"][wildcards[kind]]
        return " ".join(f"--{key} {shlex.quote(str(entry[key]))}" for key in keys if key in entry)

    return of_entry


def of_run(pattern):
    """A path whose {model}, {dataset} and {label} are the run's."""
    return lambda wildcards: pattern.format(**config["runs"][wildcards.run], **wildcards)


def train_jsonl(wildcards):
    """The path of the run's training items, where it has `repeat_maybe:` with these more often than once."""
    run = config["runs"][wildcards.run]
    split = f"train-maybe{run['train']['repeat_maybe']}" if "repeat_maybe" in run["train"] else "train"
    return f"<results>/data/{run['dataset']}/{run['label']}/fold{wildcards.fold}/{split}.jsonl"


def of_trained(pattern):
    """A path of a run that has `train:` or `choose:`; none of the base alone."""
    tuned = {"train", "choose"}
    return lambda wildcards: pattern.format(**wildcards) if tuned & config["runs"][wildcards.run].keys() else []


def of_models(runs, file):
    """The paths of a file of each fold and seed of the runs."""
    return [
        f"<results>/runs/{run}/fold{fold}/seed{seed}/{file}"
        for run in runs
        for fold in config["runs"][run]["folds"]
        for seed in config["runs"][run]["seeds"]
    ]


def of_candidates(file):
    """The paths of a file of each model that a run with `choose:` chooses from."""
    return lambda wildcards: of_models(config["runs"][wildcards.run]["choose"], file)


def settings(group):
    """A run's settings as one JSON string: whatever changes in them, and nothing else, re-runs the rule."""
    shared = ("devices", "tensor_model_parallel_size", "precision", "megatron_amp_O2", "max_seq_length")

    def of_run(wildcards):
        run = config["runs"][wildcards.run]
        return json.dumps({key: run[key] for key in shared} | run[group], sort_keys=True)

    return of_run


def entries_of_targets(kind):
    """{name: entry} of the models or data sets, by `kind`, of the runs in the table."""
    names = sorted({config["runs"][run][kind] for run in config["targets"]})
    return {name: config[f"{kind}s"][name] for name in names}

"""The runs in the table, those under `targets:`, and the runs that these are made from."""

import json

from .speed import quickly

TRAINED = ("train", "choose")  # a run that has one of these has adapters that were trained here
ADAPTED = (*TRAINED, "adapter")  # one that has none of these is the base alone


def parents(run):
    """The names of the runs whose adapters it takes over or begins with."""
    return [*run.get("choose", []), *filter(None, [run.get("train", {}).get("start_from")])]


def needed(config, asked=()):
    """{name: run} of the runs under `targets:`, of those asked for beside them, and of all that these are made from."""
    runs, found, names = config["runs"], {}, [*config["targets"], *asked]
    for name in names:  # grows
        if name in runs and name not in found:
            found[name] = runs[name]
            names += parents(runs[name])
    return found


class Table:
    """Of one configuration, checked and with the schema's defaults."""

    def __init__(self, config):
        self.config, self.targets = config, config["targets"]

    def of_targets(self, file, trained=False):
        """The paths of a file of each model in the table; trained: of those that were trained here."""
        runs = {run: self.config["runs"][run] for run in self.targets}
        return [
            f"<results>/runs/{run}/fold{fold}/seed{seed}/{file}"
            for run, entry in runs.items()
            for fold in entry["folds"]
            for seed in entry["seeds"]
            if not (trained and entry.keys().isdisjoint(TRAINED))
        ]

    def of_table(self, file):
        """The paths of a file of one model and of its base alone, as far as the table has them. Of a model that is not
        in the table, as a candidate under `choose:`, there are none: it is not to be tested for this."""

        def of_job(wildcards):
            runs, own = self.config["runs"], self.config["runs"][wildcards.run]
            is_in = int(wildcards.fold) in own["folds"] and int(wildcards.seed) in own["seeds"]
            if wildcards.run not in self.targets or not is_in:
                return []
            alike = [name for name in self.targets if all(runs[name][key] == own[key] for key in ("model", "dataset"))]
            bases = [name for name in alike if runs[name].keys().isdisjoint(ADAPTED)]
            models = [(wildcards.run, wildcards.fold, wildcards.seed)]
            models += [(name, runs[name]["folds"][0], runs[name]["seeds"][0]) for name in bases[:1]]
            return [f"<results>/runs/{run}/fold{fold}/seed{seed}/{file}" for run, fold, seed in models]

        return quickly(of_job)

    def names_of_targets(self, kind):
        """The names of the models or data sets, by `kind`, of the runs in the table."""
        return sorted({self.config["runs"][run][kind] for run in self.targets})

    def sources(self, wildcards):
        """Models, data sets and others' adapters of the runs in the table as one JSON string: {kind: {name: entry}}. A
        function of wildcards, as Snakemake would take the columns of a prompt in a plain string for wildcards."""
        kinds = [(kind, self.config[kind], self.names_of_targets(kind[:-1])) for kind in ("models", "datasets")]
        found = {kind: {name: entries[name] for name in names} for kind, entries, names in kinds}
        runs = {run: self.config["runs"][run] for run in self.targets}
        if adapters := {run: entry["adapter"] for run, entry in runs.items() if "adapter" in entry}:
            found["adapters"] = adapters
        return json.dumps(found, sort_keys=True)

"""A choice among trained runs, on validation data: a run that has `choose:` takes over the adapters of one of them.

In:   results/runs/{candidate}/fold{fold}/seed{seed}/adapter.nemo and its .provenance.json, with the validation loss
Out:  the same of {run}. The candidates get no answers to the test items.
"""

import itertools


def check_choice(name, run):
    """Validation losses compare only where model, items and answers are the same."""
    if "train" in run:
        refuse(["runs", name, "choose"], "stands beside train:; a run has one of them")
    for candidate in run["choose"]:
        if candidate not in config["runs"] or "train" not in config["runs"][candidate]:
            refuse(["runs", name, "choose"], f"{candidate} is not among the runs that have train:")
        if candidate in config["targets"]:
            problem = f"{candidate} is under targets: that would be choosing on test; take it out of one of them"
            refuse(["runs", name, "choose"], problem)
        for key in run.keys() - {"choose", "predict"}:
            if run[key] != config["runs"][candidate].get(key):
                refuse(["runs", name, "choose"], f"{candidate} and {name} differ in {key}, in which they must agree")


for name, run in config["runs"].items():
    if "choose" in run:
        check_choice(name, run)


def of_candidates(file):
    """The path of a file for each fold and seed of a run's candidates."""

    def of_run(wildcards):
        run = config["runs"][wildcards.run]
        models = itertools.product(run["choose"], run["folds"], run["seeds"])
        return [f"<results>/runs/{candidate}/fold{fold}/seed{seed}/{file}" for candidate, fold, seed in models]

    return of_run


rule choose_run:
    input:
        script="workflow/scripts/choose_run.py",
        adapters=of_candidates("adapter.nemo"),
        provenance=of_candidates("adapter.provenance.json"),
    output:
        adapter="<results>/runs/{run}/fold{fold}/seed{seed}/adapter.nemo",
        provenance="<results>/runs/{run}/fold{fold}/seed{seed}/adapter.provenance.json",
    log:
        "<logs>/choose_run/{run}/fold{fold}-seed{seed}.log",
    wildcard_constraints:
        run=having("runs", "choose"),
    localrule: True
    conda:
        "../../envs/host.yaml"
    shell:
        "python {input.script} --provenance {input.provenance:q} --fold {wildcards.fold} --seed {wildcards.seed}"
        " --output {output.adapter:q} &> {log:q}"

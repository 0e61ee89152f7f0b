"""The choice among the runs under choose: in config/config.yaml, on validation data only.

In:   results/runs/{run}/fold{fold}/seed{seed}/adapter.provenance.json, with training's lowest validation loss
Out:  results/choice.json: the run with the lowest mean; the others get no answers to the test items
"""


def check_candidate(name, other):
    """Validation losses compare only where model, items and answers are the same."""
    if name not in config["runs"] or "train" not in config["runs"][name]:
        refuse(["choose"], f"{name} is not among the runs that have train:")
    if name in config["targets"]:
        refuse(["choose"], f"{name} is under targets, too: that would be choosing on test. Take it out of one of them")
    for key in ("model", "dataset", "label", "folds", "seeds"):
        if config["runs"][name][key] != config["runs"][other][key]:
            refuse(["choose"], f"{name} and {other} differ in {key}: their validation losses can't be compared")


for name in config["choose"]:
    check_candidate(name, config["choose"][0])


checkpoint choose_run:
    input:
        script="workflow/scripts/choose_run.py",
        provenance=of_models(config["choose"], "adapter.provenance.json"),
    output:
        "<results>/choice.json",
    log:
        "<logs>/choose_run.log",
    localrule: True
    conda:
        "../../envs/host.yaml"
    shell:
        "python {input.script} --provenance {input.provenance:q} --output {output:q} &> {log:q}"


def choice(wildcards=None):
    """results/choice.json, for which the jobs that ask wait; none where there is nothing to choose."""
    return checkpoints.choose_run.get().output if config["choose"] else []


def chosen():
    return [json.loads(Path(file).read_text())["run"] for file in choice()]


def if_chosen(wildcards):
    """No file; ends where a candidate that was not chosen would answer the test items."""
    if wildcards.run in config["choose"] and wildcards.run not in chosen():
        problem = f"{chosen()[0]} was chosen on validation data; {wildcards.run} gets no answers to the test items"
        refuse(["choose"], problem)
    return []

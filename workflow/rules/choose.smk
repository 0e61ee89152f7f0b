"""A choice among trained runs, on validation data: a run that has `choose:` takes over the adapters of one of them.

In:   results/runs/{candidate}/fold{fold}/seed{seed}/adapter.nemo and its .provenance.json, with the validation loss
Out:  the same of {run}. The candidates get no answers to the test items.
"""


rule choose_run:
    """The adapter of the candidate under `choose:` with the lowest validation loss, the mean over folds and seeds."""
    input:
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
    params:
        script=script("choose_run"),
        code=code("choose_run"),
    shell:
        "python {params.script:q} --provenance {input.provenance:q} --fold {wildcards.fold} --seed {wildcards.seed}"
        " --output {output.adapter:q} &> {log:q}"

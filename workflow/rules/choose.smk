"""Adapters that a run takes over instead of training its own: with `choose:` those of the best of its candidates, on
validation data; with `adapter:` one that was trained elsewhere.

In:   results/runs/{candidate}/fold{fold}/seed{seed}/adapter.nemo and its .provenance.json, with the validation loss
      an adapter in PEFT's format or NeMo's, results/base/{model}/
Out:  results/runs/{run}/fold{fold}/seed{seed}/adapter.nemo and its .provenance.json. The candidates get no answers to
      the test items.
"""


rule choose_run:
    """Takes the adapter of the candidate with the lowest validation loss, averaged over folds and seeds."""
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


rule import_adapter:
    """Converts an adapter trained elsewhere to NeMo's format. Weights are not rounded; only LoRA is accepted."""
    input:
        base=of_run("<results>/base/{model}/model_config.yaml"),
        snapshot=of_run("<resources>/hf/{model}/manifest.json"),
        manifest=adapters.manifest("<resources>/hf/{model}/manifest.json"),
    output:
        adapter="<results>/runs/{run}/fold{fold}/seed{seed}/adapter.nemo",
        provenance="<results>/runs/{run}/fold{fold}/seed{seed}/adapter.provenance.json",
    log:
        "<logs>/import_adapter/{run}/fold{fold}-seed{seed}.log",
    wildcard_constraints:
        run=having("runs", "adapter"),
    priority: 1  # what is refused, before GPUs are at work
    localrule: True
    conda:
        "../../envs/host.yaml"
    params:
        script=script("import_adapter"),
        code=code("import_adapter"),
        origin=origin,
        source=adapters.flags(),
        files=adapters.state(),
        base=subpath(input.base, parent=True),
        snapshot=subpath(input.snapshot, parent=True),
    shell:
        "{params.origin} python {params.script:q} {params.source} --snapshot {params.snapshot:q} --base {params.base:q}"
        " --output {output.adapter:q} &> {log:q}"

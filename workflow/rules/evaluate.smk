"""Figures against the gold answers.

In:   results/runs/{run}/fold{fold}/seed{seed}/predictions.jsonl
Out:  results/runs/{run}/fold{fold}/seed{seed}/{metrics,provenance}.json
      results/accuracy.{tsv,json}, the runs of targets: side by side
"""


rule evaluate:
    """Scores one model's predictions against the gold answers, paired by id."""
    input:
        predictions="<results>/runs/{run}/fold{fold}/seed{seed}/predictions.jsonl",
        predict_provenance="<results>/runs/{run}/fold{fold}/seed{seed}/predictions.provenance.json",
        train_provenance=of_trained("<results>/runs/{run}/fold{fold}/seed{seed}/adapter.provenance.json"),
        test=of_run("<results>/data/{dataset}/{label}/test.jsonl"),
        test_items=of_run("<results>/data/{dataset}/items/test.json"),
    output:
        metrics="<results>/runs/{run}/fold{fold}/seed{seed}/metrics.json",
        provenance="<results>/runs/{run}/fold{fold}/seed{seed}/provenance.json",
    log:
        "<logs>/evaluate/{run}/fold{fold}-seed{seed}.log",
    conda:
        "../../envs/host.yaml"
    params:
        script=script("evaluate"),
        code=code("evaluate"),
        origin=origin,
        label=of_run("{label}"),
        task=task("labels", "gold", "human"),
        name=of_run("run={run} fold={fold} seed={seed} model={model} dataset={dataset} label={label}"),
    shell:
        "{params.origin} python {params.script:q} --predictions {input.predictions:q}"
        " --predict-provenance {input.predict_provenance:q} --train-provenance {input.train_provenance:q}"
        " --test {input.test:q} --test-items {input.test_items:q}"
        " {params.task} --label {params.label} --name {params.name}"
        " --provenance {output.provenance:q} --output {output.metrics:q} &> {log:q}"


rule compare_runs:
    """Writes the table of the runs under `targets:`, with all comparisons between them."""
    input:
        metrics=of_targets("metrics.json"),
    output:
        table=report("<results>/accuracy.tsv", caption="../report/accuracy.rst", category="Accuracy"),
        json="<results>/accuracy.json",
    log:
        "<logs>/compare_runs.log",
    localrule: True
    conda:
        "../../envs/host.yaml"
    params:
        script=script("compare_runs"),
        code=code("compare_runs"),
        sources=sources,
    shell:
        "python {params.script:q} --metrics {input.metrics:q} --sources {params.sources:q}"
        " --output {output.table:q} --json {output.json:q} &> {log:q}"

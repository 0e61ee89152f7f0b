"""What a person reads: of the results, on one page, and of each adapter that goes out.

In:   results/accuracy.{tsv,json}, results/runs/{run}/fold{fold}/seed{seed}/{metrics,provenance}.json, predictions.jsonl
Out:  results/report.html
      results/runs/{run}/fold{fold}/seed{seed}/peft/README.md, on request
"""


report: "../report/workflow.rst"


rule write_report:
    """Writes the report: table, figures, errors, settings, costs and provenance of the runs under `targets:`."""
    input:
        table="<results>/accuracy.tsv",
        json="<results>/accuracy.json",
        metrics=of_targets("metrics.json"),
        provenance=of_targets("provenance.json"),
        predictions=of_targets("predictions.jsonl"),
        test_items=[f"<results>/data/{dataset}/items/test.json" for dataset in names_of_targets("dataset")],
    output:
        report("<results>/report.html", caption="../report/report.rst", category="Report"),
    log:
        "<logs>/write_report.log",
    localrule: True
    conda:
        "../../envs/host.yaml"
    params:
        script=script("write_report"),
        code=code("write_report"),
        sources=sources,
        language=parameters.language(),
    shell:
        "python {params.script:q} {params.language} --table {input.table:q} --json {input.json:q} --metrics {input.metrics:q}"
        " --test-items {input.test_items:q} --sources {params.sources:q} --output {output:q} &> {log:q}"


rule write_model_card:
    """Writes the adapter's model card for the Hugging Face Hub, with results if the table has them."""
    input:
        config="<results>/runs/{run}/fold{fold}/seed{seed}/peft/adapter_config.json",
        weights="<results>/runs/{run}/fold{fold}/seed{seed}/peft/adapter_model.safetensors",
        adapter="<results>/runs/{run}/fold{fold}/seed{seed}/adapter.nemo",
        provenance="<results>/runs/{run}/fold{fold}/seed{seed}/adapter.provenance.json",
        train=of_run("<results>/data/{dataset}/{label}/fold{fold}/train.jsonl"),
        val=of_run("<results>/data/{dataset}/{label}/fold{fold}/val.jsonl"),
        metrics=of_table("metrics.json"),
    output:
        "<results>/runs/{run}/fold{fold}/seed{seed}/peft/README.md",
    log:
        "<logs>/write_model_card/{run}/fold{fold}-seed{seed}.log",
    wildcard_constraints:
        run=having("runs", "train", "choose"),
    localrule: True
    conda:
        "../../envs/host.yaml"
    params:
        script=script("write_model_card"),
        code=code("write_model_card"),
        sources=sources_of_run,
        max_new_tokens=of_run("{predict[tokens_to_generate]}"),
        name=of_run("run={run} fold={fold} seed={seed} model={model} dataset={dataset} label={label}"),
    shell:
        "python {params.script:q} --config {input.config:q} --adapter {input.adapter:q}"
        " --provenance {input.provenance:q} --train {input.train:q} --val {input.val:q} --metrics {input.metrics:q}"
        " --sources {params.sources:q} --max-new-tokens {params.max_new_tokens} --name {params.name}"
        " --output {output:q} &> {log:q}"

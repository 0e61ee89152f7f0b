"""The report: what a person reads of the results, on one page.

In:   results/accuracy.{tsv,json}, results/runs/{run}/fold{fold}/seed{seed}/{metrics,provenance}.json, predictions.jsonl
Out:  results/report.html
"""


rule write_report:
    input:
        script="workflow/scripts/write_report.py",
        module="workflow/scripts/pictures.py",
        template="workflow/report/report.html.j2",
        licences="workflow/report/licences.yaml",
        table="<results>/accuracy.tsv",
        json="<results>/accuracy.json",
        metrics=of_targets("metrics.json"),
        provenance=of_targets("provenance.json"),
        predictions=of_targets("predictions.jsonl"),
        test_items=[f"<results>/data/{dataset}/items/test.json" for dataset in entries_of_targets("dataset")],
    output:
        report("<results>/report.html", caption="../report/report.rst", category="Report"),
    log:
        "<logs>/write_report.log",
    localrule: True
    conda:
        "../../envs/host.yaml"
    params:
        sources=json.dumps({f"{kind}s": entries_of_targets(kind) for kind in ("model", "dataset")}, sort_keys=True),
    shell:
        "python {input.script} --template {input.template} --licences {input.licences}"
        " --table {input.table:q} --json {input.json:q} --metrics {input.metrics:q}"
        " --test-items {input.test_items:q} --sources {params.sources:q} --output {output:q} &> {log:q}"

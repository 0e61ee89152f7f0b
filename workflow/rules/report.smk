"""The report: what a person reads of the results, on one page.

In:   results/accuracy.{tsv,json}, results/runs/{run}/fold{fold}/seed{seed}/{metrics,provenance}.json, predictions.jsonl
Out:  results/report.html
"""


rule write_report:
    """The page: table, pictures, errors, settings, costs and provenance of the runs under `targets:`."""
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
        sources=sources(),
    shell:
        "python {params.script:q} --table {input.table:q} --json {input.json:q} --metrics {input.metrics:q}"
        " --test-items {input.test_items:q} --sources {params.sources:q} --output {output:q} &> {log:q}"

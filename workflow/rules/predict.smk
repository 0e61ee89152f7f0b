"""Prediction with NeMo, one process a device: in the image where one is configured.

In:   results/base/{model}/, results/runs/{run}/fold{fold}/seed{seed}/adapter.nemo, the test items
Out:  results/runs/{run}/fold{fold}/seed{seed}/predictions.jsonl and its .provenance.json
      results/runs/{run}/fold{fold}/seed{seed}/verification/predictions.jsonl, in fp32, for verify_export
"""


rule predict:
    """Predicts each test item: a text and, if there are labels, their log-probabilities."""
    input:
        base=of_run("<results>/base/{model}/model_config.yaml"),
        adapter=of_trained("<results>/runs/{run}/fold{fold}/seed{seed}/adapter.nemo"),
        test=of_run("<results>/data/{dataset}/{label}/test.jsonl"),
        chat_template=prompts.template(),
    output:
        predictions=ensure("<results>/runs/{run}/fold{fold}/seed{seed}/predictions.jsonl", non_empty=True),
        provenance="<results>/runs/{run}/fold{fold}/seed{seed}/predictions.provenance.json",
    log:
        "<logs>/predict/{run}/fold{fold}-seed{seed}.log",
    benchmark:
        "<benchmarks>/predict/{run}/fold{fold}-seed{seed}.tsv"
    container:
        nodes.image(nodes.shape("predict"))
    threads: nodes.threads(nodes.shape("predict"))
    resources:
        gpus=nodes.gpus(nodes.shape("predict")),
        nodes=nodes.number(nodes.shape("predict")),
    params:
        script=script("predict"),
        code=code("predict"),
        origin=origin,
        on_gpus=nodes.on_gpus(nodes.shape("predict")),
        nodes=nodes.unrecorded(nodes.shape("predict")),
        accelerator=config["accelerator"],
        devices=of_run("{devices}", "predict"),
        base=subpath(input.base, parent=True),
        own_settings=own_settings("predict"),
        settings=settings("predict"),
        task=task("labels"),
        work_dir=subpath(output.predictions, parent=True),
    shell:
        "{params.origin} {params.on_gpus} torchrun --standalone --nproc-per-node {params.devices} {params.script:q}"
        " --accelerator {params.accelerator}"
        " --base {params.base:q}"
        " --adapter {input.adapter:q}"
        " --test {input.test:q}"
        " --chat-template {input.chat_template:q}"
        " --settings {params.settings:q} {params.task}"
        " --work-dir {params.work_dir:q}/prediction"
        " --output {output.predictions:q} &> {log:q}"


use rule predict as predict_for_export with:
    """Predicts validation items in fp32, for verify_export."""
    input:
        base=of_run("<results>/base/{model}/model_config.yaml"),
        adapter="<results>/runs/{run}/fold{fold}/seed{seed}/adapter.nemo",
        test=of_run("<results>/data/{dataset}/{label}/fold{fold}/val.jsonl"),  # no candidate answers test items
        chat_template=prompts.template(),
    output:
        predictions=ensure("<results>/runs/{run}/fold{fold}/seed{seed}/verification/predictions.jsonl", non_empty=True),
        provenance="<results>/runs/{run}/fold{fold}/seed{seed}/verification/predictions.provenance.json",
    log:
        "<logs>/predict_for_export/{run}/fold{fold}-seed{seed}.log",
    benchmark:
        "<benchmarks>/predict_for_export/{run}/fold{fold}-seed{seed}.tsv"
    params:
        settings=settings("predict", precision=32, megatron_amp_O2=False),

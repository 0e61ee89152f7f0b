"""Training and prediction with NeMo, on one process a device: in the image where one is configured.

In:   results/base/{model}/, results/data/{dataset}/{label}/, runs: in config/config.yaml
Out:  results/runs/{run}/fold{fold}/seed{seed}/adapter.nemo, and beside it training/ with checkpoints and NeMo's logs
      results/runs/{run}/fold{fold}/seed{seed}/predictions.jsonl; beside each file its .provenance.json
"""


rule train_lora:
    """Takes hours for a 7B model, so an edited script alone does not repeat it (ancient); --forcerun does."""
    input:
        script=ancient("workflow/scripts/train_lora.py"),
        base=of_run("<results>/base/{model}/model_config.yaml"),
        train=train_jsonl(),
        val=of_run("<results>/data/{dataset}/{label}/fold{fold}/val.jsonl"),
    output:
        adapter="<results>/runs/{run}/fold{fold}/seed{seed}/adapter.nemo",
        provenance="<results>/runs/{run}/fold{fold}/seed{seed}/adapter.provenance.json",
    log:
        "<logs>/train_lora/{run}/fold{fold}-seed{seed}.log",
    benchmark:
        "<benchmarks>/train_lora/{run}/fold{fold}-seed{seed}.tsv"
    wildcard_constraints:
        run=having("runs", "train"),
    container:
        config["image"]
    threads: 16
    resources:
        runtime="2d",  # training stops in time, with a checkpoint from which the next attempt goes on
    params:
        accelerator=config["accelerator"],
        devices=of_run("{devices}"),
        base=subpath(input.base, parent=True),
        settings=settings("train"),
        work_dir=subpath(output.adapter, parent=True),
    shell:
        "torchrun --standalone --nproc-per-node {params.devices} {input.script}"
        " --accelerator {params.accelerator}"
        " --base {params.base:q}"
        " --train {input.train:q}"
        " --val {input.val:q}"
        " --settings {params.settings:q}"
        " --seed {wildcards.seed}"
        " --time-limit {resources.runtime}"
        " --work-dir {params.work_dir:q}/training"
        " --output {output.adapter:q} &> {log:q}"


rule predict:
    input:
        script="workflow/scripts/predict.py",
        module="workflow/scripts/predictor.py",
        base=of_run("<results>/base/{model}/model_config.yaml"),
        adapter=of_trained("<results>/runs/{run}/fold{fold}/seed{seed}/adapter.nemo"),
        test=of_run("<results>/data/{dataset}/{label}/test.jsonl"),
    output:
        predictions=ensure("<results>/runs/{run}/fold{fold}/seed{seed}/predictions.jsonl", non_empty=True),
        provenance="<results>/runs/{run}/fold{fold}/seed{seed}/predictions.provenance.json",
    log:
        "<logs>/predict/{run}/fold{fold}-seed{seed}.log",
    benchmark:
        "<benchmarks>/predict/{run}/fold{fold}-seed{seed}.tsv"
    container:
        config["image"]
    threads: 16
    params:
        accelerator=config["accelerator"],
        devices=of_run("{devices}"),
        base=subpath(input.base, parent=True),
        settings=settings("predict"),
        work_dir=subpath(output.predictions, parent=True),
    shell:
        "torchrun --standalone --nproc-per-node {params.devices} {input.script}"
        " --accelerator {params.accelerator}"
        " --base {params.base:q}"
        " --adapter {input.adapter:q}"
        " --test {input.test:q}"
        " --settings {params.settings:q}"
        " --work-dir {params.work_dir:q}/prediction"
        " --output {output.predictions:q} &> {log:q}"

"""Training with NeMo, one process a device: in the image where one is configured.

In:   results/base/{model}/, results/data/{dataset}/{label}/, runs: in config/config.yaml; with start_from: another
      run's adapter.nemo
Out:  results/runs/{run}/fold{fold}/seed{seed}/adapter.nemo and its .provenance.json; beside them training/, where each
      training that was ever begun there is kept, with checkpoints and NeMo's logs
"""


rule train_lora:
    """Trains the adapter of one fold and seed, with the settings under `train:`. Editing its code trains nothing."""
    input:
        base=of_run("<results>/base/{model}/model_config.yaml"),
        train=train_jsonl(),
        val=of_run("<results>/data/{dataset}/{label}/fold{fold}/val.jsonl"),
        start_from=start_adapter(),
        chat_template=prompts.template(),
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
        nodes.image(nodes.shape())
    threads: nodes.threads(nodes.shape())
    resources:
        runtime="2d",  # training stops in time, with a checkpoint from which the next attempt goes on
        gpus=nodes.gpus(nodes.shape()),
        nodes=nodes.number(nodes.shape()),
    params:
        script=script("train_lora"),
        code=code("train_lora"),
        origin=origin,
        on_gpus=nodes.on_gpus(nodes.shape()),
        nodes=nodes.unrecorded(nodes.shape()),
        accelerator=config["accelerator"],
        devices=of_run("{devices}"),
        base=subpath(input.base, parent=True),
        own_settings=own_settings("train"),
        nemo_settings=train_yaml(),
        settings=settings("train"),
        anew=flags_of_training(anew),
        work_dir=subpath(output.adapter, parent=True),
    shell:
        "{params.origin} {params.on_gpus} torchrun --standalone --nproc-per-node {params.devices} {params.script:q}"
        " --accelerator {params.accelerator}"
        " --base {params.base:q}"
        " --train {input.train:q}"
        " --val {input.val:q}"
        " --settings {params.settings:q}"
        " --seed {wildcards.seed}"
        " --time-limit {resources.runtime}"
        " --work-dir {params.work_dir:q}/training {params.anew}"
        " --output {output.adapter:q} &> {log:q}"

"""Is what was converted, exported or merged what it was made of? Nobody else asks for it:
snakemake results/base/mistral-7b.verification.tsv results/runs/lora/fold0/seed0/peft.verification.tsv

In:   resources/hf/{model}/, results/base/{model}/, results/runs/{run}/fold{fold}/seed{seed}/{adapter.nemo,peft/,merged/}
Out:  results/base/{model}.verification.tsv, the logits of both on a few prompts, side by side
      results/runs/{run}/fold{fold}/seed{seed}/{peft,merged}.verification.tsv, answers of transformers beside NeMo's
"""


rule verify_model:
    """Compares the logits of snapshot and converted model on a few prompts. Fails if they differ."""
    input:
        snapshot="<resources>/hf/{model}/manifest.json",
        base="<results>/base/{model}/model_config.yaml",
    output:
        "<results>/base/{model}.verification.tsv",
    log:
        "<logs>/verify_model/{model}.log",
    container:
        nodes.image(nodes.shape_of_model)
    threads: nodes.threads(nodes.shape_of_model)
    resources:
        gpus=nodes.gpus(nodes.shape_of_model),
        nodes=nodes.number(nodes.shape_of_model),
    params:
        script=script("verify_model"),
        code=code("verify_model"),
        accelerator=config["accelerator"],
        devices=nodes.devices(nodes.shape_of_model),
        on_gpus=nodes.on_gpus(nodes.shape_of_model),
        nodes=nodes.unrecorded(nodes.shape_of_model),
        snapshot=subpath(input.snapshot, parent=True),
        base=subpath(input.base, parent=True),
    shell:
        "{params.on_gpus} torchrun --standalone --nproc-per-node {params.devices} {params.script:q}"
        " --accelerator {params.accelerator}"
        " --snapshot {params.snapshot:q}"
        " --base {params.base:q}"
        " --output {output:q} &> {log:q}"


rule verify_export:
    """Compares answers of transformers, with the adapter or the merged model, with NeMo's. Fails if they differ."""
    input:
        snapshot=of_run("<resources>/hf/{model}/manifest.json"),
        adapter="<results>/runs/{run}/fold{fold}/seed{seed}/peft/adapter_config.json",
        merged=lambda w: [f"<results>/runs/{w.run}/fold{w.fold}/seed{w.seed}/merged/config.json"][: w.form == "merged"],
        predictions="<results>/runs/{run}/fold{fold}/seed{seed}/verification/predictions.jsonl",
        chat_template=prompts.template(),
    output:
        "<results>/runs/{run}/fold{fold}/seed{seed}/{form,peft|merged}.verification.tsv",
    log:
        "<logs>/verify_export/{run}/fold{fold}-seed{seed}-{form}.log",
    conda:
        "../../envs/host.yaml"
    threads: 8  # a 7B model takes 32 GB
    params:
        script=script("verify_export"),
        code=code("verify_export"),
        snapshot=subpath(input.snapshot, parent=True),
        adapter=subpath(input.adapter, parent=True),
        tokens=of_run("{predict[tokens_to_generate]}"),
        prompts=prompts.flags(),
    shell:
        "python {params.script:q} --snapshot {params.snapshot:q} --adapter {params.adapter:q} --merged {input.merged:q}"
        " --predictions {input.predictions:q} --tokens-to-generate {params.tokens} {params.prompts}"
        " --output {output:q} &> {log:q}"

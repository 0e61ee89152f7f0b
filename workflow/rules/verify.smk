"""Is the converted model the snapshot's? Nobody else asks for it: snakemake results/base/mistral-7b.verification.tsv

In:   resources/hf/{model}/, results/base/{model}/
Out:  results/base/{model}.verification.tsv, the logits of both on a few prompts, side by side
"""


rule verify_model:
    """The logits of snapshot and converted model on a few prompts. Fails where they differ."""
    input:
        snapshot="<resources>/hf/{model}/manifest.json",
        base="<results>/base/{model}/model_config.yaml",
    output:
        "<results>/base/{model}.verification.tsv",
    log:
        "<logs>/verify_model/{model}.log",
    container:
        config["image"]
    threads: lambda wildcards: 4 * devices_of_model(wildcards)
    resources:
        gpus=gpus(devices_of_model),
    params:
        script=script("verify_model"),
        code=code("verify_model"),
        accelerator=config["accelerator"],
        devices=devices_of_model,
        on_gpus=on_gpus(devices_of_model),
        snapshot=subpath(input.snapshot, parent=True),
        base=subpath(input.base, parent=True),
    shell:
        "{params.on_gpus} torchrun --standalone --nproc-per-node {params.devices} {params.script:q}"
        " --accelerator {params.accelerator}"
        " --snapshot {params.snapshot:q}"
        " --base {params.base:q}"
        " --output {output:q} &> {log:q}"

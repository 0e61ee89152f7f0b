"""Is the converted model the snapshot's? Nobody else asks for it: snakemake results/base/mistral-7b.verification.tsv

In:   resources/hf/{model}/, results/base/{model}/
Out:  results/base/{model}.verification.tsv, the logits of both on a few prompts, side by side
"""


rule verify_model:
    """Fails where they differ. On as many devices as the model's runs share it out to, so that fp32 has room."""
    input:
        script="workflow/scripts/verify_model.py",
        snapshot="<resources>/hf/{model}/manifest.json",
        base="<results>/base/{model}/model_config.yaml",
    output:
        "<results>/base/{model}.verification.tsv",
    log:
        "<logs>/verify_model/{model}.log",
    container:
        config["image"]
    threads: 16
    params:
        accelerator=config["accelerator"],
        devices=lambda wildcards: max(
            [run["tensor_model_parallel_size"] for run in config["runs"].values() if run["model"] == wildcards.model],
            default=1,
        ),
        snapshot=subpath(input.snapshot, parent=True),
        base=subpath(input.base, parent=True),
    shell:
        "torchrun --standalone --nproc-per-node {params.devices} {input.script}"
        " --accelerator {params.accelerator}"
        " --snapshot {params.snapshot:q}"
        " --base {params.base:q}"
        " --output {output:q} &> {log:q}"

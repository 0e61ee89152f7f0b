"""Adapters for others: PEFT, transformers, vLLM. On request: snakemake export, or one of the files

In:   results/runs/{run}/fold{fold}/seed{seed}/adapter.nemo, resources/hf/{model}/
Out:  results/runs/{run}/fold{fold}/seed{seed}/peft/
      results/runs/{run}/fold{fold}/seed{seed}/merged/, the base with the adapter in its weights
"""


rule export:
    """Exports the adapters of all targets that were trained here, each with its model card."""
    input:
        of_targets("peft/README.md", trained=True),
        of_targets("peft/adapter_config.json", trained=True),
        of_targets("peft/adapter_model.safetensors", trained=True),


rule export_adapter:
    """Exports the adapter in PEFT's format, with the base model's tokenizer."""
    input:
        adapter="<results>/runs/{run}/fold{fold}/seed{seed}/adapter.nemo",
        snapshot=of_run("<resources>/hf/{model}/manifest.json"),
        chat_template=prompts.template(),
    output:
        config="<results>/runs/{run}/fold{fold}/seed{seed}/peft/adapter_config.json",
        weights="<results>/runs/{run}/fold{fold}/seed{seed}/peft/adapter_model.safetensors",
    log:
        "<logs>/export_adapter/{run}/fold{fold}-seed{seed}.log",
    wildcard_constraints:
        run=having("runs", "train", "choose", "adapter"),
    localrule: True
    conda:
        "../../envs/host.yaml"
    params:
        script=script("export_adapter"),
        code=code("export_adapter"),
        snapshot=subpath(input.snapshot, parent=True),
        dir=subpath(output.config, parent=True),
    shell:
        "python {params.script:q} --adapter {input.adapter:q} --snapshot {params.snapshot:q}"
        " --chat-template {input.chat_template:q} --output-dir {params.dir:q} &> {log:q}"


rule merge_model:
    """Merges the adapter into the base model's weights, as a Hugging Face snapshot."""
    input:
        snapshot=of_run("<resources>/hf/{model}/manifest.json"),
        config="<results>/runs/{run}/fold{fold}/seed{seed}/peft/adapter_config.json",
        weights="<results>/runs/{run}/fold{fold}/seed{seed}/peft/adapter_model.safetensors",
    output:
        "<results>/runs/{run}/fold{fold}/seed{seed}/merged/config.json",
    log:
        "<logs>/merge_model/{run}/fold{fold}-seed{seed}.log",
    benchmark:
        "<benchmarks>/merge_model/{run}/fold{fold}-seed{seed}.tsv"
    wildcard_constraints:
        run=having("runs", "train", "choose", "adapter"),
    conda:
        "../../envs/host.yaml"
    threads: 4
    params:
        script=script("merge_model"),
        code=code("merge_model"),
        snapshot=subpath(input.snapshot, parent=True),
        adapter=subpath(input.config, parent=True),
        dir=subpath(output[0], parent=True),
    shell:
        "python {params.script:q} --snapshot {params.snapshot:q} --adapter {params.adapter:q}"
        " --output {params.dir:q} &> {log:q}"

"""The base model's Hugging Face snapshot: from the Hub, a local directory or a GGUF file; others' adapters from it.

In:   models:, and adapter: of runs:, in config/config.yaml
Out:  resources/hf/{model}/manifest.json, written last beside the snapshot's files
      resources/hf/{owner}--{name}@{revision}/manifest.json, of an adapter
      resources/hf/{model}/chat_template.jinja, for runs with `chat_template:`
"""


rule download_model:
    """Gets the files of a model, or of an adapter on the Hub, and checks them. Files of `snapshot` are linked."""
    output:
        "<resources>/hf/{model}/manifest.json",
    log:
        "<logs>/download_model/{model}.log",
    wildcard_constraints:
        model=having("models", "repo", "snapshot", "adapter"),
    localrule: True
    conda:
        "../../envs/host.yaml"
    params:
        script=script("download_model"),
        code=code("download_model"),
        source=flags("model", "repo", "adapter", "revision", "snapshot"),
        files=state_of("model", "snapshot"),
        dir=subpath(output[0], parent=True),
    shell:
        "python {params.script:q} {params.source} --output-dir {params.dir:q} &> {log:q}"


rule dequantize_gguf:
    """Makes a snapshot in bf16 from `gguf`, a GGUF file or one in an installed Python package."""
    output:
        "<resources>/hf/{model}/manifest.json",
    log:
        "<logs>/dequantize_gguf/{model}.log",
    wildcard_constraints:
        model=having("models", "gguf"),
    conda:
        "../../envs/host.yaml"
    params:
        script=script("dequantize_gguf"),
        code=code("dequantize_gguf"),
        source=flags("model", "gguf"),
        files=state_of("model", "gguf"),
        dir=subpath(output[0], parent=True),
    shell:
        "python {params.script:q} {params.source} --output-dir {params.dir:q} &> {log:q}"


rule extract_chat_template:
    """Writes the model's chat template to a file, for runs with `chat_template:`. A model without one is refused."""
    input:
        manifest="<resources>/hf/{model}/manifest.json",
    output:
        "<resources>/hf/{model}/chat_template.jinja",
    log:
        "<logs>/extract_chat_template/{model}.log",
    priority: 1  # what is refused, before GPUs are at work
    localrule: True
    conda:
        "../../envs/host.yaml"
    params:
        script=script("extract_chat_template"),
        code=code("extract_chat_template"),
        source=flags("model", "repo", "revision", "snapshot", "gguf"),
        file=prompts.state_of_template,
    shell:
        "python {params.script:q} {params.source} --output {output:q} &> {log:q}"

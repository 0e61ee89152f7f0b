"""The base model: a Hugging Face snapshot, from the Hub, a local directory or a GGUF file, converted to NeMo's format.

In:   models: in config/config.yaml
Out:  resources/hf/{model}/manifest.json, written last beside the snapshot's files
      results/base/{model}/model_config.yaml, written last in the unpacked .nemo directory
      results/base/{model}.nemo, the same packed, on request
"""


rule download_model:
    input:
        script=ancient("workflow/scripts/download_model.py"),
    output:
        "<resources>/hf/{model}/manifest.json",
    log:
        "<logs>/download_model/{model}.log",
    wildcard_constraints:
        model=having("models", "repo", "snapshot"),
    localrule: True
    conda:
        "../../envs/host.yaml"
    params:
        source=flags("model", "repo", "revision", "snapshot"),
        dir=subpath(output[0], parent=True),
    shell:
        "python {input.script} {params.source} --output-dir {params.dir:q} &> {log:q}"


rule dequantize_gguf:
    input:
        script=ancient("workflow/scripts/dequantize_gguf.py"),
    output:
        "<resources>/hf/{model}/manifest.json",
    log:
        "<logs>/dequantize_gguf/{model}.log",
    wildcard_constraints:
        model=having("models", "gguf"),
    conda:
        "../../envs/host.yaml"
    params:
        source=flags("model", "gguf"),
        dir=subpath(output[0], parent=True),
    shell:
        "python {input.script} {params.source} --output-dir {params.dir:q} &> {log:q}"


rule convert_model:
    input:
        script=ancient("workflow/scripts/convert_model.py"),  # takes minutes: an edit alone does not repeat it
        manifest="<resources>/hf/{model}/manifest.json",
    output:
        "<results>/base/{model}/model_config.yaml",
    log:
        "<logs>/convert_model/{model}.log",
    benchmark:
        "<benchmarks>/convert_model/{model}.tsv"
    conda:
        "../../envs/host.yaml"
    threads: 4
    params:
        snapshot=subpath(input.manifest, parent=True),
        dir=subpath(output[0], parent=True),
    shell:
        "python {input.script} --snapshot {params.snapshot:q} --output-dir {params.dir:q} &> {log:q}"


rule pack_model:
    input:
        script=ancient("workflow/scripts/pack_model.py"),
        base="<results>/base/{model}/model_config.yaml",
    output:
        "<results>/base/{model}.nemo",
    log:
        "<logs>/pack_model/{model}.log",
    conda:
        "../../envs/host.yaml"
    params:
        dir=subpath(input.base, parent=True),
    shell:
        "python {input.script} --base-dir {params.dir:q} --output {output:q} &> {log:q}"

"""The base model: a Hugging Face snapshot, from the Hub, a local directory or a GGUF file, converted to NeMo's format.

In:   models: in config/config.yaml
Out:  resources/hf/{model}/manifest.json, written last beside the snapshot's files
      results/base/{model}/model_config.yaml, written last in the unpacked .nemo directory
      results/base/{model}.nemo, the same packed, on request
"""


rule download_model:
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
        script=script("download_model"),
        code=code("download_model"),
        source=flags("model", "repo", "revision", "snapshot"),
        files=state_of("model", "snapshot"),
        dir=subpath(output[0], parent=True),
    shell:
        "python {params.script:q} {params.source} --output-dir {params.dir:q} &> {log:q}"


rule dequantize_gguf:
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


rule convert_model:
    input:
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
        script=script("convert_model"),
        code=code("convert_model"),
        snapshot=subpath(input.manifest, parent=True),
        dir=subpath(output[0], parent=True),
    shell:
        "python {params.script:q} --snapshot {params.snapshot:q} --output-dir {params.dir:q} &> {log:q}"


rule pack_model:
    input:
        base="<results>/base/{model}/model_config.yaml",
    output:
        "<results>/base/{model}.nemo",
    log:
        "<logs>/pack_model/{model}.log",
    conda:
        "../../envs/host.yaml"
    params:
        script=script("pack_model"),
        code=code("pack_model"),
        dir=subpath(input.base, parent=True),
    shell:
        "python {params.script:q} --base-dir {params.dir:q} --output {output:q} &> {log:q}"

"""The snapshot converted to NeMo's format, on the host.

In:   resources/hf/{model}/
Out:  results/base/{model}/model_config.yaml, written last in the unpacked .nemo directory
      results/base/{model}.nemo, the same packed, on request
"""


rule convert_model:
    """Converts the snapshot to NeMo's format. The tensors stay as they are, in an unpacked .nemo directory."""
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
    """Packs the converted model into one .nemo file."""
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

"""The data: the items of datasets: in config/config.yaml in PubMedQA's official split, as NeMo's JSON Lines.
Out:  resources/data/{dataset}/{ori_pqal,test_ground_truth}.json
      results/data/{dataset}/{items,{label}}/{test,fold0/train,fold0/val,…}.{json,jsonl}; in train-maybe2, maybe twice
"""


rule download_pubmedqa:
    output:
        "<resources>/data/{dataset}/ori_pqal.json",
        "<resources>/data/{dataset}/test_ground_truth.json",
    log:
        "<logs>/download_pubmedqa/{dataset}.log",
    wildcard_constraints:
        dataset=having("datasets", "revision", "directory"),
    localrule: True
    conda:
        "../../envs/host.yaml"
    params:
        script=script("download_pubmedqa"),
        code=code("download_pubmedqa"),
        source=flags("dataset", "revision", "directory"),
        files=state_of("dataset", "directory"),
        dir=subpath(output[0], parent=True),
    shell:
        "python {params.script:q} {params.source} --output-dir {params.dir:q} &> {log:q}"


rule simulate_trials:
    output:
        "<resources>/data/{dataset}/ori_pqal.json",
        "<resources>/data/{dataset}/test_ground_truth.json",
    log:
        "<logs>/simulate_trials/{dataset}.log",
    wildcard_constraints:
        dataset=having("datasets", "simulate"),
    conda:
        "../../envs/host.yaml"
    params:
        script=script("simulate_trials"),
        code=code("simulate_trials"),
        source=flags("dataset", "simulate"),
        dir=subpath(output[0], parent=True),
    shell:
        "python {params.script:q} {params.source} --output-dir {params.dir:q} &> {log:q}"


rule split_folds:
    input:
        ori_pqal="<resources>/data/{dataset}/ori_pqal.json",
        ground_truth="<resources>/data/{dataset}/test_ground_truth.json",
    output:
        expand("<results>/data/{{dataset}}/items/fold{fold}/{split}.json", fold=range(10), split=["train", "val"]),
        test="<results>/data/{dataset}/items/test.json",
    log:
        "<logs>/split_folds/{dataset}.log",
    conda:
        "../../envs/host.yaml"
    params:
        script=script("split_folds"),
        code=code("split_folds"),
        dir=subpath(output.test, parent=True),
    shell:
        "python {params.script:q} --ori-pqal {input.ori_pqal:q} --ground-truth {input.ground_truth:q}"
        " --output-dir {params.dir:q} &> {log:q}"


rule write_jsonl:
    input:
        json=lambda w: f"<results>/data/{w.dataset}/items/{w.split.partition('-')[0]}.json",
    output:
        ensure("<results>/data/{dataset}/{label}/{split}.jsonl", non_empty=True),
    log:
        "<logs>/write_jsonl/{dataset}/{label}/{split}.log",
    conda:
        "../../envs/host.yaml"
    params:
        script=script("write_jsonl"),
        code=code("write_jsonl"),
        sample=lambda w: flags("dataset", "sample", "seed")(w) if w.split == "test" else "",
        repeat=lambda w: w.split.partition("-maybe")[2] or 1,
    shell:
        "python {params.script:q} --json {input.json:q} --label {wildcards.label} {params.sample}"
        " --repeat-maybe {params.repeat} --output {output:q} &> {log:q}"

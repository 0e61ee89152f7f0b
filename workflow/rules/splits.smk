"""The items in training, validation and test set, and as NeMo's JSON Lines.

In:   resources/data/{dataset}/, or `items:` in config/config.yaml
Out:  results/data/{dataset}/items/{test,fold0/train,fold0/val,…}.json
      results/data/{dataset}/{label}/{test,fold0/train,fold0/val,…}.jsonl; in train-maybe2, maybe twice
"""


rule split_folds:
    """Splits the items as PubMedQA does: 500 for testing, and ten folds of 450 for training and 50 for validation."""
    input:
        ori_pqal="<resources>/data/{dataset}/ori_pqal.json",
        ground_truth="<resources>/data/{dataset}/test_ground_truth.json",
    output:
        expand("<results>/data/{{dataset}}/items/fold{fold}/{split}.json", fold=range(10), split=["train", "val"]),
        test="<results>/data/{dataset}/items/test.json",
    log:
        "<logs>/split_folds/{dataset}.log",
    wildcard_constraints:
        dataset=having("datasets", "revision", "directory", "simulate"),
    conda:
        "../../envs/host.yaml"
    params:
        script=script("split_folds"),
        code=code("split_folds"),
        dir=subpath(output.test, parent=True),
    shell:
        "python {params.script:q} --ori-pqal {input.ori_pqal:q} --ground-truth {input.ground_truth:q}"
        " --output-dir {params.dir:q} &> {log:q}"


rule split_items:
    """Splits the items of your file: a fifth for testing, and ten folds of the rest, drawn by `seed`."""
    output:
        expand("<results>/data/{{dataset}}/items/fold{fold}/{split}.json", fold=range(10), split=["train", "val"]),
        test="<results>/data/{dataset}/items/test.json",
    log:
        "<logs>/split_items/{dataset}.log",
    wildcard_constraints:
        dataset=having("datasets", "items"),
    priority: 1  # what is refused, before GPUs are at work
    conda:
        "../../envs/host.yaml"
    params:
        script=script("split_items"),
        code=code("split_items"),
        file=data_sets.file("items"),
        state=data_sets.state("items"),
        seed=flags("dataset", "seed"),
        columns=data_sets.columns(),
        dir=subpath(output.test, parent=True),
    shell:
        "python {params.script:q} {params.file} {params.seed} --columns {params.columns} --output-dir {params.dir:q}"
        " &> {log:q}"


rule write_jsonl:
    """Writes prompts and answers. Test items can be a stratified `sample`; train-maybe{n} has each maybe n times."""
    input:
        json=lambda w: f"<results>/data/{w.dataset}/items/{w.split.partition('-')[0]}.json",
    output:
        ensure("<results>/data/{dataset}/{label}/{split}.jsonl", non_empty=True),
    log:
        "<logs>/write_jsonl/{dataset}/{label}/{split}.log",
    priority: 1  # what is refused, before GPUs are at work
    conda:
        "../../envs/host.yaml"
    params:
        script=script("write_jsonl"),
        code=code("write_jsonl"),
        question=data_sets.question,
        sample=lambda w: flags("dataset", "sample", "seed")(w) if w.split == "test" else "",
        repeat=lambda w: w.split.partition("-maybe")[2] or 1,
    shell:
        "python {params.script:q} --json {input.json:q} {params.question} {params.sample}"
        " --repeat-maybe {params.repeat} --output {output:q} &> {log:q}"

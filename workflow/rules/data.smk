"""The data: PubMedQA's 1,000 labelled items, or made-up ones, or files of one's own.

In:   datasets: in config/config.yaml
Out:  resources/data/{dataset}/{ori_pqal,test_ground_truth}.json
      of one's own files results/data/{dataset}/items/{test,fold0/train,fold0/val}.json
"""


rule download_pubmedqa:
    """Gets PubMedQA's two files, from its repository at `revision` or from `directory`."""
    output:
        "<resources>/data/{dataset}/ori_pqal.json",
        "<resources>/data/{dataset}/test_ground_truth.json",
    log:
        "<logs>/download_pubmedqa/{dataset}.log",
    wildcard_constraints:
        dataset=having("datasets", "revision", "directory"),
    priority: 1  # what is refused, before GPUs are at work
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
    """Simulates trial reports in PubMedQA's format, with the seed `simulate`."""
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


rule read_items:
    """Reads items from one of your files. A prompt of training must not be in validation or test, too."""
    output:
        ensure("<results>/data/{dataset}/items/{split}.json", non_empty=True),
    log:
        "<logs>/read_items/{dataset}/{split}.log",
    wildcard_constraints:
        dataset=having("datasets", "test"),
        split="test|fold0/train|fold0/val",
    priority: 1  # what is refused, before GPUs are at work
    conda:
        "../../envs/host.yaml"
    params:
        script=script("read_items"),
        code=code("read_items"),
        files=data_sets.file_flags,
        states=data_sets.states,
        columns=data_sets.columns(),
    shell:
        "python {params.script:q} {params.files} --columns {params.columns} --output {output:q} &> {log:q}"

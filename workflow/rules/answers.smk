"""Questions, those of a data set with `test:` alone, asked of a run's models. On request:
snakemake results/answers/lora/questions.tsv

In:   `test:` of the data set, results/base/{model}/, results/runs/{run}/fold{fold}/seed{seed}/adapter.nemo
Out:  results/data/{dataset}/questions.jsonl and its .provenance.json
      results/answers/{run}/fold{fold}/seed{seed}/{dataset}/predictions.jsonl and its .provenance.json
      results/answers/{run}/{dataset}.tsv of all folds and seeds, results/answers/{run}/fold{fold}/seed{seed}/{dataset}.tsv
      of one
"""


rule read_questions:
    """Writes prompts from the user's file of questions, line by line. They may be larger than memory."""
    output:
        questions=ensure("<results>/data/{dataset}/questions.jsonl", non_empty=True),
        provenance="<results>/data/{dataset}/questions.provenance.json",
    log:
        "<logs>/read_questions/{dataset}.log",
    wildcard_constraints:
        dataset=questions.names(),
    priority: 1  # what is refused, before GPUs are at work
    conda:
        "../../envs/host.yaml"
    params:
        script=script("read_questions"),
        code=code("read_questions"),
        file=data_sets.file("test"),
        state=data_sets.state("test"),
        drawn=flags("dataset", "truncate", "sample", "seed"),
        columns=data_sets.columns(),
    shell:
        "python {params.script:q} {params.file} {params.drawn} --columns {params.columns}"
        " --output {output.questions:q} &> {log:q}"


use rule predict as predict_questions with:
    """Answers the questions of a user's file."""
    input:
        base=of_run("<results>/base/{model}/model_config.yaml"),
        adapter=of_trained("<results>/runs/{run}/fold{fold}/seed{seed}/adapter.nemo"),
        test="<results>/data/{dataset}/questions.jsonl",
        chat_template=prompts.template(),
    output:
        predictions=ensure("<results>/answers/{run}/fold{fold}/seed{seed}/{dataset}/predictions.jsonl", non_empty=True),
        provenance="<results>/answers/{run}/fold{fold}/seed{seed}/{dataset}/predictions.provenance.json",
    log:
        "<logs>/predict_questions/{run}/fold{fold}-seed{seed}-{dataset}.log",
    benchmark:
        "<benchmarks>/predict_questions/{run}/fold{fold}-seed{seed}-{dataset}.tsv"
    params:
        task=questions.labels(),


rule write_answers:
    """Writes the table of answers, of one model or of all models of the run together."""
    input:
        predictions=questions.predictions(),
        provenance=questions.predictions("predictions.provenance.json"),
        adapters=questions.adapters(),
        questions="<results>/data/{dataset}/questions.jsonl",
        questions_provenance="<results>/data/{dataset}/questions.provenance.json",
    output:
        "<results>/answers/{run}/{one}{dataset}.tsv",
    log:
        "<logs>/write_answers/{run}/{one}{dataset}.log",
    wildcard_constraints:
        one=r"(fold\d/seed(0|[1-9]\d*)/)?",
    conda:
        "../../envs/host.yaml"
    params:
        script=script("write_answers"),
        code=code("write_answers"),
    shell:
        "python {params.script:q} --predictions {input.predictions:q} --train-provenance {input.adapters:q}"
        " --questions {input.questions:q} --output {output:q} &> {log:q}"

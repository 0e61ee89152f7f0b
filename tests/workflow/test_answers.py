"""Questions without answers: from the user's file to the table, of models of the chain."""

import csv
import re

import numpy as np
import pandas as pd
from common.files import read_json, read_jsonl
from helpers import snakemake

# without labels: those of the run's own data set
CONFIG = 'datasets: {questions: {test: questions.csv, prompt: "{text}", id: number}}'
TABLE, ONE = "results/answers/lora/questions.tsv", "results/answers/lora/fold0/seed0"
FILES = "--configfile", "chain.yaml", "questions.yaml", "--set-threads", "predict_questions=1"


def call(chain, target, *arguments):
    """The rules that run, by a call for a table."""
    done = snakemake(chain, target, *FILES, *arguments)
    assert done.returncode == 0, done.stdout
    return set(re.findall(r"^(\w+) +\d+$", done.stdout, re.MULTILINE)) - {"total"}


def test_from_file_to_table(chain):
    """The test items' prompts, asked once more as questions, get the answers that they have got."""
    test = read_jsonl(chain / "results/data/trials/final_decision/test.jsonl")[:8]
    (chain / "questions.yaml").write_text(CONFIG)
    with open(chain / "questions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["number", "text"], *([row["pmid"], row["input"]] for row in test)])
    assert call(chain, TABLE) == {"read_questions", "predict_questions", "write_answers"}
    table = pd.read_csv(chain / TABLE, sep="\t", dtype={"id": str}).set_index("id")
    assert list(table.index) == [row["pmid"] for row in test]
    answers = read_json(chain / "results/runs/lora/fold0/seed0/metrics.json")["answers"]
    expected = [answers[row["pmid"]]["probability"] for row in test]
    assert list(table) == ["answer", *(f"probability_{label}" for label in ("yes", "no", "maybe"))]
    np.testing.assert_allclose(table[table.columns[1:]], expected, atol=1e-4)  # by other batches
    assert list(table["answer"]) == [answers[row["pmid"]]["score"] for row in test]
    assert not (chain / "results/answers/lora/fold0/seed0/questions/prediction").exists()

    assert call(chain, TABLE, "--dry-run") == set()
    table, repeated = (chain / TABLE).read_bytes(), {"predict_questions", "write_answers"}
    for name, others, rules in (
        (f"{ONE}/questions/predictions.jsonl", None, repeated),
        (f"{ONE}/questions/predictions.jsonl", "results/runs/base/fold0/seed0/predictions.jsonl", repeated),
        ("results/data/questions/questions.jsonl", None, {"read_questions", *repeated}),
    ):
        rows = ((chain / (others or name)).read_text()).splitlines(keepends=True)
        (chain / name).write_text("".join(rows if others else rows[:-1]))  # another model's, or its last line is lost
        done = snakemake(chain, TABLE, *FILES)
        assert done.returncode == 1 and f"{name}: is not the result that " in done.stdout, done.stdout
        assert not (chain / TABLE).exists()
        (chain / name).unlink()
        assert call(chain, TABLE) == rules and (chain / TABLE).read_bytes() == table
    assert call(chain, "results/answers/lora/fold0/seed0/questions.tsv", "--dry-run") == {"write_answers"}
    (chain / "questions.csv").write_text("number,text\n1,What now?\n")
    assert call(chain, TABLE, "--dry-run") == {"read_questions", "predict_questions", "write_answers"}

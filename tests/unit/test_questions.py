"""Questions without answers: read line by line, as other data is read at once, and the table of answers."""

import csv
import json
import math
import random

import numpy as np
import pandas as pd
import predict
import pyarrow
import pyarrow.parquet
import pytest
from common.files import read_json, read_jsonl, sha256, write_json, write_jsonl
from evaluation.answers import Task, read_labels
from helpers import run_script

COLUMNS = {"prompt": "Text: {text}\nMood:", "answer": "mood"}


def read(tmp_path, name, *flags, columns=COLUMNS):
    """What read_questions.py makes of a file, or what it says."""
    output = tmp_path / "questions.jsonl"
    for file in output, output.with_suffix(".provenance.json"):
        file.unlink(missing_ok=True)
    call = "--test", tmp_path / name, "--columns", json.dumps(columns), *flags, "--output", output
    done = run_script("read_questions.py", *call, check=False)
    if done.returncode:
        assert [file.name for file in tmp_path.iterdir() if "questions" in file.name] == []  # no part of it either
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr.replace(f"{tmp_path}/", "").strip()
    return read_jsonl(output)


def test_questions_are_the_test_items_of_the_other_way(tmp_path):
    """By read_items and write_jsonl: the same prompts, ids, places to shorten and draw; no answers."""
    texts = [{"text": f"{n}"} for n in (*range(40), 3, 3)]
    for mood in "", "good":  # none has an answer, or all have one
        records = [record | {"mood": mood} for record in texts]
        write_jsonl(tmp_path / "a.jsonl", records)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
        files = "--file", tmp_path / "a.jsonl", "--columns", json.dumps(COLUMNS), "--output", tmp_path / "items.json"
        run_script("read_items.py", "--test", *files)
        for more in (), ("--truncate", "text"), ("--sample", 9, "--seed", 4):
            call = "--json", tmp_path / "items.json", "--columns", json.dumps(COLUMNS), *more
            run_script("write_jsonl.py", *call, "--output", tmp_path / "test.jsonl")
            expected = [
                {key: row[key] for key in row if key != "output"} for row in read_jsonl(tmp_path / "test.jsonl")
            ]
            for name in ("a.jsonl", "a.parquet") if "--seed" in more else ("a.jsonl",):
                assert read(tmp_path, name, *more) == expected


def test_what_is_wrong_is_told(tmp_path):
    (tmp_path / "a.csv").write_text("n,text\n1,a\n2,b\n1,c\n")
    with_id = COLUMNS | {"id": "n"}
    said = read(tmp_path, "a.csv", columns=with_id)
    assert said == "a.csv, line 4: the id 1 stands in line 2, too: each item needs its own."
    assert read(tmp_path, "a.csv", "--sample", 4) == "a.csv has 3 items, fewer than sample: 4."
    (tmp_path / "a.csv").write_text("n,text\n")
    assert read(tmp_path, "a.csv") == "a.csv: has no items."
    (tmp_path / "a.csv").write_text("n,text\n1,a\n2,\n")
    assert read(tmp_path, "a.csv") == "a.csv, line 3: text is empty, so nothing is asked."
    assert "No such file" in read(tmp_path, "b.csv")


LABELS = ["yes", "no", "not\tsure"]


def predictions(number, seed, labels=LABELS):
    rng = random.Random(seed)
    for n in range(number):
        scores = {"logprob": {label: rng.uniform(-9, -1) for label in labels}} if labels else {}
        yield {"id": f"q{n}", "input": "…", "pred": f' "{n}"\r\nand\tmore ', "label": None} | scores


def recorded(file, **sums):
    """Writes beside a file what its step records."""
    write_json(file.with_suffix(".provenance.json"), {"sha256": {**sums, "result": sha256(file)}})


def write(tmp_path, *models):
    files = [tmp_path / f"{number}.jsonl" for number in range(len(models))]
    write_jsonl(tmp_path / "questions.jsonl", [{"id": "q0", "input": "…"}])
    recorded(tmp_path / "questions.jsonl")
    for file, rows in zip(files, models):
        write_jsonl(file, rows)
        recorded(file, test=sha256(tmp_path / "questions.jsonl"))
    return call(tmp_path, "--predictions", *files)


def call(tmp_path, *files):
    files += "--questions", tmp_path / "questions.jsonl", "--output", tmp_path / "a.tsv"
    done = run_script("write_answers.py", *files, check=False)
    if done.returncode:
        assert not (tmp_path / "a.tsv").exists()
        return done.stderr.replace(f"{tmp_path}/", "").strip()
    table = pd.read_csv(tmp_path / "a.tsv", sep="\t", dtype=str)
    with open(tmp_path / "a.tsv", newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file, delimiter="\t")
    assert head == list(table) and rows == table.to_numpy().tolist()  # whoever reads it
    return table


@pytest.mark.parametrize("number", [1, 3])
def test_answers_together_are_those_of_the_reports_ensemble(tmp_path, number):
    """Also where one part of the file ends and the next begins."""
    models = [list(predictions(5000, seed)) for seed in range(number)]
    table = write(tmp_path, *models)
    assert list(table) == ["id", "answer", *(f"probability_{label}" for label in LABELS)]
    assert list(table["id"]) == [f"q{n}" for n in range(5000)]
    task = Task("gold", LABELS)
    answers = [[read_labels({"gold": "no"}, row, task, None) for row in rows] for rows in models]
    mean = np.mean([[answer["probability"] for answer in rows] for rows in answers], axis=0)
    np.testing.assert_allclose(table[table.columns[2:]].astype(float), mean, rtol=1e-5)
    assert list(table["answer"]) == [LABELS[place] for place in mean.argmax(axis=1)]
    if number == 1:
        assert list(table["answer"]) == [answer["score"] for answer in answers[0]]


def test_free_text_is_of_one_model(tmp_path):
    table = write(tmp_path, predictions(3, 0, labels=None))
    assert list(table) == ["id", "answer"] and list(table["answer"]) == [f'"{n}"\r\nand\tmore' for n in range(3)]
    (tmp_path / "a.tsv").unlink()
    said = write(tmp_path, predictions(3, 0, labels=None), predictions(3, 1, labels=None))
    assert said == "0.jsonl, 1.jsonl: free text is of one model: two texts have no mean."


def test_predictions_that_do_not_fit_are_refused(tmp_path):
    one, other = list(predictions(3, 0)), list(predictions(3, 1))
    again = "predict them again."
    assert write(tmp_path, one, other[::-1]) == f"0.jsonl, 1.jsonl: are of different items, q0, q2: {again}"
    assert write(tmp_path, one, other[:2]) == f"0.jsonl, 1.jsonl: are of different items, q2, nothing: {again}"
    other[1]["logprob"]["no"] = math.nan
    assert write(tmp_path, one, other) == (
        "0.jsonl, 1.jsonl: the log-probabilities of q1 are not finite: did the model overflow?."
    )


def test_each_question_has_the_answer_that_this_model_gave(tmp_path):
    """Not another model's predictions, nor those of other questions, nor files that have lost a line."""
    for adapter in "a", "b":
        (tmp_path / adapter).mkdir()
        (tmp_path / adapter / "adapter.nemo").write_text(adapter)
        recorded(tmp_path / adapter / "adapter.nemo")

    def start():
        for adapter in "", "a", "b":
            assert len(write(tmp_path / adapter, predictions(3, 0))) == 3
            used = {"adapter": sha256(tmp_path / adapter / "adapter.nemo")} if adapter else {}
            recorded(tmp_path / adapter / "0.jsonl", test=sha256(tmp_path / "questions.jsonl"), **used)
            (tmp_path / adapter / "a.tsv").unlink()

    def asked(*models):
        trained = [tmp_path / model / "adapter.provenance.json" for model in models if model]
        files = [tmp_path / model / "0.jsonl" for model in models]
        return call(tmp_path, "--predictions", *files, "--train-provenance", *trained)

    def copy(name, other):
        (tmp_path / name).write_bytes((tmp_path / other).read_bytes())

    def cut(name):
        (tmp_path / name).write_text("".join((tmp_path / name).read_text().splitlines(keepends=True)[:-1]))

    start()
    for models in [""], ["a"], ["a", "b"]:
        assert len(asked(*models)) == 3
        (tmp_path / "a.tsv").unlink()
    remedy = "Remove it and run Snakemake again, which makes it anew."
    left = "is not the result that 0.provenance.json tells of."
    for models, damage, said in (
        ("a", lambda: cut("a/0.jsonl"), f"a/0.jsonl: {left}"),
        ("ab", lambda: copy("b/0.jsonl", "0.jsonl") or cut("b/0.jsonl"), f"b/0.jsonl: {left}"),
        ("b", lambda: copy("b/0.provenance.json", "a/0.provenance.json"), "b/0.jsonl: is of another adapter than "),
        ("a", lambda: copy("a/0.provenance.json", "0.provenance.json"), "a/0.jsonl: is of another adapter than a/ad"),
        ([""], lambda: copy("0.provenance.json", "a/0.provenance.json"), "0.jsonl: is of another adapter than none, "),
        (
            "a",
            lambda: cut("questions.jsonl"),
            "questions.jsonl: is not the result that questions.provenance.json tells",
        ),
        ("a", lambda: recorded(tmp_path / "a/0.jsonl", test="x"), "a/0.jsonl: is of other questions than questions.js"),
        (
            "a",
            lambda: (tmp_path / "a/0.provenance.json").write_text("{}"),
            "a/0.provenance.json: is damaged, it has no",
        ),
    ):
        start()
        damage()
        found = asked(*models)
        assert found.startswith(said) and found.endswith(remedy) and "\n" not in found, found


def test_columns_are_checked(tmp_path):
    """Of a call by hand."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    files = "--test", tmp_path / "a.jsonl", "--output", tmp_path / "questions.jsonl", "--columns"
    for columns in '{"prompt": "{text}"}', '{"answer": "text"}', "[]", "{":
        done = run_script("read_questions.py", *files, columns, check=False)
        *_, last = done.stderr.splitlines()
        said = f'{columns} is not of the form {{"prompt": template, "answer": column}}, of which both keys are needed'
        assert done.returncode == 2 and last == f"read_questions.py: error: argument --columns: {said}"
        assert "Traceback" not in done.stderr


def test_what_was_read_is_recorded(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    read(tmp_path, "a.jsonl")
    made = read_json(tmp_path / "questions.provenance.json")
    assert made == {"sha256": {"result": sha256(tmp_path / "questions.jsonl")}}


def test_predictions_of_parts_are_put_in_order(tmp_path, monkeypatch):
    """Of batches of 3 in parts of 7: 3, 3 and 1 items, twice, and the rest."""
    monkeypatch.setattr(predict, "PART", 7)
    rows = [{"id": f"q{n}", "input": f"{n}", "output": "yes"} for n in range(16)]
    write_jsonl(tmp_path / "test.jsonl", rows)
    parts = list(predict.parts_of(tmp_path / "test.jsonl", 3))
    assert [(len(items), list(numbers)) for items, numbers in parts] == [(7, [0, 1, 2]), (7, [3, 4, 5]), (2, [6])]
    assert [len(items) for items, _ in predict.parts_of(tmp_path / "test.jsonl", 10)] == [10, 6]
    for items, numbers in parts:
        order = random.sample(range(len(items)), len(items))
        for place, number in enumerate(numbers):
            found = [[n, f"text {items[n]['input']}", {"yes": -1.0}] for n in order[place * 3 :][:3]]
            write_json(tmp_path / f"{number}.json", found)
    made = list(predict.predictions(tmp_path / "test.jsonl", 3, tmp_path, scored=True))
    keys = ["id", "input", "pred", "label", "logprob"]
    assert made == [dict(zip(keys, [f"q{n}", f"{n}", f"text {n}", "yes", {"yes": -1.0}])) for n in range(16)]
    (tmp_path / "4.json").unlink()
    with pytest.raises(SystemExit, match=r"test\.jsonl: 7 items, but predictions of 4$"):
        list(predict.predictions(tmp_path / "test.jsonl", 3, tmp_path, scored=True))

"""Figures, table and report of data that is not PubMedQA: closed sets of any labels, free text, all in one table."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import yaml
from common.files import read_json, write_json, write_jsonl
from common.provenance import describe
from evaluate import evaluate
from evaluation.answers import Task, read_answer
from evaluation.lines import run_lines
from evaluation.metrics import calibration
from evaluation.text_metrics import FREE_TEXT_METRICS
from evaluation.words import FILES
from helpers import ROOT, run_script
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import f1_score
from torchmetrics.functional.text import squad

FIVE = ["no", "no fracture", "Fracture", "old fracture", "unclear"]
TOKENS = {"no": 2, "no fracture": 3, "Fracture": 2, "old fracture": 3, "unclear": 4}  # with the end of the text
# Nothing of PubMedQA in what is written of other data. A run of digits is looked at whole: 500 is its test set.
FORBIDDEN = r"pubmed|pmid|annotat|human|final_decision|reasoning_|official|published|clinical|abstract|the articles"
FORBIDDEN += r"|simulat|made-up|Jin et al|maybe|\b500\b|three labels"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("no", "no"),
        (" No Fracture.\n", "no fracture"),
        ("FRACTURE", "Fracture"),
        ("fractures", None),
        ("no fracture, but", None),
        ("", None),
    ],
)
def test_read_answer(text, answer):
    assert read_answer(text, FIVE) == answer


def test_answers_that_are_hard_to_tell_apart():
    assert [read_answer(text, ["A", "a"]) for text in ("A.", "a", "Ａ")] == ["A", "a", None]
    assert read_answer("AA", ["Aa", "aA"]) is None  # in whatever case, it would be both
    assert [read_answer(text, ["e.g.", "e.g"]) for text in ("e.g.", "E.G.", "e.g")] == ["e.g.", "e.g.", "e.g"]
    assert [read_answer(text, ["陽性", "陰性"]) for text in ("陽性。", " 陰性", "陽")] == ["陽性", "陰性", None]


def predictions_of(rows):
    return [{"id": str(place), "input": f"Report {place}: ", **row} for place, row in enumerate(rows)]


@pytest.fixture
def five():
    """(predictions, test, items): four items and one without an answer."""
    gold = ["no", "no fracture", "Fracture", "old fracture", ""]
    scores = [
        {
            "no": -1.0,
            "no fracture": -2.0,
            "Fracture": -3.0,
            "old fracture": -4.0,
            "unclear": -9.0,
        },  # per token no: -0.5
        {"no": -1.0, "no fracture": -1.2, "Fracture": -3.0, "old fracture": -4.0, "unclear": -9.0},  # no fracture: -0.4
        {"no": -5.0, "no fracture": -6.0, "Fracture": -1.0, "old fracture": -4.0, "unclear": -9.0},
        {"no": -5.0, "no fracture": -6.0, "Fracture": -2.0, "old fracture": -2.7, "unclear": -9.0},  # old: -0.9
        dict.fromkeys(FIVE, -1.0),
    ]
    texts = ["No.", "no", "fracture", "an old one", "unclear"]
    rows = predictions_of(
        {"pred": text, "label": answer or None, "logprob": logprob}
        for text, answer, logprob in zip(texts, gold, scores)
    )
    items = {row["id"]: {"finding": answer} for row, answer in zip(rows, gold)}
    test = [{"id": row["id"], "output": row["label"]} for row in rows]
    return rows, test, items


def test_five_labels(five):
    metrics = evaluate(*five, Task("finding", FIVE), label_tokens=TOKENS)
    answers = metrics["answers"]
    assert list(answers) == ["0", "1", "2", "3"] and metrics["test_set"] == "4 with an answer of all 5"
    assert [answer["score"] for answer in answers.values()] == ["no", "no", "Fracture", "Fracture"]
    assert [answer["per_token"] for answer in answers.values()] == ["no", "no fracture", "Fracture", "old fracture"]
    assert [answer["text"] for answer in answers.values()] == ["no", "no", "Fracture", None]
    assert (metrics["accuracy"], metrics["accuracy_per_token"], metrics["accuracy_text"]) == (0.5, 1.0, 0.5)
    gold, given = ["no", "no fracture", "Fracture", "old fracture"], ["no", "no", "Fracture", "Fracture"]
    macro = f1_score(gold, given, labels=FIVE, average="macro", zero_division=0)
    assert metrics["macro_f1"] == pytest.approx(macro) == pytest.approx((2 / 3 + 2 / 3) / 5)  # of all five
    assert metrics["macro_f1_per_token"] == pytest.approx(4 / 5) and metrics["malformed"] == 1
    assert metrics["confusion"]["no fracture"] == dict.fromkeys([*FIVE, "malformed"], 0) | {"no": 1}
    total = sum(math.exp(score) for score in five[0][0]["logprob"].values())
    assert answers["0"]["probability"][0] == pytest.approx(math.exp(-1) / total)  # of sums, which are probabilities
    assert "human" not in answers["0"] and "macro_f1_official" not in metrics
    alike = evaluate(*five, Task("finding", FIVE), label_tokens=dict.fromkeys(FIVE, 3))
    assert not [key for key in alike if "per_token" in key]  # where the mean and the sum are one reading


def test_what_cannot_be_scored_is_refused(five):
    rows, test, items = five
    for task, words in (
        (Task("finding", FIVE[1:]), "finding of 0 is 'no', none of no fracture, Fracture, old fracture, unclear"),
        (Task("outcome", FIVE), "none of the 5 test items has an answer under outcome: nothing can be scored"),
        (Task("finding", [*FIVE, "malformed"]), "no label can be called malformed"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate(rows, test, items, task)
    with pytest.raises(ValueError, match="has log-probabilities of  instead of no, no fracture"):
        evaluate([{**row, "logprob": {}} for row in rows], test, items, Task("finding", FIVE))


def test_two_labels():
    rng = np.random.default_rng(0)
    labels, probabilities = ["陽性", "陰性"], rng.dirichlet([1, 1], 300)
    gold = rng.choice(labels, 300)
    found = calibration(gold, probabilities, labels)
    places = np.array([labels.index(label) for label in gold])
    assert found["brier"] == pytest.approx(((probabilities - np.eye(2)[places]) ** 2).sum(axis=1).mean())
    assert sum(bin["items"] for bin in found["reliability_diagram"]) == 300


TEXTS = [
    ("a cat on mat", "The cat sat on the mat!"),
    ("Paris", "paris."),
    ("forty-two", "42"),
    ("It isn't known", "not known"),
    ("", "something"),
    ("The $100 (net)", "100 net"),
]


@pytest.mark.parametrize(("gold", "text"), TEXTS)
def test_of_english_texts_figures_are_the_libraries(gold, text):
    theirs = squad({"prediction_text": text, "id": "0"}, {"answers": {"text": [gold]}, "id": "0"})
    found = {name: metric.function(gold, text) for name, metric in FREE_TEXT_METRICS.items()}
    assert found["exact_match"] == float(theirs["exact_match"]) / 100
    assert found["token_f1"] == pytest.approx(float(theirs["f1"]) / 100, abs=1e-5)
    rouge = RougeScorer(["rougeL"]).score(gold, text)["rougeL"].fmeasure
    assert found["rouge_l"] == pytest.approx(rouge, abs=1e-5)


@pytest.mark.parametrize(
    ("gold", "text", "exact", "f1", "rouge"),
    [
        ("東京都", "東京都。", 1, 1, 1),
        ("東京都", "京都", 0, 4 / 5, 4 / 5),  # 2 of 2 characters and of 3
        ("京の都", "都の京", 0, 1, 1 / 3),  # ROUGE-L sees the order
        ("「１０ｍｇ」", "10mg", 1, 1, 1),
        ("CT で骨折", "ct で 骨折", 1, 1, 1),
        ("骨折なし", "正常", 0, 0, 0),
        ("don’t — wait", "dont wait", 1, 1, 2 / 5),  # in SQuAD an apostrophe joins, in ROUGE it parts
        ("café", "Café", 1, 1, 1),
        ("ไม่พบ", "พบ", 0, 2 * (2 / 4) / (1 + 2 / 4), 2 * (2 / 4) / (1 + 2 / 4)),
    ],
)
def test_texts_in_other_scripts(gold, text, exact, f1, rouge):
    found = {name: metric.function(gold, text) for name, metric in FREE_TEXT_METRICS.items()}
    assert found == {name: pytest.approx(value, abs=1e-5) for name, value in zip(found, (exact, f1, rouge))}


def test_free_text():
    rows = predictions_of([{"pred": f" {text}\n", "label": gold or None} for gold, text in TEXTS])
    items = {row["id"]: {"answer": gold} for row, (gold, _) in zip(rows, TEXTS)}
    test = [{"id": row["id"], "output": row["label"]} for row in rows]
    metrics = evaluate(rows, test, items, Task("answer"), "answer")
    assert metrics["labels"] is None and metrics["test_set"] == "5 with an answer of all 6"
    assert metrics["exact_match"] == 2 / 5
    assert metrics["answers"]["3"] == {
        "gold": "It isn't known",
        "text": "not known",
        "exact_match": 0,
        "token_f1": pytest.approx(2 / 5),
        "rouge_l": pytest.approx(2 / 6, abs=1e-6),  # it, isn, t, known
    }
    low, high = metrics["token_f1_interval"]
    assert 0 <= low < metrics["token_f1"] < high <= 1
    names = {"run": "a", "model": "m", "dataset": "d", "label": "answer", "base": False, "fold": "0", "seed": "0"}
    one = metrics | names | {"validation_loss": 0.5, "chosen": None}
    other = one | {"token_f1": 0.0, "answers": {id: a | {"token_f1": 0.0} for id, a in one["answers"].items()}}
    ((line, of_items),) = run_lines([one, other])  # no ensemble: texts have no mean
    assert line["token_f1"] == pytest.approx(metrics["token_f1"] / 2) == pytest.approx(np.mean(of_items))
    assert line["token_f1_sd"] == pytest.approx(metrics["token_f1"] / 2**0.5) and "accuracy" not in line


class Project:
    """Predictions of data sets of each kind, by hand, and what the scripts make of them."""

    def __init__(self, directory):
        self.directory, self.metrics, self.sources = directory, {}, {}

    def dataset(self, name, golds, labels=None, gold="finding", prompt="Report {}: ", sources=None, **more):
        """more: other keys of an item."""
        self.sources[name] = sources or {"test": f"{name}.csv", "answer": gold} | ({"labels": labels} if labels else {})
        self.labels, self.gold, self.name = labels, gold, name
        self.key = "pmid" if "pmid" in more else "id"
        self.items = {f"{name}{place}": {gold: answer, **more} for place, answer in enumerate(golds)}
        write_json(self.directory / f"data/{name}/items/test.json", self.items)
        self.test = [
            {self.key: id, "input": prompt.format(id)} | ({"output": item[gold]} if item[gold] else {})
            for id, item in self.items.items()
        ]
        write_jsonl(self.directory / f"data/{name}/test.jsonl", self.test)

    def run(self, name, texts, scores=None, tokens=None, flags=()):
        """scores: of each item {label: log-probability}, others -9."""
        directory, file = self.directory / name, self.directory / f"{name}/predictions.jsonl"
        rows = [row | {"pred": text, "label": row.get("output")} for row, text in zip(self.test, texts)]
        for row, of_labels in zip(rows, scores or ()):
            row.pop("output", None)
            row["logprob"] = {label: of_labels.get(label, -9.0) for label in self.labels}
        write_jsonl(file, rows)
        test = self.directory / f"data/{self.name}/test.jsonl"
        told = describe({"devices": 1, "batch_size": 4}, {"result": file, "test": test})
        told |= {"gpus": [], "peak_gpu_memory_mb": None} | ({"label_tokens": tokens} if tokens else {})
        write_json(file.with_suffix(".provenance.json"), told)
        label = "final_decision" if self.key == "pmid" else "answer"
        names = f"run={name}", "fold=0", "seed=0", "model=m", f"dataset={self.name}", f"label={label}"
        inputs = "--predictions", file, "--predict-provenance", file.with_suffix(".provenance.json"), "--test", test
        items = "--test-items", self.directory / f"data/{self.name}/items/test.json"
        labels = ["--labels", *self.labels] if self.labels else []
        outputs = "--provenance", directory / "provenance.json", "--output", directory / "metrics.json"
        task = "--gold", self.gold, *labels, *flags, "--label", label, "--name", *names
        done = run_script("evaluate.py", *inputs, *items, *task, *outputs)
        assert done.stderr == ""
        self.metrics.setdefault(self.name, []).append(directory / "metrics.json")

    def compare(self, *names, language="en", **sources):
        """(the table, the JSON, what was printed, the report without what only draws)"""
        metrics = [file for name in names for file in self.metrics[name]]
        datasets = {name: self.sources[name] for name in names} | sources
        sources = "--sources", json.dumps({"models": {"m": {"snapshot": "m"}}, "datasets": datasets})
        files = self.directory / "accuracy.tsv", self.directory / "accuracy.json", self.directory / "report.html"
        outputs = "--output", files[0], "--json", files[1]
        done = run_script("compare_runs.py", "--metrics", *metrics, *sources, *outputs)
        assert done.stderr == ""
        items = "--test-items", *(self.directory / f"data/{name}/items/test.json" for name in names)
        inputs = "--table", files[0], "--json", files[1], "--metrics", *metrics
        inputs += "--language", language, "--output", files[2]
        assert run_script("write_report.py", *inputs, *items, *sources).stderr == ""
        page = re.sub(r"<style>.*?</style>|<clipPath.*?</clipPath>|\b(d|style|transform|points)=\"[^\"]*\"", "",
                      files[2].read_text(), flags=re.DOTALL)  # fmt: skip
        return pd.read_csv(files[0], sep="\t").set_index("run"), read_json(files[1]), done.stdout, page


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("own"))
    golds = [*FIVE, "no", "no", "no fracture", "Fracture", "no", ""]
    project.dataset("notes", golds, FIVE)
    project.run("base", ["no"] * 11, [{"no": -1.0, "no fracture": -1.2}] * 11, TOKENS)
    project.run("tuned", [*golds[:-1], "no"], [{answer or "no": -0.1} for answer in golds], TOKENS)

    project.dataset(
        "感想", ["陽性", "陰性", "陽性", "陽性", "陰性", "陽性"], ["陽性", "陰性"], "評価", prompt="文 {}："
    )
    project.run("jp", ["陽性。"] * 6, [{"陽性": -0.2, "陰性": -1.7}] * 6)

    golds = ["胸部に骨折を認める。", "東京都", "Paris, France", "no fracture", "正常", None]
    project.dataset("answers", golds, None, "output", prompt="Question {}: ")
    project.run("copy", ["わからない"] * 6)
    project.run("taught", ["胸部に骨折", "東京都", "paris france", "<b>a</b> fracture", "異常", "?"])

    item = {"reasoning_required_pred": "yes", "QUESTION": "Is it?", "CONTEXTS": ["It was."], "LABELS": ["RESULTS"]}
    labels, official = ["yes", "no", "maybe"], {"revision": "0" * 40}
    project.dataset(
        "trials", ["yes", "no", "maybe", "yes"], labels, "final_decision", sources=official, pmid=True, **item
    )
    human = "--human", "reasoning_required_pred"
    project.run("constant", ["yes"] * 4, [{"yes": -0.1}] * 4, {"yes": 1, "no": 1, "maybe": 1}, human)
    return project


def test_report_of_five_labels(project):
    table, found, printed, page = project.compare("notes")
    assert list(table.index) == ["majority", "base", "tuned"]
    assert (table.test_set == "10 with an answer of all 11").all()
    assert table.loc["tuned", "accuracy"] == 100 and table.loc["base", "accuracy"] == 40
    assert table.loc["base", "accuracy_per_token"] == 20  # no fracture's 2 of 10: -1.2 / 3 is more than -1 / 2
    assert "macro_f1_official" not in table and found["published"] is None
    assert len(found["runs"][0]["confusion"]) == 5
    assert "<title>LoRA on notes: report</title>" in page and "accuracy per token uses" in page
    assert "Report notes1: " in page and "old fracture" in page
    assert not re.findall(FORBIDDEN, page + printed + " ".join(table), re.IGNORECASE)


def test_report_of_two_japanese_labels(project):
    table, _, printed, page = project.compare("感想")
    assert table.loc["jp", "accuracy"] == table.loc["majority", "accuracy"] == 66.7
    assert "accuracy_per_token" not in table
    assert "<title>LoRA on 感想: report</title>" in page and ">陰性</text>" in page and "among the labels" in page
    assert "the same on every item" in page and "+0.0 to" not in page  # jp and majority
    assert not re.findall(FORBIDDEN, page + printed + " ".join(table), re.IGNORECASE)


def test_report_of_free_text(project):
    table, found, printed, page = project.compare("answers")
    assert list(table.index) == ["copy", "taught"] and not [key for key in table if "accuracy" in key or "p_maj" in key]
    assert table.loc["taught", "exact_match"] == 40 and table.loc["copy", "token_f1"] == 0
    assert {"rouge_l", "token_f1_low", "token_f1_high", "validation_loss"} <= set(table)
    (pair,) = found["comparisons"]
    assert pair["test"] == "paired permutation" and pair["difference"] == found["runs"][1]["token_f1"]
    assert pair["p"] == 2 / 2**5  # better in each of five items
    assert "a token F1 of" in page and "answers with the lowest token F1" in page and "&lt;b&gt;a&lt;/b&gt;" in page
    for absent in (
        "Confusion",
        "Calibration",
        "log-probability",
        "McNemar",
        "malformed",
        "accuracy of text",
        "majority",
    ):
        assert absent not in page
    assert not re.findall(FORBIDDEN, page + printed + " ".join(table), re.IGNORECASE)


def test_one_table_of_all_kinds(project):
    table, found, printed, page = project.compare("notes", "感想", "answers", "trials")
    closed, free, pubmedqa = (
        table[table.accuracy.notna()],
        table[table.token_f1.notna()],
        table[table.dataset == "trials"],
    )
    assert sorted(free.index) == ["copy", "taught"] and len(closed) + len(free) == len(table)
    assert free[["accuracy", "macro_f1", "accuracy_text", "malformed", "ece", "p_majority"]].isna().all(axis=None)
    assert closed[["exact_match", "token_f1_low", "rouge_l"]].isna().all(axis=None)
    assert list(pubmedqa.index) == ["majority", "human", "constant"]
    assert table.macro_f1_official.notna().sum() == 1 and pubmedqa.accuracy_per_token.isna().all()
    assert {pair["dataset"] for pair in found["comparisons"]} == set(project.sources)
    assert "one of PubMedQA's annotators" in page and "LoRA on notes, 感想, answers, PubMedQA: report" in page
    assert (
        "cannot be compared with results on others" in page and "Jin et al." in page and "published: 75.4%" in printed
    )
    assert "Report notes1: " in page and "among the labels" in page


def test_simulated_items_are_not_pubmedqas(project):
    table, found, printed, page = project.compare("trials", trials={"simulate": 0})
    assert list(table.index) == ["majority", "human", "constant"] and found["published"] is None
    assert "LoRA on trials: report" in page and "human one of the made-up annotators" in page
    assert "published" not in printed and not re.findall("PubMedQA|published|Jin et al", page)


def test_report_in_japanese_has_no_english_sentence(project):
    page = project.compare("notes", "感想", "answers", "trials", language="ja")[3]
    assert '<html lang="ja">' in page and "公表" in page and "損失は、" in page and "PubMedQA のアノテータ" in page
    sentences = []
    for key, words in yaml.safe_load((ROOT / "workflow/report/words.en.yaml").read_text()).items():
        if key != "names":
            sentences += [part.strip() for part in re.split(r"\{\w+\}|<[^>]+>", words) if len(part.strip()) > 12]
    assert len(sentences) > 100 and [words for words in sentences if words in page] == []


def test_languages_have_the_same_entries():
    """The same keys, and in each the same values and elements; the configuration allows these languages."""
    english, japanese = (yaml.safe_load((ROOT / f"workflow/report/words.{name}.yaml").read_text()) for name in FILES)
    assert english.keys() == japanese.keys()
    for key in english.keys() - {"names"}:
        marks = [sorted(re.findall(r"\{\w+\}|<\w+", words[key])) for words in (english, japanese)]
        assert marks[0] == marks[1], key
    schema = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
    assert schema["properties"]["language"]["enum"] == list(FILES)

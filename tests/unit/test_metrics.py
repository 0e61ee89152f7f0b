"""Accuracy, macro-F1, McNemar; on the real files, the published majority and human figures."""

import random

import pandas as pd
import pytest
from compare_runs import mcnemar
from evaluate import evaluate, score
from files import read_json, write_json
from helpers import run_script
from pubmedqa import LABELS
from split_folds import split

# Gold, what the scores say, what the text says.
ANSWERS = [
    ("yes", "yes", "yes"),
    ("yes", "no", "Yes."),
    ("no", "no", "not sure"),
    ("maybe", "yes", "maybe"),
    ("yes", "yes", "no"),
]


@pytest.fixture
def data():
    """(predictions, test, items) of ANSWERS."""
    items = {
        str(i): {"final_decision": gold, "reasoning_required_pred": "no"} for i, (gold, _, _) in enumerate(ANSWERS)
    }
    test = [{"pmid": pmid} for pmid in items]
    predictions = [
        {"pmid": pmid, "pred": text, "logprob": {label: -1.0 if label == scored else -2.0 for label in LABELS}}
        for pmid, (_, scored, text) in zip(items, ANSWERS)
    ]
    return predictions, test, items


def test_metrics_by_hand(data):
    metrics = evaluate(*data, label="reasoning_required_pred")
    assert metrics["accuracy"] == 3 / 5
    # yes: precision 2/3, recall 2/3; no: 1/2 and 1; maybe: none
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert metrics["accuracy_text"] == 3 / 5 and metrics["malformed"] == 1
    # yes: 1 and 2/3; no: none right of one; maybe: 1
    assert metrics["macro_f1_text"] == pytest.approx((4 / 5 + 0 + 1) / 3)
    assert metrics["agreement_reasoning_required_pred"] == 2 / 5
    assert metrics["test_set"] == "all 5"


def test_order_of_predictions_does_not_matter(data):
    predictions, test, items = data
    shuffled = random.Random(0).sample(predictions, len(predictions))
    assert shuffled != predictions
    assert evaluate(shuffled, test, items, "final_decision") == evaluate(*data, "final_decision")


def test_every_item_once(data):
    predictions, test, items = data
    for wrong in (predictions[1:], [*predictions, predictions[0]], [predictions[1], *predictions[1:]]):
        with pytest.raises(ValueError, match="are not of the 5 test items, each once"):
            evaluate(wrong, test, items, "final_decision")


def test_part_of_the_test_set_is_said(data):
    predictions, test, items = data
    assert evaluate(predictions[:3], test[:3], items, "final_decision")["test_set"] == "3 of 5, stratified"


def test_mcnemar_by_hand():
    gold = ["yes"] * 12
    better, worse = ["yes"] * 9 + ["no"] * 3, ["no"] * 8 + ["yes"] * 2 + ["no"] * 2
    # right alone: 8 and 1; of 9 differing items, P(at most 1) by fair coin, two-sided: 2 * (1 + 9) / 2**9
    assert mcnemar(gold, better, worse) == pytest.approx(20 / 512)
    assert mcnemar(gold, better, better) == 1.0


def test_published_reference_figures(pubmedqa_dir):
    _, test = split(read_json(pubmedqa_dir / "ori_pqal.json"), 2, random.Random(0))
    gold = [item["final_decision"] for item in test.values()]
    human = [item["reasoning_required_pred"] for item in test.values()]
    assert [round(100 * value, 2) for value in score(gold, human)] == [78.0, 72.19]
    assert [round(100 * value, 2) for value in score(gold, ["yes"] * 500)] == [55.2, 23.71]


def test_scores_must_be_finite(data):
    predictions, test, items = data
    predictions[2]["logprob"]["no"] = float("nan")
    with pytest.raises(ValueError, match="log-probabilities of 2 are not finite"):
        evaluate(predictions, test, items, "final_decision")


def test_table(data, tmp_path):
    base = evaluate(*data, "final_decision") | {"run": "base", "model": "m", "dataset": "d", "base": True}
    write_json(tmp_path / "base.json", base | {"label": "final_decision"})
    for seed, shift in enumerate((0.0, 0.2)):
        tuned = base | {"run": "lora", "base": False, "seed": str(seed), "label": "final_decision"}
        write_json(tmp_path / f"lora{seed}.json", tuned | {"accuracy": base["accuracy"] + shift})
    perfect = {pmid: answer | {"score": answer["gold"]} for pmid, answer in base["answers"].items()}
    best = {"run": "best", "base": False, "label": "final_decision", "accuracy": 1.0, "answers": perfect}
    write_json(tmp_path / "best.json", base | best)
    metrics = [tmp_path / name for name in ("base.json", "lora0.json", "lora1.json", "best.json")]
    run_script("compare_runs.py", "--metrics", *metrics, "--output", tmp_path / "accuracy.tsv")
    table = pd.read_csv(tmp_path / "accuracy.tsv", sep="\t").set_index("run")
    assert list(table.index) == ["majority", "human", "base", "lora", "best"]
    assert table.accuracy.to_dict() == {"majority": 60.0, "human": 20.0, "base": 60.0, "lora": 70.0, "best": 100.0}
    # best is right alone on two items, base on none: 2 * (1/2)**2
    assert table.loc["best", "p_base"] == 0.5 and pd.isna(table.loc["lora", "p_base"])
    assert table.loc["lora", "models"] == 2 and (table.test_set == "all 5").all()
    assert table.loc["base", "p_majority"] == 1.0

"""What the report says of how models came about and what they answer, and how its pictures look."""

import re
from types import SimpleNamespace

import pytest
from evaluation.facts import shortened
from evaluation.pictures import confusion, learning_curve
from evaluation.words import Words
from write_report import findings


def test_how_many_items_were_shortened():
    def model(dataset="long", **provenance):
        return SimpleNamespace(metrics={"dataset": dataset}, provenance=provenance)

    folds = [
        model(train_lora={"shortened": {"train": train, "val": 1}}, predict={"shortened": {"test": 5}})
        for train in (7, 12, 9)
    ]
    runs = {"folds": folds, "none": [model(train_lora={}, predict={})], "base": [model(predict={})]}
    runs["other"] = [model("short", train_lora={}, predict={})]
    assert list(shortened(runs, {"long": {"truncate": "text"}, "short": {}})) == [
        ["folds", "7 to 12", "1", "5"],
        ["none", "0", "0", "0"],
        ["base", "–", "–", "0"],
    ]


def test_curves_with_accuracies_and_without():
    """Of models that older and newer versions trained, or one that both did."""
    older = [{"step": 1, "loss": 2.0, "learning_rate": 1e-4, "validation_loss": 1.5}]
    newer = [older[0], older[0] | {"step": 2, "validation_accuracy": 0.25}]
    _, picture = learning_curve(Words("en"), "lora", [older])
    assert 'aria-label="lora, validation loss: 1.5 after step 1."' in picture and "accuracy" not in picture
    _, picture = learning_curve(Words("en"), "lora", [older, newer])
    losses = "1.5 after step 1, 1.5 after step 1, 1.5 after step 2"
    assert f'aria-label="lora, validation loss: {losses}; validation accuracy: 25.0% after step 2."' in picture


@pytest.mark.parametrize(
    ("confusion", "told"),
    [
        ({"良い": {"良い": 16, "悪い": 0}, "悪い": {"良い": 20, "悪い": 0}}, True),  # of two models
        ({"良い": {"良い": 16, "悪い": 0}, "悪い": {"良い": 19, "悪い": 1}}, False),
        ({"良い": {"良い": 36, "悪い": 0}, "悪い": {"良い": 0, "悪い": 0}}, False),  # nothing else was to be answered
    ],
)
def test_one_answer_to_all_items_is_said(confusion, told):
    names = {"run": "reviews", "model": "m", "dataset": "d", "by_model": [], "models": 2}
    line = names | {"accuracy": 0.5, "confusion": confusion, "base": False}
    cells = {("d", "reviews"): {"accuracy": "50.0", "accuracy_low": "40.0", "accuracy_high": "60.0"}}
    for language, words in (
        ("en", "</strong> to all 18 test items; it may not have learned."),
        ("ja", "18 件のテストデータすべてに <strong>良い</strong> と"),
    ):
        (found,) = findings(Words(language), {"runs": [line], "comparisons": []}, cells)
        assert (words in found) == told
        (found,) = findings(Words(language), {"runs": [line | {"base": True}], "comparisons": []}, cells)
        assert words not in found


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize(
    ("labels", "turned"),
    [(("yes", "no", "maybe"), False), (("良い", "悪い"), False), (("ポジティブ", "ネガティブ"), True)],
)
def test_wide_labels_are_turned(labels, turned):
    """A full-width character takes two columns."""
    counts = {gold: dict.fromkeys((*labels, "malformed"), 1) for gold in labels}
    for language in "en", "ja":
        _, picture = confusion(Words(language), "reviews", counts)
        assert bool(re.search(r"rotate\(-90 [^<]*>" + labels[0], picture)) == turned

"""What the report says of how models came about."""

from types import SimpleNamespace

from evaluation.facts import shortened
from evaluation.pictures import learning_curve
from evaluation.words import Words


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

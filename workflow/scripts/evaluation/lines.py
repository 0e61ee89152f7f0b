"""The lines of the table, with more in them: a data set's references, a run and its ensemble.

Each comes with a value for every item, by which lines are compared: the share of the models that answer it rightly, or
of free text the models' mean token F1.
"""

from collections import Counter

import numpy as np
from evaluation.metrics import METRICS, TEXT_METRICS, calibration, correctness, figures
from evaluation.text_metrics import FREE_TEXT_METRICS, MAIN, text_figures


def column(models, key):
    """Each model's values for all items, in the order of their ids."""
    return [[answer[key] for _, answer in sorted(metrics["answers"].items())] for metrics in models]


def reference_lines(metrics):
    """The lines that need no model, from one run's answers: the best constant answer, and a human's where there is one.

    Free text has none: hardly two of its answers are alike.
    """
    if metrics["labels"] is None:
        return
    (gold,) = column([metrics], "gold")
    references = {"majority": [Counter(gold).most_common(1)[0][0]] * len(gold)}
    if all("human" in answer for answer in metrics["answers"].values()):
        (references["human"],) = column([metrics], "human")
    for name, given in references.items():
        line = {"run": name, "dataset": metrics["dataset"], "test_set": metrics["test_set"]}
        yield line | figures(gold, [given], metrics["labels"]), correctness(gold, [given])


def run_lines(models):
    """A run's line and, where it has several models and labels, its ensemble's. models: the metrics of each."""
    first = models[0]
    start = {key: first[key] for key in ("run", "model", "base", "dataset", "test_set", "label")}
    chosen, imported = first["chosen"], first.get("imported")
    configurations = len(chosen["validation_losses"]) if chosen else None if imported else 1
    start |= {"models": len(models), "configurations": configurations, "chosen": chosen}
    start |= {"adapter": imported} if imported else {}
    of_kind = text_lines if first["labels"] is None else label_lines
    yield from of_kind(start, models)


def text_lines(start, models):
    values = {name: column(models, name) for name in FREE_TEXT_METRICS}
    line = start | text_figures(values) | of_models(models, FREE_TEXT_METRICS, FREE_TEXT_METRICS)
    yield line, np.mean(values[MAIN], axis=0)


def label_lines(start, models):
    first, labels, gold = models[0], models[0]["labels"], column(models, "gold")[0]
    by_score, probabilities = column(models, "score"), column(models, "probability")
    line = start | figures(gold, by_score, labels)
    line |= calibration(gold * len(models), np.concatenate(probabilities), labels)
    readings = [reading for reading in ("text", "per_token") if f"accuracy_{reading}" in first]
    for reading in readings:
        found = figures(gold, column(models, reading), labels)
        line |= {f"{key}_{reading}": value for key, value in found.items()}
    alone = [*METRICS, *(f"{key}_{reading}" for reading in readings for key in METRICS)]
    agreement = [key for key in first if key.startswith("agreement_")]
    line |= of_models(models, METRICS, alone, [key for key in TEXT_METRICS if key in first], agreement)
    yield line, correctness(gold, by_score)
    if len(models) > 1:
        mean = np.mean(probabilities, axis=0)
        answers = [labels[place] for place in mean.argmax(axis=1)]
        name = {"run": f"{first['run']} (ensemble)"}  # no run's name has a bracket
        found = figures(gold, [answers], labels) | calibration(gold, mean, labels)
        yield start | name | found, correctness(gold, [answers])


def of_models(models, spread, alone, means=(), more_means=()):
    """Means of single figures, each model's figures `alone`, and the standard deviations of those in `spread`."""
    found = {}
    for key in (*means, "validation_loss", *more_means):
        values = [metrics[key] for metrics in models]
        found[key] = None if None in values else float(np.mean(values))
    alone = ("fold", "seed", *alone, "validation_loss")
    found["by_model"] = [{key: metrics[key] for key in alone} for metrics in models]
    if len(models) > 1:
        found |= {f"{key}_sd": float(np.std([metrics[key] for metrics in models], ddof=1)) for key in spread}
    return found

"""The figures of answers that are one of a closed set of labels: METRICS with intervals, figures by label, calibration.

Intervals are of 95 %: Wilson's for one model's accuracy, else by bootstrap over the items.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from evaluation.significance import bootstrap_interval
from sklearn.metrics import accuracy_score, brier_score_loss, confusion_matrix, f1_score
from sklearn.metrics import precision_recall_fscore_support as precision_recall_f1
from statsmodels.stats.proportion import proportion_confint

BINS = 10  # of the reliability diagram
MALFORMED = "malformed"  # a generated text that is none of the labels
macro_f1 = partial(f1_score, average="macro", zero_division=0)


def mean_macro_f1(gold, models, number):
    """A statistic for bootstrap_interval, of the items' places: macro-F1, the models' mean, of many resamples at once.

    gold, [items], and models, [models, items]: labels as their places among the `number` of them. A resample counts
    each item as often as it was drawn, so that thousands of models take a product of matrices.
    """

    def statistic(places, axis=-1):
        times = np.apply_along_axis(np.bincount, axis, places, minlength=len(gold)).astype(float)
        f1 = []
        for label in range(number):
            is_gold, given = gold == label, (models == label).T
            of_either = (times @ is_gold)[..., None] + times @ given
            f1.append(2 * (times @ (is_gold[:, None] & given)) / np.maximum(of_either, 1))
        return np.mean(f1, axis=(0, -1))

    return statistic


def macro_f1_interval(gold, models, labels):
    places = {answer: place for place, answer in enumerate((*labels, MALFORMED))}
    codes = np.array([[places[answer] for answer in answers] for answers in (gold, *models)])
    return bootstrap_interval(mean_macro_f1(codes[0], codes[1:], len(labels)), np.arange(len(gold)))


def correctness(gold, models):
    """For each item the share of the models that answer it rightly. models: each one's answers."""
    return np.mean([[answer == g for answer, g in zip(answers, gold, strict=True)] for answers in models], axis=0)


def accuracy_interval(gold, models):
    right = correctness(gold, models)
    if len(models) == 1:
        return list(map(float, proportion_confint(right.sum(), len(gold), method="wilson")))
    return bootstrap_interval(np.mean, right)


def reliability_diagram(codes, probabilities):
    """Bins of equal width of the answer's probability, those that are empty left out."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == codes
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "from": number / BINS,
            "to": (number + 1) / BINS,
            "items": int((place == number).sum()),
            "probability": float(confidence[place == number].mean()),
            "accuracy": float(right[place == number].mean()),
        }
        for number in np.unique(place).tolist()
    ]


def ece(codes, probabilities):
    """The mean, over items, of their bin's distance between probability and accuracy."""
    bins = reliability_diagram(codes, probabilities)
    return sum(bin["items"] * abs(bin["probability"] - bin["accuracy"]) for bin in bins) / len(codes)


class Metric(NamedTuple):
    function: Callable  # of gold labels and answers, "malformed" among them
    headings: dict  # in the report and the printed table, {suffix of the column: words}; none: in accuracy.tsv only
    interval: Callable | None = None  # of gold labels and each model's answers
    percent: bool = True  # in the tables
    labels: bool = False  # both functions take labels=, the whole set, of which some may be nobody's answer

    def of(self, function, gold, answers, labels):
        return function(gold, answers, **({"labels": labels} if self.labels else {}))


HEADINGS_OF_ACCURACY = {"": "accuracy", "_sd": "sd", "_text": "accuracy of text", "_per_token": "accuracy per token"}

# A metric is one entry here: accuracy.tsv, accuracy.json, the printed table and the report have it then.
METRICS = {  # by score, and by text as …_text; a run has its models' mean, and their standard deviation as …_sd
    "accuracy": Metric(accuracy_score, HEADINGS_OF_ACCURACY, accuracy_interval),
    "macro_f1": Metric(macro_f1, {"": "macro-F1"}, macro_f1_interval, labels=True),
}
TEXT_METRICS = {  # of the generated text alone
    "macro_f1_official": Metric(macro_f1, {}),
    "malformed": Metric(lambda gold, answers: answers.count(MALFORMED), {"": "malformed"}, percent=False),
}
brier = partial(brier_score_loss, scale_by_half=False)  # from 0 to 2, also of two labels
PROBABILITY_METRICS = {  # of gold labels as their places, and the labels' probabilities, of all models together
    "ece": Metric(ece, {}, percent=False),
    "brier": Metric(brier, {}, percent=False, labels=True),
}


def score(gold, answers, labels):
    return {name: float(metric.of(metric.function, gold, answers, labels)) for name, metric in METRICS.items()}


def figures(gold, models, labels):
    """METRICS are the models' means; their answers, labels or None, are put together for the figures by label."""
    models = [[answer or MALFORMED for answer in answers] for answers in models]
    means = np.mean([list(score(gold, answers, labels).values()) for answers in models], axis=0).tolist()
    found = {}
    for (name, metric), mean in zip(METRICS.items(), means):
        found[name] = mean
        if metric.interval:
            found[f"{name}_interval"] = metric.of(metric.interval, gold, models, labels)
    golds, answers = gold * len(models), [answer for answers in models for answer in answers]
    by_label = zip(*precision_recall_f1(golds, answers, labels=labels, zero_division=0), strict=True)
    possible = (*labels, MALFORMED)
    counts = confusion_matrix(golds, answers, labels=possible).tolist()
    return found | {
        "by_label": {
            label: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "items": int(items)}
            for label, (precision, recall, f1, items) in zip(labels, by_label)
        },
        "confusion": {label: dict(zip(possible, row)) for label, row in zip(labels, counts)},  # gold: {answer: count}
    }


def calibration(gold, probabilities, labels):
    """How far the labels' probabilities, [items, labels], can be believed."""
    codes, probabilities = np.array([labels.index(label) for label in gold]), np.array(probabilities)
    found = {
        name: float(metric.of(metric.function, codes, probabilities, range(len(labels))))
        for name, metric in PROBABILITY_METRICS.items()
    }
    return found | {"reliability_diagram": reliability_diagram(codes, probabilities)}

"""The figures of answers: accuracy and macro-F1 with intervals, figures by label, calibration.

Intervals are of 95 %: Wilson's for one model's accuracy, else by bootstrap over the items.
"""

import numpy as np
from common.pubmedqa import LABELS
from scipy.stats import bootstrap, permutation_test
from sklearn.metrics import accuracy_score, brier_score_loss, confusion_matrix, f1_score
from sklearn.metrics import precision_recall_fscore_support as precision_recall_f1
from statsmodels.stats.proportion import proportion_confint

RESAMPLES, SEED = 9999, 0  # of every bootstrap and permutation test
BINS = 10  # of the reliability diagram


def score(gold, answers):
    """(accuracy, macro-F1) of answers, each a label or None, against gold labels."""
    answers = [answer or "malformed" for answer in answers]
    macro_f1 = f1_score(gold, answers, labels=LABELS, average="macro", zero_division=0)
    return float(accuracy_score(gold, answers)), float(macro_f1)


def resample(statistic, *columns):
    """scipy's bootstrap of statistic(*columns, axis): draws items anew, each with its values in all columns.

    Percentiles, not BCa: that has no value where all resamples agree, as of a model without a mistake.
    """
    options = {"n_resamples": RESAMPLES, "rng": SEED, "paired": True, "vectorized": True, "batch": 1000}
    return bootstrap(columns, statistic, method="percentile", **options)


def interval(result):
    return list(map(float, result.confidence_interval))


def sign_flip_test(difference):
    """Two-sided p-value of the mean of items' differences, whose signs are flipped at random; exact for a few items.

    Not by the bootstrap, whose p is far too small where few items differ: 0.006 for 6 that all favour one run, where
    no sign test can have less than 2 / 2**6.
    """
    differing = difference[difference.round(12) != 0]  # thirds that cancel out but for rounding are none
    options = {"permutation_type": "samples", "n_resamples": RESAMPLES, "rng": SEED, "vectorized": True}
    return float(permutation_test((differing,), np.mean, **options).pvalue) if len(differing) > 1 else 1.0


def mean_macro_f1(gold, models):
    """A statistic for resample, of the items' places: macro-F1, the models' mean, of many resamples at once.

    gold, [items], and models, [models, items]: labels as their places in LABELS. A resample counts each item as often
    as it was drawn, so that thousands of models take a product of matrices.
    """

    def statistic(places, axis=-1):
        times = np.apply_along_axis(np.bincount, axis, places, minlength=len(gold)).astype(float)
        f1 = []
        for label in range(len(LABELS)):
            is_gold, given = gold == label, (models == label).T
            of_either = (times @ is_gold)[..., None] + times @ given
            f1.append(2 * (times @ (is_gold[:, None] & given)) / np.maximum(of_either, 1))
        return np.mean(f1, axis=(0, -1))

    return statistic


def correctness(gold, models):
    """For each item the share of the models that answer it rightly. models: each one's answers, labels or None."""
    return np.mean([[answer == g for answer, g in zip(answers, gold, strict=True)] for answers in models], axis=0)


def figures(gold, models):
    """Accuracy and macro-F1 are the models' means; their answers are put together for the figures by label."""
    accuracy, macro_f1 = np.mean([score(gold, answers) for answers in models], axis=0)
    right = correctness(gold, models)
    if len(models) == 1:
        accuracy_interval = list(map(float, proportion_confint(right.sum(), len(gold), method="wilson")))
    else:
        accuracy_interval = interval(resample(np.mean, right))
    codes = np.array([[[*LABELS, None].index(answer) for answer in answers] for answers in (gold, *models)], np.int8)
    golds, answers = gold * len(models), [answer or "malformed" for answers in models for answer in answers]
    by_label = zip(*precision_recall_f1(golds, answers, labels=LABELS, zero_division=0), strict=True)
    names = [*LABELS, "malformed"]
    counts = confusion_matrix(golds, answers, labels=names).tolist()
    return {
        "accuracy": float(accuracy),
        "accuracy_interval": accuracy_interval,
        "macro_f1": float(macro_f1),
        "macro_f1_interval": interval(resample(mean_macro_f1(codes[0], codes[1:]), np.arange(len(gold)))),
        "by_label": {
            label: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "items": int(items)}
            for label, (precision, recall, f1, items) in zip(LABELS, by_label)
        },
        "confusion": {label: dict(zip(names, row)) for label, row in zip(LABELS, counts)},  # gold: {answer: count}
    }


def calibration(gold, probabilities):
    """How far the labels' probabilities, [items, labels], can be believed.

    reliability_diagram: bins of equal width of the answer's probability, those that are empty left out. ece: the mean,
    over items, of their bin's distance between probability and accuracy. brier: of all three labels, from 0 to 2.
    """
    codes = np.array([LABELS.index(label) for label in gold])
    probabilities = np.array(probabilities)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == codes
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [
        {
            "from": number / BINS,
            "to": (number + 1) / BINS,
            "items": int((place == number).sum()),
            "probability": float(confidence[place == number].mean()),
            "accuracy": float(right[place == number].mean()),
        }
        for number in np.unique(place).tolist()
    ]
    return {
        "ece": sum(bin["items"] * abs(bin["probability"] - bin["accuracy"]) for bin in bins) / len(gold),
        "brier": float(brier_score_loss(codes, probabilities, labels=range(len(LABELS)))),
        "reliability_diagram": bins,
    }

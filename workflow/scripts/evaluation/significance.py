"""Bootstrap intervals, and whether two runs differ. The same each time."""

import numpy as np
from scipy.stats import binomtest, bootstrap, permutation_test

RESAMPLES, SEED = 9999, 0
AT_ONCE = 50_000_000  # values of resamples, so that a large test set fits into memory


def bootstrap_interval(statistic, items):
    """Of statistic(items, axis), by scipy's bootstrap, which draws the items anew.

    Percentiles, not BCa: that has no value where all resamples agree, as of a model without a mistake.
    """
    batch = max(1, min(1000, AT_ONCE // len(items)))
    options = {"n_resamples": RESAMPLES, "rng": SEED, "vectorized": True, "batch": batch}
    return list(map(float, bootstrap((items,), statistic, method="percentile", **options).confidence_interval))


def sign_flip_test(difference):
    """Two-sided p-value of the mean of items' differences, whose signs are flipped at random; exact for a few items.

    Not by the bootstrap, whose p is far too small where few items differ: 0.006 for 6 that all favour one run, where
    no sign test can have less than 2 / 2**6.
    """
    differing = difference[difference.round(12) != 0]  # thirds that cancel out but for rounding are none
    batch = max(1, min(RESAMPLES, AT_ONCE // max(1, len(differing))))
    options = {"permutation_type": "samples", "n_resamples": RESAMPLES, "rng": SEED, "vectorized": True, "batch": batch}
    return float(permutation_test((differing,), np.mean, **options).pvalue) if len(differing) > 1 else 1.0


def mcnemar(won, lost):
    """Exact two-sided p-value of two runs of which each alone is right on so many items."""
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def compare(right, other, single):
    """right, other: two runs' correctness by item; single: both give one answer an item."""
    difference = np.subtract(right, other)
    if single:
        test, p = "exact McNemar", mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
    else:
        test, p = "paired permutation", sign_flip_test(difference)
    interval = bootstrap_interval(np.mean, difference)
    return {"difference": float(difference.mean()), "interval": interval, "test": test, "p": p}

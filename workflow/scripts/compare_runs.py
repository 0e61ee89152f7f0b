"""Compares runs on the same test items: a table of one line a run, and the same with more as JSON.

First come majority and human, computed from the data, then the untuned base. A run of several folds or seeds is given
by its models' mean, with their standard deviation (_sd): that is how much training varies, and no interval of the
accuracy, as the models share their test items. Its ensemble follows, answering by the models' mean probabilities.
Every run is compared with majority and with every other: by McNemar's exact test where both give one answer an item,
else by a permutation test that exchanges the two at random item by item, which is McNemar's for averages. The interval
of the difference is by a paired bootstrap over items. _holm: adjusted for all these comparisons.
The table has percent, and _low and _high for the ends of 95 % intervals; the JSON has fractions. Figures without a
suffix are by score, those ending in _text by generated text, where `malformed` answers are wrong.
"""

import argparse
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from common.files import read_json, replacing, write_json
from common.pubmedqa import LABELS
from evaluation.metrics import (
    HEADINGS,
    METRICS,
    PERCENT,
    PROBABILITY_METRICS,
    TEXT_METRICS,
    calibration,
    correctness,
    figures,
)
from evaluation.significance import RESAMPLES, SEED, compare
from scipy.stats import chi2_contingency
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

PUBLISHED = Path(__file__).parent / "../report/published.yaml"  # figures to stand beside
NAMES = ("run", "model", "dataset", "test_set", "label")
PRINTED = {"run", "models", *HEADINGS, "accuracy_low", "accuracy_high", "p_majority_holm", "p_base_holm"}
PRINTED -= {"accuracy_sd"}


def column(models, key):
    """Each model's values for all items, in the order of the pmids."""
    return [[answer[key] for _, answer in sorted(metrics["answers"].items())] for metrics in models]


def compare_all(lines):
    """Each two of one data set. lines: pairs of a line and its correctness by item."""
    comparisons = []
    for (other, others_right), (line, right) in combinations(lines, 2):
        if line["dataset"] == other["dataset"]:
            names = {"dataset": line["dataset"], "run": line["run"], "other": other["run"]}
            comparisons.append(names | compare(right, others_right, single="accuracy_sd" not in line | other))
    adjusted = multipletests([comparison["p"] for comparison in comparisons], method="holm")[1]
    return [comparison | {"p_holm": p} for comparison, p in zip(comparisons, adjusted.tolist())]


def reference_lines(metrics):
    """The lines that need no model, from one run's answers: the best constant answer, and PubMedQA's annotator."""
    (gold,), (human,) = column([metrics], "gold"), column([metrics], "human")
    majority = [Counter(gold).most_common(1)[0][0]] * len(gold)
    for name, given in ("majority", majority), ("human", human):
        line = {"run": name, "dataset": metrics["dataset"], "test_set": metrics["test_set"]}
        yield line | figures(gold, [given]), correctness(gold, [given])


def run_lines(models):
    """A run's line and, where it has several models, its ensemble's. models: the metrics of each."""
    first, gold = models[0], column(models, "gold")[0]
    by_score, by_text, probabilities = (column(models, key) for key in ("score", "text", "probability"))
    start = {key: first[key] for key in ("run", "model", "base", "dataset", "test_set", "label")}
    chosen, imported = first["chosen"], first.get("imported")
    configurations = len(chosen["validation_losses"]) if chosen else None if imported else 1
    start |= {"models": len(models), "configurations": configurations, "chosen": chosen}
    start |= {"adapter": imported} if imported else {}
    line = start | figures(gold, by_score) | calibration(gold * len(models), np.concatenate(probabilities))
    line |= {f"{key}_text": value for key, value in figures(gold, by_text).items()}
    for key in (*TEXT_METRICS, "validation_loss", *(key for key in first if key.startswith("agreement_"))):
        values = [metrics[key] for metrics in models]
        line[key] = None if None in values else float(np.mean(values))
    alone = ("fold", "seed", *METRICS, *(f"{key}_text" for key in METRICS), "validation_loss")
    line["by_model"] = [{key: metrics[key] for key in alone} for metrics in models]
    if len(models) > 1:
        for key in METRICS:
            line[f"{key}_sd"] = float(np.std([metrics[key] for metrics in models], ddof=1))
    yield line, correctness(gold, by_score)
    if len(models) > 1:
        mean = np.mean(probabilities, axis=0)
        answers = [LABELS[place] for place in mean.argmax(axis=1)]
        name = {"run": f"{first['run']} (ensemble)"}  # no run's name has a bracket
        yield start | name | figures(gold, [answers]) | calibration(gold, mean), correctness(gold, [answers])


def read_published(file):
    """The published figures with Wilson's intervals, and a chi-squared test of whether they differ at all."""
    published = yaml.safe_load(file.read_text(encoding="utf-8"))
    counts = []
    for model in published:
        right, items = model["accuracy"] * model["items"], model["items"]
        model["accuracy_interval"] = list(map(float, proportion_confint(right, items, method="wilson")))
        counts.append([right, items - right])
    return {"models": published, "p_equal_accuracy": float(chi2_contingency(counts).pvalue)}


def tabulate(lines, comparisons):
    """The lines' main figures as a data frame, in percent where they are shares."""
    bases = {(line["model"], line["dataset"]): line["run"] for line in lines if line.get("base")}
    names, rows = [*NAMES, *["adapter"] * any("adapter" in line for line in lines)], []
    for line in lines:
        row = {key: line.get(key) for key in (*names, "models", "configurations")}
        for key, metric in METRICS.items():
            row[key] = line[key]
            if metric.interval:
                row[f"{key}_low"], row[f"{key}_high"] = line[f"{key}_interval"]
            row[f"{key}_sd"] = line.get(f"{key}_sd")
        for key in (*(f"{key}_text" for key in METRICS), *TEXT_METRICS, "validation_loss", *PROBABILITY_METRICS):
            row[key] = line.get(key)
        row |= {key: value for key, value in line.items() if key.startswith("agreement_")}
        for key, other in ("majority", "majority"), ("base", bases.get((line.get("model"), line["dataset"]))):
            pair = {"dataset": line["dataset"], "run": line["run"], "other": other}
            comparison = next((c for c in comparisons if pair.items() <= c.items()), {})
            row |= {f"p_{key}": comparison.get("p"), f"p_{key}_holm": comparison.get("p_holm")}
        rows.append(row)
    table = pd.DataFrame(rows)
    for key in table:
        if key.startswith(("agreement_", *PERCENT)):
            table[key] = (100 * table[key].astype(float)).round(1)
        elif key not in names:
            form = "{:.2g}" if key[:2] == "p_" else "{:.0f}" if key == "models" else "{:.4g}"
            table[key] = table[key].map(form.format, na_action="ignore")
    return table


def show(table):
    print(table.astype(object).where(table.notna(), "").to_string(index=False), end="\n\n")


def show_all(table, comparisons, published):
    """What is read in the log."""
    show(table[[key for key in table if key in PRINTED]])
    pairs = pd.DataFrame(comparisons)
    pairs["difference"] = pairs["difference"].map("{:+.1%}".format)
    pairs[["low", "high"]] = [[f"{end:+.1%}" for end in ends] for ends in pairs["interval"]]
    pairs[["p", "p_holm"]] = pairs[["p", "p_holm"]].map("{:.2g}".format)
    show(pairs[["run", "other", "difference", "low", "high", "test", "p", "p_holm"]])
    for run, tried in zip(table["run"], table["configurations"]):
        if pd.notna(tried) and tried != "1":
            print(f"{run} was chosen from {tried} configurations by validation loss, before test was read.\n")
    for run, adapter in table.get("adapter", pd.Series()).dropna().items():
        print(f"{table.loc[run, 'run']} is {adapter}, which was trained elsewhere.\n")
    for model in published["models"]:
        low, high = model["accuracy_interval"]
        print(f"published: {model['accuracy']:.1%} ({low:.1%} to {high:.1%}) {model['name']}, {model['setting']}")
    alike = "cannot be told apart" if published["p_equal_accuracy"] > 0.05 else "differ"
    items = published["models"][0]["items"]
    print(f"These {alike} at n = {items} (chi-squared test: p = {published['p_equal_accuracy']:.2g}).")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", required=True, nargs="+", type=Path, help="written by evaluate.py")
    parser.add_argument("--output", required=True, type=Path, help="tab-separated values")
    parser.add_argument("--json", required=True, type=Path)
    args = parser.parse_args()

    runs, of_dataset = {}, {}
    for file in args.metrics:
        metrics = read_json(file)
        runs.setdefault(metrics["run"], []).append(metrics)
        other, first = of_dataset.setdefault(metrics["dataset"], (file, metrics))
        if metrics["answers"].keys() != first["answers"].keys():
            sys.exit(f"{file}: has not the test items of {other}: evaluate both again.")
    references = [line for _, metrics in of_dataset.values() for line in reference_lines(metrics)]
    bases_first = sorted(runs.values(), key=lambda models: not models[0]["base"])
    lines = [line for models in bases_first for line in run_lines(models)]
    comparisons = compare_all([line for line in references if line[0]["run"] == "majority"] + lines)
    references, lines = ([line for line, _ in pairs] for pairs in (references, lines))
    published = read_published(PUBLISHED)
    result = {"resamples": RESAMPLES, "resamples_seed": SEED, "references": references, "runs": lines}
    write_json(args.json, result | {"comparisons": comparisons, "published": published}, indent=1)
    table = tabulate(references + lines, comparisons)
    with replacing(args.output) as partial:
        table.to_csv(partial, sep="\t", index=False)
    show_all(table, comparisons, published)


if __name__ == "__main__":
    main()

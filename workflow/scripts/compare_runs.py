"""Compares runs on the same test items: a table of one line a run, and the same with more as JSON.

First come majority and, where the items have an annotator's answer, human, computed from the data, then the untuned
base. A run of several folds or seeds is given by its models' mean, with their standard deviation (_sd): that is how
much training varies, and no interval of the accuracy, as the models share their test items. Its ensemble follows,
answering by the models' mean probabilities.
Every run is compared with majority and with every other of its data set, labels by accuracy, free text by token F1: by
McNemar's exact test where both give one label an item, else by a permutation test that exchanges the two at random item
by item, which is McNemar's for averages. The interval of the difference is by a paired bootstrap over items. _holm:
adjusted for all these comparisons.
The table has percent, and _low and _high for the ends of 95 % intervals; the JSON has fractions. Figures without a
suffix are by score, those ending in _text by generated text, where `malformed` answers are wrong, and those ending in
_per_token by the mean score of a label's tokens. Published figures follow where a data set is PubMedQA itself.
"""

import argparse
import json
import sys
from itertools import combinations
from pathlib import Path

import yaml
from common.ending import run
from common.files import read_json, refuse_broken, replacing, write_json
from common.pubmedqa import is_official
from evaluation.lines import reference_lines, run_lines
from evaluation.significance import RESAMPLES, SEED, compare
from evaluation.table import show_all, tabulate
from scipy.stats import chi2_contingency
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

PUBLISHED = Path(__file__).parent / "../report/published.yaml"  # figures to stand beside


def refuse_copied(file, metrics):
    """Exits where …/{run}/fold{fold}/seed{seed}/metrics.json is of another model: it would stand in for that one."""
    own = [metrics["run"], *(f"{key}{metrics.get(key)}" for key in ("fold", "seed"))]
    if file.match("*/fold[0-9]/seed*/*") and list(file.parts[-4:-1]) != own:
        refuse_broken(file, f"is of another model, {'/'.join(own)}, as a copy is")


def single(line):
    """Whether each item has one answer, right or wrong."""
    return "accuracy" in line and "accuracy_sd" not in line


def compare_all(lines):
    """Each two of one data set. lines: pairs of a line and its correctness by item."""
    comparisons = []
    for (other, others_right), (line, right) in combinations(lines, 2):
        if line["dataset"] == other["dataset"]:
            names = {"dataset": line["dataset"], "run": line["run"], "other": other["run"]}
            comparisons.append(names | compare(right, others_right, single=single(line) and single(other)))
    if not comparisons:
        return []
    adjusted = multipletests([comparison["p"] for comparison in comparisons], method="holm")[1]
    return [comparison | {"p_holm": p} for comparison, p in zip(comparisons, adjusted.tolist())]


def read_published(file):
    """The published figures with Wilson's intervals, and a chi-squared test of whether they differ at all."""
    published = yaml.safe_load(file.read_text(encoding="utf-8"))
    counts = []
    for model in published:
        right, items = model["accuracy"] * model["items"], model["items"]
        model["accuracy_interval"] = list(map(float, proportion_confint(right, items, method="wilson")))
        counts.append([right, items - right])
    return {"models": published, "p_equal_accuracy": float(chi2_contingency(counts).pvalue)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", required=True, nargs="+", type=Path, help="written by evaluate.py")
    help = "JSON: the entries under models: and datasets: in the configuration that the runs use"
    parser.add_argument("--sources", required=True, type=json.loads, help=help)
    parser.add_argument("--output", required=True, type=Path, help="tab-separated values")
    parser.add_argument("--json", required=True, type=Path)
    args = parser.parse_args()

    runs, of_dataset = {}, {}
    for file in args.metrics:
        metrics = read_json(file, "run", "dataset", "answers")
        refuse_copied(file, metrics)
        runs.setdefault(metrics["run"], []).append(metrics)
        other, first = of_dataset.setdefault(metrics["dataset"], (file, metrics))
        if metrics["answers"].keys() != first["answers"].keys():
            sys.exit(f"{file}: has not the test items of {other}: evaluate both again.")
    references = [line for _, metrics in of_dataset.values() for line in reference_lines(metrics)]
    bases_first = sorted(runs.values(), key=lambda models: not models[0]["base"])
    lines = [line for models in bases_first for line in run_lines(models)]
    comparisons = compare_all([line for line in references if line[0]["run"] == "majority"] + lines)
    references, lines = ([line for line, _ in pairs] for pairs in (references, lines))
    official = any(map(is_official, args.sources["datasets"].values()))
    published = read_published(PUBLISHED) if official else None
    result = {"resamples": RESAMPLES, "resamples_seed": SEED, "references": references, "runs": lines}
    write_json(args.json, result | {"comparisons": comparisons, "published": published}, indent=1)
    table = tabulate(references + lines, comparisons)
    with replacing(args.output) as partial:
        table.to_csv(partial, sep="\t", index=False)
    show_all(table, comparisons, published)
    several, models = "s" * (len(runs) != 1), "s" * (len(args.metrics) != 1)
    print(f"{args.output}: {len(runs)} run{several}, {len(args.metrics)} model{models}")


if __name__ == "__main__":
    run(main)

"""Writes the table of runs: one line a run, and majority and human of each test set, computed from the data.

accuracy and macro_f1 in percent, by score; those ending in _text by generated text, where `malformed` answers are
wrong. A run of several folds or seeds is given by its mean, and `models` counts them. p_base and p_majority: exact
McNemar tests of a run of one model against the untuned base, and against the majority label, on the same items.
"""

import argparse
from collections import Counter
from pathlib import Path

import pandas as pd
from evaluate import score
from files import read_json, replacing
from scipy.stats import binomtest

MEANS = ("accuracy", "macro_f1", "accuracy_text", "macro_f1_text")


def mcnemar(gold, answers, others):
    """Exact two-sided McNemar p-value: do `answers` and `others` differ in how often they are right?"""
    won = sum(a == g != o for g, a, o in zip(gold, answers, others, strict=True))
    lost = sum(o == g != a for g, a, o in zip(gold, answers, others, strict=True))
    return binomtest(won, won + lost).pvalue if won + lost else 1.0


def reference_lines(metrics):
    """The lines that need no model, from one run's answers: the best constant answer, and PubMedQA's annotator."""
    answers = metrics["answers"].values()
    gold = [answer["gold"] for answer in answers]
    majority = Counter(gold).most_common(1)[0][0]
    for name, given in ("majority", [majority] * len(gold)), ("human", [answer["human"] for answer in answers]):
        accuracy, macro_f1 = score(gold, given)
        line = {"run": name, "dataset": metrics["dataset"], "test_set": metrics["test_set"]}
        yield line | {"accuracy": accuracy, "macro_f1": macro_f1}


def run_line(models, base):
    """A run's line. models: the metrics of its models; base: the metrics of the untuned base on the same items."""
    first = models[0]
    line = {key: first[key] for key in ("run", "model", "dataset", "test_set", "label")} | {"models": len(models)}
    for key in MEANS:
        line[key] = sum(metrics[key] for metrics in models) / len(models)
    line["malformed"] = sum(metrics["malformed"] for metrics in models) / len(models)
    for key in first:
        if key.startswith("agreement_"):
            line[key] = sum(metrics[key] for metrics in models) / len(models)
    if len(models) == 1:
        gold, own = ([answer[key] for answer in first["answers"].values()] for key in ("gold", "score"))
        majority = Counter(gold).most_common(1)[0][0]
        line["p_majority"] = mcnemar(gold, own, [majority] * len(gold))
        if base and base is not first:
            line["p_base"] = mcnemar(gold, own, [base["answers"][pmid]["score"] for pmid in first["answers"]])
    return line


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", required=True, nargs="+", type=Path, help="written by evaluate.py")
    parser.add_argument("--output", required=True, type=Path, help="tab-separated values")
    args = parser.parse_args()

    runs, lines = {}, []
    for metrics in map(read_json, args.metrics):
        runs.setdefault(metrics["run"], []).append(metrics)
    test_sets = {(models[0]["dataset"], models[0]["test_set"]): models[0] for models in runs.values()}
    for metrics in test_sets.values():
        lines += reference_lines(metrics)
    bases = {(m["model"], m["dataset"], m["test_set"]): m for (m, *_) in runs.values() if m["base"]}
    for models in runs.values():
        lines.append(run_line(models, bases.get(tuple(models[0][key] for key in ("model", "dataset", "test_set")))))

    table = pd.DataFrame(lines)
    for key in table:
        if key in MEANS or key.startswith("agreement_"):
            table[key] = (100 * table[key]).round(1)
        elif key.startswith("p_"):
            table[key] = table[key].map("{:.2g}".format, na_action="ignore")
        elif key in ("models", "malformed"):
            table[key] = table[key].map("{:g}".format, na_action="ignore")
    with replacing(args.output) as partial:
        table.to_csv(partial, sep="\t", index=False)
    print(table.astype(object).where(table.notna(), "").to_string(index=False))


if __name__ == "__main__":
    main()

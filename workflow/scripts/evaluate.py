"""Scores predictions against PubMedQA's gold answers (final_decision).

Two readings of each prediction: by score, the label with the highest log-probability; by text, the generated answer,
which counts as wrong and is counted where it is malformed (see pubmedqa.read_answer). Macro-F1 is the mean of the three
labels' F1. Items are paired by pmid, never by line.
"""

import argparse
import math
import sys
from pathlib import Path

from files import read_json, read_jsonl, write_json
from provenance import check, describe
from pubmedqa import LABELS, read_answer
from sklearn.metrics import accuracy_score, f1_score


def score(gold, answers):
    """(accuracy, macro-F1) of answers, each a label or None, against gold labels."""
    answers = [answer or "malformed" for answer in answers]
    macro_f1 = f1_score(gold, answers, labels=LABELS, average="macro", zero_division=0)
    return float(accuracy_score(gold, answers)), float(macro_f1)


def evaluate(predictions, test, items, label):
    """predictions and test: rows of the JSON Lines; items: {pmid: item}, the whole test set; label: what was learnt."""
    pmids = [row["pmid"] for row in test]
    if sorted(row["pmid"] for row in predictions) != sorted(pmids):
        raise ValueError(f"{len(predictions)} predictions are not of the {len(pmids)} test items, each once")
    for row in predictions:
        if not all(map(math.isfinite, row["logprob"].values())):
            raise ValueError(f"the log-probabilities of {row['pmid']} are not finite: did the model overflow?")
    by_pmid = {row["pmid"]: row for row in predictions}
    answers = {
        pmid: {
            "gold": items[pmid]["final_decision"],
            "human": items[pmid]["reasoning_required_pred"],
            "score": max(LABELS, key=by_pmid[pmid]["logprob"].get),
            "text": read_answer(by_pmid[pmid]["pred"]),
        }
        for pmid in pmids
    }
    columns = {key: [answer[key] for answer in answers.values()] for key in ("gold", "score", "text")}
    accuracy, macro_f1 = score(columns["gold"], columns["score"])
    accuracy_text, macro_f1_text = score(columns["gold"], columns["text"])
    metrics = {
        "test_set": f"all {len(items)}" if len(pmids) == len(items) else f"{len(pmids)} of {len(items)}, stratified",
        "accuracy": accuracy,
        "macro_f1": macro_f1,
        "accuracy_text": accuracy_text,
        "macro_f1_text": macro_f1_text,
        "malformed": columns["text"].count(None),
    }
    if label != "final_decision":
        learnt = [items[pmid][label] for pmid in pmids]
        metrics[f"agreement_{label}"] = score(learnt, columns["score"])[0]
    return metrics | {"answers": answers}


def join_provenance(train, predict, predictions, test):
    """{step: its provenance} of the files `train` (or None) and `predict`; ValueError where they don't fit together."""
    steps = {"predict": read_json(predict)}
    check(predict, steps["predict"], result=predictions, test=test)
    if train:
        steps = {"train_lora": read_json(train), **steps}
        for made, used in ("result", "adapter"), ("base", "base"):
            if steps["train_lora"]["sha256"][made] != steps["predict"]["sha256"].get(used):
                raise ValueError(f"{predict} and {train} tell of different {used}s: run predict again")
    return steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", required=True, type=Path, help="written by predict.py")
    parser.add_argument("--predict-provenance", required=True, type=Path, help="written by predict.py")
    parser.add_argument("--train-provenance", nargs="?", type=Path, help="written by train_lora.py; none: the base")
    parser.add_argument("--test", required=True, type=Path, help="JSON Lines with the items that were to be predicted")
    parser.add_argument("--test-items", required=True, type=Path, help="JSON: {pmid: item}, the whole test set")
    parser.add_argument("--label", required=True, help="the items' key that was the answer in training")
    parser.add_argument("--name", nargs="*", default=[], metavar="KEY=VALUE", help="kept in the output")
    parser.add_argument("--provenance", required=True, type=Path, help="where every step's is joined")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    try:
        metrics = evaluate(read_jsonl(args.predictions), read_jsonl(args.test), read_json(args.test_items), args.label)
        steps = join_provenance(args.train_provenance, args.predict_provenance, args.predictions, args.test)
    except ValueError as error:
        sys.exit(f"{args.predictions}: {error}.")
    steps["evaluate"] = describe({"label": args.label}, {"test_items": args.test_items})
    write_json(args.provenance, steps, indent=1)
    name = dict(name.split("=", 1) for name in args.name) | {"base": not args.train_provenance}
    write_json(args.output, name | metrics, indent=1)
    print(f"{args.output}: accuracy {metrics['accuracy']:.1%}, macro-F1 {metrics['macro_f1']:.1%}")


if __name__ == "__main__":
    main()

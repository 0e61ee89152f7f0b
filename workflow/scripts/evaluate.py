"""Scores predictions against PubMedQA's gold answers (final_decision).

Two readings of each prediction: by score, the label with the highest log-probability; by text, the generated answer,
which counts as wrong and is counted where it is malformed (see pubmedqa.read_answer). Macro-F1 is the mean of the three
labels' F1; macro_f1_official is what PubMedQA's evaluation.py says of the texts: to it a malformed answer is a label of
its own, with an F1 of 0. Items are paired by pmid, never by line.
"""

import argparse
import math
import sys
from collections import Counter
from pathlib import Path

from common.files import read_json, read_jsonl, write_json
from common.provenance import check, describe
from common.pubmedqa import LABELS, read_answer
from evaluation.metrics import TEXT_METRICS, calibration, figures
from scipy.special import softmax
from sklearn.metrics import accuracy_score


def refuse_what_does_not_fit(predictions, pmids, items):
    """ValueError unless predictions are of pmids, each once, and all labels are PubMedQA's."""
    times = Counter(row["pmid"] for row in predictions)
    if unknown := next((pmid for pmid in times if pmid not in pmids), None):
        raise ValueError(f"{unknown} is none of the {len(pmids)} test items")
    if missing := next((pmid for pmid in pmids if pmid not in times), None):
        raise ValueError(f"has no prediction of {missing}, one of the {len(pmids)} test items")
    if doubled := next((pmid for pmid in times if times[pmid] > 1), None):
        raise ValueError(f"has {times[doubled]} predictions of {doubled}")
    for pmid in pmids:
        for key in ("final_decision", "reasoning_required_pred"):
            if items[pmid][key] not in LABELS:
                raise ValueError(f"{key} of {pmid} is '{items[pmid][key]}', none of {', '.join(LABELS)}")
    for row in predictions:
        if set(row["logprob"]) != set(LABELS):
            labels = f"{', '.join(row['logprob'])} instead of {', '.join(LABELS)}"
            raise ValueError(f"has log-probabilities of {labels} for {row['pmid']}")
        if not all(map(math.isfinite, row["logprob"].values())):
            raise ValueError(f"the log-probabilities of {row['pmid']} are not finite: did the model overflow?")


def evaluate(predictions, test, items, label):
    """predictions and test: rows of the JSON Lines; items: {pmid: item}, the whole test set; label: what was learnt."""
    pmids = [row["pmid"] for row in test]
    refuse_what_does_not_fit(predictions, pmids, items)
    by_pmid = {row["pmid"]: row for row in predictions}
    answers = {
        pmid: {
            "gold": items[pmid]["final_decision"],
            "human": items[pmid]["reasoning_required_pred"],
            "score": max(LABELS, key=by_pmid[pmid]["logprob"].get),
            "text": read_answer(by_pmid[pmid]["pred"]),
            "probability": softmax([by_pmid[pmid]["logprob"][label] for label in LABELS]).tolist(),  # among LABELS
        }
        for pmid in pmids
    }
    gold, by_score, by_text, probability = (
        [answer[key] for answer in answers.values()] for key in ("gold", "score", "text", "probability")
    )
    texts = [text or "malformed" for text in by_text]
    metrics = {
        "test_set": f"all {len(items)}" if len(pmids) == len(items) else f"{len(pmids)} of {len(items)}, stratified",
        **figures(gold, [by_score]),
        **{f"{key}_text": value for key, value in figures(gold, [by_text]).items()},
        **{name: metric.function(gold, texts) for name, metric in TEXT_METRICS.items()},
        **calibration(gold, probability),
    }
    if label != "final_decision":
        metrics[f"agreement_{label}"] = accuracy_score([items[pmid][label] for pmid in pmids], by_score)
    return metrics | {"answers": answers}


def join_provenance(train, predict, predictions, test):
    """{step: its provenance} of the files `train` (or None; train_lora's or import_adapter's) and `predict`. ValueError
    where they don't fit together."""
    steps = {"predict": read_json(predict)}
    check(predict, steps["predict"], result=predictions, test=test)
    if train:
        tuned = read_json(train)
        steps = {"import_adapter" if "imported" in tuned else "train_lora": tuned, **steps}
        for made, used in ("result", "adapter"), ("base", "base"):
            if tuned["sha256"][made] != steps["predict"]["sha256"].get(used):
                raise ValueError(f"{predict} and {train} tell of different {used}s: run predict again")
    return steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", required=True, type=Path, help="written by predict.py")
    parser.add_argument("--predict-provenance", required=True, type=Path, help="written by predict.py")
    parser.add_argument("--train-provenance", nargs="?", type=Path, help="beside adapter.nemo; none: the base")
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
    name |= {"imported": steps["import_adapter"]["imported"]} if "import_adapter" in steps else {}
    name |= {key: steps.get("train_lora", {}).get(key) for key in ("validation_loss", "chosen")}
    write_json(args.output, name | metrics, indent=1)
    print(f"{args.output}: accuracy {metrics['accuracy']:.1%}, macro-F1 {metrics['macro_f1']:.1%}")


if __name__ == "__main__":
    main()

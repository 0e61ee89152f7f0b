"""Scores predictions against the items' gold answers.

Of a closed set of labels each prediction has two readings: by score, the label with the highest log-probability, which
is the sum over the label's tokens; by text, the generated answer, which counts as wrong and is counted where it is none
of the labels (see answers.read_answer). Where labels differ in their numbers of tokens there is a third, the label with
the highest mean over its tokens; what is called accuracy is by the sum, which alone is a probability. Macro-F1 is the
mean of the labels' F1; macro_f1_official is what PubMedQA's evaluation.py says of the texts: to it a malformed answer
is a label of its own, with an F1 of 0.
Free text has exact match, token F1 and ROUGE-L. Items are paired by their ids, never by line; those without a gold
answer are not scored.
"""

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

from common.ending import run
from common.files import read_json, read_jsonl, refuse_broken, refuse_unlike, write_json
from common.items import id_of
from common.provenance import describe
from evaluation.answers import Task, has_answer, read_labels, refuse_what_does_not_fit
from evaluation.metrics import MALFORMED, METRICS, TEXT_METRICS, calibration, figures
from evaluation.text_metrics import FREE_TEXT_METRICS, text_figures
from sklearn.metrics import accuracy_score


def figures_of_labels(answers, labels):
    gold, by_score, by_text, probability = (
        [answer[key] for answer in answers] for key in ("gold", "score", "text", "probability")
    )
    readings = {"": by_score, "_text": by_text}
    if "per_token" in answers[0]:
        readings["_per_token"] = [answer["per_token"] for answer in answers]
    found = {}
    for reading, given in readings.items():
        found |= {f"{key}{reading}": value for key, value in figures(gold, [given], labels).items()}
    texts = [text or MALFORMED for text in by_text]
    found |= {name: metric.function(gold, texts) for name, metric in TEXT_METRICS.items()}
    return found | calibration(gold, probability, labels)


def evaluate(predictions, test, items, task, label="", label_tokens=None):
    """predictions and test: rows of the JSON Lines; items: {id: item}, the whole test set; label: what was learnt;
    label_tokens: {label: how many}, to read by the mean per token, too."""
    rows, by_id = {id_of(row): row for row in test}, {id_of(row): row for row in predictions}
    refuse_what_does_not_fit(predictions, rows, items, task)
    scored = [id for id in rows if has_answer(items[id], task)]
    test_set = f"all {len(items)}" if len(rows) == len(items) else f"{len(rows)} of {len(items)}, stratified"
    if len(scored) < len(rows):
        test_set = f"{len(scored)} with an answer of {test_set}"
    metrics = {"labels": task.labels, "test_set": test_set}
    if task.labels is None:
        answers = {id: {"gold": items[id][task.gold], "text": by_id[id]["pred"].strip()} for id in scored}
        for answer in answers.values():
            found = {
                name: metric.function(answer["gold"], answer["text"]) for name, metric in FREE_TEXT_METRICS.items()
            }
            answer |= found
        values = {name: [[answer[name] for answer in answers.values()]] for name in FREE_TEXT_METRICS}
        return metrics | text_figures(values) | {"answers": answers}
    differ = len({*(label_tokens or {}).values()}) > 1
    answers = {id: read_labels(items[id], by_id[id], task, label_tokens if differ else None) for id in scored}
    metrics |= figures_of_labels([*answers.values()], task.labels)
    if "pmid" not in test[0]:
        del metrics["macro_f1_official"]  # it is PubMedQA's
    learnt, gold = [rows[id].get("output") for id in scored], [answer["gold"] for answer in answers.values()]
    if learnt != gold:
        by_score = [answer["score"] for answer in answers.values()]
        metrics[f"agreement_{label}"] = accuracy_score(learnt, by_score)
    return metrics | {"answers": answers}


def join_provenance(train, predict, predictions, test):
    """{step: its provenance} of the files `train` (or None; train_lora's or import_adapter's) and `predict`. Exits
    where they don't fit together, and names the file by whose removal all that may be wrong is made anew."""
    steps = {"predict": read_json(predict, "sha256")}
    for name, file in {"result": predictions, "test": test}.items():
        refuse_unlike(file, steps["predict"]["sha256"].get(name), f"the {name} that {predict} tells of")
    if train:
        tuned = read_json(train, "sha256")
        steps = {"import_adapter" if "imported" in tuned else "train_lora": tuned, **steps}
        for made, used in ("result", "adapter"), ("base", "base"):
            if tuned["sha256"][made] != steps["predict"]["sha256"].get(used):
                refuse_broken(predictions, f"is of another {used} than {train} tells of")
    return steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", required=True, type=Path, help="written by predict.py")
    parser.add_argument("--predict-provenance", required=True, type=Path, help="written by predict.py")
    parser.add_argument("--train-provenance", nargs="?", type=Path, help="beside adapter.nemo; none: the base")
    parser.add_argument("--test", required=True, type=Path, help="JSON Lines with the items that were to be predicted")
    parser.add_argument("--test-items", required=True, type=Path, help="JSON: {id: item}, the whole test set")
    parser.add_argument("--gold", required=True, help="the items' key with the gold answer")
    help = "a closed set of answers; none: free text"
    parser.add_argument("--labels", nargs="+", action="extend", metavar="LABEL", help=help)
    parser.add_argument("--human", help="the items' key with an annotator's answer")
    parser.add_argument("--label", required=True, help="a name for what was the answer in training")
    parser.add_argument("--name", nargs="*", default=[], metavar="KEY=VALUE", help="kept in the output")
    parser.add_argument("--provenance", required=True, type=Path, help="where every step's is joined")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    predictions, test, items = read_jsonl(args.predictions), read_jsonl(args.test), read_json(args.test_items)
    steps = join_provenance(args.train_provenance, args.predict_provenance, args.predictions, args.test)
    try:
        task = Task(args.gold, args.labels, args.human)
        metrics = evaluate(predictions, test, items, task, args.label, steps["predict"].get("label_tokens"))
    except ValueError as error:
        sys.exit(f"{args.predictions}: {error}.")
    versions = {} if args.labels else {"torchmetrics": version("torchmetrics")}
    steps["evaluate"] = describe({"label": args.label}, {"test_items": args.test_items})
    steps["evaluate"]["versions"] |= versions
    write_json(args.provenance, steps, indent=1)
    name = dict(name.split("=", 1) for name in args.name) | {"base": not args.train_provenance}
    name |= {"imported": steps["import_adapter"]["imported"]} if "import_adapter" in steps else {}
    name |= {key: steps.get("train_lora", {}).get(key) for key in ("validation_loss", "chosen")}
    write_json(args.output, name | metrics, indent=1)
    main_figures = FREE_TEXT_METRICS if args.labels is None else METRICS
    told = (f"{metric.headings['']} {metrics[name]:.1%}" for name, metric in main_figures.items() if metric.percent)
    print(f"{args.output}: {', '.join(told)}")


if __name__ == "__main__":
    run(main)

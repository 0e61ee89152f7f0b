"""Writes the report: one HTML file that needs nothing else, for a screen, a phone or paper.

Where a figure stands in accuracy.tsv, the page has that cell, to the character; the rest is of accuracy.json. The same
input gives the same file.
"""

import argparse
import csv
import io
import json
from pathlib import Path

import yaml
from common.ending import run
from common.files import read_json, read_jsonl, refuse_broken, replacing
from common.items import id_of
from common.pubmedqa import is_official
from evaluation.facts import costs, provenance, settings, shortened, show
from evaluation.pictures import draw
from evaluation.table import HEADINGS, tabulate
from evaluation.text_metrics import MAIN
from evaluation.words import FILES, Words
from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATE = Path(__file__).parent / "../report/report.html.j2"
LICENCES = Path(__file__).parent / "../report/licences.yaml"
ERRORS = 3  # shown of each run


class Model:
    """What lies in a model's directory: its figures, where they come from, its answers."""

    def __init__(self, file, words):
        self.file, self.metrics = file, read_json(file, "run", "dataset", "answers")
        self.provenance = read_json(file.with_name("provenance.json"), "predict", "evaluate")
        self.name = words("model", **{key: self.metrics[key] for key in ("run", "fold", "seed")})

    def predictions(self):
        """{id: its line}, in the test set's order. Read when asked for: a run of ten folds needs one model's."""
        return {id_of(row): row for row in read_jsonl(self.file.with_name("predictions.jsonl"))}


def read_table(file, result):
    """accuracy.tsv as {(data set, run): {column: cell}}. Exits where it is not the table of `result`, accuracy.json."""
    table = tabulate(result["references"] + result["runs"], result["comparisons"]).to_csv(sep="\t", index=False)
    if file.read_bytes() != table.encode():
        refuse_broken(file, "is not the table of accuracy.json, with which it was written")
    rows = csv.DictReader(io.StringIO(table, newline=""), delimiter="\t")
    return {(row["dataset"], row["run"]): row for row in rows}


def main_figure(line):
    """The key of what runs are compared by."""
    return "accuracy" if "accuracy" in line else MAIN


def against(words, line, kind, other, cells, comparisons):
    """In words, whether a run differs from another, by Holm's adjusted p; None where they were not compared."""
    key = {"dataset": line["dataset"], "run": line["run"], "other": other}
    found = next((comparison for comparison in comparisons if key.items() <= comparison.items()), None)
    if found is None:
        return None
    verdict = "alike" if found["p_holm"] >= 0.05 else "better" if found["difference"] > 0 else "worse"
    figure = cells[line["dataset"], other][main_figure(line)]
    return words(verdict, other=words(kind, other=other, figure=figure, p=f"{found['p_holm']:.2g}"))


def only_answer(line):
    """(the answer, how many items) where a run gives one label to all items, though their gold labels differ."""
    rows = [row for row in line.get("confusion", {}).values() if any(row.values())]
    answers = {answer for row in rows for answer, count in row.items() if count}
    items = sum(sum(row.values()) for row in rows) // line["models"]
    return (*answers, items) if len(answers) == 1 < len(rows) else None


def findings(words, result, cells):
    """What is said of each tuned run, or of the base where there is none."""
    bases = {(line["model"], line["dataset"]): line["run"] for line in result["runs"] if line["base"]}
    lines = [line for line in result["runs"] if "by_model" in line]  # no ensembles
    for line in [line for line in lines if not line["base"]] or lines:
        row, key = cells[line["dataset"], line["run"]], main_figure(line)
        figure = words(f"{key}_of", value=row[key], low=row[f"{key}_low"], high=row[f"{key}_high"])
        others = {"other_base": bases.get((line["model"], line["dataset"])), "other_majority": "majority"}
        told = [against(words, line, kind, other, cells, result["comparisons"]) for kind, other in others.items()]
        verdicts = words("and").join(filter(None, told))
        verdicts = words("verdicts", verdicts=verdicts) if verdicts else ""
        finding = words("finding", run=line["run"], figure=figure, verdicts=verdicts)
        if not line["base"] and (only := only_answer(line)):
            finding = words.join([finding, words("one_answer", answer=only[0], n=only[1])], "space")
        yield finding


def errors(model, items):
    """The wrong answers, by score, that the model was surest of, or the texts that are least like the gold answer, and
    how many there are of either."""
    answers, predictions = model.metrics["answers"], model.predictions()
    if closed := model.metrics["labels"] is not None:
        wrong = [id for id, answer in answers.items() if answer["score"] != answer["gold"]]
        wrong.sort(key=lambda id: (-max(answers[id]["probability"]), id))
    else:
        wrong = [id for id, answer in answers.items() if answer["exact_match"] < 1]
        wrong.sort(key=lambda id: (answers[id][MAIN], id))
    shown = [answers[id] | {"id": id} | asked(items[id], predictions[id]) for id in wrong[:ERRORS]]
    return {"model": model.name, "wrong": len(wrong), "items": len(answers), "shown": shown, "closed": closed}


def asked(item, prediction):
    """What the model was asked: PubMedQA's question and contexts, of other data the prompt."""
    if "pmid" not in prediction:
        return {"input": prediction["input"], "pred": prediction["pred"]}
    contexts = list(zip(item["LABELS"], item["CONTEXTS"], strict=True))
    return {"question": item["QUESTION"], "contexts": contexts, "pred": prediction["pred"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, type=Path, help="accuracy.tsv, written by compare_runs.py")
    parser.add_argument("--json", required=True, type=Path, help="accuracy.json, written with it")
    help = "written by evaluate.py; beside it lie provenance.json and predictions.jsonl"
    parser.add_argument("--metrics", required=True, nargs="+", type=Path, help=help)
    parser.add_argument("--test-items", required=True, nargs="+", type=Path, help="…/{dataset}/items/test.json")
    help = "JSON: the entries under models:, datasets: and adapter: in the configuration that the runs use"
    parser.add_argument("--sources", required=True, type=json.loads, help=help)
    parser.add_argument("--language", choices=FILES, default="en")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()

    result = read_json(args.json, "references", "runs", "comparisons")
    cells = read_table(args.table, result)
    items = {file.parts[-3]: read_json(file) for file in args.test_items}
    words = Words(args.language)
    headings = {key: words.name(heading) for key, heading in HEADINGS.items()}
    models, runs = [Model(file, words) for file in args.metrics], {}
    for model in models:
        runs.setdefault(model.metrics["run"], []).append(model)
    used = {str(value) for kind in args.sources.values() for entry in kind.values() for value in entry.values()}
    datasets, licences = args.sources["datasets"], yaml.safe_load(LICENCES.read_text(encoding="utf-8"))
    official, simulated = (
        [name for name, entry in datasets.items() if kind(entry)] for kind in (is_official, lambda e: "simulate" in e)
    )
    used |= {"PubMedQA"} if official else set()
    firsts = {model.metrics["dataset"]: model for model in reversed(models)}
    prompts = [(name, next(iter(firsts[name].predictions().items()))) for name in sorted(firsts)]
    curves = {run: [m.provenance.get("train_lora", {}).get("curve") for m in of_run] for run, of_run in runs.items()}
    page = {
        "result": result,
        "cells": list(cells.values()),
        "words": words,
        "headings": headings,
        "sources": args.sources,
        "simulated": simulated,
        "official": official,
        "titles": list(dict.fromkeys("PubMedQA" if name in official else name for name in datasets)),
        "show": show,
        "findings": list(findings(words, result, cells)),
        "adapters": {run: of_run for run, of_run in runs.items() if not of_run[0].metrics["base"]},
        "pictures": draw(words, headings, result, curves, official),
        "errors": [errors(of_run[0], items[of_run[0].metrics["dataset"]]) for of_run in runs.values()],
        "prompts": prompts,
        "runs": list(runs),
        "accuracies": any("validation_accuracy" in step for c in curves.values() for one in c for step in one or ()),
        "older_losses": [m.name for m in models if m.provenance.get("train_lora", {"loss": ""}).get("loss") is None],
        "settings": settings(runs),
        "shortened": [[run, *map(words.name, counts)] for run, *counts in shortened(runs, datasets)],
        "costs": list(costs(runs)),
        "provenance": provenance(models),
        "licences": [entry for entry in licences if entry.get("of") in {None, *used}],
    }
    options = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    options["extensions"] = ["jinja2.ext.do"]
    template = Environment(loader=FileSystemLoader(TEMPLATE.parent), **options).get_template(TEMPLATE.name)
    with replacing(args.output) as partial:
        partial.write_text(template.render(page), encoding="utf-8")
    print(f"{args.output}: {len(runs)} runs, {len(models)} models")


if __name__ == "__main__":
    run(main)

"""Writes the report: one HTML file that needs nothing else, for a screen, a phone or paper.

Where a figure stands in accuracy.tsv, the page has that cell, to the character; the rest is of accuracy.json. The same
input gives the same file.
"""

import argparse
import csv
import datetime
import json
from pathlib import Path

import yaml
from common.files import read_json, read_jsonl, replacing
from evaluation.metrics import HEADINGS
from evaluation.pictures import draw
from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATE = Path(__file__).parent / "../report/report.html.j2"
LICENCES = Path(__file__).parent / "../report/licences.yaml"
ERRORS = 3  # shown of each run
FILES = {
    "train_lora": "adapter.nemo",
    "import_adapter": "adapter.nemo",
    "predict": "predictions.jsonl",
}  # a step's result


class Model:
    """What lies in a model's directory: its figures, where they come from, its answers."""

    def __init__(self, file):
        self.metrics = read_json(file)
        self.provenance = read_json(file.with_name("provenance.json"))
        self.file, self.name = file, f"{self.metrics['run']}, fold {self.metrics['fold']}, seed {self.metrics['seed']}"

    def predictions(self):
        """{pmid: its line}, in the test set's order. Read when asked for: a run of ten folds needs one model's."""
        return {row["pmid"]: row for row in read_jsonl(self.file.with_name("predictions.jsonl"))}


def read_table(file):
    """accuracy.tsv as {(data set, run): {column: cell}}."""
    with open(file, encoding="utf-8", newline="") as lines:
        return {(row["dataset"], row["run"]): row for row in csv.DictReader(lines, delimiter="\t")}


def against(line, other, cells, comparisons):
    """In words, whether a run differs from another, by Holm's adjusted p; None where they were not compared."""
    key = {"dataset": line["dataset"], "run": line["run"], "other": other}
    found = next((comparison for comparison in comparisons if key.items() <= comparison.items()), None)
    if found is None:
        return None
    better = "significantly better than" if found["difference"] > 0 else "significantly worse than"
    verdict = better if found["p_holm"] < 0.05 else "not significantly different from"
    name = "the most frequent answer" if other == "majority" else f"the untuned {other}"
    accuracy = cells[line["dataset"], other]["accuracy"]
    return f"{verdict} {name} ({accuracy} %, p = {found['p_holm']:.2g})"


def findings(result, cells):
    """A sentence for each tuned run, or for the base where there is none."""
    bases = {(line["model"], line["dataset"]): line["run"] for line in result["runs"] if line["base"]}
    lines = [line for line in result["runs"] if "by_model" in line]  # no ensembles
    for line in [line for line in lines if not line["base"]] or lines:
        row = cells[line["dataset"], line["run"]]
        others = bases.get((line["model"], line["dataset"])), "majority"
        told = [against(line, other, cells, result["comparisons"]) for other in others]
        interval = f"{row['accuracy']} % (95 % interval {row['accuracy_low']} to {row['accuracy_high']})"
        yield line["run"], f"{interval}: {' and '.join(filter(None, told))}."


def errors(model, items):
    """The wrong answers, by score, that the model was surest of, and how many there are of them."""
    answers, predictions = model.metrics["answers"], model.predictions()
    wrong = [pmid for pmid, answer in answers.items() if answer["score"] != answer["gold"]]
    wrong.sort(key=lambda pmid: (-max(answers[pmid]["probability"]), pmid))
    shown = [
        answers[pmid]
        | {"pmid": pmid, "question": items[pmid]["QUESTION"], "pred": predictions[pmid]["pred"]}
        | {"contexts": list(zip(items[pmid]["LABELS"], items[pmid]["CONTEXTS"], strict=True))}
        for pmid in wrong[:ERRORS]
    ]
    return {"model": model.name, "wrong": len(wrong), "items": len(answers), "shown": shown}


def show(value):
    """A setting as config.yaml would have it."""
    if isinstance(value, list):
        return ", ".join(value) or "–"
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)


def settings(runs):
    """{key: each run's value} of what training and prediction were told. runs: {run: its models}."""
    told = [{} for _ in runs]
    for values, (first, *_) in zip(told, runs.values()):
        for step in ("train_lora", "import_adapter", "predict"):
            values |= first.provenance.get(step, {}).get("settings", {})
        values["label"] = first.metrics["label"]
        values.pop("seed", None)
    return {key: [show(values.get(key)) for values in told] for key in sorted(set().union(*told))}


def costs(runs):
    """For each run and step what its models took together, and the memory of the one that took most."""
    for run, models in runs.items():
        for name in ("train_lora", "predict", "evaluate"):
            steps = [model.provenance[name] for model in models if name in model.provenance]
            if not steps:
                continue
            gpus = sorted({gpu for step in steps for gpu in step.get("gpus", [])})
            devices = steps[0]["settings"].get("devices", 1)
            seconds = sum(step["seconds"] for step in steps)
            yield {
                "run": run,
                "step": name,
                "jobs": len(steps),
                "attempts": sum(len(step.get("attempts", [0])) for step in steps),
                "hardware": f"{devices} × {', '.join(gpus) or 'CPU process'}",
                "time": datetime.timedelta(seconds=round(seconds)),
                "memory": max(step["peak_memory_mb"] for step in steps),
                "gpu_memory": max(step.get("peak_gpu_memory_mb") or 0 for step in steps),
                "gpu_hours": f"{devices * seconds / 3600 if gpus else 0:.2f}",
            }


def provenance(models):
    """Commits, images and versions of all steps, and the checksums of each model's files."""
    steps = [step for model in models for step in model.provenance.values()]
    packages = sorted({package for step in steps for package in step["versions"]})
    found = {"workflow, commit": {step["workflow"] or "not known: not a git repository" for step in steps}}
    found["image"] = {f"{step['image']}, sha256 {step['image_sha256']}" for step in steps if step["image"]} or {"none"}
    for package in packages:
        found[package] = {step["versions"][package] for step in steps if package in step["versions"]}
    sums = {}  # (model, file): sha256
    for model in models:
        for name, step in model.provenance.items():
            for file, digest in step["sha256"].items():
                sums[model.name, FILES[name] if file == "result" else file] = digest
    return {
        "facts": {name: ", ".join(sorted(values)) for name, values in found.items()},
        "sums": [(model, file, digest) for (model, file), digest in sums.items() if file != "adapter"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, type=Path, help="accuracy.tsv, written by compare_runs.py")
    parser.add_argument("--json", required=True, type=Path, help="accuracy.json, written with it")
    help = "written by evaluate.py; beside it lie provenance.json and predictions.jsonl"
    parser.add_argument("--metrics", required=True, nargs="+", type=Path, help=help)
    parser.add_argument("--test-items", required=True, nargs="+", type=Path, help="…/{dataset}/items/test.json")
    help = "JSON: the entries under models:, datasets: and adapter: in the configuration that the runs use"
    parser.add_argument("--sources", required=True, type=json.loads, help=help)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()

    result, cells = read_json(args.json), read_table(args.table)
    items = {file.parts[-3]: read_json(file) for file in args.test_items}
    models, runs = [Model(file) for file in args.metrics], {}
    for model in models:
        runs.setdefault(model.metrics["run"], []).append(model)
    used = {str(value) for kind in args.sources.values() for entry in kind.values() for value in entry.values()}
    licences = yaml.safe_load(LICENCES.read_text(encoding="utf-8"))
    simulated = [name for name, entry in args.sources["datasets"].items() if "simulate" in entry]
    curves = {run: [m.provenance.get("train_lora", {}).get("curve") for m in of_run] for run, of_run in runs.items()}
    page = {
        "result": result,
        "cells": list(cells.values()),
        "headings": HEADINGS,
        "sources": args.sources,
        "simulated": simulated,
        "findings": list(findings(result, cells)),
        "pictures": draw(result, curves, simulated),
        "errors": [errors(of_run[0], items[of_run[0].metrics["dataset"]]) for of_run in runs.values()],
        "prompt": next(iter(models[0].predictions().values())),
        "runs": list(runs),
        "older_losses": [m.name for m in models if m.provenance.get("train_lora", {"loss": ""}).get("loss") is None],
        "settings": settings(runs),
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
    main()

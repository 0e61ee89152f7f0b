"""What the report says of how models came about: settings, costs, provenance."""

import datetime
import json

FILES = {
    "train_lora": "adapter.nemo",
    "import_adapter": "adapter.nemo",
    "predict": "predictions.jsonl",
}  # a step's result


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
        if first.metrics["label"] != "answer":  # of other data than PubMedQA, which has one answer
            values["label"] = first.metrics["label"]
        values.pop("seed", None)
    return {key: [show(values.get(key)) for values in told] for key in sorted(set().union(*told))}


def shortened(runs, datasets):
    """[run, how many items `truncate` shortened of its training, validation and test data] for each run whose data set
    has that key; of several models the fewest and the most."""
    for run, models in runs.items():
        if "truncate" not in datasets[models[0].metrics["dataset"]]:
            continue
        found = []
        for step, split in ("train_lora", "train"), ("train_lora", "val"), ("predict", "test"):
            steps = [model.provenance[step] for model in models if step in model.provenance]
            counts = sorted({made.get("shortened", {}).get(split, 0) for made in steps})
            found.append(" to ".join(dict.fromkeys(map(str, (counts[0], counts[-1])))) if counts else "–")
        yield [run, *found]


def costs(runs):
    """For each run and step what its models took together, and the memory of the one that took most."""
    for run, models in runs.items():
        for name in ("train_lora", "predict", "evaluate"):
            steps = [model.provenance[name] for model in models if name in model.provenance]
            if not steps:
                continue
            gpus = sorted({gpu for step in steps for gpu in step.get("gpus", [])})
            settings = steps[0]["settings"]
            devices = settings.get("nodes", 1) * settings.get("devices", 1)
            seconds = sum(step["seconds"] for step in steps)
            yield {
                "run": run,
                "step": name,
                "jobs": len(steps),
                "attempts": sum(len(step.get("attempts", [0])) for step in steps),
                "devices": devices,
                "hardware": ", ".join(gpus) or "CPU process",
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

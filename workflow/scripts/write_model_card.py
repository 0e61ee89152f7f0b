"""Writes README.md of an adapter in PEFT's format: a model card in the form of the Hugging Face Hub.

It tells base, data, prompt, use, training, licences and checksums, and results where --metrics are given. Weights are
read for their checksum only. The same input gives the same file.
"""

import argparse
import json
import keyword
import re
from collections import Counter
from pathlib import Path

import numpy as np
import yaml
from common.ending import run
from common.files import read_json, read_jsonl, replacing, sha256
from common.template import parts
from evaluation.facts import show
from evaluation.lines import column
from evaluation.metrics import correctness, figures
from evaluation.significance import bootstrap_interval
from evaluation.text_metrics import FREE_TEXT_METRICS
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATE = Path(__file__).parent / "../report/model_card.md.j2"
LICENCES = Path(__file__).parent / "../report/licences.yaml"
DATASETS = Path(__file__).parent / "../report/datasets.yaml"
DTYPES = {"bf16": "bfloat16", "16": "float16", "32": "float32"}
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes


def literal(text):
    """Python's, over several lines where the text can stand as it is."""
    odd = ("\\", '"""', "```", "\r", "\0")
    return repr(text) if text.endswith('"') or any(part in text for part in odd) else f'"""{text}"""'


def as_code(template):
    """A prompt's template as Python: a variable for each column, with … for an item's own text, then the prompt."""
    names, prompt = {}, ""
    for text, name in parts(template):
        prompt += re.sub("[{}]", r"\g<0>\g<0>", text)
        if name is not None:
            plain = name.isidentifier() and not keyword.iskeyword(name)
            names[name] = name if plain else f"_{re.sub(r'[^a-zA-Z0-9]', '_', name)}"
            prompt += f"{{{names[name]}}}"
    return "".join(f'{name} = "…"\n' for name in names.values()) + f"prompt = f{literal(prompt)}"


def words(names, last):
    *names, end = names
    return f"{', '.join(names)} {last} {end}" if names else end


def percent(share, sign=""):
    return f"{100 * share:{sign}.1f}"


def with_interval(value, ends, sign=""):
    return f"{percent(value, sign)} ({percent(ends[0], sign)} to {percent(ends[1], sign)})"


def special_tokens(directory):
    """The tokenizer's, as its configuration names them, or None."""
    file = directory / "tokenizer_config.json"
    config = read_json(file) if file.exists() else {}
    tokens = {name: config.get(f"{name}_token") for name in ("bos", "eos")}
    return {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}


def compare(own, base):
    """Rows of the table of results: this adapter, the base alone, where it is given, and the most frequent answer."""
    (gold,), (scored,) = column([own], "gold"), column([own], "score")
    (most, _), *_ = Counter(gold).most_common(1)
    lines = {"this adapter": scored, "the base model alone": base and column([base], "score")[0]}
    for name, given in (lines | {f"the most frequent answer, {most}": [most] * len(gold)}).items():
        if given:
            found = figures(gold, [given], own["labels"])
            difference = correctness(gold, [scored]) - correctness(gold, [given])
            row = [name, *(with_interval(found[key], found[f"{key}_interval"]) for key in ("accuracy", "macro_f1"))]
            by = with_interval(difference.mean(), bootstrap_interval(np.mean, difference), "+")
            yield [*row, "" if given is scored else by]


def compare_texts(own, base):
    """The same of free text: its metrics in place of accuracy and macro-F1, and no differences."""
    for name, metrics in {"this adapter": own, "the base model alone": base}.items():
        if metrics:
            yield [name, *(with_interval(metrics[key], metrics[f"{key}_interval"]) for key in FREE_TEXT_METRICS)]


def front_matter(base, data, licence, name, metrics):
    """The YAML at the top. What has no revision is not from the Hub, which would look for it there."""
    results = {"task_type": "text-generation", "dataset_type": data["hub"] or "other", "dataset_name": data["name"]}
    figures = {"accuracy": ("accuracy", "accuracy"), "macro_f1": ("f1", "macro-F1")}
    figures |= {"exact_match": ("exact_match", "exact match"), "token_f1": ("f1", "token F1")}
    figures = {key: words for key, words in figures.items() if key in (metrics or {})}
    card = ModelCardData(
        base_model=base["name"] if base["revision"] else None,
        library_name="peft",
        license=licence.lower() if licence else "unknown",
        language=data["language"],
        datasets=[data["hub"]] if data["hub"] else None,
        pipeline_tag="text-generation",
        tags=["lora", "nemo", *data["tags"]],
        model_name=name if metrics else None,
        eval_results=[
            EvalResult(**results, dataset_split="test", metric_type=kind, metric_name=words, metric_value=metrics[key])
            for key, (kind, words) in figures.items()
        ]
        or None,
    )
    return card.to_yaml()


def hardware(provenance):
    gpus, settings = ", ".join(sorted(set(provenance.get("gpus", [])))), provenance["settings"]
    return f"{settings.get('nodes', 1) * settings['devices']} × {gpus}" if gpus else "a CPU"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="export_adapter.py's; files beside it are described")
    parser.add_argument("--adapter", required=True, type=Path, help="adapter.nemo, which it is from")
    parser.add_argument("--provenance", required=True, type=Path, help="the adapter's")
    parser.add_argument("--train", required=True, type=Path, help="JSON Lines: each training item once")
    parser.add_argument("--val", required=True, type=Path, help="JSON Lines; the first is the card's example")
    help = "written by evaluate.py: the adapter's, and that of the base alone; none: no results"
    parser.add_argument("--metrics", nargs="*", default=[], type=Path, help=help)
    help = "JSON: the entries of its model and its data set in the configuration"
    parser.add_argument("--sources", required=True, type=json.loads, help=help)
    parser.add_argument("--max-new-tokens", required=True, type=int)
    parser.add_argument("--name", required=True, nargs="*", metavar="KEY=VALUE", help="run, fold, seed, model, label")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()

    name, directory = dict(pair.split("=", 1) for pair in args.name), args.config.parent
    lora, provenance = read_json(args.config, "r"), read_json(args.provenance, "settings", "sha256")
    model, dataset = args.sources["model"], args.sources["dataset"]
    kinds, licences = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in (DATASETS, LICENCES))
    data = next(words for kind, words in kinds.items() if kind in dataset) | {"revision": dataset.get("revision")}
    is_own = data["name"] is None
    data["name"] = data["name"] or name["dataset"]
    licences = [entry for entry in licences if entry.get("of") in {None, data["name"], *model.values()}]
    of_base = next((entry for entry in licences if entry.get("of") in model.values()), {})
    base = {"place": lora["base_model_name_or_path"], "revision": lora["revision"]}
    base["origin"] = "a GGUF file" if "gguf" in model else "a directory"
    base["name"] = base["place"] if base["revision"] else of_base.get("name", name["model"])
    train, val = read_jsonl(args.train), read_jsonl(args.val)
    learnt = [answer for answer, _ in Counter(row["output"] for row in train).most_common()]
    labels = dataset.get("labels") if is_own else learnt
    own, base_alone = (*map(read_json, args.metrics), None, None)[:2]
    settings, files = provenance["settings"], [file for file in directory.iterdir() if file.name[0] != "."]
    card = {
        **name,
        "title": f"{name['run']}, fold {name['fold']}, seed {name['seed']}: a LoRA adapter for {base['name']}",
        "front_matter": front_matter(base, data, of_base.get("licence"), "-".join(directory.parts[-4:-1]), own),
        "base": base,
        "data": data,
        "directory": directory,
        "lora": lora,
        "chosen": provenance.get("chosen"),
        "loss": provenance.get("validation_loss"),
        "nemo": provenance["versions"].get("nemo_toolkit"),
        "commit": provenance["workflow"],
        "hardware": hardware(provenance),
        "settings": {key: show(value) for key, value in sorted(settings.items())},
        "dropout": settings["adapter_dropout"] if not lora["lora_dropout"] else 0,
        "items": {"train": len(train), "val": len(val)},
        "answers": labels,
        "is_own": is_own,
        "files": [f"`{Path(dataset[key]).name}`" for key in ("items", "train", "val", "test") if key in dataset],
        "column": dataset.get("answer"),
        "prompt": as_code(dataset["prompt"]) if is_own else f"prompt = {literal(val[0]['input'])}",
        "answer": val[0]["output"] if not is_own else labels[0] if labels else "…",
        "tokens": special_tokens(directory),
        **{key: settings.get(key, False) for key in ("add_bos", "chat_template")},
        "dtype": DTYPES[str(settings["precision"])],
        "max_new_tokens": args.max_new_tokens,
        "vllm_rank": next((rank for rank in VLLM_RANKS if rank >= lora["r"]), None),
        "metrics": own,
        "results": list((compare if own["labels"] else compare_texts)(own, base_alone)) if own else [],
        "headings": [metric.headings[""] for metric in FREE_TEXT_METRICS.values()],
        "licences": licences,
        "licence": of_base.get("licence"),
        "sums": {file.name: sha256(file) for file in sorted(files) if file.name != args.output.name}
        | {args.adapter.name: sha256(args.adapter)},
    }
    options = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    template = Environment(loader=FileSystemLoader(TEMPLATE.parent), **options).get_template(TEMPLATE.name)
    with replacing(args.output) as partial:
        partial.write_text(template.render(card, words=words, percent=percent), encoding="utf-8", newline="\n")
    print(f"{args.output}: model card of {name['run']}, {'with' if own else 'without'} results")


if __name__ == "__main__":
    run(main)

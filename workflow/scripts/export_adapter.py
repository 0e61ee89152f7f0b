"""Writes an adapter of NeMo in PEFT's format, which transformers and vLLM load, too. Needs neither NeMo nor a GPU.

What is written, beside what else may lie there:
  adapter_model.safetensors   lora_A and lora_B of each module, in the adapter's own precision
  tokenizer files             the base model's, as they are
  chat_template.jinja         the base model's, with --chat-template
  adapter_config.json         rank, alpha, modules and base; where it stands, the rest is whole
The base is named as on the Hub, with its revision; one from elsewhere by the directory --snapshot.
The same adapter gives the same bytes.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from common.chat import FILE as CHAT_TEMPLATE
from common.ending import run
from common.files import replacing, sha256, write_json
from model_formats.lora import by_module, peft_config
from model_formats.manifest import snapshot_files
from model_formats.snapshot import Snapshot
from safetensors.torch import save

TOKENIZER = ("tokenizer", "special_tokens_map.", "vocab.", "merges.")  # how its files' names begin


def tokenizer_files(directory):
    return [file for file in snapshot_files(directory) if file.name.startswith(TOKENIZER)]


def refuse_damaged_tokenizer(directory, files):
    """Exits where a tokenizer's file is not as the snapshot's manifest, {name: {"sha256", …}}, has it: it is copied."""
    for name in filter(lambda name: name.startswith(TOKENIZER), files):
        file = directory / name
        if not file.is_file() or sha256(file) != files[name]["sha256"]:
            what = "has other bytes than were fetched" if file.is_file() else "is missing"
            sys.exit(f"{file}: {what}. Remove {directory / 'manifest.json'} and run Snakemake again, which fetches it.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--adapter", required=True, type=Path, help="written by train_lora.py, of any tensor parallelism"
    )
    parser.add_argument("--snapshot", required=True, type=Path, help="the base model's, with manifest.json")
    help = "of an adapter whose prompts went through it in training: the template's file"
    parser.add_argument("--chat-template", nargs="?", type=Path, help=help)
    parser.add_argument("--output-dir", required=True, type=Path)
    args = parser.parse_args()

    snapshot = Snapshot(args.snapshot)
    if not (manifest := snapshot.manifest()):
        sys.exit(f"{args.snapshot}: holds no manifest.json, as download_model writes it.")
    base, revision = manifest["source"], manifest["revision"]
    refuse_damaged_tokenizer(args.snapshot, manifest["files"])
    if revision is None:  # not from the Hub
        base = str(args.snapshot)
    config, modules = by_module(args.adapter, snapshot)
    written = peft_config(config, modules, snapshot, base, revision)
    tokenizer, output = tokenizer_files(args.snapshot), args.output_dir
    output.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_config.json", CHAT_TEMPLATE):
        (output / name).unlink(missing_ok=True)
    for file in tokenizer_files(output):
        if file.name not in [own.name for own in tokenizer]:  # another model's
            file.unlink()
    weights = {
        f"base_model.model.{module}.lora_{name}.weight": tensor.clone(memory_format=torch.contiguous_format)
        for module, pair in modules.items()
        for name, tensor in zip("AB", pair)
    }
    with replacing(output / "adapter_model.safetensors") as partial:
        partial.write_bytes(save(weights, metadata={"format": "pt"}))  # save_file's is its owner's only
    for file in [*tokenizer, *filter(None, [args.chat_template])]:
        with replacing(output / file.name) as partial:
            shutil.copyfile(file, partial)
    write_json(output / "adapter_config.json", written, indent=2)
    print(f"{output}: rank {written['r']}, alpha {written['lora_alpha']}, {', '.join(written['target_modules'])}")
    if (dropout := config["peft"]["lora_tuning"].get("adapter_dropout")) and not written["lora_dropout"]:
        print(f"lora_dropout is 0: NeMo's dropout, {dropout}, was on the adapter's output; PEFT's is on its input.")


if __name__ == "__main__":
    run(main)

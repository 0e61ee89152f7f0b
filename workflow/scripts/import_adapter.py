"""Takes an adapter that was trained elsewhere: one in PEFT's format, or an adapter.nemo. Needs neither NeMo nor a GPU.

It becomes adapter.nemo as train_lora.py writes it with tensor parallelism 1, its weights in their own precision and not
rounded: where PEFT has different lora_A for q, k and v, or gate and up, NeMo's rank is the sum of theirs. Of an
adapter.nemo only rank, alpha, layers and weights are taken; all else of the configuration is the base's.
Beside it: its .provenance.json.
"""

import argparse
import sys
from pathlib import Path

import yaml
from common.ending import run
from common.files import replacing
from common.provenance import record
from model_formats.lora import by_module
from model_formats.lora_writer import peft_section, to_pairs, with_one_scale, write_adapter
from model_formats.manifest import ADAPTER
from model_formats.peft_adapter import PeftAdapter
from model_formats.snapshot import Snapshot
from safetensors.torch import load_file


def from_peft(directory, snapshot):
    """{module: (A, B)}, {module: scale}"""
    adapter = PeftAdapter(directory)
    if problem := adapter.problem(snapshot):
        sys.exit(f"{directory}: {problem}.")
    tensors = load_file(directory / "adapter_model.safetensors")
    if wrong := next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None):
        sys.exit(f"{directory / 'adapter_model.safetensors'}: {wrong} holds values that are no numbers.")
    modules = {module: (tensors[pair["A"].name], tensors[pair["B"].name]) for module, pair in adapter.modules.items()}
    return modules, {module: adapter.config.scale(module) for module in modules}


def from_nemo(file, snapshot):
    config, modules = by_module(file, snapshot)
    lora = config["peft"]["lora_tuning"]
    scale = 1.0 if lora.get("alpha") is None else lora["alpha"] / lora["adapter_dim"]
    return modules, dict.fromkeys(modules, scale)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--directory", type=Path, help="that PEFT saved, or download_model.py fetched")
    source.add_argument("--nemo", type=Path, help="adapter.nemo, of any tensor parallelism")
    parser.add_argument("--source", help="where it is from, for the report; else the path")
    parser.add_argument("--snapshot", required=True, type=Path, help="directory of the base's Hugging Face snapshot")
    parser.add_argument("--base", required=True, type=Path, help="the same converted, an unpacked .nemo directory")
    parser.add_argument("--output", required=True, type=Path, help="adapter.nemo; beside it its .provenance.json")
    args = parser.parse_args()

    snapshot, place = Snapshot(args.snapshot), args.directory or args.nemo
    modules, scales = (from_peft if args.directory else from_nemo)(place, snapshot)
    try:
        modules, scale = with_one_scale(modules, scales)
    except ValueError as error:
        sys.exit(f"{place}: {error}.")
    pairs, base = to_pairs(modules, snapshot), args.base / "model_config.yaml"
    peft = peft_section(pairs, scale, snapshot)
    with replacing(args.output) as partial:
        write_adapter(partial, yaml.safe_load(base.read_text(encoding="utf-8")) | {"peft": peft}, pairs)
    lora = {key: peft["lora_tuning"][key] for key in ("target_modules", "adapter_dim", "alpha")}
    read = {name: place / name for name in ADAPTER} if args.directory else {place.name: place}
    where = args.source or str(place)
    record(args.output, {"adapter": where, **lora}, {"base": base, **read}, imported=where)
    print(
        f"{args.output}: {where}, {len(modules)} modules, rank {lora['adapter_dim']} and alpha {lora['alpha']} in NeMo"
    )


if __name__ == "__main__":
    run(main)

"""merge_model.py's time and peak memory against cp with fsync of the same bytes.

python benchmarks/merge.py [--layers 2 4] [--rank 32]

Layers of Mistral-7B's shapes, random weights; the whole model has 32. The adapter is one of all seven linear layers.
The two take turns; medians.
"""

import argparse
import json
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from convert import RANDOM_SNAPSHOT, ROOT, command_of, measure

MERGE = [sys.executable, ROOT / "workflow/scripts/merge_model.py"]


def write_adapter(snapshot, rank, directory):
    """Random, in fp32, as PEFT saves it."""
    sys.path.insert(0, str(ROOT / "workflow/scripts"))
    import numpy as np
    from model_formats.snapshot import Snapshot
    from safetensors.numpy import save_file

    random, matrices, targets = np.random.default_rng(0), {}, set()
    for name, tensor in Snapshot(snapshot).tensors.items():
        if (module := name.removesuffix(".weight")).endswith("_proj"):
            targets.add(module.rpartition(".")[2])
            for which, shape in {"A": (rank, tensor.shape[1]), "B": (tensor.shape[0], rank)}.items():
                key = f"base_model.model.{module}.lora_{which}.weight"
                matrices[key] = random.standard_normal(shape, np.float32) / 100
    directory.mkdir()
    save_file(matrices, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": sorted(targets)}
    (directory / "adapter_config.json").write_text(json.dumps(config))


def in_another_process(function, *arguments):
    """As a child's peak memory counts what its parent had when it was born."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--directory", help="on the disk to measure; default: the system's for temporary files")
    parser.add_argument("--device", default="cpu", help="that makes the random weights")
    args = parser.parse_args()
    print("| snapshot | `cp` | `merge_model` | `merge_model` / `cp` | peak memory of `merge_model` |")
    print("|" + "---|" * 5)
    for layers in args.layers:
        directory = Path(tempfile.mkdtemp(dir=args.directory))
        snapshot, adapter, copy, merged = (directory / name for name in ("hf", "peft", "cp", "merged"))
        try:
            command = [sys.executable, RANDOM_SNAPSHOT, "--layers", str(layers), "--device", args.device, snapshot]
            subprocess.run(command, check=True)
            in_another_process(write_adapter, snapshot, args.rank, adapter)
            size = sum(file.stat().st_size for file in snapshot.iterdir()) / 1e9
            merge = [*MERGE, "--snapshot", snapshot, "--adapter", adapter, "--output", merged]
            runs = [
                (*measure(command_of("cp", snapshot, copy), copy), *measure(merge, merged)) for _ in range(args.runs)
            ]
        finally:
            shutil.rmtree(directory)
        cp, _, seconds, memory = (statistics.median(values) for values in zip(*runs))
        ratio = statistics.median(run[2] / run[0] for run in runs)
        print(f"| {size:.2f} GB | {cp:.1f} s | {seconds:.1f} s | {ratio:.2f} | {memory:.2f} GB |", flush=True)


if __name__ == "__main__":
    main()

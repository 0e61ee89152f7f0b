"""LoRA training on one GPU with train_lora.py, as the tutorial sets its micro batch and as it fits, and with Hugging
Face's transformers and PEFT, after the workflow has made the base:

python benchmarks/gpu/train.py --snapshot … --base results/base/mistral-7b
    --data results/data/pubmedqa/final_decision/fold0
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "workflow/scripts"))
from common.files import read_json, read_jsonl

SETTINGS = {"devices": 1, "tensor_model_parallel_size": 1, "precision": "bf16", "megatron_amp_O2": True}
SETTINGS |= {"max_seq_length": 2048, "global_batch_size": 32, "lr": 1e-4, "warmup_steps": 2, "adapter_dim": 32}
SETTINGS |= {"target_modules": ["attention_qkv"], "adapter_dropout": 0.0}
STAGES = {"torchrun and torch": "train_lora: on ", "NeMo's imports": "NeMo is imported", "the model": "model is loaded"}
STAGES |= {"data and validation": "after 0 steps", "first step": "train_lora: 1 of "}  # by the log's words at the end
FLOPS = 4 * (7_241_732_096 - 32000 * 4096)  # a token, of Mistral-7B's frozen matrices, forwards and backwards


def nemo(args, size):
    """(median seconds of a step, peak GB, {stage: seconds from the start to its end})"""
    log = args.logs / f"train-{size}.log"
    with tempfile.TemporaryDirectory() as directory, open(log, "w") as file:
        output = Path(directory, "adapter.nemo")
        settings = SETTINGS | {"micro_batch_size": size, "max_steps": args.steps, "val_check_interval": args.steps}
        command = ["torchrun", "--standalone", "--nproc-per-node", "1", ROOT / "workflow/scripts/train_lora.py"]
        command += ["--accelerator", "gpu", "--base", args.base, "--train", args.data / "train.jsonl"]
        command += ["--val", args.data / "val.jsonl", "--settings", json.dumps(settings), "--seed", "0"]
        command += ["--time-limit", "60", "--work-dir", Path(directory, "training"), "--output", output]
        start, ends = time.monotonic(), {}
        with subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as run:
            for line in run.stdout:
                file.write(line)
                ends.update({stage: time.monotonic() - start for stage, words in STAGES.items() if words in line})
        if run.returncode:
            sys.exit(f"train_lora failed: see {log}")
        found = read_json(output.with_suffix(".provenance.json"))
    return found["seconds_per_step"], found["peak_gpu_memory_mb"] / 1000, ends


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshot", required=True, type=Path)
    parser.add_argument("--base", required=True, type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--micro-batch-sizes", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--peak", type=float, default=989e12, help="bf16 operations a second, by the card's data sheet")
    parser.add_argument("--logs", type=Path, default=Path("."))
    args = parser.parse_args()

    tokenizer = SentencePieceProcessor(model_file=str(args.snapshot / "tokenizer.model"))
    items = read_jsonl(args.data / "train.jsonl")
    step = 32 / len(items) * sum(len(tokenizer.encode(item["input"] + item["output"])) + 1 for item in items)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {step:.0f} tokens a step, {args.steps} steps each"
    )
    head = ("", "micro batch", "s/step", "tokens/s", "of bf16 peak", "peak GB")
    print("{:14}{:>12}{:>9}{:>10}{:>14}{:>9}".format(*head))

    def show(name, size, seconds, rate, peak):
        print(f"{name:14}{size:12}{seconds:9.2f}{rate:10.0f}{rate * FLOPS / args.peak:14.0%}{peak:9.1f}", flush=True)

    for size in args.micro_batch_sizes:
        seconds, peak, ends = nemo(args, size)
        show("train_lora", size, seconds, step / seconds, peak)
        print("  from the start, s:", ", ".join(f"{stage} {end:.1f}" for stage, end in ends.items()))
    command = [sys.executable, Path(__file__).with_name("hugging_face.py"), "train", "--snapshot", args.snapshot]
    command += ["--jsonl", args.data / "train.jsonl", "--steps", args.steps, "--sizes", *args.micro_batch_sizes]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)  # may run out of memory at a size
    for found in map(json.loads, done.stdout.splitlines()):
        values = (found[key] for key in ("micro_batch_size", "seconds", "tokens_per_second", "peak_gb"))
        show("transformers", *values)


if __name__ == "__main__":
    main()

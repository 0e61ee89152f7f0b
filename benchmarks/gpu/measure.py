"""What the measurements on GPUs share: how the steps and their peers are started, and what is seen of them."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from sentencepiece import SentencePieceProcessor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "workflow/scripts"))
from common.files import read_json, read_jsonl
from common.pubmedqa import LABELS

TRAIN = {"global_batch_size": 32, "lr": 1e-4, "warmup_steps": 2, "adapter_dim": 32, "adapter_dropout": 0.0}
TRAIN |= {"target_modules": ["attention_qkv"], "micro_batch_size": 1}
STAGES = {"torchrun and torch": ": on ", "NeMo's imports": "NeMo is imported", "the model": "model is loaded"}
STAGES |= {"data and validation": "after 0 steps", "first step": "train_lora: 1 of "}  # by the log's words at the end


def nvidia_smi(*fields):
    """[its values, …] of each GPU; none where there is no driver."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return [line.split(", ") for line in lines]


class GpuMemory:
    """The most that the driver shows in use on each GPU, in MiB, whoever uses it; it is asked a few times a second, and
    PyTorch keeps what it has taken."""

    def __enter__(self):
        self.peaks, self.end = {}, threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()
        return self

    def watch(self):
        while not self.end.wait(0.2):
            for gpu, (used,) in enumerate(nvidia_smi("memory.used")):
                self.peaks[gpu] = max(int(used), self.peaks.get(gpu, 0))

    def take(self, devices=1):
        """Of the first devices, since the last call."""
        peaks, self.peaks = self.peaks, {}
        return [peaks[gpu] for gpu in range(devices) if gpu in peaks]

    def __exit__(self, *_):
        self.end.set()


def row(*cells):
    """A line of a Markdown table."""
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def gpus():
    """The machine's, in words."""
    names = [name for (name,) in nvidia_smi("name")]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "no GPU"


def arguments(description):
    """The parser of a measurement, with the arguments that all of them have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshot", required=True, type=Path, help="of Hugging Face, with a tokenizer.model")
    parser.add_argument("--base", required=True, type=Path, help="the same, of convert_model.py")
    parser.add_argument("--data", required=True, type=Path, help="a fold's directory, of write_jsonl.py")
    help = "a command that is a Python with transformers and PEFT; several times for several versions; '': none"
    parser.add_argument("--peer-python", action="append", metavar="CMD", help=f"{help}. By default this one")
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON: settings in place of those here")
    parser.add_argument("--accelerator", choices=["gpu", "cpu"], default="gpu", help="cpu: only to try it, in fp32")
    parser.add_argument("--cap", type=float, metavar="GIB", help="what PyTorch may take of each GPU's memory")
    parser.add_argument("--logs", type=Path, default=Path("logs/benchmarks"))
    return parser


def environment(args, devices=1):
    """The first devices, in the driver's order, and PyTorch's allocator as train_lora.py sets it, perhaps capped."""
    allocator = "expandable_segments:True"
    if args.cap:
        (total,) = nvidia_smi("memory.total")[0]
        allocator += f",per_process_memory_fraction:{args.cap * 1024 / int(total):.4f}"
    gpus = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(devices)))}
    return os.environ | gpus | {"PYTORCH_CUDA_ALLOC_CONF": allocator, "PYTHONUNBUFFERED": "1"}


FAILED = []  # names of commands


def follow(args, name, command, devices=1):
    """Yields (seconds since the start, line) of what a command prints, which goes to its log, too. Where the command
    fails the last line is None, and the measurement goes on."""
    args.logs.mkdir(parents=True, exist_ok=True)
    log, start = args.logs / f"{name}.log", time.monotonic()
    with open(log, "w") as file:
        options = {"stdout": subprocess.PIPE, "stderr": file, "text": True, "env": environment(args, devices)}
        with subprocess.Popen(list(map(str, command)), **options) as run:
            for line in run.stdout:
                print(line, end="", file=file, flush=True)
                yield time.monotonic() - start, line
    if run.returncode:
        if "OutOfMemoryError" not in log.read_text():
            FAILED.append(name)
            print(f"{name} failed: see {log}", file=sys.stderr)
        yield time.monotonic() - start, None


def end():
    """Exits with an error if a command failed for another reason than that GPU memory lacked."""
    if FAILED:
        sys.exit(f"failed: {', '.join(FAILED)}")


def settings(args, devices, tensor_parallel, more):
    """Of train_lora.py and predict.py."""
    found = {"devices": devices, "tensor_model_parallel_size": tensor_parallel, "max_seq_length": 2048}
    found |= {"precision": "bf16", "megatron_amp_O2": True} if args.accelerator == "gpu" else {"precision": 32}
    return json.dumps({"megatron_amp_O2": False} | found | more | args.settings)


def torchrun(args, script, devices, rendezvous=("--standalone",)):
    command = [sys.executable, "-m", "torch.distributed.run", *rendezvous, "--nproc-per-node", devices, script]
    return [*command, "--accelerator", args.accelerator, "--base", args.base]


def training(args, work_dir, output, devices, tensor_parallel, more, *rendezvous):
    """The command of a training. rendezvous: torchrun's options, where it is not the only launcher."""
    command = torchrun(args, ROOT / "workflow/scripts/train_lora.py", devices, *rendezvous)
    command += ["--train", args.data / "train.jsonl", "--val", args.data / "val.jsonl", "--seed", 0]
    command += ["--settings", settings(args, devices, tensor_parallel, TRAIN | more), "--time-limit", 60]
    return [*command, "--work-dir", work_dir, "--output", output]


def result(output):
    """Of the training that made an adapter: seconds of a step, the losses of the first and the last, GB by torch."""
    made = read_json(output.with_suffix(".provenance.json"))
    losses = [step["loss"] for step in made["curve"] if "loss" in step]
    peak = made["peak_gpu_memory_mb"] and made["peak_gpu_memory_mb"] / 1000
    return {"seconds": made["seconds_per_step"], "losses": [losses[0], losses[-1]], "peak_gb": peak}


def train_lora(args, devices=1, tensor_parallel=1, output=None, **more):
    """What a training took: `stages`, {stage: seconds until its end}, `driver`, the MiB of each GPU, and, unless it
    failed, seconds of a step, GB by torch and the losses of the first and the last step; else `problem`."""
    name = "-".join(["train", str(devices), str(tensor_parallel), *(f"{key}-{more[key]}" for key in sorted(more))])
    with tempfile.TemporaryDirectory() as directory, GpuMemory() as memory:
        output, stages = output or Path(directory, "adapter.nemo"), {}
        command = training(args, Path(directory, "training"), output, devices, tensor_parallel, more)
        for seconds, line in follow(args, name, command, devices):
            for stage, words in STAGES.items():
                if line and words in line:
                    stages.setdefault(stage, seconds)
        found = {"stages": stages, "driver": memory.take(devices)}
        if line is None:
            found["problem"] = "failed" if name in FAILED else "out of memory"
        else:
            found |= result(output)
        return found


def tokenize(args, file):
    """{items: [(prompt, answer), …] in tokens, as NeMo has them, firsts: the labels' first tokens}"""
    tokenizer = SentencePieceProcessor(model_file=str(args.snapshot / "tokenizer.model"))
    rows = read_jsonl(file)
    prompts = tokenizer.encode([row["input"].strip(" ") for row in rows])
    answers = tokenizer.encode([row["output"] for row in rows])
    firsts = [tokenizer.encode(label)[0] for label in LABELS]
    return {"items": list(zip(prompts, ([*answer, 2] for answer in answers))), "firsts": firsts}


def tokens_of_step(items):
    """How many tokens, the items' own, a step has in the mean. items: of tokenize()."""
    lengths = [len(prompt) + len(answer) for prompt, answer in items["items"]]
    return TRAIN["global_batch_size"] * sum(lengths) / len(lengths)


def peers(args, what, items, *options):
    """Yields what hugging_face.py measured with each Python: (versions, what it printed, with the driver's MiB)."""
    for number, python in enumerate(args.peer_python or [shlex.quote(sys.executable)]):
        if not python:
            continue
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file, GpuMemory() as memory:
            json.dump(items, file)
            file.flush()
            command = [*shlex.split(python), Path(__file__).with_name("hugging_face.py"), what, *options]
            command += ["--snapshot", args.snapshot, "--items", file.name]
            command += ["--device", "cuda" if args.accelerator == "gpu" else "cpu"]
            for seconds, line in follow(args, f"peer-{what}-{number}", command):
                if line is None:
                    break
                found = json.loads(line) | {"driver": memory.take()}
                if "versions" in found:
                    versions, found["loaded"] = found["versions"], seconds
                yield versions, found

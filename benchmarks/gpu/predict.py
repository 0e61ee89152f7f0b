"""Prediction of all test items, text and the labels' scores, with predict.py, with NeMo as the tutorial has it, and
with Hugging Face's transformers, after the workflow has made base and data. Prints the table of docs/performance.md:

python benchmarks/gpu/predict.py --snapshot … --base results/base/mistral-7b
    --data results/data/pubmedqa/final_decision/fold0

With `--devices 1 2 4` each of so many GPUs has a copy of the model, and then all have one together.
"""

import json
import tempfile
from itertools import product
from pathlib import Path

import measure

TOKENS = 20  # as the tutorial sets it; random weights rarely end a text before
STAGES = {"loaded": "model is loaded", "seconds": " batches"}  # by the last of the log's lines with these words


class Rows:
    """The table, a line as soon as it is known."""

    def __init__(self):
        head = ["", "GPUs", "tensor parallel", "batch", "s until loaded", "s for all items"]
        head += ["times as fast as the tutorial's way", "GB, by torch", "MiB of each GPU, by the driver"]
        self.tutorials = None  # seconds
        measure.row(*head)
        measure.row(*["---"] * len(head))

    def add(self, what, found):
        if "seconds" not in found:
            return measure.row(*what, found.get("problem", "out of memory"), *[""] * 4)
        if "tutorial" in what[0]:
            self.tutorials = found["seconds"]
        shown = [f"{found['loaded']:.1f}" if "loaded" in found else "", f"{found['seconds']:.1f}"]
        shown += [f"{self.tutorials / found['seconds']:.1f}" if self.tutorials else ""]
        shown += [f"{found['peak_gb']:.1f}" if found.get("peak_gb") else ""]
        return measure.row(*what, *shown, " ".join(map(str, found["driver"])))


def in_one_process(args, rows, test, size):
    """Shows predictor.py's measurements."""
    command = [*measure.torchrun(args, Path(__file__).with_name("predictor.py"), 1), "--test", test]
    command += ["--settings", measure.settings(args, 1, 1, {"batch_size": size, "tokens_to_generate": TOKENS})]
    differences = None
    with measure.GpuMemory() as memory:
        for _, line in measure.follow(args, "predictor", command):
            if line and line.startswith("{"):
                found = json.loads(line)
                if "name" in found:
                    rows.add([found["name"], 1, 1, found["size"]], found | {"driver": memory.take()})
                else:
                    differences = found
    return differences


def step(args, test, adapter, devices, tensor_parallel, size):
    """What predict.py took."""
    name = f"predict-{devices}-{tensor_parallel}-{size}-{'tuned' if adapter else 'base'}"
    with tempfile.TemporaryDirectory() as directory, measure.GpuMemory() as memory:
        output, at = Path(directory, "predictions.jsonl"), {}
        command = measure.torchrun(args, measure.ROOT / "workflow/scripts/predict.py", devices)
        more = {"batch_size": size, "tokens_to_generate": TOKENS}
        command += ["--settings", measure.settings(args, devices, tensor_parallel, more), "--test", test]
        command += ["--labels", *measure.LABELS]
        command += ["--work-dir", Path(directory, "prediction"), "--output", output]
        command += ["--adapter", adapter] if adapter else []
        for seconds, line in measure.follow(args, name, command, devices):
            at |= {key: seconds for key, words in STAGES.items() if line and words in line}
        found = {"driver": memory.take(devices)}
        if line is None:
            return found | {"problem": "failed" if name in measure.FAILED else "out of memory"}
        peak = measure.read_json(output.with_suffix(".provenance.json"))["peak_gpu_memory_mb"]
        found |= {"loaded": at["loaded"], "seconds": at["seconds"] - at["loaded"], "peak_gb": peak and peak / 1000}
        return found


def main():
    parser = measure.arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64], help="batch sizes")
    parser.add_argument("--devices", type=int, nargs="*", default=[1], help="GPUs; the peers have one")
    args = parser.parse_args()

    test = args.data.parent / "test.jsonl"
    items = measure.tokenize(args, test)
    print(f"{measure.gpus()}; {len(items['items'])} items, {TOKENS} tokens\n", flush=True)
    rows = Rows()
    differences = in_one_process(args, rows, test, args.sizes[-1])
    loaded = None
    for versions, found in measure.peers(args, "predict", items, "--sizes", *args.sizes, "--new-tokens", TOKENS):
        if "size" in found:
            with_adapter = ", with an adapter" if found["adapter"] else ""
            rows.add([f"{versions}{with_adapter}", 1, 1, found["size"]], found | {"loaded": loaded})
        else:
            loaded = found["loaded"]
    with tempfile.TemporaryDirectory() as directory:
        adapter = Path(directory, "adapter.nemo")
        trained = measure.train_lora(args, output=adapter, max_steps=2, val_check_interval=2, micro_batch_size=4)
        models = [(None, "base"), *([(adapter, "with an adapter")] if "seconds" in trained else [])]
        shapes = [(devices, tensor) for devices in args.devices for tensor in dict.fromkeys([1, devices])]
        for (devices, tensor_parallel), (file, words), size in product(shapes, models, args.sizes):
            found = step(args, test, file, devices, tensor_parallel, size)
            rows.add([f"`predict.py`, {words}", devices, tensor_parallel, size], found)
    if differences:
        print(
            "\nwith and without CUDA graphs {texts} texts differ, scores by {scores:.1e} at most".format(**differences)
        )
    measure.end()


if __name__ == "__main__":
    main()

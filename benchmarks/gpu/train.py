"""LoRA training with train_lora.py, at several shapes of a step, and with Hugging Face's transformers and PEFT, after
the workflow has made base and data. Prints the tables of docs/performance.md:

python benchmarks/gpu/train.py --snapshot … --base results/base/mistral-7b
    --data results/data/pubmedqa/final_decision/fold0

With `--devices 1 2 4` each of so many GPUs has a copy of the model, and then all have one together. With --cap, in GiB,
the driver's column tells which shape fits on a smaller card.
"""

import math

import measure
from model_formats.snapshot import Snapshot

HEAD = ["", "GPUs", "tensor parallel", "micro batch", "s/step", "tokens/s", "of the best peer", "of the bf16 peak"]
HEAD += ["GB, by torch", "MiB of each GPU, by the driver", "loss of first and last step"]


def operations_per_token(snapshot):
    """Of the frozen matrices, forwards and backwards; the embeddings are looked up."""
    shapes = Snapshot(snapshot).expected_shapes()
    return 4 * sum(math.prod(shape) for name, shape in shapes.items() if len(shape) == 2 and "embed" not in name)


def peers(args, rows, items):
    """Shows what transformers and PEFT take; {versions: seconds until the model is loaded}"""
    loaded = {}
    options = ["--steps", args.steps, "--sizes", *args.sizes, "--tokens", *args.tokens]
    for versions, found in measure.peers(args, "train", items, *options):
        if "size" in found:
            way = "packed" if found["unit"] == "tokens" else "padded"
            rows.add([f"{versions}; {way}, {found['attention']}", 1, 1, f"{found['size']} {found['unit']}"], found)
        else:
            loaded[versions] = found["loaded"]
    return loaded


class Rows:
    """The table, a line as soon as it is known."""

    def __init__(self, args, tokens):
        self.tokens, self.best = tokens, None  # tokens of a step; the best peer's a second
        self.share = operations_per_token(args.snapshot) / args.peak
        measure.row(*HEAD)
        measure.row(*["---"] * len(HEAD))

    def add(self, what, found):
        if "seconds" not in found:
            return measure.row(*what, found.get("problem", "out of memory"), *[""] * 6)
        rate, ratio = self.tokens / found["seconds"], ""
        if what[0] != "train_lora":
            self.best = max(rate, self.best or 0)
        elif self.best and what[1] == 1:
            ratio = f"{rate / self.best:.2f}"
        shown = [f"{found['seconds']:.3f}", f"{rate:,.0f}", ratio, f"{rate * self.share / what[1]:.0%}"]
        shown += [f"{found['peak_gb']:.1f}" if found.get("peak_gb") else "", " ".join(map(str, found["driver"]))]
        return measure.row(*what, *shown, ", ".join(f"{loss:.4f}" for loss in found["losses"]))


def main():
    parser = measure.arguments(__doc__)
    parser.add_argument("--tokens", type=int, nargs="*", default=[4096, 8192, 16384], help="micro_batch_tokens")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1, 8], help="micro_batch_size")
    parser.add_argument("--devices", type=int, nargs="*", default=[1], help="GPUs; the peers have one")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--peak", type=float, default=989e12, help="bf16 operations a second, by the card's data sheet")
    args = parser.parse_args()

    items = measure.tokenize(args, args.data / "train.jsonl")
    batch, tokens = measure.TRAIN["global_batch_size"], measure.tokens_of_step(items)
    print(f"{measure.gpus()}; {tokens:,.0f} tokens a step, {args.steps} steps each\n", flush=True)
    rows, starts = Rows(args, tokens), {}
    loaded = peers(args, rows, items)
    for devices in args.devices:
        for tensor_parallel in dict.fromkeys([1, devices]):
            copies = devices // tensor_parallel
            shapes = [({"micro_batch_tokens": size}, f"{size} tokens") for size in args.tokens]
            shapes += [
                ({"micro_batch_size": size}, f"{size} items") for size in args.sizes if batch % (size * copies) == 0
            ]
            for more, words in shapes:
                limits = {"max_steps": args.steps, "val_check_interval": args.steps}
                found = measure.train_lora(args, devices, tensor_parallel, **limits, **more)
                rows.add(["train_lora", devices, tensor_parallel, words], found)
                starts[devices, tensor_parallel, words] = found["stages"]

    print("\nSeconds from the start until\n")
    stages = list(measure.STAGES)
    measure.row("", "GPUs", "tensor parallel", "micro batch", *stages)
    measure.row(*["---"] * (4 + len(stages)))
    for shape, ends in starts.items():
        measure.row("train_lora", *shape, *(f"{ends[stage]:.1f}" if stage in ends else "" for stage in stages))
    for versions, seconds in loaded.items():
        measure.row(versions, 1, 1, "", *(f"{seconds:.1f}" if stage == "the model" else "" for stage in stages))
    measure.end()


if __name__ == "__main__":
    main()

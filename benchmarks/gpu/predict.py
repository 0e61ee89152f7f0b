"""How long all test items take with predict.py's Predictor, the tutorial's way and Hugging Face, on one GPU. Run under
torchrun, after the workflow has made the base:

torchrun --standalone --nproc-per-node 1 benchmarks/gpu/predict.py --snapshot … --base results/base/mistral-7b
    --test results/data/pubmedqa/final_decision/test.jsonl
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "workflow/scripts"))
from common.files import read_jsonl
from common.pubmedqa import LABELS
from nemo_image.loading import load_config
from nemo_image.setup import prepare_nemo
from predict import load_model

TOKENS = 20  # as the tutorial sets it; random weights rarely end a text before
FEW = 30  # items of the tutorial's way, spread over the test set
SETTINGS = {"devices": 1, "tensor_model_parallel_size": 1, "precision": "bf16", "megatron_amp_O2": True}
SETTINGS |= {"max_seq_length": 2048, "tokens_to_generate": TOKENS, "batch_size": 1, "accelerator": "gpu"}


def nemo_at_batch_1(model, prompts):
    """Seconds an item with NeMo's own generation, as the tutorial's megatron_gpt_generate.py does it."""
    import torch
    from nemo.collections.nlp.modules.common import text_generation_utils
    from nemo.collections.nlp.modules.common.text_generation_strategy import GPTModelTextGenerationStrategy

    # NeMo's own function asks all multimodal models first, which need TransformerEngine
    text_generation_utils.model_inference_strategy_dispatcher = GPTModelTextGenerationStrategy
    sampling = text_generation_utils.get_default_sampling_params() | {"use_greedy": True}
    for part in (prompts[:2], prompts):  # the first to warm up
        start = time.monotonic()
        for prompt in part:
            model.generate([prompt], {"max_length": TOKENS, "min_length": 1}, sampling)
        torch.cuda.synchronize()
    return (time.monotonic() - start) / len(prompts)


def predict(predictor, ids, size):
    """([(text, scores), …], seconds, peak GB)"""
    import torch

    predictor.predict(ids[:size])  # to warm up
    torch.cuda.reset_peak_memory_stats()
    start = time.monotonic()
    found = [pair for i in range(0, len(ids), size) for pair in predictor.predict(ids[i : i + size])]
    return found, time.monotonic() - start, torch.cuda.max_memory_allocated() / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshot", required=True, type=Path)
    parser.add_argument("--base", required=True, type=Path)
    parser.add_argument("--test", required=True, type=Path)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 64, 128])
    args = parser.parse_args()

    def show(name, seconds):
        print(f"{name:60} {seconds:8.1f} s {tutorials / seconds:6.1f} x", flush=True)

    command = [sys.executable, Path(__file__).with_name("hugging_face.py"), "predict", "--snapshot", args.snapshot]
    command += ["--jsonl", args.test, "--new-tokens", TOKENS, "--sizes", *args.batch_sizes]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)  # may run out of memory at a size
    peers = list(map(json.loads, done.stdout.splitlines()))

    paths = {"base": str(args.base), "test": str(args.test), "adapter": None, "index_dir": "/tmp/index"}
    config = load_config("predict.yaml", SETTINGS | paths)
    prepare_nemo("gpu")
    import torch
    from nemo_image.predictor import Predictor

    model, prompts = load_model(config), [row["input"].strip(" ") for row in read_jsonl(args.test)]
    n = len(prompts)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {n} items, {TOKENS} tokens")
    tutorials = nemo_at_batch_1(model, prompts[:: n // FEW][:FEW]) * n
    show(f"NeMo, batch 1 ({FEW} items, scaled)", tutorials)
    for found in peers:
        show(f"transformers, batch {found['batch_size']}: {found['peak_gb']:.1f} GB", found["seconds"])

    ids = [model.tokenizer.text_to_ids(prompt) for prompt in prompts]
    ids.sort(key=len, reverse=True)
    predictor = Predictor(model, {label: model.tokenizer.text_to_ids(label) for label in LABELS}, TOKENS)
    for size in args.batch_sizes:
        found, seconds, peak = predict(predictor, ids, size)
        tokens = sum(len(text) for text, _ in found) / n
        show(f"predict.py, batch {size}: {peak:.1f} GB, texts of {tokens:.0f} tokens", seconds)
    predictor.graphs = False
    expected, seconds, peak = predict(predictor, ids, size)
    show(f"predict.py, batch {size}: {peak:.1f} GB, without CUDA graphs", seconds)
    texts = sum(text != other for (text, _), (other, _) in zip(found, expected))
    scores = max(abs(ours[label] - other[label]) for (_, ours), (_, other) in zip(found, expected) for label in LABELS)
    print(f"with and without graphs {texts} texts differ, scores by {scores:.1e} at most")


if __name__ == "__main__":
    main()

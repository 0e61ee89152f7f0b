"""NeMo's own generation, one item at a time as the tutorial has it, and predict.py's Predictor with and without CUDA
graphs, in one process. Called by predict.py under torchrun; prints one JSON line a measurement."""

import argparse
import json
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

FEW = 30  # items of the tutorial's way, spread over the test set


def tell(name, size, seconds):
    import torch

    found = {"name": name, "size": size, "seconds": seconds}
    if torch.cuda.is_available():
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
    print(json.dumps(found), flush=True)


def tutorials_way(model, prompts, tokens):
    """Seconds an item with NeMo's own generation, as the tutorial's megatron_gpt_generate.py does it."""
    from nemo.collections.nlp.modules.common import text_generation_utils
    from nemo.collections.nlp.modules.common.text_generation_strategy import GPTModelTextGenerationStrategy

    # NeMo's own function asks all multimodal models first, which need TransformerEngine
    text_generation_utils.model_inference_strategy_dispatcher = GPTModelTextGenerationStrategy
    sampling = text_generation_utils.get_default_sampling_params() | {"use_greedy": True}
    for part in (prompts[:2], prompts):  # the first to warm up
        start = time.monotonic()
        for prompt in part:
            model.generate([prompt], {"max_length": tokens, "min_length": 1}, sampling)
    return (time.monotonic() - start) / len(prompts)


def predict(predictor, ids, size):
    """([(text, scores), …], seconds)"""
    predictor.predict(ids[:size])  # to warm up
    start = time.monotonic()
    found = [pair for i in range(0, len(ids), size) for pair in predictor.predict(ids[i : i + size])]
    return found, time.monotonic() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", required=True, choices=["cpu", "gpu"])
    parser.add_argument("--base", required=True, type=Path)
    parser.add_argument("--test", required=True, type=Path)
    parser.add_argument("--settings", required=True, type=json.loads)
    args = parser.parse_args()

    tokens, size = args.settings["tokens_to_generate"], args.settings["batch_size"]
    paths = {"base": str(args.base), "test": str(args.test), "adapter": None, "index_dir": "/tmp/index"}
    config = load_config("predict.yaml", args.settings | paths | {"accelerator": args.accelerator, "batch_size": 1})
    prepare_nemo(args.accelerator)
    from nemo_image.predictor import Predictor

    (model, fused), prompts = load_model(config), [row["input"].strip(" ") for row in read_jsonl(args.test)]
    if args.accelerator == "cpu":
        model.cuda = lambda: model  # NeMo's generation calls it
    n = len(prompts)
    seconds = tutorials_way(model, prompts[:: -(-n // FEW)], tokens)
    tell(f"NeMo, the tutorial's way ({FEW} items, scaled)", 1, seconds * n)

    ids = [model.tokenizer.text_to_ids(prompt) for prompt in prompts]
    ids.sort(key=len, reverse=True)
    predictor = Predictor(model, {label: model.tokenizer.text_to_ids(label) for label in LABELS}, tokens, flash=fused)
    results = []
    for graphs, words in ((True, "with"), (False, "without")):
        predictor.graphs = graphs
        found, seconds = predict(predictor, ids, size)
        results.append(found)
        tell(f"`Predictor` {words} CUDA graphs", size, seconds)
    pairs = list(zip(*results))
    texts = sum(text != other for (text, _), (other, _) in pairs)
    scores = max(abs(ours[label] - other[label]) for (_, ours), (_, other) in pairs for label in LABELS)
    print(json.dumps({"texts": texts, "scores": scores}), flush=True)


if __name__ == "__main__":
    main()

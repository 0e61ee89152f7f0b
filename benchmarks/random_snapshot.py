"""Writes a Hugging Face snapshot with Mistral-7B's exact shapes and random weights in bf16: 14.5 GB, or fewer layers.

python benchmarks/random_snapshot.py --layers 32 DIRECTORY

The tokenizer is not written: tokenizer.model is an empty file, which no conversion reads.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow/scripts"))
from snapshot import Snapshot

CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
SHARD = 5 * 10**9  # bytes, as the Hub's


def write_snapshot(directory, layers, device="cpu"):
    """As save_pretrained writes it."""
    directory = Path(directory)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}, indent=2))
    (directory / "tokenizer.model").touch()
    generator = torch.Generator(device).manual_seed(0)
    shards, size, total = [{}], 0, 0
    for name, shape in Snapshot(directory).expected_shapes().items():
        tensor = torch.empty(shape, dtype=torch.bfloat16, device=device)
        tensor = (
            tensor.fill_(1) if "norm" in name else tensor.normal_(0, CONFIG["initializer_range"], generator=generator)
        )
        if size + tensor.nbytes > SHARD:
            write_shard(directory, len(shards), shards[-1])
            shards[-1], size = list(shards[-1]), 0
            shards.append({})
        shards[-1][name] = tensor.cpu()
        size, total = size + tensor.nbytes, total + tensor.nbytes
    write_shard(directory, len(shards), shards[-1])
    files = {name: f"model-{number:05}.safetensors" for number, shard in enumerate(shards, start=1) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def write_shard(directory, number, tensors):
    save_file(tensors, directory / f"model-{number:05}.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    write_snapshot(args.directory, args.layers)

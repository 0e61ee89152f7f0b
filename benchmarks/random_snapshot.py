"""Writes a Hugging Face snapshot with Mistral-7B's exact shapes and random weights in bf16: 14.5 GB, or fewer layers.

python benchmarks/random_snapshot.py --layers 32 --texts ori_pqal.json DIRECTORY

Its sentencepiece tokenizer is trained on PubMedQA's prompts, without --texts on README.md; what lacks to the model's
vocabulary are pieces that occur in no text.
"""

import argparse
import io
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow/scripts"))
from common.pubmedqa import prompt
from model_formats.snapshot import Snapshot

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
TOKENIZER = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": False, "legacy": False}
TOKENIZER |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
SHARD = 5 * 10**9  # bytes, as the Hub's


def write_tokenizer(texts, directory):
    """Some 7,000 pieces of PubMedQA's prompts, or 1,000 of README.md, and unused ones up to the vocabulary's size."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    if texts:
        items, size = json.loads(texts.read_text()).values(), 7000
        lines = [line for item in items for line in f"{prompt(item)} {item['final_decision']}".splitlines()]
    else:
        lines, size = (Path(__file__).parents[1] / "README.md").read_text().splitlines(), 1000
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=size,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    pieces = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    for number in range(len(pieces.pieces), CONFIG["vocab_size"]):
        pieces.pieces.add(piece=f"<unused{number}>", score=0, type=pieces.SentencePiece.UNUSED)
    (directory / "tokenizer.model").write_bytes(pieces.SerializeToString())
    (directory / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))


def write_snapshot(directory, layers, device):
    """As save_pretrained writes it."""
    directory = Path(directory)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}, indent=2))
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
    parser.add_argument("--texts", type=Path, help="PubMedQA's ori_pqal.json")
    parser.add_argument("--device", default="cpu", help="of the random numbers: cuda is faster")
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    write_snapshot(args.directory, args.layers, args.device)
    write_tokenizer(args.texts, args.directory)

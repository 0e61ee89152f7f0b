"""A tiny Mistral with random weights and a sentencepiece tokenizer, as a Hugging Face snapshot; adapters of it.

python tests/tiny.py DIRECTORY
"""

import json
import random
import sys
import tempfile
import warnings
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import torch
from common.pubmedqa import prompt
from simulate_trials import simulate
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedTokenizerFast

WINDOW = 48  # shorter than the prompts: the sliding window takes part
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def lines():
    texts = [prompt(item) + item["final_decision"] for item in simulate(random.Random(1)).values()]
    return (line for text in texts for line in text.splitlines())


def write_sentencepiece(directory, words, **options):
    """tokenizer.model"""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines(),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=words,
        model_type="bpe",
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        minloglevel=2,
        **options,
    )
    (directory / "tokenizer.vocab").unlink()
    tokenizer = {"tokenizer_class": "LlamaTokenizer", **SPECIAL}
    tokenizer |= {"add_bos_token": False, "add_eos_token": False, "legacy": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def write_tokenizer_json(directory, words):
    """tokenizer.json"""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(lines(), words, special_tokens=list(SPECIAL.values()))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, **SPECIAL).save_pretrained(directory)


def write_snapshot(directory, config, write_tokenizer):
    """A model of this configuration, with random weights, in bf16 and in several shards."""
    directory = Path(directory)
    directory.mkdir(parents=True)
    write_tokenizer(directory, config.vocab_size)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    with torch.no_grad():  # larger than a fresh model's, so that the logits differ visibly from word to word
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    model.save_pretrained(directory, safe_serialization=True, max_shard_size="600KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    return directory


def make_tiny_mistral(directory):
    """Four layers of width 128, 8 heads in 4 groups, head_dim 24 (not width / heads).

    400 words: 4 tensor-parallel ranks share them without padding.
    """
    config = MistralConfig(
        vocab_size=400,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=24,
        max_position_embeddings=1024,
        sliding_window=WINDOW,
        torch_dtype="bfloat16",
    )
    return write_snapshot(directory, config, write_sentencepiece)


def write_adapter(snapshot, directory, targets=ALL, **options):
    """A random adapter of it, by peft; returns the model with it, in fp32."""
    import peft

    model = AutoModelForCausalLM.from_pretrained(snapshot, torch_dtype=torch.float32)
    options = {"r": 5, "lora_alpha": 12, "target_modules": targets, "task_type": "CAUSAL_LM"} | options
    torch.manual_seed(1)
    with warnings.catch_warnings(action="ignore"):  # of a base that is not on the Hub
        model = peft.get_peft_model(model, peft.LoraConfig(**options))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(directory)
    return model.eval()


def write_gguf(file):
    """A tiny random Llama in GGUF, by its own library."""
    width, words = 64, 300
    with tempfile.TemporaryDirectory() as directory:
        write_tokenizer_json(directory, words)
        vocabulary = json.loads(Path(directory, "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(file, "llama")
    for add, value in (
        (writer.add_name, "tiny"),
        (writer.add_context_length, 512),
        (writer.add_embedding_length, width),
        (writer.add_block_count, 1),
        (writer.add_feed_forward_length, width),
        (writer.add_head_count, 4),
        (writer.add_head_count_kv, 4),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_vocab_size, words),
        (writer.add_tokenizer_model, "gpt2"),
        (writer.add_token_list, list(vocabulary["vocab"])),
        (writer.add_token_merges, [" ".join(pair) for pair in vocabulary["merges"]]),
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2),
    ):
        add(value)
    draw = np.random.default_rng(0).standard_normal
    squares = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    tensors = {f"blk.0.{name}": (width, width) for name in squares} | {"token_embd": (words, width)}
    tensors |= {"output": (words, width), "output_norm": (width,)}
    tensors |= {f"blk.0.{name}": (width,) for name in ("attn_norm", "ffn_norm")}
    for name, shape in tensors.items():
        writer.add_tensor(f"{name}.weight", draw(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    make_tiny_mistral(sys.argv[1])

"""Converts a Hugging Face snapshot of a Mistral or Llama model to an unpacked .nemo directory. Needs no GPU.

What is written, with megatron-core's names:
  model_weights/      a megatron-core distributed checkpoint in zarr, the one format that every NeMo generation with
                      these model classes reads. Tensors keep the snapshot's dtype; a few blocks are in memory at once.
  tokenizer.model     a sentencepiece tokenizer, or tokenizer/, the files of a Hugging Face one
  manifest.json       the size and sha256 of each of these files
  model_config.yaml   where it stands, the rest is whole
Beside the directory, {name}.provenance.json: the code's checksum, and the snapshot's files by their sha256.
"""

import argparse
import math
import shutil
import sys
from pathlib import Path

import yaml
from common.base_files import write_manifest
from common.code import digest
from common.ending import run
from common.files import sha256, write_json
from model_formats.directory import replacing_directory
from model_formats.snapshot import Snapshot
from model_formats.tokenizer import sentencepiece_of
from model_formats.zarr_checkpoint import write_checkpoint

PRECISION = {"BF16": "bf16", "F16": "16", "F32": "32"}


def copy_tokenizer(snapshot, directory):
    """Copies the tokenizer and returns its section of model_config.yaml."""
    if file := sentencepiece_of(snapshot.directory):
        shutil.copyfile(file, directory / "tokenizer.model")
        tokenizer = {"library": "sentencepiece", "type": None, "model": "nemo:tokenizer.model"}
        return tokenizer | {"vocab_file": None, "merge_file": None, "delimiter": None, "sentencepiece_legacy": False}
    (directory / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (snapshot.directory / name).exists():
            shutil.copyfile(snapshot.directory / name, directory / "tokenizer" / name)
    # transformers reads the model's kind from it
    shutil.copyfile(snapshot.directory / "config.json", directory / "tokenizer/config.json")
    # train_lora and predict put this directory's path in place of the name
    tokenizer = {"library": "huggingface", "type": "tokenizer", "use_fast": True, "model": None}
    return tokenizer | {"vocab_file": None, "merge_file": None}


def model_config(snapshot, tokenizer):
    """NeMo's configuration of the model: convert_model.yaml and what depends on the model."""
    c = snapshot.config
    config = yaml.safe_load(Path(__file__).with_name("convert_model.yaml").read_text())
    config |= {
        "precision": PRECISION[snapshot.dtype],
        "encoder_seq_length": c.get("sliding_window") or c["max_position_embeddings"],
        "max_position_embeddings": c["max_position_embeddings"],
        "num_layers": snapshot.layers,
        "hidden_size": c["hidden_size"],
        "ffn_hidden_size": c["intermediate_size"],
        "num_attention_heads": snapshot.heads,
        "num_query_groups": snapshot.groups,
        "kv_channels": snapshot.head_dim,
        "init_method_std": c.get("initializer_range", 0.02),
        "layernorm_epsilon": c["rms_norm_eps"],
        # NVIDIA's converter has it without the 8, whereby 32000 words are padded at a tensor parallelism of 4. Padding
        # takes part in the loss, so the same run would have other losses there.
        "make_vocab_size_divisible_by": max(1, math.gcd(c["vocab_size"], 128) // 8),
        "rotary_base": snapshot.rope_theta,
        "share_embeddings_and_output_weights": snapshot.tied,
        "tokenizer": tokenizer,
    }
    if (manifest := snapshot.directory / "manifest.json").exists():
        config["snapshot_manifest_sha256"] = sha256(manifest)  # by which train_lora tells one base from another
    if c.get("sliding_window"):
        # A window of n tokens is a token and the n - 1 before it; NVIDIA's converter of NeMo 2.2.1 writes n.
        config["window_size"] = [c["sliding_window"] - 1, 0]
    if snapshot.rope_type == "llama3":
        config["scale_positional_embedding"] = True
        config |= {f"{key}_factor": snapshot.rope_scaling[f"{key}_factor"] for key in ("low_freq", "high_freq")}
        config["scale_factor"] = snapshot.rope_scaling["factor"]
        config["old_context_len"] = snapshot.rope_scaling["original_max_position_embeddings"]
    return config


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshot", required=True, type=Path, help="directory of the Hugging Face snapshot")
    parser.add_argument("--output-dir", required=True, type=Path)
    args = parser.parse_args()

    snapshot, output = Snapshot(args.snapshot), args.output_dir
    if problem := snapshot.problem():
        sys.exit(f"{args.snapshot}: {problem}.")
    size = sum(tensor.size for tensor in snapshot.tensors.values())
    with replacing_directory(output, size, "convert_model") as new:
        written = write_checkpoint(snapshot, new / "model_weights")
        config = model_config(snapshot, copy_tokenizer(snapshot, new))
        write_manifest(new, written)
        (new / "model_config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        provenance = {"code": digest(__file__), "snapshot": snapshot.checksums()}
        write_json(output.with_name(f"{output.name}.provenance.json"), provenance, indent=1)
    print(f"{output}: {len(snapshot.tensors)} tensors, {config['precision']}")


if __name__ == "__main__":
    run(main)

"""Converts a Hugging Face snapshot of a Mistral or Llama model to an unpacked .nemo directory. Needs no GPU.

What is written, with megatron-core's names:
  model_weights/      a megatron-core distributed checkpoint in zarr, the one format that every NeMo generation with
                      these model classes reads. Tensors keep the snapshot's dtype and are written one by one.
  tokenizer.model     a sentencepiece tokenizer, or tokenizer/, the files of a Hugging Face one
  model_config.yaml   written last: where it stands, the rest is whole
"""

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

import torch
import yaml
from files import read_json, refuse_full_disk, sha256
from progress import Progress
from safetensors import SafetensorError, safe_open

ARCHITECTURES = ("MistralForCausalLM", "LlamaForCausalLM")
PRECISION = {torch.bfloat16: "bf16", torch.float16: "16", torch.float32: "32"}
ZARR_DTYPE = {torch.bfloat16: "bfloat16", torch.float16: "<f2", torch.float32: "<f4"}

# TransformerEngine's modules ask the checkpoint for their state; None says that there is none. Which of them do so
# depends on TransformerEngine's version: the four linear ones always, core_attention since 1.8, the norm since 1.13.
LAYER_STATES = ("self_attention.linear_qkv", "self_attention.linear_proj", "self_attention.core_attention")
LAYER_STATES += ("mlp.linear_fc1", "mlp.linear_fc2")


def open_shard(path):
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        sys.exit(f"{path}: not a whole safetensors file ({error}). Fetch it again.")


class Snapshot:
    """A Hugging Face snapshot: config.json as `config`, its tensors by name."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.config = read_json(self.directory / "config.json")
        shards = [open_shard(path) for path in sorted(self.directory.glob("model*.safetensors"))]
        self.shards = {name: shard for shard in shards for name in shard.keys()}  # noqa: SIM118, a safe_open is no dict
        c = self.config
        self.layers, self.heads, self.hidden = c["num_hidden_layers"], c["num_attention_heads"], c["hidden_size"]
        self.groups = c.get("num_key_value_heads") or self.heads
        self.head_dim = c.get("head_dim") or self.hidden // self.heads
        self.tied = c.get("tie_word_embeddings", False)

    def __getitem__(self, name):
        return self.shards[name].get_tensor(name)

    def expected_shapes(self):
        """{tensor name: shape} as the configuration has it."""
        c, hidden, ffn = self.config, self.hidden, self.config["intermediate_size"]
        shapes = {"model.embed_tokens.weight": [c["vocab_size"], hidden], "model.norm.weight": [hidden]}
        if not self.tied:
            shapes["lm_head.weight"] = [c["vocab_size"], hidden]
        for layer in range(self.layers):
            for name, shape in {
                "input_layernorm": [hidden],
                "self_attn.q_proj": [self.heads * self.head_dim, hidden],
                "self_attn.k_proj": [self.groups * self.head_dim, hidden],
                "self_attn.v_proj": [self.groups * self.head_dim, hidden],
                "self_attn.o_proj": [hidden, self.heads * self.head_dim],
                "post_attention_layernorm": [hidden],
                "mlp.gate_proj": [ffn, hidden],
                "mlp.up_proj": [ffn, hidden],
                "mlp.down_proj": [hidden, ffn],
            }.items():
                shapes[f"model.layers.{layer}.{name}.weight"] = shape
        return shapes

    def problem(self):
        """Why this snapshot can't be converted, or None."""
        c = self.config
        if (architecture := (c.get("architectures") or ["none"])[0]) not in ARCHITECTURES:
            return f"config.json: architecture {architecture}; {' and '.join(ARCHITECTURES)} can be converted"
        for key in ("quantization_config", "rope_scaling", "attention_bias", "mlp_bias"):
            if c.get(key):
                return f"config.json: {key} is {c[key]}, which the conversion does not support"
        rope = c.get("rope_parameters") or {}  # where transformers 5 keeps rope_theta and rope_scaling
        if rope.get("rope_type", "default") != "default":
            return f"config.json: rope_type is {rope['rope_type']}, which the conversion does not support"
        if c.get("hidden_act", "silu") != "silu":
            return f"config.json: hidden_act is {c['hidden_act']}; only silu can be converted"
        # A tied model's lm_head, where a snapshot has one, is the embedding again.
        shapes = {name: shard.get_slice(name).get_shape() for name, shard in self.shards.items()}
        expected = self.expected_shapes()
        unknown = shapes.keys() - expected.keys() - {"lm_head.weight"}
        unknown = [name for name in unknown if not name.endswith("rotary_emb.inv_freq")]
        if missing := sorted(expected.keys() - shapes.keys()):
            return f"{len(missing)} tensors are missing, {missing[0]} the first: is a *.safetensors file missing?"
        if unknown:
            return f"holds {sorted(unknown)[0]}, which a {architecture} has not"
        for name, shape in expected.items():
            if shapes[name] != shape:
                return f"{name} has the shape {shapes[name]}; config.json makes it {shape}"
        if not ((self.directory / "tokenizer.model").exists() or (self.directory / "tokenizer.json").exists()):
            return "holds neither tokenizer.model nor tokenizer.json"
        return None


class ZarrCheckpoint:
    """A megatron-core distributed checkpoint in zarr format 2, uncompressed, one chunk for each tensor of a layer.

    Format: megatron.core.dist_checkpointing.strategies.zarr and the zarr v2 specification,
    https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html
    """

    def __init__(self, directory):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True)
        backends = {"sharded_backend": "zarr", "sharded_backend_version": 1}
        backends |= {"common_backend": "torch", "common_backend_version": 1}
        (self.directory / "metadata.json").write_text(json.dumps(backends))
        torch.save({}, self.directory / "common.pt")

    def write(self, key, tensor, layer=None, layers=None):
        """A tensor, or one layer's of the `layers` tensors that megatron-core stacks along a new first axis."""
        array = self.directory / key
        stacked = [] if layer is None else [layers]
        if not layer:
            array.mkdir()
            header = {"chunks": [1] * len(stacked) + list(tensor.shape), "shape": stacked + list(tensor.shape)}
            header |= {"zarr_format": 2, "dtype": ZARR_DTYPE[tensor.dtype], "order": "C"}
            header |= {"compressor": None, "fill_value": None, "filters": None}
            (array / ".zarray").write_text(json.dumps(header))
        chunk = ".".join(["0"] * tensor.dim() if layer is None else [str(layer)] + ["0"] * tensor.dim())
        with open(array / chunk, "wb") as file:
            tensor.contiguous().view(torch.uint8).numpy().tofile(file)

    def write_no_state(self, module, layer=0, layers=1):
        """The `_extra_state` of a TransformerEngine module: None."""
        directory = self.directory / f"{module}._extra_state"
        directory.mkdir(exist_ok=True)
        torch.save(None, directory / f"shard_{layer}_{layers}.pt")


def convert_weights(snapshot, directory):
    """Writes the snapshot's tensors to a new zarr checkpoint."""
    checkpoint = ZarrCheckpoint(directory)
    checkpoint.write("model.embedding.word_embeddings.weight", snapshot["model.embed_tokens.weight"])
    checkpoint.write("model.decoder.final_layernorm.weight", snapshot["model.norm.weight"])
    checkpoint.write_no_state("model.decoder.final_layernorm")
    if not snapshot.tied:
        checkpoint.write("model.output_layer.weight", snapshot["lm_head.weight"])
    progress = Progress("convert_model", snapshot.layers, "layers")
    for layer in range(snapshot.layers):

        def weight(name, layer=layer):
            return snapshot[f"model.layers.{layer}.{name}.weight"]

        def write(name, tensor, layer=layer):
            checkpoint.write(f"model.decoder.layers.{name}", tensor, layer, snapshot.layers)

        # megatron-core keeps queries, keys and values in one matrix, group by group: the group's queries, key, value
        q, k, v = (
            weight(f"self_attn.{name}_proj").view(snapshot.groups, -1, snapshot.head_dim, snapshot.hidden)
            for name in "qkv"
        )
        write("self_attention.linear_qkv.weight", torch.cat([q, k, v], dim=1).view(-1, snapshot.hidden))
        write("self_attention.linear_qkv.layer_norm_weight", weight("input_layernorm"))
        write("self_attention.linear_proj.weight", weight("self_attn.o_proj"))
        write("mlp.linear_fc1.weight", torch.cat([weight("mlp.gate_proj"), weight("mlp.up_proj")]))
        write("mlp.linear_fc1.layer_norm_weight", weight("post_attention_layernorm"))
        write("mlp.linear_fc2.weight", weight("mlp.down_proj"))
        for module in LAYER_STATES:
            checkpoint.write_no_state(f"model.decoder.layers.{module}", layer, snapshot.layers)
        progress.to(layer + 1)
    progress.close()


def copy_tokenizer(snapshot, directory):
    """Copies the tokenizer and returns its section of model_config.yaml."""
    if (snapshot.directory / "tokenizer.model").exists():
        shutil.copyfile(snapshot.directory / "tokenizer.model", directory / "tokenizer.model")
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


def model_config(snapshot, tokenizer, dtype):
    """NeMo's configuration of the model: convert_model.yaml and what depends on the model."""
    c = snapshot.config
    config = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    config |= {
        "precision": PRECISION[dtype],
        "encoder_seq_length": c.get("sliding_window") or c["max_position_embeddings"],
        "max_position_embeddings": c["max_position_embeddings"],
        "num_layers": snapshot.layers,
        "hidden_size": snapshot.hidden,
        "ffn_hidden_size": c["intermediate_size"],
        "num_attention_heads": snapshot.heads,
        "num_query_groups": snapshot.groups,
        "kv_channels": snapshot.head_dim,
        "init_method_std": c.get("initializer_range", 0.02),
        "layernorm_epsilon": c["rms_norm_eps"],
        # NVIDIA's converter has it without the 8, whereby 32000 words are padded at a tensor parallelism of 4. Padding
        # takes part in the loss, so the same run would have other losses there.
        "make_vocab_size_divisible_by": max(1, math.gcd(c["vocab_size"], 128) // 8),
        "rotary_base": c.get("rope_theta") or (c.get("rope_parameters") or {}).get("rope_theta", 10000.0),
        "share_embeddings_and_output_weights": snapshot.tied,
        "tokenizer": tokenizer,
    }
    if (manifest := snapshot.directory / "manifest.json").exists():
        config["snapshot_manifest_sha256"] = sha256(manifest)  # by which train_lora tells one base from another
    if c.get("sliding_window"):
        # A window of n tokens is a token and the n - 1 before it; NVIDIA's converter of NeMo 2.2.1 writes n.
        config["window_size"] = [c["sliding_window"] - 1, 0]
    return config


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshot", required=True, type=Path, help="directory of the Hugging Face snapshot")
    parser.add_argument("--output-dir", required=True, type=Path)
    args = parser.parse_args()

    snapshot = Snapshot(args.snapshot)
    if problem := snapshot.problem():
        sys.exit(f"{args.snapshot}: {problem}.")
    partial = args.output_dir.with_name(f".{args.output_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a conversion that was killed
    args.output_dir.parent.mkdir(parents=True, exist_ok=True)
    refuse_full_disk(args.output_dir.parent, sum(file.stat().st_size for file in args.snapshot.glob("*.safetensors")))
    try:
        convert_weights(snapshot, partial / "model_weights")
        tokenizer = copy_tokenizer(snapshot, partial)
        config = model_config(snapshot, tokenizer, snapshot["model.embed_tokens.weight"].dtype)
        (partial / "model_config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        shutil.rmtree(args.output_dir, ignore_errors=True)
        partial.rename(args.output_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{args.output_dir}: {len(snapshot.expected_shapes())} tensors, {config['precision']}")


if __name__ == "__main__":
    main()

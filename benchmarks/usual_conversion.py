"""Converts a Mistral snapshot the usual way, to compare with: loaded whole in fp32, mapped, saved whole in bf16.

As NVIDIA's convert_mistral_7b_hf_to_nemo.py of NeMo 2.0 does it, without NeMo (which there builds a second model from
the mapped weights, and packs the result).

python benchmarks/usual_conversion.py SNAPSHOT OUTPUT
"""

import sys

import torch
from transformers import AutoModelForCausalLM

snapshot, output = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(snapshot, torch_dtype=torch.float32)
hf, c = model.state_dict(), model.config
nemo = {
    "model.embedding.word_embeddings.weight": hf["model.embed_tokens.weight"],
    "model.decoder.final_layernorm.weight": hf["model.norm.weight"],
    "model.output_layer.weight": hf["lm_head.weight"],
}
for layer in range(c.num_hidden_layers):
    source, target = f"model.layers.{layer}.", f"model.decoder.layers.{layer}."
    q, k, v = (
        hf[f"{source}self_attn.{name}_proj.weight"].view(c.num_key_value_heads, -1, c.head_dim, c.hidden_size)
        for name in "qkv"
    )
    mlp = [hf[f"{source}mlp.{name}_proj.weight"] for name in ("gate", "up")]
    nemo[f"{target}self_attention.linear_qkv.weight"] = torch.cat([q, k, v], dim=1).reshape(-1, c.hidden_size)
    nemo[f"{target}self_attention.linear_qkv.layer_norm_weight"] = hf[f"{source}input_layernorm.weight"]
    nemo[f"{target}self_attention.linear_proj.weight"] = hf[f"{source}self_attn.o_proj.weight"]
    nemo[f"{target}mlp.linear_fc1.weight"] = torch.cat(mlp)
    nemo[f"{target}mlp.linear_fc1.layer_norm_weight"] = hf[f"{source}post_attention_layernorm.weight"]
    nemo[f"{target}mlp.linear_fc2.weight"] = hf[f"{source}mlp.down_proj.weight"]
torch.save({name: tensor.bfloat16() for name, tensor in nemo.items()}, output)

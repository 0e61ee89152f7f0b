"""Converts a snapshot to bf16 as NVIDIA's convert_mistral_7b_hf_to_nemo.py of NeMo 2.2.1 does, with NeMo's own classes.

Its mapping line by line; the model's configuration is that of our conversion, BASE. On a CPU, under torchrun:

torchrun --standalone --nproc-per-node 1 nvidia_converter.py SNAPSHOT BASE OUTPUT.nemo
"""

import sys

from nemo_image import cpu

cpu.install()

import torch
from nemo.collections.nlp.models.language_modeling.megatron_gpt_model import MegatronGPTModel
from nemo.collections.nlp.parts.megatron_trainer_builder import MegatronTrainerBuilder
from nemo.collections.nlp.parts.nlp_overrides import NLPSaveRestoreConnector
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

snapshot, base, output = sys.argv[1:]
ckpt = AutoModelForCausalLM.from_pretrained(snapshot, torch_dtype=torch.float32).state_dict()
config = OmegaConf.load(f"{base}/model_config.yaml")
config.merge_with({"precision": "bf16", "megatron_amp_O2": True, "use_cpu_initialization": True})
config.tokenizer.model = f"{base}/tokenizer.model"
head_num, head_size, groups = config.num_attention_heads, config.kv_channels, config.num_query_groups
heads_per_group = head_num // groups

state = {"model.module.embedding.word_embeddings.weight": ckpt["model.embed_tokens.weight"].float()}
for layer in range(config.num_layers):
    hf, nemo = f"model.layers.{layer}.", f"model.module.decoder.layers.{layer}."
    hidden = ckpt[f"{hf}self_attn.q_proj.weight"].size()[1:]
    q = ckpt[f"{hf}self_attn.q_proj.weight"].view(head_num, head_size, *hidden)
    k = ckpt[f"{hf}self_attn.k_proj.weight"].view(groups, head_size, *hidden)
    v = ckpt[f"{hf}self_attn.v_proj.weight"].view(groups, head_size, *hidden)
    qkv = []
    for i in range(groups):
        qkv += [q[i * heads_per_group : (i + 1) * heads_per_group, :, :], k[i : i + 1, :, :], v[i : i + 1, :, :]]
    qkv = torch.cat(qkv).reshape([head_size * (head_num + 2 * groups), config.hidden_size])
    fc1 = torch.cat((ckpt[f"{hf}mlp.gate_proj.weight"], ckpt[f"{hf}mlp.up_proj.weight"]), axis=0)
    state[f"{nemo}self_attention.linear_qkv.weight"] = qkv.float()
    state[f"{nemo}self_attention.linear_proj.weight"] = ckpt[f"{hf}self_attn.o_proj.weight"].float()
    state[f"{nemo}mlp.linear_fc1.weight"] = fc1.float()
    state[f"{nemo}mlp.linear_fc2.weight"] = ckpt[f"{hf}mlp.down_proj.weight"].float()
    state[f"{nemo}self_attention.linear_qkv.layer_norm_weight"] = ckpt[f"{hf}input_layernorm.weight"].float()
    state[f"{nemo}mlp.linear_fc1.layer_norm_weight"] = ckpt[f"{hf}post_attention_layernorm.weight"].float()
state["model.module.decoder.final_layernorm.weight"] = ckpt["model.norm.weight"].float()
state["model.module.output_layer.weight"] = ckpt["lm_head.weight"].float()

trainer = {"devices": 1, "accelerator": "cpu", "num_nodes": 1, "precision": "bf16", "logger": False}
trainer |= {"enable_checkpointing": False}
builder = {"trainer": trainer, "model": {"gradient_as_bucket_view": False, "megatron_amp_O2": True}}
model = MegatronGPTModel(cfg=config, trainer=MegatronTrainerBuilder(OmegaConf.create(builder)).create_trainer())
for name, parameter in model.named_parameters():
    parameter.data = state.pop(name).to(dtype=parameter.data.dtype)
assert not state, f"in the snapshot, but not in NeMo's model: {list(state)}"
model._save_restore_connector = NLPSaveRestoreConnector()
model.save_to(output)

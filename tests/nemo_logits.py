"""Saves NeMo's logits, in fp32 on a CPU, of a packed .nemo file that is restored as NVIDIA's are. Under torchrun:

torchrun --standalone --nproc-per-node 1 nemo_logits.py MODEL.nemo TOKENS.npy LOGITS.npy
"""

import sys

import nemo_cpu
import numpy as np

nemo_cpu.install()

import torch
from nemo.collections.nlp.models.language_modeling.megatron_gpt_model import MegatronGPTModel
from nemo.collections.nlp.parts.megatron_trainer_builder import MegatronTrainerBuilder
from omegaconf import OmegaConf, open_dict

trainer = {"devices": 1, "accelerator": "cpu", "num_nodes": 1, "precision": 32, "logger": False}
trainer |= {"enable_checkpointing": False}
trainer = MegatronTrainerBuilder(
    OmegaConf.create({"trainer": trainer, "model": {"gradient_as_bucket_view": False}})
).create_trainer()
config = MegatronGPTModel.restore_from(sys.argv[1], trainer=trainer, return_config=True)
with open_dict(config):
    config.precision = 32
model = MegatronGPTModel.restore_from(sys.argv[1], trainer=trainer, override_config_path=config).eval()
tokens = torch.from_numpy(np.load(sys.argv[2]))
positions = torch.arange(tokens.shape[1])[None].expand_as(tokens)
with torch.no_grad():
    np.save(sys.argv[3], model.model(tokens, positions, None).float().numpy())

"""Runs a script of the workflow under NeMo 2.0.0rc0 and megatron-core 0.7.0 on a CPU:

    torchrun --standalone --nproc-per-node 1 old_nemo.py train_lora.py --accelerator cpu …

Supplies what this generation misses without apex and TransformerEngine and nemo_image/torch_parts.py does not supply:
the workflow runs it in NVIDIA's images only, which have both.
"""

import contextlib
import os
import runpy
import sys
import types
from pathlib import Path

# torch 2.6 and newer would not load what these versions have pickled
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"

script = Path(sys.argv[1])
sys.path.insert(0, str(script.parent))

import apex  # noqa: F401, its stand-in beside this file
import nemo_image.cpu  # noqa: F401, sets environment variables before torch is imported
import torch


def replace_transformer_engine():
    """megatron-core 0.7 imports these names unconditionally; of them only the final norm is used here."""

    class FinalNorm:  # megatron-core builds classes only
        def __new__(cls, config, hidden_size, eps):
            return torch.nn.RMSNorm(hidden_size, eps=eps)

    module = types.ModuleType("megatron.core.transformer.custom_layers.transformer_engine")
    for name in ("ColumnParallelLinear", "DotProductAttention", "LayerNormColumnParallelLinear", "RowParallelLinear"):
        setattr(module, f"TE{name}", type(name, (), {}))
    module.TENorm, module.TEDelayedScaling, module.te_checkpoint, module.SplitAlongDim = FinalNorm, None, None, None
    module.get_cpu_offload_context = lambda *args: (contextlib.nullcontext(), None)
    sys.modules[module.__name__] = module


def complete_megatron():
    """What nemo_image.torch_parts expects of megatron-core, as 0.11 has it."""
    from megatron.core import tensor_parallel, utils

    def l2_norm(chunk_size, overflow, lists, per_tensor):
        norms = [[torch.norm(tensor) for tensor in tensors] for tensors in lists]
        return torch.tensor([float(torch.norm(torch.tensor(norms)))]), None

    def scale(chunk_size, overflow, lists, factor):
        for source, target in zip(*lists):
            target.copy_(source * factor)

    utils.local_multi_tensor_applier = lambda operation, *args: operation(2048 * 32, *args)
    utils.local_multi_tensor_l2_norm, utils.local_multi_tensor_scale = l2_norm, scale
    tensor_parallel.ColumnParallelLinear.te_return_bias = False  # NeMo 2.0.0rc0 asks TransformerEngine's layer for it


replace_transformer_engine()
complete_megatron()
sys.argv = sys.argv[1:]
runpy.run_path(str(script), run_name="__main__")

"""Lets NeMo's Megatron-GPT classes run on a CPU (gloo): CUDA's part of torch is pointed at the CPU.

Changes nothing of NeMo on disk. What TransformerEngine and apex would supply comes from torch_parts.py.

    from nemo_image import cpu  # before any other import of nemo or megatron
    cpu.install()
"""

import logging
import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a GPU that happens to be there stays out of it

import torch
from nemo_image import torch_parts
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


def is_cuda(value):
    return isinstance(value, (str, torch.device)) and str(value).startswith("cuda")


class CudaToCpu(TorchFunctionMode):
    """Turns device="cuda", given by keyword or to .to(), into "cpu" for every torch call."""

    def __torch_function__(self, function, types_, args=(), kwargs=None):
        kwargs = kwargs or {}
        if is_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": CPU}
        if any(is_cuda(arg) for arg in args):
            args = tuple(CPU if is_cuda(arg) else arg for arg in args)
        return function(*args, **kwargs)


def patch_torch():
    CudaToCpu().__enter__()
    cuda = torch.cuda
    # one function object a name: torch._dynamo's table of rules refuses the same object twice
    for name in ("set_device", "synchronize", "empty_cache", "manual_seed", "manual_seed_all"):
        setattr(cuda, name, lambda *args, **kwargs: None)
    for name in ("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved"):
        setattr(cuda, name, lambda *args, **kwargs: 0)
    for name in ("Float", "Half", "BFloat16", "Long", "Int", "Byte", "Bool", "Double"):
        setattr(cuda, f"{name}Tensor", getattr(torch, f"{name}Tensor"))
    cuda.Stream = type("Stream", (), {"__init__": lambda self, *args, **kwargs: None})
    cuda.current_device = lambda: CPU
    cuda.is_bf16_supported = lambda *args, **kwargs: True
    cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    # NeMo's get_optimizer refuses fused_adam (torch_parts's AdamW) without CUDA
    cuda.is_available = lambda: sys._getframe(1).f_code.co_name == "get_optimizer"
    for owner in (torch.Tensor, torch.nn.Module):
        owner.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.pin_memory = lambda self, *args, **kwargs: self

    tensor_type = torch.Tensor.type

    def type_(self, *args, **kwargs):  # megatron_amp_O2's optimizer sorts its parameters by CUDA's type names
        name = tensor_type(self, *args, **kwargs)
        if isinstance(name, str) and sys._getframe(1).f_globals["__name__"].endswith("optimizer_with_main_params"):
            name = name.replace("torch.", "torch.cuda.", 1)
        return name

    torch.Tensor.type = type_


def patch_random_state():
    import nemo.collections.nlp.modules.common.megatron.megatron_init as megatron_init
    from megatron.core import tensor_parallel
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    logging.getLogger(random.__name__).setLevel(logging.ERROR)  # it warns that the CPU's state has moved
    set_seed = megatron_init._set_random_seed

    def set_random_seed(seed):  # megatron-core's generators, which NeMo seeds only where CUDA is
        set_seed(seed)
        tensor_parallel.model_parallel_cuda_manual_seed(seed)

    megatron_init._set_random_seed = set_random_seed


def install():
    patch_torch()
    torch_parts.install({"transformer_engine", "apex"})
    patch_random_state()

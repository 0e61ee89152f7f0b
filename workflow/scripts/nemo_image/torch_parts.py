"""Lets NeMo's Megatron-GPT classes run without TransformerEngine or without apex: their parts in plain PyTorch.

For NeMo 2.0 … 2.2 with megatron-core 0.9 … 0.11, on CPU (see cpu.py) and on GPUs, also in NVIDIA's images, which have
both, unless the configuration asks for them. Parameter names, shapes and checkpoints are those of the TransformerEngine
layers.

    from nemo_image import torch_parts  # before any other import of nemo or megatron
    torch_parts.install({"transformer_engine", "apex"})
"""

import math
import os
import sys
import types

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # no torch.compile'd fusions
os.environ.setdefault("NVIDIA_PYTORCH_VERSION", "20.01")  # "old": NeMo then keeps persist_layer_norm off
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # megatron-core asserts it where TP > 1

import torch
import torch.nn.functional as F


class ScaledDotProductAttention(torch.nn.Module):
    """megatron-core's core attention, by torch's scaled_dot_product_attention."""

    def __init__(self, config, attention_dropout=None, softmax_scale=None, **unused):
        super().__init__()
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.scale = softmax_scale or 1 / math.sqrt(config.kv_channels)
        self.window = config.window_size[0] if config.window_size else None  # tokens seen before the present one

    def forward(self, query, key, value, attention_mask, **unused):
        """query [new tokens, batch, heads, d], key and value [all tokens, batch, groups, d] -> [new, batch, heads*d].

        attention_mask is True where a token must not look; None stands for causal.
        """
        new, total = query.shape[0], key.shape[0]
        if attention_mask is not None:
            allowed = ~attention_mask[..., -new:, :total]
        elif self.window is not None and total > self.window + 1:
            positions = torch.arange(total, device=query.device)
            age = positions[-new:, None] - positions
            allowed = (age >= 0) & (age <= self.window)
        else:
            allowed = None
            assert new in (1, total), f"{new} new of {total} tokens: only the whole prompt or one token is causal"
        output = F.scaled_dot_product_attention(
            *(tensor.permute(1, 2, 0, 3) for tensor in (query, key, value)),
            attn_mask=allowed,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=allowed is None and new > 1,
            scale=self.scale,
            enable_gqa=True,
        )
        return output.permute(2, 0, 1, 3).reshape(new, query.shape[1], -1)


def layer_spec():
    """The layer of get_gpt_layer_with_transformer_engine_spec(), same parameter names, in plain megatron-core."""
    from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.identity_op import IdentityOp
    from megatron.core.transformer.mlp import MLP, MLPSubmodules
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

    class LayerNormColumnParallelLinear(ColumnParallelLinear):
        """TELayerNormColumnParallelLinear for RMSNorm: norm and column-parallel linear in one module."""

        def __init__(self, input_size, output_size, *, config, **options):
            super().__init__(input_size, output_size, config=config, **options)
            self.return_layernorm_output = False
            ones = torch.ones(input_size, dtype=config.params_dtype, device=self.weight.device)
            self.layer_norm_weight = torch.nn.Parameter(ones)

        def forward(self, x, *args, **kwargs):
            normed = F.rms_norm(x, (x.shape[-1],), self.layer_norm_weight, self.config.layernorm_epsilon)
            output, bias = super().forward(normed, *args, **kwargs)
            return ((output, normed), bias) if self.return_layernorm_output else (output, bias)

    attention = SelfAttentionSubmodules(
        linear_qkv=LayerNormColumnParallelLinear,
        core_attention=ScaledDotProductAttention,
        linear_proj=RowParallelLinear,
        q_layernorm=IdentityOp,
        k_layernorm=IdentityOp,
    )
    mlp = MLPSubmodules(linear_fc1=LayerNormColumnParallelLinear, linear_fc2=RowParallelLinear)
    layer = TransformerLayerSubmodules(
        self_attention=ModuleSpec(SelfAttention, params={"attn_mask_type": AttnMaskType.causal}, submodules=attention),
        self_attn_bda=get_bias_dropout_add,
        mlp=ModuleSpec(MLP, submodules=mlp),
        mlp_bda=get_bias_dropout_add,
    )
    return ModuleSpec(TransformerLayer, submodules=layer)


def replace_transformer_engine():
    # NeMo's LoRA takes this one name from a module that needs TransformerEngine. Every other name of it keeps raising
    # ImportError, by which megatron-core itself finds out that TransformerEngine is not there.
    module = types.ModuleType("megatron.core.extensions.transformer_engine")
    module.SplitAlongDim = None
    sys.modules[module.__name__] = module

    import nemo.collections.nlp.models.language_modeling.megatron_gpt_model as gpt
    import nemo.collections.nlp.models.nlp_model as nlp_model
    from megatron.core.transformer import transformer_block

    class FinalNorm:  # megatron-core builds classes only
        def __new__(cls, config, hidden_size, eps):
            return torch.nn.RMSNorm(hidden_size, eps=eps)

    transformer_block.LayerNormImpl = FinalNorm
    gpt.get_specs = lambda *args, **kwargs: layer_spec()
    nlp_model.get_megatron_pretrained_bert_models = list  # NeMo's imports a BERT that needs TransformerEngine


def replace_apex():
    import nemo.collections.nlp.modules.common.megatron.adapters.parallel_adapters as adapters
    import nemo.collections.nlp.modules.common.megatron.build_model as build_model
    import nemo.collections.nlp.modules.common.megatron.clip_grads as clip_grads
    import nemo.collections.nlp.parts.nlp_overrides as overrides
    import nemo.core.optim.optimizer_with_main_params as main_params
    import nemo.core.optim.optimizers as optimizers
    from megatron.core import tensor_parallel
    from megatron.core.utils import local_multi_tensor_applier, local_multi_tensor_l2_norm, local_multi_tensor_scale

    # all that apex's absence guards on this path are these optimizers' classes and functions
    overrides.HAVE_APEX = adapters.HAVE_APEX = main_params.HAVE_APEX = True
    for name in ("MegatronDistributedFusedAdam", "McoreDistributedOptimizer"):
        if not hasattr(overrides, name):
            setattr(overrides, name, type(name, (), {}))
    build_model.set_defaults_if_not_set_tensor_model_parallel_attributes = (
        tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes
    )
    for module in (clip_grads, main_params):
        module.multi_tensor_applier = local_multi_tensor_applier
        module.amp_C = types.SimpleNamespace(
            multi_tensor_l2norm=local_multi_tensor_l2_norm, multi_tensor_scale=local_multi_tensor_scale
        )
    optimizers.AVAILABLE_OPTIMIZERS.setdefault("fused_adam", torch.optim.AdamW)


def build_blending_indices(dataset_index, sample_index, weights, datasets, size, verbose):
    """NeMo's helpers.cpp in numpy, so that no compiler is needed: fills, for each of `size` samples, whose dataset's
    turn it is (the one that lags furthest behind its weight) and that dataset's next sample."""
    taken = [0] * datasets
    for i in range(size):
        dataset = max(range(datasets), key=lambda d: weights[d] * max(i, 1) - taken[d])
        dataset_index[i], sample_index[i] = dataset, taken[dataset]
        taken[dataset] += 1


def replace_helpers():
    import nemo.collections.nlp.data.language_modeling.megatron as megatron_data
    import nemo.collections.nlp.data.language_modeling.megatron.dataset_utils as dataset_utils

    dataset_utils.compile_helper = lambda: None
    helpers = types.ModuleType(f"{megatron_data.__name__}.helpers")
    helpers.build_blending_indices = build_blending_indices
    megatron_data.helpers = sys.modules[helpers.__name__] = helpers


def install(missing):
    """Supplies what is `missing`, of transformer_engine and apex, and what NeMo would compile in a package's place.
    Where one of them is installed after all, nothing imports it any more."""
    for package in missing:
        sys.modules.setdefault(package, None)
    if "transformer_engine" in missing:
        replace_transformer_engine()
    if "apex" in missing:
        replace_apex()
    replace_helpers()

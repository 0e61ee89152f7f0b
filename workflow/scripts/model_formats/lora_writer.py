"""A LoRA adapter written as NeMo has it, adapter.nemo of tensor parallelism 1, from two matrices for each module.

NeMo has one linear_in for q, k and v, one for gate and up, and one rank and one alpha for all. So different A stand
below one another, each B has zeros in the columns of the others, and all is filled up with zeros to one rank. Alpha
grows with the rank, so the scale, alpha / rank, stays. No weight is rounded. lora.py reads what is written here.
"""

import io
import tarfile
import tempfile
from functools import reduce

import torch
import yaml
from common.adapter import PAIRS, SIDES
from model_formats.lora import MODULES
from model_formats.peft_config import one_scale, unlike
from torch.nn.functional import pad

PLACES = {  # of NeMo's pairs in a layer
    "lora_kqv_adapter": "self_attention",
    "lora_dense_attention_adapter": "self_attention",
    "lora_hto4h_adapter": "mlp",
    "lora_4htoh_adapter": "mlp",
}


def with_one_scale(modules, scales):
    """The modules, all with the scale that most of them have, and that scale.

    Where a scale is twice, four times, … as much, or a half, B is multiplied with that, which rounds nothing.
    ValueError where one is otherwise.
    """
    scale, found = one_scale(scales), dict(modules)
    for module, (a, b) in modules.items():
        if scales[module] != scale:
            factor = scales[module] / scale
            found[module] = (a, b * factor)
            if not torch.equal(b * factor / factor, b):
                raise ValueError(unlike(module, scales[module], scale))
    return found, scale


def join(pairs, rows, columns, dtype):
    """One linear_in, and for each module its part of linear_out. pairs: (A, B) of each, or None; rows: of each B."""
    stacked, places = [], []
    for pair in pairs:
        places.append(
            next((place for place, a in enumerate(stacked) if pair and torch.equal(a, pair[0])), len(stacked))
        )
        if pair and places[-1] == len(stacked):
            stacked.append(pair[0])
    linear_in = torch.cat([torch.zeros(0, columns, dtype=dtype), *stacked])
    parts = [torch.zeros(height, len(linear_in), dtype=dtype) for height in rows]
    for part, pair, place in zip(parts, pairs, places):
        if pair:
            start = sum(map(len, stacked[:place]))
            part[:, start : start + len(pair[0])] = pair[1]
    return linear_in, parts


def linear_out(kind, parts, snapshot):
    """Undoes lora.parts_of, on one rank."""
    if kind != "lora_kqv_adapter":
        return torch.cat(parts)
    groups = [part.unflatten(0, (snapshot.groups, -1, snapshot.head_dim)) for part in parts]
    return torch.cat(groups, dim=1).flatten(0, 2)


def to_pairs(modules, snapshot):
    """{(layer, pair): (linear_in, linear_out)}, all of one rank, from {module, as model.layers.0.mlp.up_proj: (A, B)}.

    Each kind of pair is in each layer that has any, as NeMo has it.
    """
    shapes, joined = snapshot.expected_shapes(), {}
    dtype = reduce(torch.promote_types, {tensor.dtype for pair in modules.values() for tensor in pair})
    modules = {module: (a.to(dtype), b.to(dtype)) for module, (a, b) in modules.items()}
    names = [module.split(".", 3) for module in modules]  # model, layers, 0, mlp.up_proj
    kinds = [kind for kind, of_kind in MODULES.items() if any(name[3] in of_kind for name in names)]
    for layer in sorted({int(name[2]) for name in names}):
        for kind in kinds:
            of_layer = [f"model.layers.{layer}.{module}" for module in MODULES[kind]]
            rows, columns = zip(*(shapes[f"{module}.weight"] for module in of_layer))
            joined[layer, kind] = join([modules.get(module) for module in of_layer], rows, columns[0], dtype)
    rank = max(len(linear_in) for linear_in, _ in joined.values())
    return {
        (layer, kind): (
            pad(linear_in, (0, 0, 0, rank - len(linear_in))),
            pad(linear_out(kind, parts, snapshot), (0, rank - len(linear_in))),
        )
        for (layer, kind), (linear_in, parts) in joined.items()
    }


def peft_section(pairs, scale, snapshot):
    """`peft` of model_config.yaml, as train_lora's adapters have it."""
    rank, layers = len(next(iter(pairs.values()))[0]), sorted({layer for layer, _ in pairs})
    alpha = round(scale * rank)
    lora = {
        "variant": "nemo",
        "target_modules": [module for kind, (module, _) in PAIRS.items() if (layers[0], kind) in pairs],
        "adapter_dim": rank,
        "alpha": alpha if alpha / rank == scale else scale * rank,
        "adapter_dropout": 0.0,
        "column_init_method": "xavier",
        "row_init_method": "zero",
        "layer_selection": None if len(layers) == snapshot.layers else [layer + 1 for layer in layers],  # from 1
        "weight_tying": False,
        "position_embedding_strategy": None,
    }
    return {"peft_scheme": "lora", "restore_from_path": None, "lora_tuning": lora}


def write_adapter(file, config, pairs):
    """The tar of configuration and weights. Equal adapters are equal files."""
    weights = {
        f"model.decoder.layers.{layer}.{PLACES[kind]}.adapter_layer.{kind}.{side}.weight": tensor.contiguous()
        for (layer, kind), pair in pairs.items()
        for side, tensor in zip(SIDES, pair)
    }
    with tarfile.open(file, "w") as tar, tempfile.TemporaryFile(dir=file.parent) as saved:
        torch.save({name: weights[name] for name in sorted(weights)}, saved)
        text = yaml.safe_dump(config, sort_keys=False).encode()
        for name, content in ("model_config.yaml", io.BytesIO(text)), ("model_weights.ckpt", saved):
            member = tarfile.TarInfo(f"./{name}")
            member.size = content.seek(0, io.SEEK_END)
            content.seek(0)
            tar.addfile(member, content)

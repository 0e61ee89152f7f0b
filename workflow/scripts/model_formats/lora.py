"""A LoRA adapter as NeMo writes it, adapter.nemo, and as PEFT has it. Needs no NeMo.

adapter.nemo is a tar of model_config.yaml and model_weights.ckpt; with tensor parallelism each rank has its own of the
latter, in mp_rank_00/, mp_rank_01/, … A weight gets linear_out · linear_in · alpha / rank added, which PEFT calls
B · A · lora_alpha / r. NeMo has one such pair for q, k and v together, and one for gate and up.
"""

import io
import re
import sys
import tarfile
import zlib

import torch
import yaml

# NeMo's pairs: the dimension of linear_in that ranks share (of linear_out it is always the first), the modules of
# Hugging Face's model
PAIRS = {
    "lora_kqv_adapter": (0, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    "lora_dense_attention_adapter": (1, ("self_attn.o_proj",)),
    "lora_hto4h_adapter": (0, ("mlp.gate_proj", "mlp.up_proj")),
    "lora_4htoh_adapter": (1, ("mlp.down_proj",)),
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NAME = re.compile(  # where megatron_amp_O2 wraps the model, older generations say so in the names
    r"model\.(?:module\.)?decoder\.layers\.(\d+)\.(?:self_attention|mlp)\.adapter_layer\.(\w+)\.(linear_\w+)\.weight"
)


def load_weights(file, name, content):
    """{name: tensor} of one rank. No code in it is run, as a pickle may hold."""
    try:
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # of many kinds, where it is damaged
        weights = None
    if isinstance(weights, dict) and all(
        torch.is_tensor(tensor) and tensor.dtype in DTYPES and tensor.layout == torch.strided
        for tensor in weights.values()
    ):
        return weights
    sys.exit(f"{file}: {name} holds more than tensors, or is damaged, and is refused. Take one that train_lora wrote.")


def read_members(file):
    """The configuration of adapter.nemo and each rank's weights. Nothing is unpacked: members are read by name."""
    try:
        with tarfile.open(file) as tar:
            members = {member.name.removeprefix("./"): member for member in tar if member.isfile()}
            config = yaml.safe_load(tar.extractfile(members["model_config.yaml"]))
            ranks, stages = (config.get(f"{kind}_model_parallel_size", 1) for kind in ("tensor", "pipeline"))
            if stages > 1:
                sys.exit(f"{file}: its pipeline_model_parallel_size is {stages}; only 1 can be read.")
            names = [f"mp_rank_{rank:02d}/model_weights.ckpt" for rank in range(ranks)]
            names = names if ranks > 1 else ["model_weights.ckpt"]
            return config, [load_weights(file, name, tar.extractfile(members[name]).read()) for name in names]
    except KeyError as error:
        sys.exit(f"{file}: holds no {error.args[0]}, as NeMo's adapters do.")
    except (OSError, tarfile.TarError, EOFError, zlib.error, yaml.YAMLError, AttributeError) as error:
        sys.exit(f"{file}: no adapter of NeMo, or damaged: {' '.join(str(error).split())}")


def read_adapter(file):
    """The configuration of adapter.nemo, and {(layer, pair): {"linear_in", "linear_out": [each rank's share]}}.

    Exits where it holds anything else than LoRA of whole layers.
    """
    config, ranks = read_members(file)
    peft = config.get("peft") or {}
    if peft.get("peft_scheme") != "lora":
        sys.exit(f"{file}: its peft_scheme is {peft.get('peft_scheme')}; only lora can be read.")
    lora = peft.get("lora_tuning") or {}
    if not isinstance(lora.get("adapter_dim"), int) or not isinstance(lora.get("alpha"), int | float | None):
        found = f"adapter_dim {lora.get('adapter_dim')} and alpha {lora.get('alpha')}"
        sys.exit(f"{file}: has {found}; the first must be a number, the second a number or null.")
    shapes = [{name: tensor.shape for name, tensor in weights.items()} for weights in ranks]
    if any(found != shapes[0] for found in shapes) or any(len(shape) != 2 for shape in shapes[0].values()):
        sys.exit(f"{file}: the shapes of its tensor-parallel ranks do not fit together.")
    pairs = {}
    for name in ranks[0]:
        match = NAME.fullmatch(name)
        if not match or match[2] not in PAIRS or lora.get("weight_tying"):
            sys.exit(f"{file}: holds {name}; of LoRA only NeMo's `variant: nemo` without weight_tying can be read.")
        pairs.setdefault((int(match[1]), match[2]), {})[match[3]] = [weights[name] for weights in ranks]
    if not pairs or any(pair.keys() != {"linear_in", "linear_out"} for pair in pairs.values()):
        sys.exit(f"{file}: its pairs of linear_in and linear_out are not whole.")
    return config, pairs


def parts_of(kind, shares, snapshot):
    """The rows of linear_out that belong to each module, from each rank's share of them."""
    if kind == "lora_hto4h_adapter":  # each rank has its rows of gate, then its rows of up
        return [torch.cat(halves) for halves in zip(*(share.chunk(2) for share in shares))]
    whole = torch.cat(shares)
    if kind == "lora_kqv_adapter":  # group by group: its query heads, its key, its value
        whole = whole.unflatten(0, (snapshot.groups, -1, snapshot.head_dim))
        return [part.flatten(0, -2) for part in (whole[:, :-2], whole[:, -2], whole[:, -1])]
    return [whole]


def by_module(file, snapshot):
    """The configuration of adapter.nemo, and {module, as model.layers.0.self_attn.q_proj: (A, B)}.

    Tensors keep their precision. Exits where the adapter is not one of the snapshot's shape.
    """
    config, pairs = read_adapter(file)
    lora, shapes, found = config["peft"]["lora_tuning"], snapshot.expected_shapes(), {}
    for (layer, kind), pair in sorted(pairs.items()):
        shared, modules = PAIRS[kind]
        modules = [f"model.layers.{layer}.{module}" for module in modules]
        expected = [shapes.get(f"{module}.weight", [0, 0]) for module in modules]
        a, rows = torch.cat(pair["linear_in"], dim=shared), sum(shape[0] for shape in expected)
        rank, found_shapes = lora["adapter_dim"], [list(a.shape), list(torch.cat(pair["linear_out"]).shape)]
        if found_shapes != [[rank, expected[0][1]], [rows, rank]]:
            problem = f"layer {layer}'s {kind} of rank {rank} has the shapes {found_shapes}"
            sys.exit(f"{file}: {problem}, which do not fit {snapshot.directory}. Is it another model's adapter?")
        found |= {module: (a, b) for module, b in zip(modules, parts_of(kind, pair["linear_out"], snapshot))}
    layers = [layer - 1 for layer in lora.get("layer_selection") or range(1, snapshot.layers + 1)]  # NeMo counts from 1
    if len(pairs) != len(layers) * len({kind for _, kind in pairs}) or {layer for layer, _ in pairs} != set(layers):
        sys.exit(f"{file}: has not the {len(layers)} layers that {snapshot.directory} makes it have.")
    return config, found


def peft_config(config, modules, snapshot, base, revision):
    """PEFT's adapter_config.json for the adapter. base and revision: what PEFT loads the base model from."""
    lora = config["peft"]["lora_tuning"]
    layers = sorted({int(module.split(".")[2]) for module in modules})
    alpha = lora["adapter_dim"] if lora.get("alpha") is None else lora["alpha"]
    # PEFT's dropout is on the adapter's input. NeMo's default is on its output, for which PEFT has no word.
    dropout = lora.get("adapter_dropout", 0.0) if lora.get("dropout_position") == "pre" else 0.0
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": lora["adapter_dim"],
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": sorted({module.split(".")[-1] for module in modules}),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "use_rslora": False,
    }
    return written if len(layers) == snapshot.layers else written | {"layers_to_transform": layers}

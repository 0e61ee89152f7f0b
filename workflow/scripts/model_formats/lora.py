"""A LoRA adapter of NeMo as PEFT has it. Needs no NeMo.

PEFT calls NeMo's linear_out · linear_in · alpha / rank B · A · lora_alpha / r. NeMo's one pair for q, k and v is three
of PEFT's, with the same A, and that for gate and up two.
"""

import sys

from common.adapter import alpha_of, read_adapter

MODULES = {  # NeMo's pairs: the modules of Hugging Face's model
    "lora_kqv_adapter": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "lora_dense_attention_adapter": ("self_attn.o_proj",),
    "lora_hto4h_adapter": ("mlp.gate_proj", "mlp.up_proj"),
    "lora_4htoh_adapter": ("mlp.down_proj",),
}


def parts_of(kind, whole, snapshot):
    """The rows of linear_out that belong to each module."""
    if kind == "lora_kqv_adapter":  # group by group: its query heads, its key, its value
        whole = whole.unflatten(0, (snapshot.groups, -1, snapshot.head_dim))
        return [part.flatten(0, -2) for part in (whole[:, :-2], whole[:, -2], whole[:, -1])]
    return whole.chunk(len(MODULES[kind]))


def by_module(file, snapshot):
    """The configuration of adapter.nemo, and {module, as model.layers.0.self_attn.q_proj: (A, B)}.

    Tensors keep their precision. Exits where the adapter is not one of the snapshot's shape.
    """
    config, pairs = read_adapter(file)
    lora, shapes, found = config["peft"]["lora_tuning"], snapshot.expected_shapes(), {}
    for (layer, kind), (a, whole) in pairs.items():
        modules = [f"model.layers.{layer}.{module}" for module in MODULES[kind]]
        expected = [shapes.get(f"{module}.weight", [0, 0]) for module in modules]
        rows = sum(shape[0] for shape in expected)
        rank, found_shapes = lora["adapter_dim"], [list(a.shape), list(whole.shape)]
        if found_shapes != [[rank, expected[0][1]], [rows, rank]]:
            problem = f"layer {layer}'s {kind} of rank {rank} has the shapes {found_shapes}"
            sys.exit(f"{file}: {problem}, which do not fit {snapshot.directory}. Is it another model's adapter?")
        found |= {module: (a, b) for module, b in zip(modules, parts_of(kind, whole, snapshot))}
    layers = [layer - 1 for layer in lora.get("layer_selection") or range(1, snapshot.layers + 1)]  # NeMo counts from 1
    if len(pairs) != len(layers) * len({kind for _, kind in pairs}) or {layer for layer, _ in pairs} != set(layers):
        sys.exit(f"{file}: has not the {len(layers)} layers that {snapshot.directory} makes it have.")
    return config, found


def peft_config(config, modules, snapshot, base, revision):
    """PEFT's adapter_config.json for the adapter. base and revision: what PEFT loads the base model from."""
    lora = config["peft"]["lora_tuning"]
    layers = sorted({int(module.split(".")[2]) for module in modules})
    # PEFT's dropout is on the adapter's input. NeMo's default is on its output, for which PEFT has no word.
    dropout = lora.get("adapter_dropout", 0.0) if lora.get("dropout_position") == "pre" else 0.0
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": lora["adapter_dim"],
        "lora_alpha": alpha_of(lora),
        "lora_dropout": dropout,
        "target_modules": sorted({module.split(".")[-1] for module in modules}),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "use_rslora": False,
    }
    return written if len(layers) == snapshot.layers else written | {"layers_to_transform": layers}

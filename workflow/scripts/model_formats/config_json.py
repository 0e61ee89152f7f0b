"""config.json of a Mistral or Llama model, as transformers writes it: is it whole, and can the model be converted?

Needs nothing of the project: planning/models.py reads users' snapshots by it, too.
"""

import json
import math
from pathlib import Path

ARCHITECTURES = ("MistralForCausalLM", "LlamaForCausalLM")
COUNTS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
COUNTS += ("max_position_embeddings",)
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def read(file):
    """The values in it. ValueError where it holds none."""
    try:
        values = json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no object in JSON ({error}). Fetch it again") from None
    if not isinstance(values, dict):
        raise ValueError("no object in JSON. Fetch it again")
    return values


def rope_of(config):
    """(scaling, theta, type) of the rotary embedding."""
    scaling, theta = config.get("rope_scaling") or {}, config.get("rope_theta", 10000.0)
    if rope := config.get("rope_parameters"):  # where transformers 5 keeps both
        scaling, theta = rope, rope.get("rope_theta")
    return scaling, theta, scaling.get("rope_type") or scaling.get("type") or "default"


def missing(config):
    """What is not there, or no value of its kind, or None."""

    def wrong(values, key, kinds, words, optional=False):
        value = values.get(key)
        if optional and value is None:
            return None
        if key not in values:
            return f"has no {key}"
        number = kinds in (int, int | float)
        right = isinstance(value, kinds) and not (number and isinstance(value, bool))
        return None if right and (not number or 0 < value < math.inf) else f"{key} is {json.dumps(value)}, {words}"

    count, number, optional = (int, "no positive whole number"), (int | float, "no positive number"), True
    found = [wrong(config, key, *count) for key in COUNTS]
    found += [wrong(config, key, *count, optional) for key in ("num_key_value_heads", "head_dim", "sliding_window")]
    found += [wrong(config, "rms_norm_eps", *number)]
    found += [wrong(config, key, *number, optional) for key in ("rope_theta", "initializer_range")]
    found += [wrong(config, "tie_word_embeddings", bool, "neither true nor false", optional)]
    sections = ("rope_scaling", "rope_parameters", "quantization_config")
    found += [wrong(config, key, dict, "no object", optional) for key in sections]
    found += [wrong(config, "architectures", list, "no list", optional)]
    if problem := next(filter(None, found), None):
        return problem
    scaling, _, kind = rope_of(config)
    if config.get("rope_parameters"):
        found += [wrong(scaling, "rope_theta", *number)]
    if kind == "llama3":
        found += [wrong(scaling, key, *(count if key.startswith("original") else number)) for key in LLAMA3]
    heads, groups = config["num_attention_heads"], config.get("num_key_value_heads")
    if groups and heads % groups:
        found += [f"num_key_value_heads is {groups}, which does not divide num_attention_heads {heads}"]
    if not config.get("head_dim") and config["hidden_size"] % heads:
        found += [f"hidden_size is {config['hidden_size']}, no multiple of num_attention_heads {heads}"]
    return next(filter(None, found), None)


def read_whole(file):
    """The values in it. ValueError where it holds none, or one is missing."""
    values = read(file)
    if problem := missing(values):
        raise ValueError(problem)
    return values


def unsupported(config):
    """What of the model the conversion does not support, or None."""
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        return f"architecture {architecture}; {' and '.join(ARCHITECTURES)} can be converted"
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "unknown method")
        return f"quantised weights ({method}); take the snapshot that this one was made from"
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            return f"{key} is {config[key]}, which the conversion does not support"
    if (kind := rope_of(config)[2]) not in ("default", "llama3"):
        return f"rope_type is {kind}; the conversion supports default and llama3"
    if config.get("hidden_act", "silu") != "silu":
        return f"hidden_act is {config['hidden_act']}; only silu can be converted"
    return None


def expected_shapes(config):
    """{tensor name: shape} as the configuration has it."""
    c, hidden, ffn, heads = config, config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim, groups = c.get("head_dim") or hidden // heads, c.get("num_key_value_heads") or heads
    shapes = {"model.embed_tokens.weight": [c["vocab_size"], hidden], "model.norm.weight": [hidden]}
    if not c.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = [c["vocab_size"], hidden]
    for layer in range(c["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": [hidden],
            "self_attn.q_proj": [heads * head_dim, hidden],
            "self_attn.k_proj": [groups * head_dim, hidden],
            "self_attn.v_proj": [groups * head_dim, hidden],
            "self_attn.o_proj": [hidden, heads * head_dim],
            "post_attention_layernorm": [hidden],
            "mlp.gate_proj": [ffn, hidden],
            "mlp.up_proj": [ffn, hidden],
            "mlp.down_proj": [hidden, ffn],
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return shapes


def problem_of_shapes(config, shapes):
    """Why tensors, {name: shape}, are not those of the configuration, or None."""
    if (layers := config["num_hidden_layers"]) > len(shapes):  # perhaps many more
        return f"has {len(shapes)} tensors, but {layers} layers in config.json: is a *.safetensors file missing?"
    expected = expected_shapes(config)
    # A tied model's lm_head, where a snapshot has one, is the embedding again.
    unknown = [name for name in shapes if name not in expected and name != "lm_head.weight"]
    if unknown := [name for name in unknown if not name.endswith("rotary_emb.inv_freq")]:
        model = f"a {config['architectures'][0]} of {layers} layers"
        return f"holds {min(unknown)}, which {model} has not"
    if missing := sorted(expected.keys() - shapes.keys()):
        return f"{len(missing)} tensors are missing, {missing[0]} the first: is a *.safetensors file missing?"
    if wrong := next((name for name, shape in expected.items() if shapes[name] != shape), None):
        return f"{wrong} has the shape {shapes[wrong]}; config.json makes it {expected[wrong]}"
    return None

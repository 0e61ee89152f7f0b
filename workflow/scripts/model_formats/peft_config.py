"""adapter_config.json of an adapter in PEFT's format: rank, scale and modules of its LoRA, and whether that is all.

Needs nothing of the project: planning/config.py reads users' adapters by it, too.
https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import json
import math
import re
from collections import Counter
from pathlib import Path

# Keys that are read here, and those that say nothing of the weights. All others, of later versions of PEFT, too, must
# be empty: they name further parameters or another way to add them.
READ = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules"}
READ |= {"layers_to_transform", "exclude_modules", "base_model_name_or_path", "revision"}
SILENT = {"auto_mapping", "task_type", "inference_mode", "lora_dropout", "megatron_config", "megatron_core"}
SILENT |= {"peft_version", "qalora_group_size", "eva_config"}
NEUTRAL = {  # other ways to begin change the base, too
    "bias": ["none"],
    "init_lora_weights": [True, False, "gaussian", "orthogonal", "eva"],
    "layers_pattern": [None, "", [], "layers", ["layers"]],  # where layers_to_transform counts: there is no other place
}
LINEAR = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
OF_LAYER = re.compile(rf"model\.layers\.\d+\.({'|'.join(map(re.escape, LINEAR))})")
LAYERS = 1000  # more than a model has
PREFIX = "base_model.model."
MATRIX = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.lora_(?P<which>[AB])\.weight")


class PeftConfig:
    """The file's `values`. ValueError where it holds none."""

    def __init__(self, file):
        try:
            self.values = {"r": 8, "lora_alpha": 8} | json.loads(Path(file).read_text(encoding="utf-8"))  # PEFT's own
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"no object in JSON ({error}). Fetch it again") from None

    def of_module(self, key, pattern, module):
        """The value of the first entry under `pattern` that names the module, else of `key`."""
        patterns = self.values.get(pattern) or {}
        found = [values for name, values in patterns.items() if re.match(rf"(.*\.)?({name})$", module)]
        return (found or [self.values[key]])[0]

    def rank(self, module):
        return self.of_module("r", "rank_pattern", module)

    def scale(self, module):
        """What B A is multiplied with."""
        rank = self.rank(module)
        root = math.sqrt(rank) if self.values.get("use_rslora") else rank
        return self.of_module("lora_alpha", "alpha_pattern", module) / root

    def is_target(self, module):
        """Is this one of target_modules, a regular expression or names' ends, in a layer of layers_to_transform?"""
        layers = self.values.get("layers_to_transform")
        layers = [layers] if isinstance(layers, int) else layers
        if layers and int(module.split(".")[2]) not in layers:  # model.layers.0.self_attn.q_proj
            return False
        return self.names("target_modules", module) and not self.names("exclude_modules", module)

    def names(self, key, module):
        """Does a regular expression, or do names' ends, name the module?"""
        names = self.values.get(key) or []
        if isinstance(names, str):
            return bool(re.fullmatch(names, module))
        return any(f".{module}".endswith(f".{name}") for name in names)

    def problem_of_tensors(self, shapes):
        """Why tensors, {name: shape}, can't be imported into any base, or None."""
        if not shapes:
            return "holds no tensor"
        found = {name: MATRIX.fullmatch(name) for name in shapes}
        if others := [name for name, match in found.items() if not match]:
            return f"holds {min(others)}, which is no lora_A or lora_B of a linear layer"
        modules = {match["module"]: None for match in found.values()}
        if unknown := [module for module in modules if not OF_LAYER.fullmatch(module)]:
            return f"holds {min(unknown)}, which is none of a layer's {', '.join(LINEAR)}"
        if more := [module for module in modules if not self.is_target(module)]:
            return f"holds {min(more)}, which target_modules in adapter_config.json does not name"
        for name, match in sorted(found.items()):
            module, place = match["module"], "AB".index(match["which"])
            if shapes[name][place : place + 1] != [(rank := self.rank(module))]:
                problem = f"has the shape {shapes[name]}, but rank {rank} by adapter_config.json"
                return f"lora_{match['which']} of {module} {problem}"
        try:
            one_scale({module: self.scale(module) for module in sorted(modules)})
        except ValueError as error:
            return str(error)
        return None

    def problem(self, source, revision):
        """Why the adapter can't be added to the base that is `source` on the Hub at `revision`, or None. A base from
        elsewhere has no revision: of what its name says nobody knows."""
        c = self.values
        if c.get("peft_type") != "LORA":
            return f"peft_type is {c.get('peft_type')}; only LORA is supported"
        for key, value in c.items():
            known = value in NEUTRAL[key] if key in NEUTRAL else not value or key in READ | SILENT
            if not known:
                return f"{key} is {value}, which is not supported: plain LoRA of linear layers is"
        for key, pattern, kinds in ("r", "rank_pattern", int), ("lora_alpha", "alpha_pattern", int | float):
            found = c.get(pattern) or {}
            if not isinstance(found, dict):
                return f"{pattern} is {found}, no object"
            for name, value in [(key, c[key]), *((f"{pattern}.{name}", value) for name, value in found.items())]:
                right = isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < math.inf
                if not right or (key == "r" and value < 1):
                    return f"{name} is {value!r}, not a {'positive ' * (key == 'r')}number"
        targets, excluded, layers = map(c.get, ("target_modules", "exclude_modules", "layers_to_transform"))
        if not isinstance(layers, int | list | None) or not isinstance(targets, str | list | None):
            return f"target_modules is {targets}, layers_to_transform {layers}: neither names nor numbers"
        if not isinstance(excluded, str | list | None):
            return f"exclude_modules is {excluded}: no names"
        expressions = [text for text in (targets, excluded) if isinstance(text, str)]
        for name in [*(c.get("rank_pattern") or ()), *(c.get("alpha_pattern") or ()), *expressions]:
            try:
                re.compile(name)
            except re.error as error:
                return f"{name} is no regular expression ({error})"
        if not any(self.is_target(f"model.layers.{layer}.{name}") for name in LINEAR for layer in range(LAYERS)):
            there = ", ".join(name.split(".")[1] for name in LINEAR)
            more = "".join(f", {key} {c[key]}" for key in ("exclude_modules", "layers_to_transform") if c.get(key))
            return f"target_modules is {str(targets)[:100]}{more[:200]}, which names no supported module: {there}"
        base, said = str(c.get("base_model_name_or_path")), str(c.get("revision"))
        if revision and re.fullmatch(r"[\w.-]+/[\w.-]+", base):
            if base != source:
                hint = f"if the one is the other, write {source} into base_model_name_or_path"
                return f"the adapter is one of {base}, the snapshot is {source}; {hint}"
            if re.fullmatch(r"[0-9a-f]{40}", said) and said != revision:
                return f"the adapter is one of {base} at {said}, the snapshot is of {revision}"
        return None


def one_scale(scales):
    """The scale that most modules have. ValueError where another's is no power of two times as much: NeMo has one for
    all, and B is multiplied with that factor without rounding. scales: {module: scale}"""
    (scale, _), *_ = Counter(scales.values()).most_common(1)
    for module, other in scales.items():
        if other != scale and (not scale or abs(math.frexp(other / scale)[0]) != 0.5):
            raise ValueError(unlike(module, other, scale))
    return scale


def unlike(module, other, scale):
    return f"alpha / rank is {other:g} in {module} and {scale:g} in most others; NeMo has one for all"

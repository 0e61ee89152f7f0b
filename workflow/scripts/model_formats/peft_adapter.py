"""A LoRA adapter in PEFT's format: two matrices for each module, and whether they are all that it adds to the base.

adapter_config.json and adapter_model.safetensors: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import math
import re
import sys
from pathlib import Path

import numpy as np
from common.files import read_json
from model_formats.snapshot import read_header

DTYPES = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}  # numpy has no bf16: its bits
PREFIX = "base_model.model."
MATRIX = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.lora_(?P<which>[AB])\.weight")
# Keys of adapter_config.json that are read here, and those that say nothing of the weights. All others, of later
# versions of PEFT, too, must be empty: they name further parameters or another way to add them.
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "layers_to_transform"}
READ |= {"base_model_name_or_path", "revision"}
SILENT = {"auto_mapping", "task_type", "inference_mode", "lora_dropout", "megatron_config", "megatron_core"}
SILENT |= {"peft_version", "qalora_group_size"}
NEUTRAL = {"bias": ["none"], "init_lora_weights": [True, False, "gaussian"]}  # other ways to begin change the base, too


def to_fp32(data, dtype):
    """The values of a tensor's bytes."""
    values = np.frombuffer(data, DTYPES[dtype])
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def read(tensor):
    """A tensor's values, in fp32."""
    with open(tensor.file, "rb") as file:
        file.seek(tensor.offset)
        return to_fp32(file.read(tensor.size), tensor.dtype).reshape(tensor.shape)


class PeftAdapter:
    """adapter_config.json as `config`, and {module: {"A": Tensor, "B": Tensor}} as `modules`."""

    def __init__(self, directory):
        directory = Path(directory)
        weights = directory / "adapter_model.safetensors"
        for file in (directory / "adapter_config.json", weights):
            if not file.exists():
                sys.exit(f"{file} is missing: --adapter must be a directory that PEFT saved, with safetensors.")
        try:
            self.config = {"r": 8, "lora_alpha": 8} | read_json(directory / "adapter_config.json")  # PEFT's defaults
        except (ValueError, TypeError) as error:
            sys.exit(f"{directory / 'adapter_config.json'}: no object in JSON ({error}). Fetch it again.")
        self.modules, self.others = {}, []
        for tensor in read_header(weights):
            if match := MATRIX.fullmatch(tensor.name):
                self.modules.setdefault(match["module"], {})[match["which"]] = tensor
            else:
                self.others.append(tensor.name)

    @property
    def scale(self):
        rank = self.config["r"]
        return self.config["lora_alpha"] / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def matrices(self, module):
        """scale · B, and A, in fp32; None of a module that the adapter leaves as it is."""
        if pair := self.modules.get(module):
            return read(pair["B"]) * np.float32(self.scale), read(pair["A"])

    def is_target(self, module):
        """Is this one of target_modules, a regular expression or names' ends, in a layer of layers_to_transform?"""
        layers = self.config.get("layers_to_transform")
        layers = [layers] if isinstance(layers, int) else layers
        if layers and int(module.split(".")[2]) not in layers:  # model.layers.0.self_attn.q_proj
            return False
        targets = self.config.get("target_modules") or []
        if isinstance(targets, str):
            return re.fullmatch(targets, module)
        return any(f".{module}".endswith(f".{target}") for target in targets)

    def problem(self, snapshot):
        """Why the adapter can't be added to this snapshot's weights, or None. Each names its file."""
        if said := self.problem_of_config(snapshot.manifest()):
            return f"adapter_config.json: {said}"
        if said := self.problem_of_weights(snapshot):
            return f"adapter_model.safetensors: {said}"
        return None

    def problem_of_config(self, manifest):
        c = self.config
        if c.get("peft_type") != "LORA":
            return f"peft_type is {c.get('peft_type')}; only LORA can be merged"
        for key in ("r", "lora_alpha"):
            if not isinstance(c[key], int | float):
                return f"{key} is {c[key]}, not a number"
        for key, value in c.items():
            known = value in NEUTRAL[key] if key in NEUTRAL else not value or key in READ | SILENT
            if not known:
                return f"{key} is {value}, which can't be merged here; PEFT's merge_and_unload may know it"
        base, revision = c.get("base_model_name_or_path"), c.get("revision")
        # Of a snapshot from elsewhere than the Hub the name is a place, which says nothing.
        if manifest.get("revision") and base and re.fullmatch(r"[\w.-]+/[\w.-]+", base):
            if base != manifest["source"]:
                return f"the adapter is one of {base}, the snapshot is {manifest['source']}"
            if re.fullmatch(r"[0-9a-f]{40}", revision or "") and revision != manifest["revision"]:
                return f"the adapter is one of {base} at {revision}, the snapshot is of {manifest['revision']}"
        return None

    def problem_of_weights(self, snapshot):
        if self.others:
            return f"holds {min(self.others)}, which is no lora_A or lora_B of a linear layer"
        linear = {name.removesuffix(".weight"): tensor for name, tensor in snapshot.tensors.items()}
        linear = {name: tensor for name, tensor in linear.items() if name.endswith("_proj")}
        if unknown := self.modules.keys() - linear.keys():
            return f"holds {min(unknown)}, which is no linear layer of the snapshot's {snapshot.layers} layers"
        targets = {module for module in linear if self.is_target(module)}
        if missing := targets - self.modules.keys():
            return f"{min(missing)} is missing, which target_modules in adapter_config.json names"
        if more := self.modules.keys() - targets:
            return f"holds {min(more)}, which target_modules in adapter_config.json does not name"
        if not targets:
            return "holds no module"
        rank = self.config["r"]
        for module, pair in sorted(self.modules.items()):
            rows, columns = linear[module].shape
            for which, shape in {"A": [rank, columns], "B": [rows, rank]}.items():
                if which not in pair:
                    return f"lora_{which} of {module} is missing"
                if (found := pair[which]).shape != shape:
                    return f"lora_{which} of {module} has the shape {found.shape}; base and r make it {shape}"
                if found.dtype not in DTYPES:
                    return f"lora_{which} of {module} is {found.dtype}; {', '.join(DTYPES)} can be merged"
        return None

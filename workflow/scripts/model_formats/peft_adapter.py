"""A LoRA adapter in PEFT's format: two matrices for each module, and whether they are all that it adds to the base."""

import sys
from pathlib import Path

import numpy as np
from model_formats.peft_config import MATRIX, PeftConfig
from model_formats.snapshot import read_header

DTYPES = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}  # numpy has no bf16: its bits


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
                sys.exit(f"{file} is missing, which a directory has that PEFT saved, with safetensors.")
        try:
            self.config = PeftConfig(directory / "adapter_config.json")
        except ValueError as error:
            sys.exit(f"{directory / 'adapter_config.json'}: {error}.")
        self.modules, self.others = {}, []
        for tensor in read_header(weights):
            if match := MATRIX.fullmatch(tensor.name):
                self.modules.setdefault(match["module"], {})[match["which"]] = tensor
            else:
                self.others.append(tensor.name)

    def matrices(self, module):
        """scale · B, and A, in fp32; None of a module that the adapter leaves as it is."""
        if pair := self.modules.get(module):
            return read(pair["B"]) * np.float32(self.config.scale(module)), read(pair["A"])

    def problem(self, snapshot):
        """Why the adapter can't be added to this snapshot's weights, or None. Each names its file."""
        manifest = snapshot.manifest()
        if said := self.config.problem(manifest.get("source"), manifest.get("revision")):
            return f"adapter_config.json: {said}"
        if said := self.problem_of_weights(snapshot):
            return f"adapter_model.safetensors: {said}"
        return None

    def problem_of_weights(self, snapshot):
        if self.others:
            return f"holds {min(self.others)}, which is no lora_A or lora_B of a linear layer"
        linear = {name.removesuffix(".weight"): tensor for name, tensor in snapshot.tensors.items()}
        linear = {name: tensor for name, tensor in linear.items() if name.endswith("_proj")}
        if unknown := self.modules.keys() - linear.keys():
            return f"holds {min(unknown)}, which is no linear layer of the snapshot's {snapshot.layers} layers"
        targets = {module for module in linear if self.config.is_target(module)}
        if missing := targets - self.modules.keys():
            return f"{min(missing)} is missing, which target_modules in adapter_config.json names"
        if more := self.modules.keys() - targets:
            return f"holds {min(more)}, which target_modules in adapter_config.json does not name"
        if not targets:
            return "holds no module"
        for module, pair in sorted(self.modules.items()):
            (rows, columns), rank = linear[module].shape, self.config.rank(module)
            for which, shape in {"A": [rank, columns], "B": [rows, rank]}.items():
                if which not in pair:
                    return f"lora_{which} of {module} is missing"
                if (found := pair[which]).shape != shape:
                    return f"lora_{which} of {module} has the shape {found.shape}; base and r make it {shape}"
                if found.dtype not in DTYPES:
                    return f"lora_{which} of {module} is {found.dtype}; {', '.join(DTYPES)} can be read"
        return None

"""A Hugging Face snapshot of a Mistral or Llama model: its configuration, and where in its files each tensor lies.

Tensors are described, not loaded: safetensors' own readers map the files into memory, all of which then counts as the
process's. Format: https://huggingface.co/docs/safetensors
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

from common.files import read_json
from model_formats import config_json, tokenizer
from model_formats.manifest import problem_of_weights, snapshot_files, weight_files

DTYPES = ("BF16", "F16", "F32")


class Tensor(NamedTuple):
    """`size` bytes of a file, from `offset` on: a tensor, or some rows of it."""

    name: str
    file: Path
    offset: int
    size: int
    dtype: str
    shape: list

    def rows(self, start, stop):
        row = self.size // self.shape[0]
        shape = [stop - start, *self.shape[1:]]
        return self._replace(offset=self.offset + start * row, size=(stop - start) * row, shape=shape)


def read_header(path):
    """[Tensor] of a safetensors file: eight bytes with the header's length, the header in JSON, the tensors."""
    if problem := problem_of_weights(path):
        sys.exit(f"{path}: {problem}.")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        tensors.append(Tensor(name, path, 8 + length + start, stop - start, entry["dtype"], entry["shape"]))
    return tensors


class Snapshot:
    """config.json as `config`, what follows from it, and {name: Tensor} as `tensors`."""

    def __init__(self, directory):
        self.directory = Path(directory)
        if not (self.directory / "config.json").is_file():
            sys.exit(f"{directory} holds no config.json: it is no Hugging Face snapshot.")
        try:
            self.config = config_json.read_whole(self.directory / "config.json")
        except ValueError as error:
            sys.exit(f"{self.directory / 'config.json'}: {error}.")
        self.architecture = (self.config.get("architectures") or ["none"])[0]
        self.rope_scaling, self.rope_theta, self.rope_type = config_json.rope_of(self.config)
        files = [file for file in snapshot_files(self.directory) if file.suffix == ".safetensors"]
        self.found = [tensor for file in files for tensor in read_header(file)]
        self.tensors = {tensor.name: tensor for tensor in self.found}

    @property
    def layers(self):
        return self.config["num_hidden_layers"]

    @property
    def heads(self):
        return self.config["num_attention_heads"]

    @property
    def groups(self):
        """Of query heads that share a key and a value head."""
        return self.config.get("num_key_value_heads") or self.heads

    @property
    def head_dim(self):
        return self.config.get("head_dim") or self.config["hidden_size"] // self.heads

    @property
    def tied(self):
        """Is the output layer the embedding again?"""
        return self.config.get("tie_word_embeddings", False)

    @property
    def dtype(self):
        return self.tensors["model.embed_tokens.weight"].dtype

    def expected_shapes(self):
        """{tensor name: shape} as the configuration has it."""
        return config_json.expected_shapes(self.config)

    def manifest(self):
        """What manifest.json says, which the workflow's own snapshots have; empty where there is none."""
        manifest = self.directory / "manifest.json"
        return read_json(manifest, "source", "revision", "files") if manifest.exists() else {}

    def checksums(self):
        """{file: sha256} as the manifest has it."""
        return {name: file["sha256"] for name, file in self.manifest().get("files", {}).items()}

    def missing_file(self):
        """A file with weights that the index names and that is not there, or None."""
        files = sorted(weight_files(self.directory) or [])
        return next((file for file in files if not (self.directory / file).exists()), None)

    def doubled_tensor(self):
        """Two tensors of one name, or None."""
        first = {}
        for tensor in self.found:
            if (other := first.setdefault(tensor.name, tensor)) is not tensor:
                return other, tensor
        return None

    def problem(self):
        """Why this snapshot can't be converted, or None."""
        if problem := config_json.unsupported(self.config):
            return f"config.json: {problem}"
        if file := self.missing_file():
            return f"{file} is missing. Fetch it again"
        if doubled := self.doubled_tensor():
            one, other = doubled
            return f"{one.name} is in {one.file.name} and in {other.file.name}. Remove the one that is not the model's"
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        if problem := config_json.problem_of_shapes(self.config, shapes):
            return problem
        for name in self.expected_shapes():
            if (dtype := self.tensors[name].dtype) not in DTYPES or dtype != self.dtype:
                return f"{name} is {dtype}; all must be alike, one of {', '.join(DTYPES)}"
        return tokenizer.problem(self.directory)

"""Writes a snapshot's tensors as a megatron-core distributed checkpoint in zarr format 2, as fast as the disk allows.

Formats: megatron.core.dist_checkpointing.strategies.zarr, and https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html
"""

import hashlib
import json
import os
import sys

import numpy as np
import torch
from model_formats.directory import write_in_threads

BLOCK = 1 << 22  # bytes
ZARR_DTYPE = {"BF16": "bfloat16", "F16": "<f2", "F32": "<f4"}
EXPONENT = {"BF16": np.uint16(0x7F80), "F16": np.uint16(0x7C00), "F32": np.uint32(0x7F800000)}  # all set: inf or NaN

# TransformerEngine's modules ask the checkpoint for their state; None says that there is none. Which of them do so
# depends on TransformerEngine's version: the four linear ones always, core_attention since 1.8, the norm since 1.13.
STATES = ("self_attention.linear_qkv", "self_attention.linear_proj", "self_attention.core_attention")
STATES += ("mlp.linear_fc1", "mlp.linear_fc2")


def chunks(snapshot):
    """Yields (megatron-core's name, the chunk's place in that array, the snapshot's tensors whose bytes make it)."""
    yield "model.embedding.word_embeddings.weight", (0, 0), [snapshot.tensors["model.embed_tokens.weight"]]
    yield "model.decoder.final_layernorm.weight", (0,), [snapshot.tensors["model.norm.weight"]]
    if not snapshot.tied:
        yield "model.output_layer.weight", (0, 0), [snapshot.tensors["lm_head.weight"]]
    for layer in range(snapshot.layers):  # megatron-core stacks the layers' tensors

        def weight(name, layer=layer):
            return snapshot.tensors[f"model.layers.{layer}.{name}.weight"]

        # megatron-core keeps queries, keys and values in one matrix, group by group: the group's queries, key, value
        projections = [weight(f"self_attn.{name}_proj") for name in "qkv"]
        rows = [projection.shape[0] // snapshot.groups for projection in projections]
        qkv = [p.rows(g * n, (g + 1) * n) for g in range(snapshot.groups) for p, n in zip(projections, rows)]
        for name, place, tensors in (
            ("self_attention.linear_qkv.weight", (layer, 0, 0), qkv),
            ("self_attention.linear_qkv.layer_norm_weight", (layer, 0), [weight("input_layernorm")]),
            ("self_attention.linear_proj.weight", (layer, 0, 0), [weight("self_attn.o_proj")]),
            ("mlp.linear_fc1.weight", (layer, 0, 0), [weight("mlp.gate_proj")]),
            ("mlp.linear_fc1.weight", (layer, 1, 0), [weight("mlp.up_proj")]),
            ("mlp.linear_fc1.layer_norm_weight", (layer, 0), [weight("post_attention_layernorm")]),
            ("mlp.linear_fc2.weight", (layer, 0, 0), [weight("mlp.down_proj")]),
        ):
            yield f"model.decoder.layers.{name}", place, tensors


def copy(tensors, path, advance):
    """Writes tensors, one after the other, to a new file on the disk; advance(bytes) is called as they are written.

    Returns the file's sha256. Exits where a value is no finite number.
    """
    block, digest = bytearray(BLOCK), hashlib.sha256()
    with open(path, "wb") as file:
        for tensor in tensors:
            exponent = EXPONENT[tensor.dtype]
            with open(tensor.file, "rb", buffering=0) as source:
                source.seek(tensor.offset)
                for start in range(0, tensor.size, BLOCK):
                    part = memoryview(block)[: min(BLOCK, tensor.size - start)]
                    if source.readinto(part) != len(part):
                        sys.exit(f"{tensor.file}: ends within {tensor.name}. Fetch it again.")
                    if (np.frombuffer(part, exponent.dtype) & exponent == exponent).any():
                        sys.exit(f"{tensor.file}: {tensor.name} holds NaN or infinity: these weights are broken.")
                    file.write(part)
                    digest.update(part)
                    advance(len(part))
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def write_checkpoint(snapshot, directory):
    """Writes the checkpoint to a new directory, uncompressed, in the chunks that NeMo itself writes.

    Returns {file: sha256} of the chunks.
    """
    directory.mkdir(parents=True)
    backends = {"sharded_backend": "zarr", "sharded_backend_version": 1}
    backends |= {"common_backend": "torch", "common_backend_version": 1}
    (directory / "metadata.json").write_text(json.dumps(backends))
    torch.save({}, directory / "common.pt")
    arrays = {}
    for name, place, tensors in chunks(snapshot):
        arrays.setdefault(name, {})[place] = tensors
    copies = []
    for name, array in arrays.items():
        tensors = next(iter(array.values()))
        chunk = [sum(tensor.shape[0] for tensor in tensors), *tensors[0].shape[1:]]
        chunk = [1] * (len(max(array)) - len(chunk)) + chunk
        shape = [size * (1 + place) for size, place in zip(chunk, max(array))]
        header = {"chunks": chunk, "shape": shape, "dtype": ZARR_DTYPE[snapshot.dtype], "zarr_format": 2}
        header |= {"compressor": None, "fill_value": None, "filters": None, "order": "C"}
        (directory / name).mkdir()
        (directory / name / ".zarray").write_text(json.dumps(header))
        copies += [(tensors, directory / name / ".".join(map(str, place))) for place, tensors in array.items()]
    states = {"model.decoder.final_layernorm": 1} | {f"model.decoder.layers.{name}": snapshot.layers for name in STATES}
    for module, layers in states.items():
        (directory / f"{module}._extra_state").mkdir()
        for layer in range(layers):
            torch.save(None, directory / f"{module}._extra_state/shard_{layer}_{layers}.pt")

    size = sum(tensor.size for tensors, _ in copies for tensor in tensors)
    return dict(zip((path for _, path in copies), write_in_threads(copy, copies, size, "convert_model")))

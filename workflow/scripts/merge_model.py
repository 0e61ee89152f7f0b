"""Adds an adapter in PEFT's format to the weights of its base. Needs no GPU.

The result is a whole Hugging Face snapshot, in the snapshot's own files. In the adapter's modules W + scale · B A,
computed in fp32 and rounded once to the snapshot's dtype, stands in W's place; all other bytes are the snapshot's own,
those of config.json and the tokenizer, too. A chat template of the adapter's stands beside them. A few blocks are in
memory at once.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

from common.ending import run

for library in ("OPENBLAS", "MKL", "OMP"):  # each of the threads here multiplies by itself: numpy's would spin
    os.environ[f"{library}_NUM_THREADS"] = "1"

import numpy as np
from common.chat import FILE as CHAT_TEMPLATE
from model_formats.directory import replacing_directory, write_in_threads
from model_formats.manifest import belongs, snapshot_files
from model_formats.peft_adapter import DTYPES, PeftAdapter, to_fp32
from model_formats.snapshot import Snapshot, read_header

BLOCK = 1 << 18  # bytes of the snapshot; its values in fp32 stay in a core's cache, and malloc has them at hand
LARGEST = {"BF16": 2.0**128 - 2.0**120, "F16": 65504.0, "F32": float(np.finfo(np.float32).max)}


def from_fp32(values, dtype):
    """The values' bytes, rounded to nearest, ties to even."""
    if dtype != "BF16":
        return values.astype(DTYPES[dtype])
    bits = values.view(np.uint32)
    rounded = bits >> 16  # in place from here on
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    return rounded.astype(np.uint16)


def write(tensor, shard, matrices, advance):
    """Writes a tensor to its place in the shard, with B A added, where there are matrices; advance(bytes) is called."""
    step = max(1, BLOCK * tensor.shape[0] // tensor.size)  # rows
    with open(tensor.file, "rb") as source, open(shard, "r+b") as target:
        source.seek(tensor.offset)
        target.seek(tensor.offset)
        for start in range(0, tensor.shape[0], step):
            part = tensor.rows(start, min(start + step, tensor.shape[0]))
            data = source.read(part.size)
            if matrices:
                b, a = matrices
                values = to_fp32(data, part.dtype).reshape(part.shape)
                with np.errstate(all="ignore"):  # what comes of it is named below
                    values += b[start : start + step] @ a
                if not max(values.max(), -values.min()) <= LARGEST[part.dtype]:
                    what = f"{tensor.name} with the adapter holds NaN or more than {part.dtype} can hold"
                    sys.exit(f"{tensor.file}: {what}. Base or adapter is broken.")
                data = from_fp32(values, part.dtype)
            target.write(data)
            advance(part.size)
        target.flush()
        os.fsync(target.fileno())  # here, as the disk writes while other threads compute


def merge(snapshot, adapter, directory):
    """Writes the snapshot's files to the directory, the adapter added, and sees them to the disk."""
    jobs = []
    for file in snapshot_files(snapshot.directory):
        if file.suffix != ".safetensors":
            shutil.copyfile(file, directory / file.name)
            continue
        tensors = read_header(file)
        jobs += [(tensor, directory / file.name) for tensor in tensors]
        with open(file, "rb") as source, open(directory / file.name, "wb") as shard:
            shard.write(source.read(min(tensor.offset for tensor in tensors)))  # the header is the same
            shard.truncate(file.stat().st_size)

    def write_merged(tensor, shard, advance):
        write(tensor, shard, adapter.matrices(tensor.name.removesuffix(".weight")), advance)

    write_in_threads(write_merged, jobs, sum(tensor.size for tensor, _ in jobs), "merge_model")


def is_merged_model(output, snapshot):
    """Or a part of one: without config.json, which Snakemake removes before it calls."""
    return (
        output.is_dir()
        and all(belongs(file.name) or file.name == CHAT_TEMPLATE for file in output.iterdir())
        and not output.samefile(snapshot.directory)
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshot", required=True, type=Path, help="directory of the base's Hugging Face snapshot")
    parser.add_argument("--adapter", required=True, type=Path, help="directory with the adapter in PEFT's format")
    parser.add_argument("--output", required=True, type=Path, help="directory; a merged model there is replaced")
    args = parser.parse_args()

    snapshot, adapter, output = Snapshot(args.snapshot), PeftAdapter(args.adapter), args.output
    if problem := snapshot.problem():
        sys.exit(f"{args.snapshot}: {problem}.")
    if problem := adapter.problem(snapshot):
        sys.exit(f"{args.adapter}: {problem}.")
    if output.exists() and not is_merged_model(output, snapshot):
        sys.exit(f"{output} would be replaced, and is no merged model. Name another directory.")
    size = sum(file.stat().st_size for file in snapshot_files(snapshot.directory))
    with replacing_directory(output, size, "merge_model") as new:
        merge(snapshot, adapter, new)
        if (template := args.adapter / CHAT_TEMPLATE).exists():
            shutil.copyfile(template, new / CHAT_TEMPLATE)
    print(f"{output}: {len(adapter.modules)} modules merged, {snapshot.dtype}, {size / 1e9:.2f} GB")


if __name__ == "__main__":
    run(main)

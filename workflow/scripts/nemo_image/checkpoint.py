"""megatron-core reads its checkpoints (zarr format 2) as fast as the disk allows. Needs only NeMo and its needs."""

import contextlib
import json
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

THREADS = 8
BLOCK = 1 << 24  # bytes


def read_ahead(base):
    """Starts to fetch the files of a base, a directory or a file, from the disk into the page cache, and returns."""
    files = sorted(path for path in [base, *base.rglob("*")] if path.is_file())

    def fetch(files):
        block = bytearray(BLOCK)
        for path in files:
            with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
                while file.readinto(block):
                    pass

    for number in range(THREADS):
        threading.Thread(target=fetch, args=[files[number::THREADS]], daemon=True).start()


def map_part(directory, place):
    """The array's part at `place`, an index or a slice for each axis, as the file in the page cache has it.

    None where that is not how it is stored: compressed, or in several chunks. Exits where the chunk is missing, which
    zarr reads as zeros, or not whole.
    """
    import numpy as np

    header = json.loads((directory / ".zarray").read_text())
    if header["compressor"] or header["filters"] or header["order"] != "C":
        return None
    chunk, part = [], []
    for at, size in zip(place, header["chunks"]):
        start, stop = (at.start, at.stop) if isinstance(at, slice) else (at, at + 1)
        chunk.append(start // size)
        if (stop - 1) // size != chunk[-1]:
            return None
        start -= chunk[-1] * size
        part.append(slice(start, start + at.stop - at.start) if isinstance(at, slice) else start)
    file = directory / header.get("dimension_separator", ".").join(map(str, chunk))
    try:  # c: to be written to, as PyTorch asks, but not to the file
        return np.memmap(file, header["dtype"], "c", shape=tuple(header["chunks"]))[tuple(part)]
    except (OSError, ValueError) as error:  # missing; shorter than its shape
        sys.exit(f"{file}: a part of the model is missing ({error}). Convert the model again.")


class Mapped:
    """tensorstore's array, for which it takes a second of CPU time a GB to read, with a faster way to do so."""

    def __init__(self, array, directory):
        self.array, self.directory = array, Path(directory)

    def __getattr__(self, name):
        return getattr(self.array, name)

    def __getitem__(self, place):
        part = map_part(self.directory, place)
        return self.array[place] if part is None else Part(part)


class Part:
    """What Mapped gives, to be asked for its content as tensorstore's."""

    def __init__(self, content):
        self.content = content

    def read(self):
        return self

    def result(self):
        return self.content


def read_quickly():
    """megatron-core reads one tensor after the other, and turns bf16 into fp32 and back, which takes longer still."""
    import numpy as np
    import torch
    from megatron.core.dist_checkpointing.strategies import tensorstore

    for_each, to_torch = tensorstore.dict_list_map_inplace, tensorstore.postprocess_numpy_array
    open_array = tensorstore.open_ts_array

    def for_several(function, tensors):
        with ThreadPoolExecutor(THREADS) as pool:
            for_each(partial(pool.submit, function), tensors)
            for_each(Future.result, tensors)

    def bits_to_torch(array, *args, **options):
        if array.dtype.name != "bfloat16":
            return to_torch(array, *args, **options)
        return to_torch(array.view(np.int16), *args, **options).view(torch.bfloat16)

    tensorstore.dict_list_map_inplace, tensorstore.postprocess_numpy_array = for_several, bits_to_torch
    tensorstore.open_ts_array = lambda directory: Mapped(open_array(directory), directory)

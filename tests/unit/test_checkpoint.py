"""Parts of arrays are read as tensorstore reads them, and files are in the page cache before."""

import ctypes
import os
import time

import numpy as np
import pytest
import tensorstore
from nemo_image.checkpoint import Mapped, Part, read_ahead

SHAPE, CHUNKS = (2, 6, 8), (1, 3, 8)
PLACES = [  # and whether that part lies in one chunk
    ((1, slice(0, 3), slice(0, 8)), True),
    ((0, slice(4, 6), slice(0, 8)), True),
    ((1, slice(3, 6), slice(2, 4)), True),
    ((slice(0, 1), slice(3, 4), slice(0, 8)), True),
    ((0, slice(0, 6), slice(0, 8)), False),
    ((slice(0, 2), slice(0, 3), slice(0, 8)), False),
]


def write(directory, compressor=None):
    """An array of bf16, and the numbers in it."""
    numbers = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(tensorstore.bfloat16.numpy_dtype)
    metadata = {"shape": SHAPE, "chunks": CHUNKS, "dtype": "bfloat16", "compressor": compressor}
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(directory)}, "metadata": metadata}
    array = tensorstore.open(spec, create=True).result()
    array.write(numbers).result()
    return array, numbers


@pytest.mark.parametrize("place, mapped", PLACES)
def test_part(place, mapped, tmp_path):
    array, numbers = write(tmp_path)
    part = Mapped(array, tmp_path)[place]
    assert isinstance(part, Part) == mapped
    found = part.read().result()
    assert found.dtype == numbers.dtype and np.array_equal(found, numbers[place])
    found[...] = 0  # is not written to the file
    assert np.array_equal(Mapped(array, tmp_path)[place].read().result(), numbers[place])


@pytest.mark.parametrize("content", [None, b"short"])
def test_chunk_that_is_not_whole(content, tmp_path):
    """Zarr would read zeros in place of a missing one."""
    array, _ = write(tmp_path)
    (tmp_path / "1.0.0").unlink() if content is None else (tmp_path / "1.0.0").write_bytes(content)
    with pytest.raises(SystemExit, match=r"1\.0\.0: a part of the model is missing"):
        Mapped(array, tmp_path)[1, slice(0, 3), slice(0, 8)]


def test_compressed_array(tmp_path):
    array, numbers = write(tmp_path, {"id": "zlib", "level": 1})
    part = Mapped(array, tmp_path)[1, slice(0, 3), slice(0, 8)]
    assert not isinstance(part, Part) and np.array_equal(part.read().result(), numbers[1, :3])


def test_what_is_asked_of_the_array(tmp_path):
    array, numbers = write(tmp_path)
    mapped = Mapped(array, str(tmp_path))
    assert mapped.shape == SHAPE and mapped.dtype.numpy_dtype == numbers.dtype


def cached(file):
    """Which part of the file's pages is in the page cache, 0 to 1."""
    content = np.memmap(file, mode="c")
    pages = (ctypes.c_ubyte * -(-content.size // os.sysconf("SC_PAGE_SIZE")))()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(content.size), pages) == 0
    return sum(page & 1 for page in pages) / len(pages)


def test_read_ahead(tmp_path):
    files = [tmp_path / "a.nemo", tmp_path / "base/model_weights/array/0.0"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "wb") as written:
            written.write(bytes(1 << 26))
            os.fsync(written.fileno())
            os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if cached(file) > 0.1:
            pytest.skip("this file system keeps its files in memory")
    read_ahead(files[0])
    read_ahead(tmp_path / "base")
    end = time.monotonic() + 60
    while min(map(cached, files)) < 1:
        assert time.monotonic() < end, [cached(file) for file in files]
        time.sleep(0.05)

"""Whatever writes a result, a full disk is one sentence that says how much is lacking where; nothing half stays."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from common import ending
from common.files import replacing, write_json, write_jsonl
from model_formats.directory import replacing_directory

from .conftest import is_sentence

SIZE = 1 << 20


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A file system of a megabyte."""
    if os.geteuid():
        pytest.skip("only root can mount a file system")
    place = tmp_path_factory.mktemp("disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.kind("a full disk, by what writes to it")
def test_how_much_is_lacking(disk):
    with pytest.raises(SystemExit) as ended:
        write_json(disk / "result", "x" * 2 * SIZE)
    assert (
        f"{disk}/result: needs 2.1 MB; the file system {disk} is full, or a quota on it: 1.0 MB are free"
        in ended.value.code
    )


def test_what_a_killed_process_had_begun_goes(tmp_path):
    """Of the same result, and only where nobody has written to it for a while."""
    left, other, young = (tmp_path / f".{name}.partial" for name in ("result.1", "other.1", "result.2"))
    for file in left, other, young:
        file.touch()
    for file in left, other:
        os.utime(file, (1, 1))
    write_json(tmp_path / "result", 1)
    assert not left.exists() and other.exists() and young.exists()
    write_json(tmp_path / "other", 1)
    assert not other.exists()


def packed(path):
    with replacing(path) as partial, tarfile.open(partial, "w") as tar:
        tar.add(Path(torch.__file__).parent / "lib/libtorch_python.so")


def saved(path, save):
    with replacing(path) as partial:
        save({"a": torch.zeros(SIZE)}, partial)


def whole_directory(path, save):
    with replacing_directory(path, 1, "test") as new:  # what it says of its size was true, but others write, too
        save({"a": torch.zeros(SIZE)}, new / "weights")


def plain(path):
    with open(path, "wb") as file:  # as NeMo does, whose files are no results
        file.write(bytes(2 * SIZE))


WRITERS = {
    "JSON": lambda path: write_json(path, "x" * 2 * SIZE),
    "JSON Lines": lambda path: write_jsonl(path, SIZE * [{}]),
    "a tar": packed,
    "torch": lambda path: saved(path, torch.save),
    "safetensors": lambda path: saved(path, safetensors.torch.save_file),
    "a directory by torch": lambda path: whole_directory(path, torch.save),
    "a directory by safetensors": lambda path: whole_directory(path, safetensors.torch.save_file),
    "open": plain,
    "torch, in no directory of ours": lambda path: torch.save(torch.zeros(SIZE), path),
}


@pytest.mark.kind("a full disk, by what writes to it")
@pytest.mark.parametrize("writer", WRITERS)
def test_full(disk, monkeypatch, writer):
    path = disk / writer.replace(" ", "-")
    monkeypatch.setattr(sys, "argv", ["step.py", "--output", str(path), "--settings", "{}"])
    with pytest.raises(SystemExit) as ended:
        ending.run(lambda: WRITERS[writer](path))
    said = ended.value.code
    assert (
        is_sentence(said)
        and said.startswith(str(disk))
        and f"the file system {disk} is full, or a quota on it: " in said
    ), said
    assert "needs " in said and said.endswith("Make room, or let `pathvars` in the configuration point elsewhere.")
    left = [file for file in disk.iterdir() if not file.name.endswith(".lock")]
    assert not left or (writer in ("open", "torch, in no directory of ours") and not left[0].unlink())


def test_other_errors_keep_their_traceback():
    def wrong():
        raise FileNotFoundError(2, "No such file", "x")

    with pytest.raises(FileNotFoundError):
        ending.run(wrong)

"""Each step killed at a random moment, and on a disk that is full. What it leaves is whole or not there; run again, it
makes what it made undisturbed. `make test-faults` alone: KILLS=100 for so many kills."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from typing import NamedTuple

import pytest
from common.files import sha256
from helpers import ROOT, copy_workflow, environment, snakemake

KILLS = int(os.environ.get("KILLS", 0))
FULL_DISKS = int(os.environ.get("FULL_DISKS", 0))  # of each step
MODEL = "results/runs/lora/fold0/seed0"
TARGETS = "all", "export", "results/base/tiny.nemo", f"{MODEL}/merged/config.json"
NAMES = ("simulate_trials", "split_folds", "write_jsonl", "download_model", "convert_model", "pack_model", "train_lora")
NAMES += ("predict", "evaluate", "compare_runs", "write_report", "export_adapter", "merge_model", "write_model_card")
THREADS = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
)  # as Snakemake: sums are by them
SIGNS = "needs ", " the file system ", " is full, "


class Step(NamedTuple):
    command: str
    outputs: list
    log: str


@pytest.fixture(scope="module")
def project(tiny_mistral, tmp_path_factory):
    """A directory in which every step has run, on a small file system of its own where root can mount one; of each
    step: its command, and the files that it made. The logs are elsewhere: there is always room for a sentence."""
    directory, logs = tmp_path_factory.mktemp("steps"), tmp_path_factory.mktemp("logs")
    if mounted := not os.geteuid():
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", directory], check=True)
    copy_workflow(directory)
    shutil.copyfile(ROOT / "tests/chain.yaml", directory / "chain.yaml")
    (directory / "mine.yaml").write_text("targets: [lora]")
    (directory / "logs").symlink_to(logs)
    shutil.copytree(tiny_mistral, directory / "tiny")
    call = *TARGETS, "--configfile", "chain.yaml", "mine.yaml", "--set-threads", "train_lora=1", "predict=1"
    planned = snakemake(directory, *call, "--dry-run", "--printshellcmds").stdout
    done = snakemake(directory, *call)
    assert done.returncode == 0, done.stdout
    for place in ("results", "resources"):
        shutil.copytree(directory / place, directory / "before" / place, symlinks=True)
    yield directory, dict(steps(planned))
    if mounted:
        subprocess.run(["umount", "--lazy", directory], check=True)


def steps(planned):
    """(rule, Step) for each rule of a plan."""
    for block in planned.split("\n\n"):
        if rule := re.search(r"^(?:local)?rule (\w+):$", block, re.MULTILINE):
            found = {key: re.search(rf"^ +{key}: (.*)$", block, re.MULTILINE) for key in ("output", "log")}
            command = re.search(r"^Shell command: (.*)", block, re.MULTILINE | re.DOTALL)
            if found["output"]:  # all, export
                yield rule[1], Step(command[1].strip(), found["output"][1].split(", "), found["log"][1])


def made(directory, step):
    """{file: sha256} of a step's results that are there, without provenance, which tells the time."""
    files = {file for name in step.outputs for file in files_of(directory / name) if "provenance" not in file.name}
    return {str(file.relative_to(directory)): sha256(file) for file in files}


def files_of(output):
    """A result, and what stands beside it where it is the last file of a directory that is written whole."""
    if output.name in ("model_config.yaml", "config.json"):  # of convert_model and merge_model
        return [file for file in output.parent.rglob("*") if file.is_file()]
    return [output] if output.exists() else []


def partials(directory):
    return [path for path in (directory / "results").rglob(".*") if path.name.endswith(".partial")]


def remove(directory, step):
    """Takes a step's results away; those of the others are there, whatever test failed before."""
    for place in ("results", "resources"):
        shutil.rmtree(directory / place)
        shutil.copytree(directory / "before" / place, directory / place, symlinks=True)
    for name in step.outputs:
        (directory / name).unlink(missing_ok=True)
    if any(name.endswith("adapter.nemo") for name in step.outputs):  # else it is taken over
        shutil.rmtree(directory / MODEL / "training", ignore_errors=True)


def start(directory, step):
    (directory / step.log).parent.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        ["bash", "-c", f"set -euo pipefail; {step.command}"],
        cwd=directory,
        env=environment(**THREADS),
        start_new_session=True,
    )


@pytest.mark.skipif(not KILLS, reason="KILLS is not set: how many kills")
@pytest.mark.kind("kills of steps, each at a moment by its seed")
@pytest.mark.parametrize("seed", range(KILLS))
def test_killed(project, seed):
    directory, found = project
    rng = random.Random(seed)
    name = NAMES[seed % len(NAMES)]
    step, before = found[name], made(directory / "before", found[name])
    remove(directory, step)
    process = start(directory, step)
    time.sleep(rng.uniform(0, 40 if name in ("train_lora", "predict") else 4))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = made(directory, step)
    assert all(before.get(file) == digest for file, digest in left.items()), "half a result"
    assert start(directory, step).wait() == 0, (directory / step.log).read_text()
    assert made(directory, step) == before


@pytest.mark.skipif(not FULL_DISKS, reason="FULL_DISKS is not set: how often each step meets one")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
@pytest.mark.kind("steps on a disk that gets full, each at a moment by its seed")
@pytest.mark.parametrize("seed", range(FULL_DISKS))
@pytest.mark.parametrize("name", [name for name in NAMES if name != "download_model"])  # which makes links only
def test_full_disk(project, name, seed):
    directory, found = project
    step, before = found[name], made(directory / "before", found[name])
    size = sum((directory / "before" / file).stat().st_size for file in before)
    remove(directory, step)
    filler, free = directory / "filler", shutil.disk_usage(directory).free
    left = random.Random(seed).randrange(max(size - 4096, 1))
    filler.write_bytes(bytes(max(0, free - left)))
    try:
        process = start(directory, step)
        assert process.wait() != 0, f"{left} bytes were enough for {size}"
        said = (directory / step.log).read_text()
        whole = made(directory, step)
        assert whole.items() < before.items() and not partials(directory)
    finally:
        filler.unlink()
    assert all(sign in said for sign in SIGNS), said[-3000:]
    assert "Traceback" not in said.split("torch/distributed/elastic")[0], said[-3000:]
    assert start(directory, step).wait() == 0, (directory / step.log).read_text()
    assert made(directory, step) == before

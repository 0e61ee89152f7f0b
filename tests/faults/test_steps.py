"""Each step killed at a random moment, and on a disk that is full. What it leaves is whole or not there; run again, it
makes what it made undisturbed. `make test-faults` alone: KILLS=100 for so many kills."""

import csv
import os
import random
import re
import shutil
import signal
import subprocess
from typing import NamedTuple

import pytest
import yaml
from chat_templates import MISTRAL_V1
from common.files import sha256
from helpers import ROOT, copy_workflow, environment, snakemake
from tiny import write_adapter, write_gguf

KILLS = int(os.environ.get("KILLS", 0))
FULL_DISKS = int(os.environ.get("FULL_DISKS", 0))  # of each step
RUN = {"model": "tiny", "dataset": "trials", "devices": 1, "tensor_model_parallel_size": 1, "precision": 32}
RUN |= {"megatron_amp_O2": False, "predict": {"batch_size": 7, "tokens_to_generate": 6}}
TRAIN = {"micro_batch_size": 2, "global_batch_size": 4, "max_steps": 4, "val_check_interval": 2, "lr": 0.001}
TRAIN |= {"warmup_steps": 1, "repeat_maybe": 2}
CONFIG = {
    "targets": ["chosen"],
    "models": {"packed": {"gguf": "packed.gguf"}},
    "datasets": {
        "asked": {"test": "questions.csv"},
        "drawn": {"items": "questions.csv"},
        "read": {"train": "train.csv", "val": "val.csv", "test": "questions.csv"},
    },
    "runs": {
        "slow": {**RUN, "train": TRAIN},
        "fast": {**RUN, "train": {**TRAIN, "lr": 0.01}},
        "chosen": {**RUN, "choose": ["slow", "fast"]},
        "imported": {**RUN, "adapter": {"directory": "peft"}},
        "spoken": {**RUN, "chat_template": True},
    },
}
TARGETS = {  # of each, the steps that no other has
    "all": "simulate_trials split_folds write_jsonl download_model convert_model train_lora choose_run predict "
    "evaluate compare_runs write_report",
    "export": "export_adapter write_model_card",
    "results/runs/chosen/fold0/seed0/merged.verification.tsv": "merge_model predict_for_export verify_export",
    "results/runs/imported/fold0/seed0/adapter.nemo": "import_adapter",
    "results/base/tiny.nemo": "pack_model",
    "results/base/tiny.verification.tsv": "verify_model",
    "results/answers/chosen/asked.tsv": "read_questions predict_questions write_answers",
    "results/data/drawn/items/test.json": "split_items",
    "results/data/read/items/test.json": "read_items",
    "resources/hf/tiny/chat_template.jinja": "extract_chat_template",
    "resources/hf/packed/manifest.json": "dequantize_gguf",
}
if "PUBMEDQA_DIR" in os.environ:
    CONFIG["datasets"]["pubmedqa"] = {"directory": os.environ["PUBMEDQA_DIR"], "revision": None}
    TARGETS["resources/data/pubmedqa/ori_pqal.json"] = "download_pubmedqa"
NAMES = [name for steps in TARGETS.values() for name in steps.split()]
THREADS = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
)  # as Snakemake: sums are by them
SIGNS = "needs ", " the file system ", " is full, "


class Step(NamedTuple):
    command: str
    outputs: list
    log: str


@pytest.fixture(scope="module")
def project(tiny_mistral, tmp_path_factory, request):
    """A directory in which every step has run, on a small file system of its own where root can mount one; of each
    step its command, the files that it made, and how long it took. The logs are elsewhere: there is always room for a
    sentence."""
    directory, logs = tmp_path_factory.mktemp("steps"), tmp_path_factory.mktemp("logs")
    if not os.geteuid():
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", directory], check=True)
        request.addfinalizer(lambda: subprocess.run(["umount", "--lazy", directory], check=True))
    copy_workflow(directory)
    shutil.copyfile(ROOT / "tests/chain.yaml", directory / "chain.yaml")
    (directory / "mine.yaml").write_text(yaml.safe_dump(CONFIG))
    (directory / "logs").symlink_to(logs)
    shutil.copytree(tiny_mistral, directory / "tiny")
    write_adapter(directory / "tiny", directory / "peft")
    (directory / "tiny/chat_template.jinja").write_text(MISTRAL_V1)
    write_gguf(directory / "packed.gguf")
    for name in ("train", "val", "questions"):
        rows = [(f"Does number {number} of {name} help?", f"answer {number % 3}") for number in range(100)]
        with open(directory / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("input", "output"), *rows])
    call = *TARGETS, "--configfile", "chain.yaml", "mine.yaml", "--set-threads", *(f"{name}=1" for name in NAMES)
    planned = snakemake(directory, *call, "--dry-run", "--printshellcmds").stdout
    done = snakemake(directory, *call)
    assert done.returncode == 0, done.stdout
    for place in ("results", "resources"):
        shutil.copytree(directory / place, directory / "before" / place, symlinks=True)
    took = re.findall(r"^\S+ (\w+)(?: \(.*?\))?: done after 0:(\d\d):(\d\d)", done.stdout, re.MULTILINE)
    durations = {name: int(minutes) * 60 + int(seconds) for name, minutes, seconds in took}
    found = dict(steps(planned))
    assert sorted(found) == sorted(NAMES) == sorted(durations.keys() - {"all", "export"})
    return directory, found, durations


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
    of_gguf = output.match("packed/manifest.json") and output.exists()
    if output.name in ("model_config.yaml", "config.json") or of_gguf:
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
    if "resources/hf/packed/manifest.json" in step.outputs:  # what stood beside it would make room
        shutil.rmtree(directory / "resources/hf/packed")
    if any(name.endswith("adapter.nemo") for name in step.outputs):  # else it is taken over
        for kept in directory.glob("results/runs/*/fold0/seed0/training"):
            shutil.rmtree(kept)


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
    directory, found, durations = project
    name = NAMES[seed % len(NAMES)]
    step, before = found[name], made(directory / "before", found[name])
    moment, was_killed = random.Random(seed).uniform(0, durations[name] + 1), False
    while not was_killed:
        remove(directory, step)
        process = start(directory, step)
        try:
            process.wait(moment)
            moment /= 2  # it was faster than in the fixture
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            was_killed = process.wait() == -signal.SIGKILL
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
    directory, found, _ = project
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

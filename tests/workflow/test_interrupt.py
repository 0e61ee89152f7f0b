"""Ctrl-C and SIGTERM while Snakemake runs a training. In torchrun's place stands a program that does as NeMo's training
does: test_resume.py has the real one."""

import os
import signal
import subprocess
import time

import psutil
import pytest
from helpers import copy_workflow, write_snapshot

ADAPTER = "results/runs/a/fold0/seed0/adapter.nemo"
INPUTS = ["results/base/tiny/model_config.yaml"]
INPUTS += [f"results/data/trials/final_decision/fold0/{split}.jsonl" for split in ("train", "val")]
CONFIG = """
targets: [a]
accelerator: cpu
image: null
models: {tiny: {snapshot: tiny}}
datasets: {trials: {simulate: 0}}
runs: {a: {model: tiny, dataset: trials, train: {max_steps: 4, val_check_interval: 2, lr: 1.0e-3}}}
"""
TORCHRUN = """#!/usr/bin/env python
import os, sys, time
print("a line of NeMo's\\n" * 400, flush=True)
open("rank", "w").write(str(os.getpid()))
request = os.environ["STOP_REQUEST"]
open(request, "w").close()
while not os.stat(request).st_size:
    time.sleep(0.05)
time.sleep(2)
open("checkpoint", "w").close()
sys.exit("Stopped after 3 of 4 steps, as requested.")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = tmp_path_factory.mktemp("project")
    copy_workflow(project)
    (project / "plan.yaml").write_text(CONFIG)
    write_snapshot(project / "tiny")
    for file in map(project.joinpath, INPUTS):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    (project / "bin").mkdir()
    (project / "bin/torchrun").write_text(TORCHRUN)
    (project / "bin/torchrun").chmod(0o755)
    return project


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_training_stops_after_its_step(project, number):
    """SIGTERM reaches Snakemake alone, a terminal's Ctrl-C its whole process group."""
    command = ["snakemake", "--cores", "1", "--configfile", "plan.yaml", "--allowed-rules", "train_lora", "--", ADAPTER]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    options["env"] = os.environ | {"PATH": f"{project / 'bin'}:{os.environ['PATH']}"}
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = subprocess.Popen(command, cwd=project, **options, **heed)
    rank = project / "rank"
    while not (rank.exists() and rank.read_text()):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    time.sleep(0.5)
    began = time.monotonic()
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and time.monotonic() - began < 20, said
    assert not psutil.pid_exists(int(rank.read_text())) and not (project / ADAPTER).exists()
    (project / "checkpoint").unlink()
    rank.unlink()
    reached = "train_lora (run=a, fold=0, seed=0): Stopped after 3 of 4 steps, as requested."
    told = said[said.index("Interrupted: trainings stop after their step, within 20 seconds;") :]
    assert told.count("To resume, run the same command again.") == told.splitlines().count(reached) == 1, told
    assert len(told.splitlines()) < 8, told

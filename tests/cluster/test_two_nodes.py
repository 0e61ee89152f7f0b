"""Two nodes, each with its own network, host name and processes: make test-cluster-long. The tests go through one
training's life, in this order."""

import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from cluster.lab import HERE, USER, finish, in_queue, output_of, wait_until, weights
from common.files import read_json

pytestmark = pytest.mark.long
CONFIG = ("nodes.yaml",)
CUT, LOG = "results/runs/cut/fold0/seed0/adapter.nemo", "logs/train_lora/cut/fold0-seed0.log"


def lab(*arguments):
    subprocess.run([HERE / "slurm.sh", *arguments], check=True)


@pytest.fixture(scope="module")
def nodes(project):
    shutil.copyfile(HERE / "nodes.yaml", project.directory / "nodes.yaml")
    lab("start_nodes")
    yield
    lab("lose_node", "node1")
    lab("lose_node", "node2")
    lab("start", USER)


@pytest.fixture(scope="module")
def computed(project, nodes):
    """What is compared, uninterrupted: on two nodes and on one."""
    runs = [f"results/runs/{run}/fold0/seed0/metrics.json" for run in ("apart", "together")]
    tables = [f"results/base/{model}.verification.tsv" for model in ("tiny", "twin")]
    return project.run(*runs, *tables, CUT.replace("cut", "whole"), config=CONFIG, seconds=1800)


def test_same_result_as_on_one_node(project, computed):
    """Byte for byte, with the model shared out between the nodes."""
    apart, together = (project.directory / f"results/runs/{run}/fold0/seed0" for run in ("apart", "together"))
    assert weights(apart / "adapter.nemo") == weights(together / "adapter.nemo")
    assert (apart / "predictions.jsonl").read_bytes() == (together / "predictions.jsonl").read_bytes()
    assert project.read("results/base/tiny.verification.tsv") == project.read("results/base/twin.verification.tsv")
    for rule in "train_lora", "predict", "verify_model":
        name = "tiny" if rule == "verify_model" else "apart"
        job = project.jobs(f"rule_{rule}_wildcards_{name}")[-1]
        assert job["NNodes"] == "2" and {"gres/gpu=2", "cpu=8"} <= set(job["AllocTRES"].split(","))
        assert "--nodes=2 " in job["SubmitLine"] and "--gres=gpu:1 " in job["SubmitLine"]
        said = project.read(f"logs/{rule}/{name}.log" if name == "tiny" else f"logs/{rule}/{name}/fold0-seed0.log")
        assert all(f"{rule}: on {node} in SLURM job {job['JobIDRaw']}, image " in said for node in ("node1", "node2"))


@pytest.fixture(scope="module")
def going(project, computed, start_early, changed_profile):
    """The Snakemake of a training on two nodes, which is cut off five times."""
    limits = changed_profile('runtime: "2d" #', 'runtime: "1 if attempt == 1 else 60" #')
    return start_early(CUT, "--retries", "5", profile=limits, config=CONFIG)


def training(project, attempt):
    """The number of this attempt's SLURM job, once it trains."""
    jobs = wait_until(lambda: project.jobs("rule_train_lora_wildcards_cut")[attempt - 1 :], 120, f"attempt {attempt}")
    project.wait_for_log(LOG, f" in SLURM job {jobs[0]['JobIDRaw']}, image ", 120)
    project.wait_for_log(LOG, " of 400 steps, ends about ", 240)
    return jobs[0]["JobIDRaw"]


def ranks(*nodes):
    """The ids of the ranks that train there."""
    there = {pid for node in nodes for pid in output_of("ip", "netns", "pids", node).split()}
    command = ["pgrep", "-u", USER, "-f", r"python\S* -u \S*/workflow/scripts/train_lora.py"]
    training = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in training if pid in there]


def test_time_limit(project, going):
    project.wait_for_log(LOG, " of 400 steps, as the time limit is near.", 300)
    wait_until(lambda: not ranks("node1", "node2"), 30, "the end of all ranks")


def test_killed_rank(project, going):
    training(project, 2)
    os.kill(ranks("node2")[0], signal.SIGKILL)
    project.wait_for_log(LOG, "run_on_nodes: node2 ended first, with exit code 1", 30)
    wait_until(lambda: not ranks("node1"), 30, "the end of the other rank")


def test_cancelled_job(project, going):
    """All ranks stop after the same step, with a checkpoint."""
    number = training(project, 3)
    subprocess.run(["runuser", "-u", USER, "--", "scancel", number], check=True)
    project.wait_for_log(LOG, " of 400 steps, as requested.", 30)
    step = re.search(r"Stopped after (\d+) of 400 steps, as requested\.", project.read(LOG))[1]
    wait_until(lambda: not ranks("node1", "node2"), 30, "the end of all ranks")
    project.wait_for_log(LOG, f"continues after step {step}", 240)


def test_lost_node(project, going):
    """No packet comes from it any more. SLURM itself sees that after SlurmdTimeout, here 60 seconds."""
    training(project, 4)
    began = time.monotonic()
    lab("lose_node", "node2")
    project.wait_for_log(LOG, "run_on_nodes: node2 is lost: nothing was heard of it for 30 seconds.", 60)
    wait_until(lambda: not ranks("node1"), 60 - (time.monotonic() - began), "the end of the other rank")
    lab("start_nodes")


def test_requeued_job(project, going):
    number = training(project, 5)
    subprocess.run(["scontrol", "requeue", number], check=True)
    code, said = finish(going)
    assert code == 0, said
    states = output_of("sacct", "-D", "-X", "-n", "-P", "-o", "State", "-j", number).split()
    assert states == ["REQUEUED", "COMPLETED"]


def test_same_result_however_often_it_was_cut_off(project, going):
    """Byte for byte, on one node and at one go."""
    assert weights(project.directory / CUT) == weights(project.directory / CUT.replace("cut", "whole"))
    attempts = read_json(project.directory / CUT.replace(".nemo", ".provenance.json"))["attempts"]
    steps = [attempt["after_step"] for attempt in attempts]
    assert len(steps) == 6 and steps == sorted(steps) and steps[0] == 0 < steps[1]


def test_nodes_that_do_not_meet(project, computed, start, changed_profile):
    """As their processes listen on a network of the node's own."""
    alone = changed_profile("PYTHONNOUSERSITE=1", "PYTHONNOUSERSITE=1,GLOO_SOCKET_IFNAME=lo")
    arguments = CUT, "--forcerun", "train_lora", "--retries", "0"
    code, _ = finish(start(*arguments, profile=alone, config=CONFIG), 500)
    assert code == 1 and not in_queue()
    assert "The processes on 2 nodes do not meet: name the network between them" in project.read(LOG)


def test_node_that_is_not_reached(project, computed, start):
    """From the first node; SLURM's controller reaches it."""
    subprocess.run(["ip", "-n", "node2", "route", "add", "blackhole", "10.77.0.1"], check=True)
    try:
        code, _ = finish(start(CUT, "--forcerun", "train_lora", "--retries", "0", config=CONFIG), 300)
    finally:
        subprocess.run(["ip", "-n", "node2", "route", "del", "blackhole", "10.77.0.1"], check=True)
    assert code == 1 and "run_on_nodes: 1 of 2 nodes have reported: node1. What became" in project.read(LOG)

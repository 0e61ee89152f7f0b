"""What takes too long for every day: make test-cluster-long."""

import json
import platform
import subprocess

import pytest
from cluster.lab import USER, finish, in_queue, output_of, wait_until

pytestmark = pytest.mark.long
ADAPTER = "results/runs/killed/fold0/seed0/adapter.nemo"
LOG = "logs/train_lora/killed/fold0-seed0.log"


@pytest.fixture
def training(project, start):
    """A training that has written a checkpoint: its Snakemake, and its SLURM job's number."""
    last = project.last_job()
    process = start(ADAPTER, "--forcerun", "train_lora")
    wait_until(lambda: project.jobs("rule_train_lora", after=last), 300, "the submission of a training")
    project.wait_for_log(LOG, "validation loss", 300)
    project.wait_for_log(LOG, "after 10 steps", 300)
    return process, project.jobs("rule_train_lora", after=last)[0]["JobIDRaw"]


def check(project, process, continues):
    """It went on from a checkpoint, and got done."""
    code, said = finish(process)
    assert code == 0, said
    provenance = json.loads(project.read(ADAPTER.replace(".nemo", ".provenance.json")))
    first, second = (attempt["after_step"] for attempt in provenance["attempts"])
    assert first == 0 and second >= 10
    assert (f"continues after step {second}" in project.read(LOG)) == continues


def states(number):
    return output_of("sacct", "-D", "-X", "-n", "-P", "-o", "State", "-j", number).splitlines()


def test_cancelled_job(project, training):
    """By its user: Snakemake notices and tries again."""
    process, number = training
    subprocess.run(["runuser", "-u", USER, "--", "scancel", number], check=True)
    check(project, process, continues=True)
    assert states(number)[0].startswith("CANCELLED")


def test_requeued_job(project, training):
    process, number = training
    subprocess.run(["scontrol", "requeue", number], check=True)
    check(project, process, continues=True)
    assert states(number) == ["REQUEUED", "COMPLETED"]


def test_node_that_fails(project, training):
    process, number = training
    node = f"nodename={platform.node()}"
    subprocess.run(["scontrol", "update", node, "state=down", "reason=test"], check=True)
    wait_until(lambda: "NODE_FAIL" in states(number), 120, "the node's failure")
    if "DOWN" in output_of("scontrol", "show", "node", platform.node()):  # it may have registered anew by itself
        subprocess.run(["scontrol", "update", node, "state=resume"], check=True)
    check(project, process, continues=True)
    assert states(number) == ["NODE_FAIL", "COMPLETED"]


def test_twenty_trainings_at_once(project):
    """Two runs of ten folds: all are submitted, as many run as there are GPUs, each once."""
    run = {"targets": ["one", "two"], "runs": {}}
    for name in run["targets"]:
        settings = {"model": "tiny", "dataset": "trials", "devices": 1, "tensor_model_parallel_size": 1}
        train = {"micro_batch_size": 2, "global_batch_size": 4, "max_steps": 2, "val_check_interval": 2, "lr": 1e-3}
        run["runs"][name] = {
            **settings,
            "precision": 32,
            "megatron_amp_O2": False,
            "folds": list(range(10)),
            "train": train,
        }
    (project.directory / "twenty.yaml").write_text(json.dumps(run))
    last = project.last_job()
    project.run(config=("cluster.yaml", "twenty.yaml"), seconds=3600)
    for rule in "train_lora", "predict", "evaluate":
        jobs = project.jobs(f"rule_{rule}_", after=last)
        assert len(jobs) == 20 and {job["State"] for job in jobs} == {"COMPLETED"}
    assert not in_queue()


def test_broken_image(project, start):
    """Apptainer cannot open it: the sentence names the log with its complaint."""
    (project.directory / "broken_1.0.sif").write_text("no image")
    (project.directory / "broken.yaml").write_text(json.dumps({"image": "broken_1.0.sif"}))
    last = project.last_job()
    files = ("cluster.yaml", "broken.yaml")
    code, said = finish(start(ADAPTER, "--forcerun", "train_lora", "--retries", "0", config=files), 300)
    (job,) = project.jobs("rule_train_lora", after=last)
    slurm_log = f"{project.directory}/logs/slurm/rule_train_lora/killed_0_0/{job['JobIDRaw']}.log"
    told = f"train_lora (run=killed, fold=0, seed=0): SLURM job {job['JobIDRaw']} ended as FAILED. See {slurm_log}"
    assert code == 1 and f"{told} and then {LOG}." in said.splitlines(), said
    assert "FATAL" in project.read(slurm_log) and "broken_1.0.sif" in project.read(slurm_log)

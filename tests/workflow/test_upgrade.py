"""Results that the workflow of before made, with this one in the same directory: nothing is trained again."""

import re
import shutil
import subprocess
import tarfile

import pytest
from helpers import ROOT, copy_workflow, snakemake

BEFORE = "cee670f90312761609b88a82777650d6e88fd5a7"  # the last commit whose trainings lay in training/ itself
PARTS = ("Snakefile", "workflow", "config", "profiles", "envs")  # all that helpers.copy_workflow copies
ADAPTER = "results/runs/lora/fold0/seed0/adapter.nemo"


@pytest.fixture
def project(tiny_mistral, tmp_path):
    """A clone of that commit in which it has made an adapter."""
    git = ["git", "-c", "safe.directory=*", "-C", ROOT]
    if subprocess.run([*git, "cat-file", "-e", BEFORE], capture_output=True).returncode:
        pytest.skip(f"the workflow of before is commit {BEFORE[:7]}, which this clone lacks: git fetch --unshallow")
    done = subprocess.run([*git, "archive", BEFORE, *PARTS, "tests/chain.yaml"], capture_output=True, check=True)
    project = tmp_path / "project"
    project.mkdir()
    subprocess.run(["tar", "-x"], input=done.stdout, check=True, cwd=project)
    shutil.copytree(tiny_mistral, project / "tiny")
    build(project)
    return project


def build(project):
    """Makes the adapter; returns what training said."""
    done = snakemake(project, ADAPTER, "--configfile", "tests/chain.yaml", "--set-threads", "train_lora=1")
    assert done.returncode == 0, done.stdout
    return (project / "logs/train_lora/lora/fold0-seed0.log").read_text()


def members(file):
    """{name: bytes} of an adapter. In its configuration NeMo notes where its index of the data was, in training/."""
    with tarfile.open(file) as adapter:
        contents = {m.name: adapter.extractfile(m).read() for m in adapter.getmembers() if m.isfile()}
    return {name: re.sub(rb"/training/[0-9a-f]{12}/index", b"/training/index", c) for name, c in contents.items()}


def test_upgrade_trains_nothing_again(project, tmp_path):
    before = members(project / ADAPTER)
    for part in PARTS:  # git pull
        path = project / part
        path.unlink() if path.is_file() else shutil.rmtree(path)
    copy_workflow(project)

    said = build(project)
    assert "train_lora: continues after step 4\n" in said and "of 4 steps" not in said
    assert members(project / ADAPTER) == before and "./model_weights.ckpt" in before
    (training,) = (project / ADAPTER).with_name("training").iterdir()
    assert re.fullmatch("[0-9a-f]{12}", training.name)
    made = (training / "adapter.nemo").read_bytes()
    assert (project / ADAPTER).read_bytes() == made

    done = snakemake(project, ADAPTER, "--configfile", "tests/chain.yaml", "--dry-run")
    assert "Nothing to be done" in done.stdout
    project = project.rename(tmp_path / "moved")  # from now on no path counts
    (project / ADAPTER).unlink()
    said = build(project)
    assert "train_lora: takes over the finished training in" in said and "NeMo is imported" not in said
    assert (project / ADAPTER).read_bytes() == made

import contextlib
import os
import pty
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "workflow/scripts"


@pytest.fixture(scope="session")
def pubmedqa_dir():
    """PubMedQA's real files. In CI they must be there."""
    if "PUBMEDQA_DIR" not in os.environ:
        pytest.skip("PUBMEDQA_DIR is not set: the directory with PubMedQA's ori_pqal.json and test_ground_truth.json")
    directory = Path(os.environ["PUBMEDQA_DIR"])
    assert (directory / "ori_pqal.json").is_file(), f"PUBMEDQA_DIR={directory} holds no ori_pqal.json"
    return directory


@pytest.fixture(scope="session")
def tiny_mistral(tmp_path_factory):
    """A tiny random Mistral as a Hugging Face snapshot."""
    directory = tmp_path_factory.mktemp("tiny") / "snapshot"
    subprocess.run([sys.executable, ROOT / "tests/tiny.py", directory], check=True, env=environment())
    return directory


def environment(**variables):
    """This process's environment for a child that imports the scripts."""
    return {**os.environ, "PYTHONPATH": f"{SCRIPTS}:{ROOT / 'tests'}", **variables}


def run_script(name, *arguments, check=True, **variables):
    """Runs a script of the workflow; returns the finished process with its output as text."""
    command = [sys.executable, SCRIPTS / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**variables))
    if check:
        assert done.returncode == 0, done.stderr
    return done


def on_terminal(*command):
    """Runs a command on a terminal of its own; returns its exit code and what it showed there."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 120))
    process = subprocess.Popen(list(map(str, command)), stdin=its, stdout=its, stderr=its, env=environment())
    os.close(its)
    shown = b""
    with contextlib.suppress(OSError):  # of the end, on Linux
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    return process.wait(), shown.decode()


def torchrun(script, *arguments, processes=1):
    """Runs a script under torchrun, as the rules do."""
    command = ["torchrun", "--standalone", "--nproc-per-node", str(processes), script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr


def copy_workflow(directory):
    """Copies the workflow to an empty directory to run in, so that a test leaves nothing in the project."""
    for name in ("workflow", "config", "profiles", "envs"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "Snakefile", directory / "Snakefile")


def snakemake(directory, *arguments, timeout=None):
    """Runs Snakemake there; returns the finished process with its output, both streams together, as text."""
    command = ["snakemake", *map(str, arguments), "--cores", "all"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": timeout}
    return subprocess.run(command, cwd=directory, **options)


@pytest.fixture(scope="session")
def chain(tiny_mistral, tmp_path_factory):
    """The directory of a finished run of the workflow, tests/chain.yaml on the tiny Mistral, two jobs at a time."""
    directory = tmp_path_factory.mktemp("chain")
    copy_workflow(directory)
    shutil.copyfile(ROOT / "tests/chain.yaml", directory / "chain.yaml")
    commit = "git init -q && git add . && git -c user.name=test -c user.email=test@localhost commit -q -m test"
    subprocess.run(commit, shell=True, check=True, cwd=directory)
    shutil.copytree(tiny_mistral, directory / "tiny")
    done = snakemake(directory, "--configfile", "chain.yaml", "--set-threads", "train_lora=1", "predict=1")
    assert done.returncode == 0, done.stdout
    return directory

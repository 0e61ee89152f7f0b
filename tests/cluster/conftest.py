"""A real SLURM with a real Apptainer on this machine, as root."""

import os
import shutil
import signal
import subprocess
from contextlib import ExitStack

import pytest
from cluster.lab import HERE, HOME, TOKEN, USER, Project, cancel_all
from helpers import ROOT
from hub import COMMIT, serve_hub


@pytest.fixture(scope="session")
def project(tiny_mistral):
    """The project's copy, with SLURM running; all that was started is ended."""
    assert os.geteuid() == 0, "make test-cluster starts a SLURM on this machine, for which it must be root"
    files = {file.name: file.read_bytes() for file in tiny_mistral.iterdir()}
    with ExitStack() as stack:
        subprocess.run([HERE / "apptainer.sh"], check=True)
        if subprocess.run(["id", USER], capture_output=True).returncode:
            subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", USER], check=True)
        directory = HOME / "peft-mistral-7b"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(HOME / "local", ignore_errors=True)
        directory.mkdir()
        subprocess.run([HERE / "image.sh", directory / "nemo-cpu_2.2.1.sif"], check=True)
        stack.callback(subprocess.run, [HERE / "slurm.sh", "stop"], check=True)
        subprocess.run([HERE / "slurm.sh", "start", USER], check=True)
        stack.callback(cancel_all)
        cancel_all()  # what a former call may have left
        endpoint, _ = stack.enter_context(serve_hub("org/tiny", COMMIT, files, gated=TOKEN))
        yield Project(directory, endpoint)


def starting(project):
    """project.start, of which nothing is left in the end."""
    started = []

    def start(*arguments, **options):
        started.append(project.start(*arguments, **options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            project.run("--unlock")
    cancel_all()


start = pytest.fixture(starting)
start_early = pytest.fixture(scope="module")(starting)  # what goes on while other tests run


@pytest.fixture(scope="session")
def changed_profile(project):
    """changed_profile(old, new): a copy of profiles/nig-slurm of which one line differs."""

    def change(old, new):
        before = (ROOT / "profiles/nig-slurm/config.yaml").read_text()
        after = before.replace(old, new, 1)
        differing = [(a, b) for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
        assert len(differing) == 1
        (project.directory / "changed").mkdir(exist_ok=True)
        (project.directory / "changed/config.yaml").write_text(after)
        return "changed"

    return change

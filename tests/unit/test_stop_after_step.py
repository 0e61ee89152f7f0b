"""What stands before torchrun, before commands of these tests: each starts a process in a session of its own, as
torchrun does its ranks, and says that one's number."""

import os
import signal
import subprocess
import sys
import time
from subprocess import PIPE, Popen

import psutil
import pytest
from helpers import ROOT

START = f"import sys; sys.path.insert(0, {str(ROOT / 'workflow/tools')!r}); import stop_after_step as stop; "
BODY = """import os, subprocess, sys, time
print(subprocess.Popen(["sleep", "60"], start_new_session=True).pid, flush=True)
file, began = os.environ["STOP_REQUEST"], time.monotonic()
"""
TRAINS = BODY + "open(file, 'w').close(); print('steps', flush=True)\n"
HEEDS = TRAINS + "while not os.stat(file).st_size: time.sleep(0.01)\nsys.exit(7)"
GOES_ON = TRAINS + "time.sleep(60)"
LOADS = BODY + "print('loads', flush=True); time.sleep(60)"


@pytest.fixture
def launch():
    """launch(code, patience): the process, its rank's number; once the command has said its second word."""
    started = []

    def start(code, patience=60):
        command = [sys.executable, "-c", f"{START} stop.PATIENCE = {patience}; stop.main()", sys.executable, "-c", code]
        heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        process = Popen(command, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True, **heed)
        started.append(process)
        rank = int(process.stdout.readline())
        process.stdout.readline()
        time.sleep(0.2)  # until it heeds signals
        return process, rank

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process, rank):
    """Its exit code and what it said, as soon as it has ended; its rank has, too."""
    said = process.communicate(timeout=30)[1]
    assert not psutil.pid_exists(rank)
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_request(launch, number):
    """A terminal's Ctrl-C reaches the process group, in which the command is not; the command ends by itself."""
    process, rank = launch(HEEDS)
    os.killpg(process.pid, number)
    process.send_signal(signal.SIGTERM)  # Snakemake's, at the same moment
    assert ended(process, rank) == (7, "")


GOES_ON_FROM = "The same command goes on from what is there.\n"


def test_no_step_to_wait_for(launch):
    process, rank = launch(LOADS)
    process.send_signal(signal.SIGINT)
    assert ended(process, rank) == (1, f"Interrupted; no training step was under way. {GOES_ON_FROM}")


def test_step_that_does_not_end(launch):
    process, rank = launch(GOES_ON, patience=1)
    process.send_signal(signal.SIGTERM)
    words = "Interrupted; the step did not end within 1 seconds and is lost."
    assert ended(process, rank) == (1, f"{words} {GOES_ON_FROM}")


def test_second_signal(launch):
    process, rank = launch(GOES_ON)
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    assert ended(process, rank) == (1, f"Interrupted twice: the step under way is lost. {GOES_ON_FROM}")


def test_ranks_end_with_what_started_them(launch):
    """torchrun, killed; then this itself."""
    process, rank = launch(LOADS)
    (command,) = psutil.Process(process.pid).children()
    command.kill()
    assert ended(process, rank) == (128 + signal.SIGKILL, "")
    process, rank = launch(LOADS)
    (command,) = psutil.Process(process.pid).children()
    process.kill()
    command.wait(5)
    os.kill(rank, signal.SIGKILL)  # the real ones see to it themselves


def test_command_is_the_same_as_without():
    for code in 0, 3:
        process = Popen(
            [sys.executable, "-c", f"{START} stop.main()", "sh", "-c", 'echo "$@"; exit $1', "sh", str(code), "a b"],
            stdout=PIPE,
            text=True,
        )
        assert process.communicate()[0] == f"{code} a b\n" and process.returncode == code
    process = Popen([sys.executable, "-c", f"{START} stop.main()", "no-such-command"], stderr=PIPE, text=True)
    assert process.communicate()[1] == "stop_after_step: no-such-command: No such file or directory\n"
    assert process.returncode == 1


RANK = f"import sys, time; sys.path.insert(0, {str(ROOT / 'workflow/scripts')!r}); from nemo_image import setup; "
RANK += "setup.arguments(''); print('starts', flush=True); time.sleep(60)"
RUNS = f"import subprocess, sys; r = subprocess.Popen([sys.executable, '-c', {RANK!r}], start_new_session=True); "
RUNS += "print(r.pid, flush=True); r.wait()"


def test_a_rank_ends_with_torchrun():
    """From its first call on, before it imports torch."""
    with Popen(
        [sys.executable, "-c", RUNS, "torchrun"], stdout=PIPE, text=True, env={**os.environ, "RANK": "0"}
    ) as run:
        rank = psutil.Process(int(run.stdout.readline()))
        assert run.stdout.readline() == "starts\n"
        run.kill()
        rank.wait(5)


def test_a_rank_does_not_begin_without_torchrun(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    done = subprocess.run([sys.executable, "-c", RANK], stderr=PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "torchrun has ended.\n")

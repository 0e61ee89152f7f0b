"""GPUs are dealt out among processes. A script stands in for nvidia-smi, and tells what a test writes down."""

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from common import gpus
from common.files import replacing
from helpers import SCRIPTS

DEAL = "import deal_gpus as deal; deal.gpus.PAUSE = 0.05, 0.1; deal.main()"
NVIDIA_SMI = """#!/bin/sh
case "$*" in
"--query-gpu=index,uuid --format=csv,noheader,nounits") cut -d, -f1,2 {0}/cards ;;
"--query-gpu=uuid,memory.used,memory.total --format=csv,noheader,nounits") cut -d, -f2- {0}/cards ;;
"--query-compute-apps=gpu_uuid,pid --format=csv,noheader,nounits") cat {0}/processes ;;
esac
! grep -q lost {0}/cards
"""
HOLD = "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; exec sleep 60"
EXCLUSIVE = """cd $0; cards=$(echo $CUDA_VISIBLE_DEVICES | tr , ' '); mkdir $cards || exit 9
echo $CUDA_VISIBLE_DEVICES; sleep 0.1; rmdir $cards"""
PARENT = "import subprocess, time; print(subprocess.Popen(['sleep', '9']).pid, flush=True); time.sleep(60)"


class Machine:
    """Four cards, named anew for each test, so that their locks are its alone."""

    def __init__(self, directory):
        self.directory, self.jobs = directory, []
        self.cards = [f"GPU-{letter}{uuid.uuid4()}" for letter in "abcd"]
        directory.chmod(0o755)  # for another user
        (directory / "nvidia-smi").write_text(NVIDIA_SMI.format(directory))
        (directory / "nvidia-smi").chmod(0o755)
        self.tell()

    def tell(self, *processes, memory=("80", "80", "80", "[N/A]"), shown=(0, 1, 2, 3)):
        """What nvidia-smi says from now on: of (card, process), … and of memory, of which a desktop has 8 %."""
        rows = [f"{row}, {self.cards[card]}, {memory[card]}, 1000\n" for row, card in enumerate(shown)]
        files = {"cards": [*rows, *["GPU is lost\n"] * (4 - len(shown))]}
        files["processes"] = [f"{self.cards[card]}, {process}\n" for card, process in processes]
        for name, lines in files.items():
            with replacing(self.directory / name) as partial:
                partial.write_text("".join(lines))

    def deal(self, devices, *command, visible=None, python=sys.executable, user=None):
        command = [python, "-c", DEAL, "--devices", str(devices), *(command or HOLD)]
        environ = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent / "tools"), "CUDA_VISIBLE_DEVICES": visible}
        environ = {name: value for name, value in environ.items() if value is not None}
        job = Popen(command, env=environ, text=True, user=user, stdout=PIPE, stderr=PIPE)
        job.timer = threading.Timer(15, job.kill)  # of what waits for ever the test reads the end
        job.timer.start()
        self.jobs.append(job)
        return job

    def got(self, job):
        """The numbers of a job's cards, as soon as it has them."""
        return [self.cards.index(card) for card in job.stdout.readline().strip().split(",")]


@pytest.fixture
def machine(monkeypatch):
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is closed to other users
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        machine = Machine(Path(directory))
        yield machine
        for job in machine.jobs:
            job.timer.cancel()
            job.kill()
            job.communicate()


def end(job):
    job.kill()
    job.wait()


def test_each_gets_its_own_and_one_more_waits(machine):
    first, second = machine.deal(2), machine.deal(2)
    assert sorted(machine.got(first) + machine.got(second)) == [0, 1, 2, 3]
    third = machine.deal(1)
    reasons = ", ".join(f"GPU {card} is used by another job" for card in range(4))
    assert third.stderr.readline() == f"deal_gpus: waits for 1 free GPU of 4; {reasons}\n"
    time.sleep(0.5)  # it looks several times, and says it once
    end(second)
    assert len(machine.got(third)) == 1
    end(third)
    assert third.stderr.read() == ""


@pytest.mark.parametrize("devices", [[1] * 8, [4, 1, 2, 1, 4, 2, 3]])
def test_never_two_on_one(machine, devices):
    (machine.directory / "busy").mkdir()
    jobs = [machine.deal(number, "sh", "-c", EXCLUSIVE, machine.directory / "busy") for number in devices]
    assert [len(set(machine.got(job))) for job in jobs] == devices
    assert [(job.wait(), job.stdout.read()) for job in jobs] == [(0, "")] * len(jobs)


def test_all_or_none(machine):
    assert machine.got(machine.deal(1)) == [0]
    wide = machine.deal(4)
    assert wide.stderr.readline() == "deal_gpus: waits for 4 free GPUs of 4; GPU 0 is used by another job\n"
    assert machine.got(machine.deal(3)) == [1, 2, 3]
    first = f"GPU-0{uuid.uuid4()}"
    assert not gpus.take([machine.cards[1], first]) and not gpus.held(first)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_another_users_jobs(machine):
    nobody = {"python": "/usr/bin/python3", "user": 65534}
    theirs = machine.deal(2, **nobody)
    if not (cards := theirs.stdout.readline()):
        pytest.skip(f"another user cannot run it here: {theirs.stderr.read()}")
    assert cards.strip().split(",") == machine.cards[:2]
    assert machine.got(machine.deal(2)) == [2, 3]
    more = machine.deal(2, **nobody)
    assert more.stderr.readline().count("is used by another job") == 4
    end(theirs)
    assert machine.got(more) == [0, 1]


def test_lock_ends_with_the_command_not_with_its_children(machine):
    job = machine.deal(1, sys.executable, "-c", PARENT)
    child = int(job.stdout.readline())
    assert gpus.held(machine.cards[0])
    end(job)
    assert not gpus.held(machine.cards[0])
    os.kill(child, signal.SIGKILL)  # was there still


def test_cards_in_use_are_left_alone(machine):
    full, waits = ("900", "101", "100", "0"), "deal_gpus: waits for 2 free GPUs of 4;"
    machine.tell((0, 12), (0, 34), memory=full)
    assert machine.got(machine.deal(1)) == [2]
    job = machine.deal(2)
    reasons = "GPU 0 is used by process 12 and process 34, GPU 1 has more than 10% of its memory in use"
    assert job.stderr.readline() == f"{waits} {reasons}, GPU 2 is used by another job\n"
    machine.tell((0, 12), shown=(0, 1, 2))
    reasons = "GPU 0 is used by process 12, GPU 2 is used by another job, GPU 3 is not shown by nvidia-smi now"
    assert job.stderr.readline() == f"{waits} {reasons}\n"
    machine.tell((0, 12))
    assert machine.got(job) == [1, 3]


@pytest.mark.parametrize("form", ["{number}", " GPU-{name}", "GPU-{name:.8}", "MIG-{name}"])
def test_named_cards(machine, form):
    """They may be in use; the locks hold all the same. As in a SLURM job, nvidia-smi shows and counts its own cards."""
    machine.tell((2, 12), (3, 12), shown=(2, 3))
    names = [form.format(number=number, name=machine.cards[2 + number][4:]) for number in range(2)]
    if "MIG" in form:
        machine.cards[2:] = names
    visible = f"{names[1]},{names[0]}"
    assert machine.got(machine.deal(1, visible=visible)) == [3]
    assert machine.got(machine.deal(1, visible=visible)) == [2]
    label = names[0] if "MIG" in form else "GPU 0"
    line = f"deal_gpus: waits for 1 free GPU of 1; {label} is used by another job\n"
    assert machine.deal(1, visible=names[0]).stderr.readline() == line


COUNTS = {None: 4, "": 0, "NoDevFiles": 0, "-1": 0, "0,-1,1": 1, "0,7,1": 1, "1,1": 1, "GPU-": 0, "3,0": 2}


@pytest.mark.parametrize(("visible", "count"), COUNTS.items())
def test_too_few(machine, visible, count):
    assert gpus.count_gpus({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == count
    job = machine.deal(count + 1, visible=visible)
    output, error = job.communicate()
    assert (job.returncode, output, len(error.splitlines())) == (1, "", 1)
    by = "by nvidia-smi" if visible is None else f"in CUDA_VISIBLE_DEVICES={visible!r}"
    assert f"asked for {count + 1} GPU{'s' * (count > 0)}, but this job sees {count} {by}: set fewer devices" in error


def test_empty_is_no_abbreviation(machine):
    machine.tell(shown=[0])
    assert [gpus.count_gpus({"CUDA_VISIBLE_DEVICES": visible}) for visible in ("", "GPU-", "0,")] == [0, 1, 1]


def test_no_nvidia_smi(machine, monkeypatch):
    (machine.directory / "nvidia-smi").unlink()
    for program in "sh", "sleep":  # all that is left, should this machine have an nvidia-smi
        (machine.directory / program).symlink_to(shutil.which(program))
    monkeypatch.setenv("PATH", str(machine.directory))
    for visible, count in ("", 0), ("2,GPU-3", 2), ("-1", 0):
        assert machine.deal(9, visible=visible).stdout.readline().strip() == visible
        assert gpus.count_gpus({"CUDA_VISIBLE_DEVICES": visible}) == count
    assert gpus.count_gpus({}) == 0


def test_nvidia_smi_that_hangs(machine, monkeypatch, capfd):
    """Of a card that it tells nothing of, nobody knows that it is free."""
    (machine.directory / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(gpus, "ANSWER", 0.2)
    assert gpus.count_gpus({}) == 0 and gpus.uses() == {}
    line = f"nvidia-smi has not answered for {gpus.ANSWER} seconds: the driver hangs?"
    assert capfd.readouterr().err.splitlines() == [line] * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(machine, number):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where pytest runs in the background
    job = machine.deal(4, "sh", "-c", f"trap 'echo ends' {number:d}; echo $$; while :; do sleep 0.05; done")
    assert int(job.stdout.readline()) == job.pid
    waiting = machine.deal(1)
    waiting.stderr.readline()
    for process in waiting, job:
        process.send_signal(number)
    assert waiting.communicate() == ("", "") and waiting.returncode == -number
    assert job.stdout.readline() == "ends\n"


def test_command_is_the_same_as_without(machine):
    job = machine.deal(1, "sh", "-c", 'echo "$@"; kill -PIPE $$', "sh", "--devices", "7", "a b")
    assert job.communicate() == ("--devices 7 a b\n", "") and job.returncode == -signal.SIGPIPE
    job = machine.deal(1, "no-such-command")
    assert job.communicate() == ("", "deal_gpus: no-such-command: No such file or directory\n") and job.returncode == 1

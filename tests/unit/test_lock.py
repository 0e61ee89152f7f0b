"""One training at a time in a directory."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from common.lock import gone
from helpers import environment

HOLDER = """
import os, sys, time
from pathlib import Path
from common import lock
lock.BEAT, lock.SILENCE = 0.2, 2
lock.hold(Path(sys.argv[1]), lambda text: print(text, flush=True))
print("held", flush=True)
os.chdir(os.sep)
time.sleep(float(sys.argv[2]))
"""


def holder(path, seconds=60, **variables):
    command = [sys.executable, "-c", HOLDER, str(path), str(seconds)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment(**variables)}
    return subprocess.Popen(command, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fold0/seed0/training.lock"


def test_second_one_is_told_who_is_at_work(path):
    first = holder(path, SLURM_JOB_ID="4711")
    assert first.stdout.readline() == "held\n"
    second = holder(path)
    error = second.communicate()[1]
    assert second.returncode == 1 and len(error.splitlines()) == 1
    assert error.startswith(f"{path.with_suffix('')}: SLURM job 4711 on ") and "scancel 4711" in error
    first.terminate()
    first.wait()


def test_lock_is_given_back(path):
    assert holder(path, seconds=0).communicate() == ("held\n", "")
    assert not path.exists()


def test_working_directory_does_not_matter(tmp_path, monkeypatch):
    """NeMo changes it for moments, in which a heartbeat may fall."""
    monkeypatch.chdir(tmp_path)
    assert holder("training.lock", seconds=1).communicate() == ("held\n", "")
    assert not list(tmp_path.iterdir())


def test_killed_ones_lock_is_taken_over_at_once(path):
    first = holder(path, SLURM_JOB_ID="4711")
    first.stdout.readline()
    first.kill()
    first.wait()
    second = holder(path, seconds=0)
    assert second.communicate()[0] == "takes over from a process of SLURM job 4711 that is gone\nheld\n"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
@pytest.mark.parametrize("content", [b"", b"\0" * 150, b'{"pid": 12', b"[]", b"null", b'{"pid": 1}', b"\xff"])
def test_damaged_lock_is_taken_over(path, content):
    """As a power failure may leave it; where it is one that is just being written, its holder's heartbeat follows."""
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert holder(path, seconds=0).communicate() == ("takes over from a process that is gone\nheld\n", "")


def test_zombie_is_gone(path):
    """Killed, and not waited for: its number is still there."""
    first = holder(path)
    first.stdout.readline()
    content = json.loads(path.read_text())
    assert not gone(content)
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    assert gone(content)
    first.wait()


def foreign(path, beat=0):
    """A holder on another machine, of which only the heartbeat can be seen from here."""
    content = {"pid": 1, "machine": "other", "host": "node7", "job": "12", "since": "2026-01-01 00:00", "beat": beat}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_silent_ones_lock_is_taken_over(path):
    foreign(path)
    assert holder(path, seconds=0).communicate()[0] == "takes over from a process of SLURM job 12 that is gone\nheld\n"


def test_beating_ones_lock_is_respected(path):
    foreign(path)
    second = holder(path)
    for beat in range(1, 100):
        if second.poll() is not None:
            break
        time.sleep(0.3)
        foreign(path, beat)
    assert "SLURM job 12 on node7 has been at work there since 2026-01-01 00:00" in second.communicate()[1]


def test_one_of_many_gets_it(path):
    foreign(path)
    rivals = [holder(path) for _ in range(4)]
    time.sleep(6)
    alive = [rival for rival in rivals if rival.poll() is None]
    assert len(alive) == 1 and json.loads(path.read_text())["pid"] == alive[0].pid
    alive[0].kill()


def test_one_that_lost_its_lock_ends(path):
    first = holder(path)
    first.stdout.readline()
    foreign(path)
    assert "another process has taken over" in first.communicate(timeout=10)[1] and first.returncode == 1

"""tools/run_on_nodes.py and on_each_node.py, with tests/slurm/srun in place of SLURM's. The command is Python code that
gets torchrun's arguments."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from helpers import ROOT, of_slurm

TOOLS = ROOT / "workflow/tools"
START = f"import sys; sys.path.insert(0, {str(TOOLS)!r}); import run_on_nodes as run; "
TELL = "import os, sys, time; node = int(sys.argv[4]); "
TELL += "os.write(1, ' '.join([str(node), *sys.argv[1:], chr(10)]).encode()); "  # a line in one piece
WAIT = TELL + "time.sleep(120)"


@pytest.fixture
def launch():
    """launch(code, changes, …): the launcher of two nodes, and the number of each node's process; both have begun."""
    started = []

    def start(code, changes="pass", begin=2, **variables):
        command = [sys.executable, "-c", f"{START}{changes}; run.main()", "--nodes", "2"]
        command += [sys.executable, "-c", code, "--standalone", "--nproc-per-node", "3", "train.py"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        process = subprocess.Popen(command, env=of_slurm(**variables), **pipes)
        started.append(process)
        members = [int(word) for word in process.stdout.readline().split()[2:]]
        process.begun = sorted(process.stdout.readline() for _ in range(begin))
        return process, members

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def ended(process, seconds=20):
    """Its exit code and what it said, as soon as all of it has ended: its output is closed then."""
    said = process.communicate(timeout=seconds)[1]
    return process.returncode, said.splitlines()


def test_one_torchrun_of_all_nodes(launch):
    """In SLURM's order, on one port, without what would tell ranks that they are SLURM's tasks."""
    process, _ = launch(TELL + "sys.exit(len({'SLURM_PROCID', 'SLURM_NTASKS', 'ROLL_CALL_TOKEN'} & os.environ.keys()))")
    code, said = ended(process)
    first, second = (line.split() for line in process.begun)
    assert (
        code == 0 and len(said) == 1 and said[0].startswith("run_on_nodes: node1, node2 have reported; they meet at ")
    )
    options = dict(zip(first[1:13:2], first[2:13:2]))
    assert options.pop("--rdzv-id") and int(options.pop("--master-port")) > 1023
    assert options == {
        "--nnodes": "2",
        "--node-rank": "0",
        "--master-addr": "127.0.0.1",
        "--rdzv-conf": "timeout=300",
    }
    assert first[13:] == second[13:] == ["--nproc-per-node", "3", "train.py"]
    assert [one for one, other in zip(first, second) if one != other] == ["0", "0"]  # the node's number alone


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_reaches_all_nodes_once(launch, number):
    """Also where SLURM signals the members, too, as scancel does."""
    heed = "import signal; asked = []; signal.signal(signal.SIGTERM, lambda *_: asked.append(1)); "
    code = heed + TELL + "\nwhile not asked: time.sleep(0.1)\ntime.sleep(1.5); sys.exit(10 * len(asked))"
    process, members = launch(code)
    os.killpg(process.pid, number)
    os.kill(members[1], signal.SIGTERM)
    code, said = ended(process)
    assert code == 10 and len(said) == 1  # what was asked for needs no word


def test_node_that_ends_first_is_named(launch):
    process, _ = launch(TELL + "time.sleep(0 if node else 120); sys.exit(7)")
    code, said = ended(process)
    assert code and said[1:] == ["run_on_nodes: node2 ended first, with exit code 7: see what it said above."]


def test_lost_node_is_named(launch):
    """One whose processes are gone, and one that is silent, as without its network."""
    next_ = "The next attempt goes on from the last checkpoint."
    process, members = launch(WAIT)
    os.kill(members[1], signal.SIGKILL)
    code, said = ended(process)
    assert code and said[1:] == [f"run_on_nodes: node2 is lost: its task ended without a word. {next_}"]
    process, members = launch(WAIT, "run.SILENCE, run.GRACE = 2, 1", LOST="node2")
    began, (command,) = time.monotonic(), psutil.Process(members[1]).children()
    os.kill(members[1], signal.SIGSTOP)
    lines = [process.stderr.readline() for _ in range(2)]
    assert lines[1] == f"run_on_nodes: node2 is lost: nothing was heard of it for 2 seconds. {next_}\n"
    assert process.wait(20) and time.monotonic() - began < 10 and command.is_running()
    os.kill(members[1], signal.SIGCONT)  # it is back, and has no launcher any more
    process.communicate(timeout=20)


def test_a_suspended_job_loses_nobody(launch):
    """SLURM stops all of its processes, and lets them go on later."""
    process, members = launch(TELL + "time.sleep(4)", "run.SILENCE = 2")
    every = [process.pid, *members]
    for number in every:
        os.kill(number, signal.SIGSTOP)
    time.sleep(4)
    for number in every:
        os.kill(number, signal.SIGCONT)
    code, said = ended(process)
    assert code == 0 and len(said) == 1


def test_node_that_does_not_report(launch):
    process, _ = launch(WAIT, "run.ROLL_CALL, run.GRACE = 2, 1", begin=0, ABSENT="node2")
    code, said = ended(process)
    assert code and said == ["run_on_nodes: 1 of 2 nodes have reported within 2 seconds: node1."]


def test_node_that_is_not_reached(launch):
    """srun then ends the others; none of them is lost."""
    process, members = launch(WAIT, begin=0, ABSENT="node2")
    while not any(place.status == "ESTABLISHED" for place in psutil.Process(process.pid).net_connections()):
        time.sleep(0.1)
    time.sleep(0.5)  # it has reported
    os.kill(members[0], signal.SIGKILL)
    code, said = ended(process)
    assert code and said == [
        "run_on_nodes: 1 of 2 nodes have reported: node1. What became of the others is said above."
    ]


def test_node_that_is_late(launch):
    """The other has nothing to say meanwhile, and is not lost."""
    process, _ = launch(TELL + "time.sleep(1)", "run.SILENCE = 2", LATE="node2")
    code, said = ended(process)
    assert code == 0 and len(said) == 1


def test_stop_before_all_have_reported(launch):
    process, _ = launch(WAIT, begin=0, ABSENT="node2")
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    words = "Interrupted before all nodes had reported. The same command goes on from what is there."
    code, said = ended(process)
    assert code and said == [words]


def test_nobody_else_reports(launch):
    """The port is open to all."""
    process, _ = launch(WAIT, "run.ROLL_CALL, run.GRACE = 2, 1", begin=0, ABSENT="node2")
    (port,) = (place.laddr.port for place in psutil.Process(process.pid).net_connections() if place.status == "LISTEN")
    with socket.create_connection(("127.0.0.1", port)) as other:
        other.sendall(b"guessed 1 node2\n")
        assert other.recv(1) == b""
    assert "1 of 2 nodes" in ended(process)[1][0]


def test_launcher_that_is_killed_leaves_nothing(launch):
    process, _ = launch(WAIT)
    process.kill()
    process.communicate(timeout=20)  # ends when all have closed its output


def test_without_slurm():
    command = [sys.executable, TOOLS / "run_on_nodes.py", "--nodes", "2", "torchrun", "--standalone"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 1 and done.stderr.startswith("run_on_nodes: several nodes are given by SLURM")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: port, command"),
        (["x", "true", "--standalone"], "argument port: invalid int value: 'x'"),
        (["1", "true"], "the command has no --standalone, in whose place a torchrun of all nodes comes"),
        (["1", "true", "--standalone"], "SLURMD_NODENAME is not set: run_on_nodes.py starts this, by srun"),
        (["--help"], None),
    ],
)
def test_member_called_by_hand_tells_its_usage(arguments, words):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    command = [sys.executable, TOOLS / "on_each_node.py", *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert (done.stdout + done.stderr).startswith("usage: on_each_node.py [-h] port ...\n")
    assert done.returncode == (2 if words else 0)
    assert words is None or done.stderr.splitlines()[1] == f"on_each_node.py: error: {words}"

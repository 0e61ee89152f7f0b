"""Starts a command on each node of a SLURM job, as one launch of torchrun:

    python run_on_nodes.py --nodes 2 python3 stop_after_step.py torchrun --standalone --nproc-per-node 2 train_lora.py …

It runs on the first node, and has srun start on_each_node.py on each, outside of any container. These members report to
it. Once all have, each starts the command, with a torchrun of all nodes, in SLURM's order, in place of `torchrun
--standalone`. From then on they show that they are there. Where one ends badly, is gone or is silent, a line says which
node that was, and the others are ended. SIGINT and SIGTERM are passed on to the command on all nodes.
"""

import argparse
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

from on_each_node import ROLL_CALL
from stop_after_step import SIGNALS, start

SILENCE = 30  # seconds without one, after which a node is lost. SLURM itself may take minutes to see it
PORTS = 20000, 32000  # below those that Linux gives by itself
GRACE = 10  # seconds in which srun may end by itself
OF_JOB = "SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CLUSTER_NAME", "SLURM_CONF"
NEXT = "The next attempt goes on from the last checkpoint"


def free_port():
    """One that no outgoing connection is given until torchrun listens there."""
    while True:
        with suppress(OSError), socket.create_server(("", port := random.randint(*PORTS))):
            return port


class Member:
    """A node, as the launcher sees it."""

    def __init__(self, name, wire):
        self.name, self.wire, self.said, self.silent, self.gone = name, wire, b"", 0, False

    def hear(self):
        try:
            words = self.wire.recv(4096)
        except OSError:
            words = b""
        self.said, self.silent, self.gone = self.said.lstrip(b".") + words, 0, not words

    def problem(self):
        """What is wrong with it, or None."""
        if b"\n" in self.said:  # after its last sign of life
            code = int(self.said.split()[-1])
            return f"{self.name} ended first, with exit code {code}: see what it said above." if code else None
        if self.gone:
            return f"{self.name} is lost: its task ended without a word. {NEXT}."
        if self.silent > SILENCE:
            return f"{self.name} is lost: nothing was heard of it for {SILENCE} seconds. {NEXT}."
        return None

    def tell(self, words):
        try:
            self.wire.sendall(words)
        except OSError:
            self.gone = True


class Launcher:
    def __init__(self, nodes, command):
        self.nodes, self.members, self.asked, self.seconds = nodes, {}, False, 0
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self.server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
        self.token = uuid.uuid4().hex
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SRUN_"))}
        environ |= {name: os.environ[name] for name in OF_JOB if name in os.environ} | {"ROLL_CALL_TOKEN": self.token}
        # The step in which Snakemake runs holds the job's resources: hence --overlap
        srun = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpu-bind=none"]
        srun += ["--mpi=none", "--wait=0", "--kill-on-bad-exit=1", sys.executable]
        srun += [str(Path(__file__).with_name("on_each_node.py")), str(self.server.getsockname()[1]), *command]
        self.srun = start(srun, env=environ, stdin=subprocess.DEVNULL)

    def accept(self):
        wire = self.server.accept()[0]
        wire.settimeout(5)
        try:
            token, number, name = wire.makefile().readline().split()
        except (OSError, ValueError):  # not one of ours
            token = None
        if token != self.token:
            return wire.close()
        self.members[int(number)] = Member(name, wire)
        if len(self.members) == self.nodes:
            self.go()

    def go(self):
        self.members = dict(sorted(self.members.items()))
        address = self.members[self.nodes - 1].wire.getsockname()[0].removeprefix("::ffff:")  # as another node sees it
        launch = {"nodes": self.nodes, "address": address, "port": free_port(), "id": uuid.uuid4().hex}
        names = ", ".join(member.name for member in self.members.values())
        say(f"{names} have reported; they meet at {address}, port {launch['port']}")
        for member in self.members.values():
            member.silent = 0  # it has waited for the others
            member.tell(f"{json.dumps(launch)}\n{'stop' if self.asked else ''}".encode())

    def listen(self):
        """Hears what members say, for a second at most."""
        wires = {member.wire: member for member in self.members.values() if not member.gone}
        for ready in select.select([self.server, *wires], [], [], 1)[0]:
            self.accept() if ready is self.server else wires[ready].hear()

    def count_second(self):
        """By its own count: in a job that SLURM suspends, all stand still together."""
        self.seconds += 1
        for member in self.members.values():
            member.silent += 1

    def problem(self):
        if len(self.members) < self.nodes:
            names = ", ".join(member.name for member in self.members.values()) or "none"
            if self.asked:
                return "Interrupted before all nodes had reported. The same command goes on from what is there."
            reported = f"{len(self.members)} of {self.nodes} nodes have reported"
            if self.seconds > ROLL_CALL:
                return f"{reported} within {ROLL_CALL} seconds: {names}."
            if self.srun.poll() is not None or any(member.gone for member in self.members.values()):
                return f"{reported}: {names}. What became of the others is said above."
            return None  # who has reported says nothing while it waits
        return next(filter(None, (member.problem() for member in self.members.values())), None)

    def ask(self, number, frame):
        if not self.asked:
            self.asked = True
            for member in self.members.values() if len(self.members) == self.nodes else ():
                member.tell(b"stop")

    def run(self):
        """Returns the exit code."""
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.ask)
        problem, last = None, time.monotonic()
        while self.srun.poll() is None and not (problem := self.problem()):
            self.listen()
            if time.monotonic() - last >= 1:
                last = time.monotonic()
                self.count_second()
        while select.select([member.wire for member in self.members.values() if not member.gone], [], [], 0)[0]:
            self.listen()  # what was said before srun ended
        if problem := problem or self.problem():
            if not self.asked:
                say(problem)
            elif len(self.members) < self.nodes:
                print(problem, file=sys.stderr)
            for member in self.members.values():
                member.wire.close()  # by which it ends what it has started
        try:
            return self.srun.wait(GRACE) or (1 if problem else 0)
        except subprocess.TimeoutExpired:
            self.srun.kill()  # it waits for a node that is lost
            return 1


def say(words):
    print(f"run_on_nodes: {words}", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, required=True, help="all those of the job")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if "SLURM_JOB_ID" not in os.environ or not shutil.which("srun"):
        sys.exit(
            "run_on_nodes: several nodes are given by SLURM, and this is no job of its. Run with a profile for it."
        )
    sys.exit(Launcher(args.nodes, args.command).run())


if __name__ == "__main__":
    main()

"""What tools/run_on_nodes.py has srun start on each node, with a port of its own and the command. It reports to that
launcher, waits for the other nodes, and runs the command, with a torchrun of all nodes for its `torchrun --standalone`.
SIGINT, SIGTERM and the launcher's word are one SIGTERM to the command. If the launcher is gone, the command is killed.
"""

import argparse
import json
import os
import select
import signal
import socket
import sys

from stop_after_step import SIGNALS, start

ROLL_CALL = 300  # seconds in which all nodes must have reported, and then have met in torchrun
BEAT = 0.5  # seconds between two signs of life
NEEDED = "SLURMD_NODENAME", "SLURM_PROCID", "SLURM_LAUNCH_NODE_IPADDR", "ROLL_CALL_TOKEN"
OF_TASK = "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"  # by which ranks would take themselves for SLURM's tasks


def of_all_nodes(command, launch, number):
    """The command with a torchrun of all nodes."""
    place = command.index("--standalone")
    rendezvous = ["--nnodes", launch["nodes"], "--node-rank", number, "--rdzv-id", launch["id"]]
    rendezvous += ["--master-addr", launch["address"], "--master-port", launch["port"]]
    rendezvous += ["--rdzv-conf", f"timeout={ROLL_CALL}"]
    return [*command[:place], *map(str, rendezvous), *command[place + 1 :]]


def read_arguments():
    """(port, command). Exits where it is called by hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int, help="the launcher's")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="with torchrun's --standalone in it")
    args = parser.parse_args()
    if "--standalone" not in args.command:
        parser.error("the command has no --standalone, in whose place a torchrun of all nodes comes")
    if missing := [name for name in NEEDED if name not in os.environ]:
        parser.error(f"{missing[0]} is not set: run_on_nodes.py starts this, by srun")
    return args.port, args.command


def main():
    port, command = read_arguments()
    name, number = os.environ["SLURMD_NODENAME"], os.environ["SLURM_PROCID"]
    launcher = os.environ["SLURM_LAUNCH_NODE_IPADDR"], port  # that srun's node has for SLURM, too
    try:
        wire = socket.create_connection(launcher, ROLL_CALL)
        wire.settimeout(None)
        wire.sendall(f"{os.environ['ROLL_CALL_TOKEN']} {number} {name}\n".encode())
        launch = wire.makefile("rb", buffering=0).readline()  # no byte of what follows
    except OSError as error:
        sys.exit(f"run_on_nodes: {name} does not reach the first node, {launcher[0]}, port {port}: {error}.")
    if not launch:
        sys.exit(1)  # the launcher has given up, and says why
    environ = {name: value for name, value in os.environ.items() if name not in (*OF_TASK, "ROLL_CALL_TOKEN")}
    process = start(of_all_nodes(command, json.loads(launch), number), env=environ)
    asked = False

    def stop(*_):
        nonlocal asked
        if not asked:  # SLURM's signal and the launcher's word are one request
            asked = True
            process.terminate()

    for signal_number in SIGNALS:
        signal.signal(signal_number, stop)
    try:
        while process.poll() is None:
            if select.select([wire], [], [], BEAT)[0]:
                if not wire.recv(64):
                    raise ConnectionError
                stop()
            wire.sendall(b".")
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        wire.sendall(f"end {code}\n".encode())
    except OSError:  # the launcher has ended, or ends all
        process.kill()
        process.wait()
        sys.exit(1)
    sys.exit(code)


if __name__ == "__main__":
    main()

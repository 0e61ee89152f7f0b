"""The NVIDIA GPUs of this machine: which of them a job may use, what uses them now, and locks on them.

Imports nothing of the project, as Snakemake's process has it, too. Linux only, as the locks are.

A card's lock is a socket bound to a name in Linux' abstract namespace. It ends with the last process that has it open,
killed or not. A file with flock would do so too, but all would have to agree on its place: a container may have a /tmp
of its own, another user may not open what is in a sticky directory, and what cleans /tmp takes the file away from
under its lock. The names are those of a network namespace: Apptainer shares the host's, Docker needs --network host.
"""

import contextlib
import errno
import os
import random
import shutil
import socket
import subprocess
import sys
import time

ANSWER = 60  # seconds that nvidia-smi may take; without its persistence mode it is slow
PAUSE = 1, 2  # seconds between two looks at cards in use, at random, so that those that wait do not look at once
LOCK = "\0gpu-lock-"
DESKTOP = 0.1  # of a card's memory: so much is a desktop's, and leaves the card free


def nvidia_smi(query):
    """The rows of its answer. With a card that is lost it answers for the others, and fails: text that is no row. With
    a driver that hangs it never answers, and may not even be killed: nobody waits for its end."""
    command = ["nvidia-smi", f"--query-{query}", "--format=csv,noheader,nounits"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        output = process.communicate(timeout=ANSWER)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        print(f"nvidia-smi has not answered for {ANSWER} seconds: the driver hangs?", file=sys.stderr, flush=True)
        return []
    rows = ([field.strip() for field in line.split(",")] for line in output.splitlines())
    return [row for row in rows if len(row) == query.count(",") + 1]


def visible(environ):
    """{UUID: how to call it} of the cards that a job sees, in its order; a MIG device is known by its name only."""
    cards = nvidia_smi("gpu=index,uuid")  # in a SLURM job those of the job alone, which its indices count
    if "CUDA_VISIBLE_DEVICES" not in environ:
        return {uuid: f"GPU {index}" for index, uuid in cards}
    found = {}
    for name in environ["CUDA_VISIBLE_DEVICES"].split(","):
        name = name.strip()
        if name.startswith("MIG-"):
            found[name] = name
            continue
        named = [(index, uuid) for index, uuid in cards if name == index or (name and uuid.startswith(name))]
        if len(named) != 1:
            break  # -1, NoDevFiles, …: CUDA stops there too
        found[named[0][1]] = f"GPU {named[0][0]}"
    return found


def count_gpus(environ):
    """How many GPUs a job on this machine would see."""
    if shutil.which("nvidia-smi"):
        return len(visible(environ))
    names = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return sum(name.isdigit() or name.startswith(("GPU-", "MIG-")) for name in names)


def uses():
    """{UUID: what uses the card, or None}. In a container other processes may not show, but their memory does."""
    processes = {}
    for uuid, process in nvidia_smi("compute-apps=gpu_uuid,pid"):
        processes.setdefault(uuid, []).append(f"process {process}")
    found = {}
    for uuid, used, total in nvidia_smi("gpu=uuid,memory.used,memory.total"):
        found[uuid] = None
        if uuid in processes:
            found[uuid] = f"is used by {' and '.join(processes[uuid])}"
        elif used.isdigit() and int(used) > DESKTOP * int(total):  # [N/A] where the memory is the machine's
            found[uuid] = f"has more than {DESKTOP:.0%} of its memory in use"
    return found


def held(card):
    """Has a job locked this card? To connect takes nothing: those that look are not in each other's way."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(LOCK + card) != errno.ECONNREFUSED


def take(cards):
    """Locks all these cards for this process and what it becomes by exec, or none; whether it did."""
    with contextlib.ExitStack() as stack:
        locks = [stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) for _ in cards]
        for lock, card in zip(locks, sorted(cards)):  # of two that want the same cards, one gets the first
            try:
                lock.bind(LOCK + card)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                return False
        for lock in locks:
            os.set_inheritable(lock.detach(), True)
    return True


def deal(number, environ):
    """Locks `number` of the cards that this job sees, once so many are free; returns their UUIDs."""
    cards, said = visible(environ), None
    if number > len(cards):
        named = f"in CUDA_VISIBLE_DEVICES={environ.get('CUDA_VISIBLE_DEVICES')!r}"
        sees = f"{len(cards)} {named if 'CUDA_VISIBLE_DEVICES' in environ else 'by nvidia-smi'}"
        asked = f"asked for {number} GPU{'s' * (number != 1)}, but this job sees {sees}"
        sys.exit(f"deal_gpus: {asked}: set fewer devices, or show it more.")
    while True:
        busy = {card: "is used by another job" for card in cards if held(card)}
        # Who named the cards has said that this job may use them. nvidia-smi takes a while: where it may matter only.
        if "CUDA_VISIBLE_DEVICES" not in environ and len(cards) - len(busy) >= number:
            used = uses()
            lost = {card: "is not shown by nvidia-smi now" for card in cards if card not in used}
            busy = {card: use for card, use in used.items() if use} | lost | busy
        free = [card for card in cards if card not in busy][:number]
        if len(free) < number:
            reasons = ", ".join(f"{name} {busy[card]}" for card, name in cards.items() if card in busy)
            line = f"deal_gpus: waits for {number} free GPU{'s' * (number > 1)} of {len(cards)}; {reasons}"
            if line != said:
                print(said := line, file=sys.stderr, flush=True)
            time.sleep(random.uniform(*PAUSE))
        elif take(free):
            return free

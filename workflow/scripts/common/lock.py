"""One process at a time in a directory, on any file system.

A lock file with a heartbeat: nothing rests on flock, which some cluster file systems have for one node only, nor on
clocks that agree. Whose process is gone from this machine, or whose heartbeat has stood still, has lost the lock.
"""

import atexit
import json
import os
import platform
import sys
import threading
import time
from pathlib import Path

from common.ending import at_end
from common.files import replacing

BEAT = 5  # seconds between two heartbeats
SILENCE = 60  # seconds without a heartbeat, after which a holder counts as dead


def machine():
    """This machine since its last start, and its space of process ids; the host's name where there is no /proc."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return platform.node()


def read(lock):
    """What stands in the lock file, or None where there is none."""
    try:
        return lock.read_text(errors="replace")
    except FileNotFoundError:
        return None


def holder_of(content):
    """Who wrote a lock file; {} where it is not whole: in the moment of its creation, or after a power failure."""
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) and holder.keys() >= {"pid", "machine", "host", "job", "since"} else {}


def gone(holder):
    """Has the holder's process ended, as far as can be told from here?"""
    if holder.get("machine") != machine():
        return False
    try:
        os.kill(holder["pid"], 0)
        state = Path(f"/proc/{holder['pid']}/stat").read_text().rpartition(") ")[2][:1]
    except ProcessLookupError:
        return True
    except OSError:  # another user's is there; and not everywhere there is /proc
        return False
    return state == "Z"  # it has ended, and its parent, as the first process of some containers, does not ask for it


def create(lock, me):
    """Writes the lock file where there is none; whether it did."""
    try:
        with open(lock, "x") as file:
            json.dump(me, file)
    except FileExistsError:
        return False
    return True


def wait_for_heartbeat(lock, content):
    """Waits until the lock file is another than `content`, SILENCE seconds at most; returns what it is then."""
    end = time.monotonic() + SILENCE
    while (now := read(lock)) == content and time.monotonic() < end:
        time.sleep(BEAT / 5)
    return now


def hold(lock, say):
    """Takes the lock until this process ends; exits where another is at work. say(text) tells of a dead one's."""
    me = {"pid": os.getpid(), "machine": machine(), "host": platform.node(), "job": os.environ.get("SLURM_JOB_ID")}
    me["since"] = time.strftime("%Y-%m-%d %H:%M")
    lock.parent.mkdir(parents=True, exist_ok=True)
    while not create(lock, me):
        if (content := read(lock)) is None:
            continue  # it has just been given back
        holder = holder_of(content)
        if not gone(holder) and (now := wait_for_heartbeat(lock, content)) != content:
            if now and holder:
                who, end = f"process {holder['pid']}", f"kill {holder['pid']}"
                if holder["job"]:
                    who, end = f"SLURM job {holder['job']}", f"scancel {holder['job']}"
                at_work = f"{who} on {holder['host']} has been at work there since {holder['since']}"
                sys.exit(f"{lock.with_suffix('')}: {at_work}. Wait for its end, or end it ({end}), then run again.")
            continue
        with replacing(lock) as partial:
            partial.write_text(json.dumps(me))
        time.sleep(BEAT / 5)  # of two that take over at once, the one that came last holds it
        if read(lock) == json.dumps(me):
            job = f" of SLURM job {holder['job']}" if holder and holder["job"] else ""
            say(f"takes over from a process{job} that is gone")
            break
    lock = lock.absolute()  # NeMo changes the working directory for moments
    over = threading.Event()
    heart = threading.Thread(target=keep, args=(lock, me, over), daemon=True)
    heart.start()
    at_end.append(lambda: give_back(lock, me, over, heart))
    atexit.register(at_end[-1])


def is_mine(lock, me):
    content = read(lock)
    return bool(content) and {**holder_of(content), "beat": 0} == {**me, "beat": 0}


def keep(lock, me, over):
    """Shows each BEAT seconds that this process is alive; ends it where another has taken the lock."""
    beat = 0
    while not over.wait(BEAT):
        try:
            if not is_mine(lock, me):
                print(f"{lock}: another process has taken over; this one ends.", file=sys.stderr, flush=True)
                os._exit(1)
            beat += 1
            with replacing(lock) as partial:
                partial.write_text(json.dumps(me | {"beat": beat}))
        except OSError as error:  # of a file system that is away for a moment: the next beat may succeed
            print(f"{lock}: {error}", file=sys.stderr, flush=True)


def give_back(lock, me, over, heart):
    over.set()
    heart.join(BEAT)  # a beat that finds the lock gone would end this process as if it had failed
    if is_mine(lock, me):
        lock.unlink()

"""Stands before torchrun. Ctrl-C and SIGTERM then stop a training after its step, with a checkpoint:

    python stop_after_step.py torchrun --standalone --nproc-per-node 2 train_lora.py …

The command runs in a session of its own, so that a terminal's Ctrl-C does not reach it. STOP_REQUEST tells it the path
of a file. A training creates that file before its first step and reads it after each (scripts/nemo_image/stop.py); the
request is written into it. Where the file is missing, there is no step to wait for, and the command ends at once; so it
does PATIENCE seconds after the request, and at a second one. Nothing that it started outlives it.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PATIENCE = 20  # seconds; 30 after SIGTERM, its KillWait, SLURM kills what is left
TOGETHER = 1  # seconds in which several signals count as one: Snakemake's, and one to its whole process group
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
ON_LINUX = sys.platform == "linux"
PARENT_DEATH_SIGNAL, CHILD_SUBREAPER = 1, 36  # of prctl


def prctl(option, value):
    ctypes.CDLL(None).prctl(option, value)


def start(command, **options):
    """Starts it in a session of its own; it does not outlive this process."""
    if ON_LINUX:
        options["preexec_fn"] = lambda: prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    return subprocess.Popen(command, start_new_session=True, **options)


def children():
    """Those of this process; as their subreaper it gets those, too, whose own parent has ended."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            if int(file.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                yield int(file.parent.name)


def end_all(process):
    if not ON_LINUX:
        process.terminate()  # torchrun ends the ranks
        process.wait()
    while found := ON_LINUX and list(children()):
        for child in found:
            os.kill(child, signal.SIGKILL)
        os.waitpid(-1, 0)


def end(words):
    for number in (*SIGNALS, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(f"{words} The same command goes on from what is there.")


def heed_signals(request):
    """Lets the signals ask by the file `request`, or end this process."""
    asked = None

    def ask(number, frame):
        nonlocal asked
        if not request.exists():
            end("Interrupted; no training step was under way.")
        elif asked is None:
            asked = time.monotonic()
            request.write_text("stop")
            signal.alarm(PATIENCE)
        elif time.monotonic() - asked > TOGETHER:
            end("Interrupted twice: the step under way is lost.")

    def give_up(number, frame):
        end(f"Interrupted; the step did not end within {PATIENCE} seconds and is lost.")

    signal.signal(signal.SIGALRM, give_up)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it, or a shell's background
            signal.signal(number, ask)


def main():
    if sys.argv[1:2] in ([], ["-h"], ["--help"]):
        sys.exit(__doc__)
    if ON_LINUX:
        prctl(CHILD_SUBREAPER, 1)
    with tempfile.TemporaryDirectory(prefix="stop-after-step-") as directory:
        request = Path(directory, "request")
        environ = os.environ | {"STOP_REQUEST": str(request)}
        try:
            process = start(sys.argv[1:], env=environ, close_fds=False)  # with the locks of deal_gpus.py
        except OSError as error:
            sys.exit(f"stop_after_step: {sys.argv[1]}: {error.strerror}")
        try:
            heed_signals(request)
            code = process.wait()
        finally:
            end_all(process)
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()

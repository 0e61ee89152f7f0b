"""Ctrl-C and SIGTERM end a call alike: the jobs are told, and a training stops after its step. At SIGTERM Snakemake by
itself waits for all jobs, for days."""

import os
import re
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil
from snakemake.logging import logger
from snakemake.scheduling.job_scheduler import JobScheduler
from snakemake.shell import shell

from .slurm import name_of

INTERRUPTED = (
    "Interrupted: trainings stop after their step, within 20 seconds; other jobs stop at once, and cluster jobs are"
    " cancelled. To resume, run the same command again."
)


def tell_jobs():
    """Sends SIGTERM to what works in each job on this machine: the processes below its shell that have none below them
    in this process group. Not to the shell, which would end before its job; nor to what tools/stop_after_step.py
    starts, in a group of its own."""
    for process in list(shell._processes.values()):
        with suppress(psutil.NoSuchProcess):
            job = psutil.Process(process.pid)
            group = []
            for below in (job, *job.children(recursive=True)):
                with suppress(ProcessLookupError):
                    group += [below] * (os.getpgid(below.pid) == os.getpgrp())
            parents = {below.ppid() for below in group}
            for below in group:
                if below.pid not in parents:
                    below.terminate()


def heed_signals():
    """In the process that a user calls, once its scheduler is there."""
    interrupted = threading.Event()

    def end(number, frame):
        if number == signal.SIGTERM:  # a terminal sends its Ctrl-C to the jobs, too
            tell_jobs()
        if not interrupted.is_set():
            interrupted.set()
            os.write(sys.stderr.fileno(), f"{INTERRUPTED}\n".encode())  # print() may have been interrupted in itself
            # What the jobs' threads say from now on, whole logs among it, is that they were ended.
            logger.addFilter(lambda record: record.thread == threading.main_thread().ident)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows none, nor does Snakemake's API
        for number in signal.SIGINT, signal.SIGTERM:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, end)


def tell_where(workflow):
    """Of each job that was interrupted on this machine, how far it came: its log's sentence on that."""
    for job in workflow.scheduler.running:
        for log in filter(Path.exists, map(Path, job.log)):
            if said := re.findall(r"^(?:Stopped|Interrupted).*", log.read_text(errors="replace"), re.MULTILINE):
                print(f"{name_of(job)}: {said[-1]}", file=sys.stderr)


def pass_sigterm_on():
    """In a process on a node: SLURM's SIGTERM reaches it alone, and not what it started."""
    exit_gracefully = JobScheduler.exit_gracefully

    def tell_jobs_too(scheduler, *args):
        tell_jobs()
        exit_gracefully(scheduler, *args)

    JobScheduler.exit_gracefully = tell_jobs_too

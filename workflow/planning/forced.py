"""--forcerun and its like, told to a job that would else take over what is already there."""

import os
import time

from .parameters import Unrecorded
from .speed import quickly

VARIABLE = "TRAIN_ANEW"  # for jobs on a cluster: the call that forces, and the files that it forces or *, a line each


def is_forced(settings, rule, file):
    """Whether the user forces this file of this rule. settings: Snakemake's dag_settings."""
    targets = settings.targets if settings.forcetargets else ()
    return bool(settings.forceall or {rule, file} & {*settings.forcerun, *map(str, targets)})


def anew(workflow, rule):
    """The flag --anew CALL for a forced job, as a function of its wildcards and output.

    CALL is the same for all attempts of a job, so that the second goes on where the first was cut off.
    """
    call = f"{time.time():.0f}-{os.getpid()}"

    def of_job(wildcards, output):
        if not workflow.is_main_process:
            told, *files = os.environ.get(VARIABLE, "").split("\n")
            return Unrecorded(f"--anew {told}" if {"*", output[0]} & set(files) else "")
        if not is_forced(workflow.dag_settings, rule, output[0]):
            return Unrecorded("")
        files = os.environ.get(VARIABLE, call).split("\n")[1:]
        every = workflow.dag_settings.forceall or rule in workflow.dag_settings.forcerun
        os.environ[VARIABLE] = "\n".join([call, *({"*"} if every else {*files, output[0]})])
        return Unrecorded(f"--anew {call}")

    return quickly(of_job)

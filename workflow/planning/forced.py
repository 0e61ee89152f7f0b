"""--forcerun and its like, told to a job that would else take over what is already there."""

import os

from .parameters import Unrecorded
from .speed import quickly

# For jobs on a cluster: the call that forces, and the rules or files that it forces, a line each.
VARIABLE = "TRAIN_ANEW"


def is_forced(settings, rule, file):
    """Whether the user forces this file of this rule. settings: Snakemake's dag_settings."""
    targets = settings.targets if settings.forcetargets else ()
    return bool(settings.forceall or {rule, file} & {*settings.forcerun, *map(str, targets)})


def anew(workflow, rule):
    """The flag --anew CALL for a forced job, as a function of its wildcards and output.

    CALL is the same for all attempts of a job, so that the second goes on where the first was cut off.
    """
    call = f"{workflow.start_time.timestamp():.0f}-{os.getpid()}"

    def of_job(wildcards, output):
        told, *forced = os.environ.get(VARIABLE, "").split("\n")
        if not workflow.is_main_process:
            return Unrecorded(f"--anew {told}" if {rule, output[0]} & set(forced) else "")
        if not is_forced(workflow.dag_settings, rule, output[0]):
            return Unrecorded("")
        every = workflow.dag_settings.forceall or rule in workflow.dag_settings.forcerun
        os.environ[VARIABLE] = "\n".join([call, *sorted({*forced, rule if every else output[0]})])
        return Unrecorded(f"--anew {call}")

    return quickly(of_job)

"""--forcerun and its like, told to a job that would else take over what is already there; flags of few trainings."""

import os
import shlex

from .parameters import Unrecorded
from .speed import quickly

VARIABLE = "TRAIN_ANEW"  # for jobs on a cluster, a line each: the forced file or rule, and the call that forces it


def is_forced(settings, rule, files):
    """Whether the user forces one of these files of this rule, however written. settings: Snakemake's dag_settings."""
    targets = settings.targets if settings.forcetargets else ()
    named = {os.path.relpath(str(name)) for name in (*settings.forcerun, *targets)}
    return bool(settings.forceall or named & {rule, *files})


def anew(workflow, rule):
    """The flag --anew CALL for a forced job, as a function of its wildcards and output.

    CALL is the same for all attempts of a job, so that the second goes on where the first was cut off. Snakemake asks
    for it before it submits the job, as it logs the command.
    """
    call = f"{workflow.start_time.timestamp():.0f}-{os.getpid()}"

    def of_job(wildcards, output):
        told = dict(line.rsplit(" ", 1) for line in os.environ.get(VARIABLE, "").splitlines())
        if workflow.is_main_process:
            if not is_forced(workflow.dag_settings, rule, output):
                return Unrecorded("")
            every = workflow.dag_settings.forceall or rule in workflow.dag_settings.forcerun
            told[rule if every else output[0]] = call
            os.environ[VARIABLE] = "\n".join(f"{name} {by}" for name, by in told.items())
        by = told.get(output[0], told.get(rule))
        return Unrecorded(f"--anew {by}" if by else "")

    return quickly(of_job)


def flags_of_training(anew):
    """Those flags, and --start-from FILE and --chat-template FILE where there are such. In one parameter, as all
    trainings would be planned again if the rule's command had another."""

    def of_job(wildcards, input, output):
        files = {"--start-from": input.start_from, "--chat-template": input.chat_template}
        given = [f"{flag} {shlex.quote(str(file))}" for flag, file in files.items() if file]
        return Unrecorded(" ".join(filter(None, [*given, str(anew(wildcards, output))])))

    return quickly(of_job)

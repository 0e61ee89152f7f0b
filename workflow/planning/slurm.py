"""What the Snakemake process does for its jobs on a cluster: the token stays with it, each job asks for its GPUs,
nothing is submitted twice, and a failed job is told of in one sentence."""

import os
import re
import subprocess
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from . import Problem, terminal
from .targets import nearest


def keep_token_to_this_process():
    """Takes the Hub's token out of the environment, which SLURM stores and hands to every job.

    huggingface_hub reads it from the file that HF_TOKEN_PATH names: one in memory, which only this user can open, and
    only while this process runs. Where there is no such memory, as on macOS, there is no SLURM either.
    """
    if not hasattr(os, "memfd_create"):
        return
    tokens = [os.environ.pop(name, None) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    if token := next(filter(None, tokens), None):
        file = os.memfd_create("token")
        os.write(file, token.encode())
        os.environ.update(HF_TOKEN_PATH=os.path.join(os.sep, "proc", str(os.getpid()), "fd", str(file)))


def asks_for_gpus(resources):
    """Do a job's resources, {name: value}, ask SLURM for GPUs? A whole node comes with its own."""
    words = f"{resources.get('gres', '')} {resources.get('slurm_extra', '')}"
    return resources.get("gpu") is not None or bool(re.search("gpu|--exclusive", words))


def check_profile(settings, gpu_rules):
    """Raises Problem where a profile still has YOUR_…, or one for SLURM asks for no GPU for a rule that needs some.

    settings: Snakemake's resource_settings. gpu_rules: the names that the rules with GPUs have in this workflow.
    """
    profile = {"default-resources": settings.default_resources or {}, **settings.overwrite_resources}
    profile = {
        rule: {name: str(getattr(value, "raw", value)) for name, value in values.items()}
        for rule, values in profile.items()
    }
    for rule, values in profile.items():
        for name, value in values.items():
            if re.search(r"\bYOUR_", value):
                raise Problem(f"the profile: {rule}: {name}: {value} is a placeholder: put in your site's name for it")
    if not any(name.startswith("slurm_") for values in profile.values() for name in values):
        return
    for rule in gpu_rules:
        asked = profile["default-resources"] | profile.get(rule, {})
        if not asks_for_gpus(asked):
            named = next((name for name in profile if name != rule and rule.endswith(name)), None)
            hint = f"has {named}: it needs {rule}" if named else "asks for none, as by gres in profiles/slurm-generic"
            replaces = "; --set-resources in a command replaces all of the profile's"
            raise Problem(f"the profile: {rule} would get no GPU: set-resources {hint}{'' if named else replaces}")


def check_settings(settings, rules):
    """Raises Problem where no job could ever start, or settings are for a rule with a misspelt name; of other names it
    tells, as a profile may be for several workflows. rules: the names of all that there are here."""
    if (number := min(filter(lambda n: n is not None, (settings.cores, settings.nodes)), default=1)) < 1:
        raise Problem(f"--cores or --jobs {number}: no job could start: let it be at least 1")
    for key, values in ("set-resources", settings.overwrite_resources), ("set-threads", settings.overwrite_threads):
        unknown = [name for name in values if name not in rules]
        for name in unknown:
            if near := nearest(name, rules, 0.8):
                raise Problem(f"{key}, of the command or its profile: there is no rule {name}{near}")
        if unknown:
            print(f"{key}: there is no rule {', '.join(unknown)} in this workflow.", file=sys.stderr)


def check_resources(jobs):
    """Raises Problem where what a profile asks for can't be worked out, else told of when it is the job's turn."""
    for job in {(job.rule.name, *job.wildcards[:1]): job for job in jobs}.values():  # one of each run: all are alike
        try:
            _ = job.resources
        except (WorkflowError, TypeError) as error:
            said = str(error.__cause__ or error).partition("\n")[0].replace('"_cores"', "threads").strip()
            raise Problem(f"{name_of(job)}: the resources of the command or its profile: {said}") from None


def plan_as_submitted(workflow):
    """Lets -n show what a job on a cluster will ask for: it has one core, to which it would cut all threads."""
    if workflow.resource_settings.cores == 1 and workflow.resource_settings.nodes:  # --jobs of a profile for a cluster
        workflow.global_resources["_cores"] = None


def check_submissions(jobs, settings, on_gpus):
    """Raises Problem where jobs would be submitted otherwise than they need it. jobs: those with GPUs, if on_gpus;
    settings: the executor's."""
    if getattr(settings, "array_jobs", None):
        why = "all jobs of an array get the GPUs and the memory of its first, and SLURM is told the name of that alone"
        raise Problem(f"--slurm-array-jobs, or slurm-array-jobs: in the profile: {why}; leave it out")
    for job in jobs:
        if on_gpus and hasattr(settings, "array_jobs") and not asks_for_gpus(job.resources):  # SLURM's executor
            then = "ask for them by gres in a profile, as profiles/slurm-generic does"
            raise Problem(f"{job.rule.name} of {job.wildcards[0]}: would get no GPU from SLURM; {then}")
        asked, devices = str(job.resources.get("gpu") or job.resources.get("gres", "")), int(job.params.devices)
        if (number := re.search(r"(?:^|:)(\d+)$", asked)) and int(number[1]) != devices:
            then = (
                "write gres: as profiles/slurm-generic has it, and leave out --cores, --max-threads and --set-threads"
            )
            raise Problem(f"{job.rule.name} of {job.wildcards[0]}: would get {asked} for {devices} devices; {then}")


def comment_of(job):
    """The comment that the executor gives to a job's SLURM job."""
    wildcards = "_".join(job.wildcards).replace(os.sep, "_")
    return f"rule_{job.rule.name}_wildcards_{wildcards}" if wildcards else f"rule_{job.rule.name}"


def check_queue(jobs):
    """Raises Problem where SLURM still has one of these jobs, left there by a Snakemake that was killed."""
    made_by = {comment_of(job): job for job in jobs}
    command = ["squeue", "--me", "--noheader", "--format=%i|%T|%Z|%k"]  # id, state, directory, comment
    for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
        number, state, directory, comment = line.split("|", 3)
        if comment in made_by and os.path.realpath(directory) == os.path.realpath(os.getcwd()):
            left = f"SLURM job {number}, {state.lower()}, of an earlier snakemake makes it"
            then = f"Wait for its end, or end it (scancel {number}), then run again."
            raise Problem(f"{made_by[comment].output[0]}: {left}. {then}")


def state_of(number):
    """What SLURM says of a failed job; where it ran out of memory, only one of its steps tells."""
    command = ["sacct", "--noheader", "--parsable2", "--format=State", "--jobs", number]
    states = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return next((state for state in states if state not in ("COMPLETED", "FAILED")), "FAILED")


def name_of(job):
    return terminal.name_of(job.rule.name, job.wildcards)


def explain_failures(workflow, logs):
    """One sentence for each failed job: its rule, run, SLURM job and the log to open."""
    pattern = r"Job (\d+) has been submitted with SLURM jobid (\d+) \(log: (.*)\)\."
    submitted = {job: rest for job, *rest in re.findall(pattern, "".join(Path(log).read_text() for log in logs))}
    for job in workflow.scheduler.failed:
        if found := submitted.get(str(workflow.dag.jobid(job))):
            number, slurm_log = found
            happened = f"SLURM job {number} ended as {state_of(number)}. See {slurm_log} and then {', '.join(job.log)}."
        elif workflow.local_exec or job.is_local:
            happened = f"failed. See {', '.join(job.log)}."
        else:
            happened = f"SLURM did not take the job. See sbatch's error message above, or in {logs[0]}."
        print(f"{name_of(job)}: {happened}", file=sys.stderr)

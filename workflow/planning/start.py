"""What is looked at before the first job: only now it is known which jobs run, and where."""

import os
import shutil
import sys

from snakemake.jobs import Job
from snakemake.settings.types import RerunTrigger

from . import Problem, container, machine, nodes, places, slurm
from .targets import nearest


def check_jobs(workflow, checks, rules, images, gpus):
    """Raises Problem where jobs of this call can't write, have no image or GPUs here, or SLURM already has one of them.

    checks: of the configuration; rules: {name: its name in this workflow} of the rules with GPUs; images: where the
    image's checksum is kept; gpus: how many this machine has.
    """
    jobs = list(workflow.dag.needrun_jobs())
    tell_of_lost_records(workflow)
    check_settings(workflow, rules)
    slurm.check_resources(jobs)
    places.check_writable(jobs)
    places.check_room(jobs, checks.config["models"])
    of_nemo = [job for job in jobs if job.rule.name in rules.values()]
    of_nemo = [*{(job.rule.name, job.wildcards[0]): job for job in of_nemo}.values()]  # one of each run: all are alike
    if of_nemo and (image := checks.config["image"]):
        container.check_image(checks, workflow.deployment_settings.deployment_method)
        container.keep_checksum(image, images)
    nodes.check_jobs(of_nemo, workflow.executor_settings)
    if of_nemo and checks.config["accelerator"] == "gpu" and workflow.local_exec:
        asked = {(job.wildcards.run, job.rule.name) for job in of_nemo if job.rule.name != rules["verify_model"]}
        shapes = [machine.devices(checks.config["runs"], run, rule != rules["train_lora"]) for run, rule in asked]
        for devices, path in sorted(shapes)[-1:]:
            machine.check_gpus(checks, path, devices, gpus)
    if not workflow.local_exec:
        slurm.check_submissions(of_nemo, workflow.executor_settings, checks.config["accelerator"] == "gpu")
        if shutil.which("squeue"):
            slurm.check_queue(jobs)


def repeat_what_failed(persistence):
    """Lets the next call repeat a job that failed in this one.

    Snakemake removes a failed job's results, but records its settings as if they had been made. Where what was made of
    the former ones is still there, it would say "Nothing to be done": with new settings the old figures would stand.
    """
    failed, params, postprocess = set(), persistence._params, Job.postprocess

    async def noting_failure(job, *arguments, error=False, **others):
        (failed.add if error else failed.discard)(job)
        await postprocess(job, *arguments, error=error, **others)

    Job.postprocess = noting_failure
    persistence._params = lambda job: [*params(job), *["failed"] * (job in failed)]


def check_settings(workflow, rules):
    """Raises Problem where the command line or its profile names what there is not, and Snakemake says nothing."""
    names, settings = [*rules, *(rule.name for rule in workflow.rules)], workflow.dag_settings
    slurm.check_settings(workflow.resource_settings, names)
    batch = [settings.batch.rulename] if settings.batch else []
    for option, name in [
        *(("--omit-from", name) for name in settings.omit_from),
        *(("--batch", name) for name in batch),
    ]:
        if name not in names and not any(rule.is_producer(os.path.relpath(name)) for rule in workflow.rules):
            raise Problem(f"{option} {name}: there is no such step{nearest(name, names)}")


def tell_of_lost_records(workflow):
    """Of results that are there without Snakemake's records of how they were made, as where .snakemake was deleted, or
    they were copied from elsewhere. Snakemake takes them as up to date, whatever has changed, and tells -n alone."""
    dag = workflow.dag
    lost = {job for job in dag.jobs if dag.reason(job).no_metadata and not dag.needrun(job)}
    files = sorted(file for job in lost for file in job.output[:1] if os.path.exists(file))
    if not files or workflow.touch or RerunTrigger.PARAMS not in workflow.rerun_triggers:
        return
    first = sorted({job.rule.name for job in lost if lost.isdisjoint(dag.job_dependencies(job))})
    some = f"{len(files)} of the existing results ({files[0]}{', …' * (len(files) > 1)})"
    print(
        f".snakemake has no records of how {some} were made: a change of settings or data repeats none of them.",
        f"To keep them as they are, add --touch --forceall once; to make them again, --forcerun {' '.join(first)}",
        sep="\n",
        file=sys.stderr,
    )


def warn_at_end(workflow, checks, rules):
    """At the end of -n, which starts no job and needs no image: says where the call without -n would stop."""
    if workflow.dag is None:
        return
    jobs = [*workflow.dag.needrun_jobs(exclude_finished=False)]
    if workflow.dryrun or not jobs:  # else at the start
        tell_of_lost_records(workflow)
    if not workflow.dryrun:
        return
    try:
        check_settings(workflow, rules)
        if checks.config["image"] and any(job.rule.name in rules.values() for job in jobs):
            container.check_file(checks)
    except Problem as problem:
        print(f"Without -n this call would stop: {problem}", file=sys.stderr)

"""What is looked at before the first job: only now it is known which jobs run, and where."""

import shutil
import sys

from . import Problem, container, machine, nodes, places, slurm


def check_jobs(workflow, checks, rules, images, gpus):
    """Raises Problem where jobs of this call can't write, have no image or GPUs here, or SLURM already has one of them.

    checks: of the configuration; rules: {name: its name in this workflow} of the rules with GPUs; images: where the
    image's checksum is kept; gpus: how many this machine has.
    """
    jobs = list(workflow.dag.needrun_jobs())
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


def check_settings(workflow, rules):
    slurm.check_settings(workflow.resource_settings, [*rules, *(rule.name for rule in workflow.rules)])


def warn_at_end(workflow, checks, rules):
    """At the end of -n, which starts no job and needs no image: says where the call without -n would stop."""
    if not workflow.dryrun or workflow.dag is None:
        return
    jobs = workflow.dag.needrun_jobs(exclude_finished=False)
    try:
        check_settings(workflow, rules)
        if checks.config["image"] and any(job.rule.name in rules.values() for job in jobs):
            container.check_file(checks)
    except Problem as problem:
        print(f"Without -n this call would stop: {problem}", file=sys.stderr)

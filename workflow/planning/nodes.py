"""On how many nodes and GPUs the steps with NeMo run, and what starts them there."""

import os
import shlex
import shutil
import sys

from snakemake.settings.types import DeploymentMethod

from . import Problem
from .parameters import Unrecorded
from .speed import quickly


def of_run(run, group=None):
    """(nodes, devices of each) of a run or of its group, as `predict:`."""
    run = run | run.get(group, {})
    return run.get("nodes", 1), run["devices"]


def of_model(config, model):
    """(nodes, devices of each): as many as the model's runs share it out to, so that fp32 has room."""
    runs = [run for run in config["runs"].values() if run["model"] == model]
    ranks, devices = max([(run["tensor_model_parallel_size"], run["devices"]) for run in runs], default=(1, 1))
    return max(1, ranks // devices), min(ranks, devices)


class Nodes:
    """Of the rules of one configuration. tools: the directory of the clone that has them.

    A method returns a function of wildcards, which Snakemake calls for each job. `shape` is one, of (nodes, devices).
    """

    def __init__(self, workflow, config, tools):
        self.workflow, self.config, self.tools = workflow, config, tools

    def shape(self, group=None):
        return quickly(lambda wildcards: of_run(self.config["runs"][wildcards.run], group))

    def shape_of_model(self, wildcards):
        return of_model(self.config, wildcards.model)

    def number(self, shape):
        return quickly(lambda wildcards: shape(wildcards)[0])

    def unrecorded(self, shape):
        """Their number as a parameter, which start.py compares with what SLURM is asked for."""
        return quickly(lambda wildcards: Unrecorded(shape(wildcards)[0]))

    def devices(self, shape):
        return quickly(lambda wildcards: shape(wildcards)[1])

    def threads(self, shape):
        return quickly(lambda wildcards: 4 * shape(wildcards)[1])

    def gpus(self, shape):
        """GPUs of this machine that a job takes; on a cluster it asks for them by the profile."""

        def of_job(wildcards):
            return shape(wildcards)[1] if self.config["accelerator"] == "gpu" and self.workflow.local_exec else 0

        return quickly(of_job)

    def image(self, shape):
        """The image that Snakemake enters with a job; on several nodes tools/run_on_nodes.py enters it on each."""
        return quickly(lambda wildcards: self.config["image"] if shape(wildcards)[0] == 1 else None)

    def on_gpus(self, shape):
        """What stands before a command that needs an image or GPUs: it gives it its own, and ends it as it should."""
        image = self.config["image"]
        refuse = f"echo {shlex.quote(f'image: {image} is only used with --sdm apptainer')} >&2; exit 1;"
        deal, stop = (
            f"python3 {shlex.quote(str(self.tools / name))}" for name in ("deal_gpus.py", "stop_after_step.py")
        )

        def of_job(wildcards):
            settings, (nodes, devices) = self.workflow.deployment_settings, shape(wildcards)
            if image and DeploymentMethod.APPTAINER not in settings.deployment_method:
                return Unrecorded(refuse)
            words = [self.on_each(nodes, settings.apptainer_args)] if nodes > 1 else []
            words += [f"{deal} --devices {devices}"] if self.config["accelerator"] == "gpu" else []
            return Unrecorded(" ".join([*words, stop]))

        return quickly(of_job)

    def on_each(self, nodes, apptainer_args):
        """What starts a command on each node, in the image where there is one. apptainer_args: words of a shell."""
        words = [sys.executable, self.tools / "run_on_nodes.py", "--nodes", nodes]
        if not (image := self.config["image"]):
            return shlex.join(map(str, words))
        words += ["apptainer" if shutil.which("apptainer") else "singularity", "exec", "--home", os.getcwd()]
        return f"{shlex.join(map(str, words))} {apptainer_args} {shlex.quote(image)}"


def check(checks, path, ranks, nodes, devices):
    """Raises Problem where copies of the model of so many ranks, the key `path`, can't lie on several nodes, or these
    have no image that they can start."""
    if devices % ranks and ranks % devices:
        checks.refuse(path, f"{ranks} is neither a divisor nor a multiple of the {devices} devices of a node")
    if "://" in (image := checks.config["image"] or ""):
        problem = f"{image} is no file, which {nodes} nodes need; get one: apptainer pull nemo.sif {image}"
        checks.refuse(["image"], problem)


def check_jobs(jobs, executor_settings):
    """Raises Problem where jobs, those of NeMo, would not get their nodes."""
    of_slurm = hasattr(executor_settings, "array_jobs")
    for job in jobs:
        nodes, name = int(str(job.params.nodes)), f"{job.rule.name} of {job.wildcards[0]}"
        if nodes > 1 and not of_slurm:
            then = "run with a profile for one, or leave nodes out"
            raise Problem(f"{name}: nodes: {nodes}, but only SLURM starts a job on several; {then}")
        if of_slurm and (asked := job.resources.get("nodes", 1)) != nodes:
            then = "the rule asks for them: leave nodes out of the profile and of --set-resources"
            raise Problem(f"{name}: would get {asked} nodes, but has nodes: {nodes}; {then}")
        if nodes > 1 and job.resources.get("gpu") is not None:
            then = "instead write slurm_extra: \"f'--gpus-per-node={threads // 4}'\""
            raise Problem(f"{name}: gpu: in the profile asks for GPUs of one node, but it has nodes: {nodes}; {then}")
        if nodes > 1 and "gpu" not in job.resources.get("gres", "") and job.resources.get("tasks") != nodes:
            raise Problem(f"{name}: SLURM would give it one node; write tasks: {nodes} beside gres in the profile")

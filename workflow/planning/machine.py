"""What depends on the machine and the clone: the commit of the workflow there, and the GPUs."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path


def commit_of(clone):
    """The commit of the workflow, with -dirty where files differ from it; empty where git does not know one."""
    if not shutil.which("git"):
        return ""
    command = ["git", "-c", "safe.directory=*", "-C", clone, "describe", "--always", "--dirty", "--abbrev=40"]
    elsewhere = "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"  # a hook has them, of its own repository
    environ = {name: value for name, value in os.environ.items() if name not in elsewhere}
    return subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, env=environ).stdout.strip()


def torch_is_built_for_cpus():
    """Whether the torch of this environment is; seen without importing it, which takes seconds."""
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    return bool(file and file.exists() and re.search(r"^cuda\b.*= None$", file.read_text(), re.MULTILINE))


def shapes(name, run):
    """(key of the ranks that share a model, their number, nodes, devices of each) of the run, and of its prediction."""
    for path, shape in (["runs", name], run), (["runs", name, "predict"], run | run["predict"]):
        ranks, nodes = shape["tensor_model_parallel_size"], shape.get("nodes", 1)
        yield [*path, "tensor_model_parallel_size"], ranks, nodes, shape["devices"]


def devices(runs, run, predicts):
    """The devices of a run, in its prediction or before, and the key that says so."""
    if predicts and "devices" in runs[run]["predict"]:
        return runs[run]["predict"]["devices"], ["runs", run, "predict", "devices"]
    return runs[run]["devices"], ["runs", run, "devices"]


def check_gpus(checks, path, devices, gpus):
    """Raises Problem where a run can't have its devices, by the key `path`, on this machine, which has so many GPUs."""
    if devices > gpus:
        fewer = "set fewer" if gpus else "set accelerator: cpu, for a small model"
        there = f"{devices}, but this machine has {gpus} GPU{'s' * (gpus != 1)}"
        checks.refuse(path, f"{there}; run on a cluster (--profile), or {fewer}")
    if not checks.config["image"] and torch_is_built_for_cpus():
        problem = "gpu, but the torch of this environment is built for CPUs: make install TORCH=cuda, or set image:"
        checks.refuse(["accelerator"], problem)

"""Where a result comes from. Training and prediction write {result}.provenance.json beside their result; evaluate.py
joins them to provenance.json of the run's directory."""

import datetime
import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common.files import sha256, write_json

PACKAGES = ("torch", "nemo_toolkit", "megatron-core", "transformer-engine", "scikit-learn", "scipy", "statsmodels")
START = datetime.datetime.now(datetime.timezone.utc)  # of this process


def versions():
    """{package: version} of those that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe(settings, files):
    """What this process did so far. settings: JSON values; files: {name: path, or None}.

    workflow is the commit, with -dirty where files differ from it. Snakemake puts it into WORKFLOW_COMMIT and the
    image's checksum into IMAGE_SHA256.
    seconds and peak_memory_mb are this process's, one of those that torchrun started.
    """
    image = os.environ.get("APPTAINER_CONTAINER")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return {
        "settings": settings,
        "sha256": {name: sha256(path) for name, path in files.items() if path},
        "workflow": os.environ.get("WORKFLOW_COMMIT") or None,
        "versions": versions(),
        "host": platform.node(),
        "image": image,
        "image_sha256": os.environ.get("IMAGE_SHA256") if image else None,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "started": START.isoformat(timespec="seconds"),
        "seconds": round((datetime.datetime.now(datetime.timezone.utc) - START).total_seconds(), 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 10**6,
    }


def with_base_files(files):
    """files, {name: path}: with the base's manifest, by whose one checksum all of the base's files are known."""
    manifest = files["base"].with_name("manifest.json") if "base" in files else None
    return files | {"base_files": manifest} if manifest and manifest.is_file() else files


def record(result, settings, files, **more):
    """Writes {result}.provenance.json: how this process made it, on which GPUs."""
    import torch

    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    names = [torch.cuda.get_device_name(gpu) for gpu in gpus]
    peak = torch.cuda.max_memory_allocated() // 10**6 if gpus else None
    files = with_base_files(files) | {"result": result}
    description = describe(settings, files) | {"gpus": names, "peak_gpu_memory_mb": peak, **more}
    write_json(Path(result).with_suffix(".provenance.json"), description, indent=1)

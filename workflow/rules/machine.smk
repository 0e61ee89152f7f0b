"""What depends on the machine that runs Snakemake: the commit of the workflow there, and whether the image and the GPUs
are there for the jobs of this call, which cluster.smk asks before any of them."""

import hashlib
import shutil

from snakemake.settings.types import DeploymentMethod

# For the jobs: which commit of the workflow they run, for provenance.json. No parameter, as a commit re-runs nothing.
if "WORKFLOW_COMMIT" not in os.environ:  # a job has it from the Snakemake that submitted it
    describe = ["git", "-C", workflow.basedir, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    found = subprocess.run(describe, capture_output=True, text=True) if shutil.which("git") else None
    os.environ.update(WORKFLOW_COMMIT=found.stdout.strip() if found else "")


def gpus_here():
    """How many GPUs a job on this machine would see."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len(visible.replace(",", " ").split())
    if not shutil.which("nvidia-smi"):
        return 0
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.count("GPU ")


def checksum(image):
    """The image's sha256, kept in a file, as an image has some 20 GB."""
    kept = Path(workflow.pathvars.apply("<resources>/images"), f"{Path(image).name}.sha256")
    if not kept.exists() or kept.stat().st_mtime < Path(image).stat().st_mtime:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with open(image, "rb") as file:
            kept.write_text(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {image}\n")
    return kept.read_text().split()[0]


def check_machine(jobs):
    """Ends where the image or the GPUs for these jobs are not there."""
    if image := config["image"]:
        if DeploymentMethod.APPTAINER not in workflow.deployment_settings.deployment_method:
            problem = "is only used with --sdm apptainer, as by a --profile; or set image: null to do without"
            refuse(["image"], f"{image} {problem}")
        if "://" not in image and not Path(image).is_file():
            version = (re.findall(r"\d\d\.\d\d", image) or ["24.03"])[-1]
            source = f"docker://nvcr.io/nvidia/nemo:{version}"
            refuse(["image"], f"there is no {image}; get it: apptainer pull {image} {source}")
        if "://" not in image:
            os.environ.update(IMAGE_SHA256=checksum(image))  # for the jobs' provenance.json
    if config["accelerator"] == "gpu" and workflow.local_exec:
        runs = [job.wildcards.run for job in jobs if job.rule.name != "verify_model"]
        run = max(runs, key=lambda run: config["runs"][run]["devices"], default=None)
        if run and (devices := config["runs"][run]["devices"]) > (gpus := gpus_here()):
            fewer = "set fewer" if gpus else "set accelerator: cpu, for a small model"
            problem = f"{devices}, but this machine has {gpus} GPUs; run on a cluster (--profile), or {fewer}"
            refuse(["runs", run, "devices"], problem)

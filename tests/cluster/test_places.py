"""Snakemake as a job of SLURM's, with the files all over the machine: nothing is told to Apptainer by hand."""

import json
import shutil
import subprocess

import pytest
import yaml
from cluster.lab import HERE, HOME, LAB, TOKEN, USER, in_queue, output_of, wait_until
from cluster.lab import Project as ProjectInOnePlace
from common.files import read_json
from helpers import copy_workflow

CLONE = LAB / "clone"
RUN = "runs/lora/fold0/seed0"


class Project(ProjectInOnePlace):
    """The clone is root's and read-only; results: lie beyond a link, resources and logs are links, the image is one."""

    def __init__(self, image, endpoint):
        self.directory, self.endpoint, self.before = HOME / "elsewhere", endpoint, 0
        self.results = LAB / "scratch/peft/results"  # by a path with a link in it, and not there yet
        for place in CLONE, LAB / "scratch", LAB / "disk7", HOME / "big disk", HOME / "tmp", self.directory:
            place.unlink() if place.is_symlink() else shutil.rmtree(place, ignore_errors=True)
        places = LAB / "disk7/peft", HOME / "big disk/resources", HOME / "big disk/logs"
        for place in CLONE, *places, HOME / "tmp", self.directory:
            place.mkdir(parents=True)
        copy_workflow(CLONE)
        (LAB / "scratch").symlink_to("disk7")
        (self.directory / "resources").symlink_to("../big disk/resources")
        (self.directory / "logs").symlink_to(HOME / "big disk/logs")
        (self.directory / "nemo-cpu_2.2.1.sif").symlink_to(image)
        config = yaml.safe_load((HERE / "cluster.yaml").read_text())
        config |= {"targets": ["lora"], "pathvars": {"results": str(self.results)}}
        config["runs"] = {"lora": config["runs"]["lora"] | {"devices": 1, "tensor_model_parallel_size": 1}}
        (self.directory / "config").mkdir()
        (self.directory / "config/config.yaml").write_text(json.dumps(config))
        for place in LAB / "disk7", HOME / "big disk", HOME / "tmp", self.directory:
            subprocess.run(["chown", "-R", "-h", f"{USER}:{USER}", place], check=True)
        self.before = self.last_job()


@pytest.fixture(scope="module")
def elsewhere(project):
    return Project(project.directory / "nemo-cpu_2.2.1.sif", project.endpoint)


def arguments(*more):
    return ["-s", str(CLONE / "Snakefile"), *more]


def test_snakemake_in_a_job(elsewhere):
    """Downloads are made before, where there is a network and the token; the job has neither the token nor links' ends
    in sight by itself."""
    profile = CLONE / "profiles/nig-slurm"
    downloads = arguments("--until", "download_model")
    elsewhere.run(*downloads, profile=profile, config=())
    assert (HOME / "big disk/resources/hf/tiny/manifest.json").exists() and not elsewhere.jobs()
    (elsewhere.directory / "job.sh").write_text(
        "#!/bin/sh\nexec snakemake --profile {} -s {} --slurm-init-seconds-before-status-checks 8 {}\n".format(
            profile, CLONE / "Snakefile", f"{elsewhere.results}/{RUN}/metrics.json"
        )
    )
    variables = {"HOME": HOME, "USER": USER, "LANG": "C.UTF-8", "PATH": f"{LAB}/env/bin:/usr/bin:/bin"}
    variables["TMPDIR"] = HOME / "tmp"  # which the container does not have: Python takes its /tmp
    command = ["sbatch", "--parsable", "-A", "l40s", "-p", "l40s", "-t", "60", "--mem", "4G", "job.sh"]
    options = {"user": USER, "group": USER, "extra_groups": [], "env": variables, "cwd": elsewhere.directory}
    number = subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout.strip()
    wait_until(lambda: not in_queue(), 600, "the end of Snakemake's job and of its jobs")
    said = elsewhere.read(f"slurm-{number}.out")
    state = output_of("sacct", "-X", "-n", "-P", "-o", "State", "-j", number).strip()
    assert state == "COMPLETED", said
    assert {job["State"] for job in elsewhere.jobs()} == {"COMPLETED"} and TOKEN not in said
    assert len(elsewhere.jobs("rule_train_lora")) == len(elsewhere.jobs("rule_predict")) == 1
    provenance = read_json(elsewhere.results / RUN / "provenance.json")
    for step in "train_lora", "predict":
        assert provenance[step]["image"].endswith("nemo-cpu_2.2.1.sif")
    assert (LAB / "disk7/peft/results" / RUN / "metrics.json").exists()
    assert not (elsewhere.directory / "results").exists()
    job = elsewhere.jobs("rule_train_lora")[0]["JobIDRaw"]
    assert f"in SLURM job {job}" in (HOME / "big disk/logs/train_lora/lora/fold0-seed0.log").read_text()

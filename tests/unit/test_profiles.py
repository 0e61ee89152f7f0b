"""The profiles fit together."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, snakemake

from workflow.planning import Problem, yaml_files

PROFILES = ROOT / "profiles"


def profile(name):
    return yaml.safe_load((PROFILES / name / "config.yaml").read_text())


def test_default_profile_leaves_the_others_alone():
    """Its keys would win over theirs."""
    for name in "nig-slurm", "slurm-generic", "workstation":
        assert not profile("default").keys() & profile(name).keys()


def test_only_names_of_the_site_differ():
    text = (PROFILES / "slurm-generic/config.yaml").read_text()
    for name in "YOUR_CPU_PARTITION", "YOUR_GPU_PARTITION", "YOUR_ACCOUNT":
        assert text.count(name) == 1
        text = text.replace(name, "l40s")
    assert yaml.safe_load(text) == profile("nig-slurm")


def test_rules_with_gpus_are_those_of_the_workflow():
    rules = re.search(r"for name in \((.+)\)", (ROOT / "workflow/checks.smk").read_text())[1]
    assert profile("nig-slurm")["set-resources"].keys() == set(re.findall(r'"(\w+)"', rules))


def test_workstation_without_image_needs_no_apptainer(tmp_path, monkeypatch):
    """Its profile asks for Apptainer, which does nothing then, installed or not."""
    (tmp_path / "bin").mkdir()
    for directory in map(Path, os.environ["PATH"].split(os.pathsep)):
        for program in directory.iterdir() if directory.is_dir() else ():
            if program.name not in ("apptainer", "singularity") and not (tmp_path / "bin" / program.name).exists():
                (tmp_path / "bin" / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    run = {"model": "mistral-7b", "dataset": "trials", "devices": 1, "tensor_model_parallel_size": 1}
    config = {"targets": ["x"], "datasets": {"trials": {"simulate": 0}}, "runs": {"x": run}, "accelerator": "cpu"}
    call = ("--snakefile", ROOT / "Snakefile", "--profile", PROFILES / "workstation", "--configfile", "mine.yaml")
    items = "results/data/trials/items/test.json"
    (tmp_path / "mine.yaml").write_text(json.dumps(config | {"image": None}))
    assert "predict" in snakemake(tmp_path, "--dry-run", *call, cores=None).stdout
    done = snakemake(tmp_path, items, *call, cores=None)
    assert done.returncode == 0 and (tmp_path / items).exists(), done.stdout
    (tmp_path / "mine.yaml").write_text(json.dumps(config | {"image": "nemo_25.02.sif"}))
    done = snakemake(tmp_path, *call, cores=None)  # so it is not there indeed
    assert done.returncode == 1 and "apptainer" in done.stdout.splitlines()[-1], done.stdout


def test_key_that_stands_twice(tmp_path, monkeypatch):
    """Of which Snakemake would take the last; in each way of naming a profile."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.yaml").write_text("set-resources:\n  predict: {gres: 'gpu:1'}\n  predict: {runtime: 5}\n")
    monkeypatch.chdir(tmp_path)
    for arguments, named in (["--profile", "mine"], ""), (["-n", "--profile=mine/config.yaml"], ""), (["-n"], "mine"):
        (file,) = yaml_files.profiles(["snakemake", *arguments], {"SNAKEMAKE_PROFILE": named})
        with pytest.raises(
            Problem, match=r"^mine/config.yaml, line 3: predict stands here and in line 2; only one would"
        ):
            yaml_files.check(file)
    monkeypatch.setenv("SNAKEMAKE_PROFILE", "mine")
    done = snakemake(tmp_path, "--snakefile", ROOT / "Snakefile", "--dry-run")
    assert done.returncode == 1 and done.stdout.splitlines()[-1].startswith(
        "mine/config.yaml, line 3: predict stands here"
    )
    for name in "nig-slurm", "slurm-generic", "workstation", "default":
        yaml_files.check(PROFILES / name / "config.yaml")

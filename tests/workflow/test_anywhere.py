"""The workflow runs from any directory: that has configuration and results, the clone scripts and schemas."""

import os
import re
import shutil
import subprocess

import pytest
import yaml
from helpers import ROOT, copy_workflow, environment, write_snapshot

SNAKEFILES = ["Snakefile", "workflow/Snakefile"]
RULES = {"download_model", "convert_model", "download_pubmedqa", "split_folds", "write_jsonl", "train_lora", "predict"}
RULES |= {"evaluate", "compare_runs", "write_report", "all"}
MINE = {
    "targets": ["mine"],
    "accelerator": "cpu",
    "models": {"tiny": {"snapshot": "tiny"}},
    "datasets": {"trials": {"simulate": 0, "sample": 24}},
    "runs": {"mine": {"model": "tiny", "dataset": "trials", "devices": 1, "tensor_model_parallel_size": 1}},
}
TEST = "results/data/trials/final_decision/test.jsonl"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone, with a space in its path."""
    directory = tmp_path_factory.mktemp("a clone")
    copy_workflow(directory)
    return directory


@pytest.fixture
def mine(tmp_path):
    """A directory with a configuration of its own, and the snapshot that it names."""
    (tmp_path / "config").mkdir()
    write_snapshot(tmp_path / "tiny")
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(MINE))
    return tmp_path


def snakemake(directory, *arguments, before=()):
    """Runs Snakemake there; returns the finished process with each output as text. before: a command that calls it."""
    command = [*before, "snakemake", *map(str, arguments)]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def counted(done):
    """{rule: jobs} of a dry run."""
    return {rule: int(jobs) for rule, jobs in re.findall(r"^(\w+) +(\d+)$", done.stdout, re.M)}


def files_in(directory):
    return {str(file.relative_to(directory)): file.stat().st_mtime_ns for file in directory.rglob("*")}


@pytest.mark.parametrize("snakefile", SNAKEFILES)
def test_the_clones_configuration_where_there_is_no_other(clone, tmp_path, snakefile):
    """And a plain call, without a target, builds the table."""
    done = snakemake(tmp_path, "--snakefile", clone / snakefile, "--dry-run")
    assert done.stderr.count(f"There is no config/config.yaml here: {clone}/config/config.yaml is taken.") == 1
    assert counted(done).keys() == RULES | {"total"}
    assert re.search(
        r"^rule all:\n    input: results/accuracy.tsv, results/report.html, results/runs/base/", done.stdout, re.M
    )
    assert f"{clone}/profiles/default" in done.stderr.replace("workflow/profiles", "profiles")


@pytest.mark.parametrize("snakefile", SNAKEFILES)
def test_the_working_directorys_configuration(clone, mine, snakefile):
    done = snakemake(mine, "--snakefile", clone / snakefile, "--dry-run")
    assert "is taken" not in done.stderr
    assert counted(done)["evaluate"] == 1 and "results/runs/mine/fold0/seed0" in done.stdout
    assert "train_lora" not in counted(done)


def test_option_directory(clone, mine, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = snakemake(elsewhere, "--snakefile", clone / "Snakefile", "--directory", mine, "--dry-run")
    assert "is taken" not in done.stderr and "results/runs/mine/fold0/seed0" in done.stdout
    assert (mine / ".snakemake").is_dir() and not list(elsewhere.iterdir())


@pytest.mark.parametrize("snakefile", SNAKEFILES)
def test_profile_by_path(clone, tmp_path, snakefile, apptainer):
    arguments = "--profile", clone / "profiles/nig-slurm", "--dry-run"
    done = snakemake(tmp_path, "--snakefile", clone / snakefile, *arguments)
    (job,) = re.findall(
        r"^rule train_lora:\n(?:    .*\n)*?    wildcards: run=lora,.*\n((?:    .*\n)*)", done.stdout, re.M
    )
    assert "gres=gpu:4" in job and "slurm_partition=l40s" in job


def test_pictures_have_no_further_node_and_nothing_else_on_their_stream(clone, tmp_path):
    drawn = [snakemake(tmp_path, "-s", clone / file, "--forceall", "--rulegraph", "dot").stdout for file in SNAKEFILES]
    assert drawn[0].startswith("digraph") and drawn[0].rstrip().endswith("}")
    assert sorted(re.findall(r'label = "(\w+)"', drawn[0])) == sorted(RULES)
    assert sorted(drawn[0].splitlines()) == sorted(drawn[1].splitlines())
    dag = snakemake(tmp_path, "-s", clone / "Snakefile", "--dag", "dot").stdout
    assert dag.startswith("digraph") and dag.rstrip().endswith("}")


def test_catalogs_call(tmp_path):
    """By which the Snakemake Workflow Catalog draws a workflow."""
    for name in ("workflow", "config", "profiles", "envs", ".test"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".snakemake"))
    call = "-s workflow/Snakefile -c 1 -d .test --forceall --rulegraph"
    drawn = subprocess.run(["snakemake", *call.split()], cwd=tmp_path, capture_output=True, text=True)
    assert drawn.returncode == 0 and drawn.stdout.startswith("digraph"), drawn.stderr
    expected = RULES - {"download_model", "download_pubmedqa"} | {"dequantize_gguf", "simulate_trials"}
    assert set(re.findall(r'label = "(\w+)"', drawn.stdout)) == expected
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage["mandatory-flags"].keys() == {"desc", "flags"} and usage["report"] is True
    assert usage["software-stack-deployment"] == {"conda": False, "apptainer": True, "apptainer+conda": False}


def read_only(directory):
    """A command before another, for which nothing in the directory can be written, whoever the user is."""
    again = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && ! touch "$0/x" 2>/dev/null && exec "$@"'
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", *user, "--mount", "sh", "-c", again, directory]
    if subprocess.run([*command, "true"]).returncode:
        pytest.skip("this machine lets nobody mount a directory read-only")
    return command


def test_read_only_clone_is_moved_and_touched(tmp_path, mine):
    """Results and logs are the working directory's; with the clone elsewhere, and all of it newer, nothing runs."""
    clone = tmp_path / "read only"
    clone.mkdir()
    copy_workflow(clone)
    before = files_in(clone)
    snakemake(mine, "--snakefile", clone / "Snakefile", TEST, "--cores", "2", before=read_only(clone))
    assert files_in(clone) == before
    assert len((mine / TEST).read_text().splitlines()) == 24
    assert (mine / "logs/split_folds/trials.log").is_file() and (mine / ".snakemake/metadata").is_dir()
    clone = clone.rename(tmp_path / "moved")
    for file in clone.rglob("*"):
        os.utime(file)
    for snakefile in SNAKEFILES:
        done = snakemake(mine, "--snakefile", clone / snakefile, TEST, "--dry-run")
        assert "Nothing to be done" in done.stdout + done.stderr

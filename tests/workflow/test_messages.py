"""A mistake ends at once, before any job, in one line that names file, key, value and remedy."""

import re
import resource
import shutil
from contextlib import contextmanager

import pytest
from helpers import copy_workflow, snakemake

MISTAKES = {  # of each kind one: tests/unit/test_config.py has them all
    "target: [lora]": "mine.yaml: target: no such key; is it targets?",
    "targets: [bse]": "mine.yaml: targets: bse is not among runs: base, tutorial, lora, best",
    "runs: {lora: {train: {nemo: [model.optim.lrr=1]}}}": (
        "mine.yaml: runs.lora.train.nemo: train_lora.yaml has no model.optim.lrr; to add it, write +model.optim.lrr=1"
    ),
}


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    directory = tmp_path_factory.mktemp("workflow")
    copy_workflow(directory)
    return directory


def said(workflow, *arguments):
    """What Snakemake says before any job, without its own heading, where it ends within 20 seconds."""
    done = snakemake(workflow, *arguments, timeout=20)
    assert done.returncode == 1 and "Traceback" not in done.stdout and not (workflow / "results").exists()
    said = re.split(r"^total +\d+\n", done.stdout, flags=re.MULTILINE)[-1].strip().splitlines()
    general = ("Using workflow", "Config file", "Assuming")
    return [line for line in said if not line.startswith(general)]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_explained(workflow, mistake):
    (workflow / "mine.yaml").write_text(mistake)
    lines = said(workflow, "--dry-run", "--configfile", "mine.yaml")
    assert lines == [MISTAKES[mistake]]


def test_the_last_file_that_has_the_key_is_named(workflow):
    (workflow / "first.yaml").write_text("runs: {lora: {train: {lr: 1e-4}}}")
    (workflow / "second.yaml").write_text("runs: {lora: {train: {lr: 1e-5}}}")
    done = snakemake(workflow, "--dry-run", "--configfile", "first.yaml", "second.yaml")
    assert "second.yaml: runs.lora.train.lr: '1e-5' is text" in done.stdout


def test_unknown_target(workflow):
    target = "results/runs/lra/fold0/seed0/metrics.json"
    lines = said(workflow, "--dry-run", target)
    assert lines == [f"{target}: lra is not among runs: base, tutorial, lora, best"]


TARGETS = (
    "Targets are export, compare_runs, write_report, all and files; runs, which go under targets:, base, tutorial, lora"
)
MISTYPED = {
    "lora": "lora: is a run and no target. Put it under targets:, or ask for a file of it: "
    "results/runs/lora/fold0/seed0/metrics.json",
    "report.html": f"report.html: is no target; is it results/report.html? {TARGETS}, best",
    "lroa": f"lroa: is no target; is it lora? {TARGETS}, best",
    "train_lora": "train_lora: is a step of several jobs and no target. Ask for a file that it makes: "
    "results/runs/{run}/fold{fold}/seed{seed}/adapter.provenance.json",
    "results/acuracy.tsv": "results/acuracy.tsv: no step makes it; is it accuracy.tsv? "
    "In results there will be accuracy.json, accuracy.tsv, report.html",
    "results/base/mistral-7.nemo": "results/base/mistral-7.nemo: mistral-7 is not among models: mistral-7b; "
    "is it mistral-7b?",
}


@pytest.mark.parametrize("target", MISTYPED)
def test_mistyped_target(workflow, target):
    """What no rule makes, or no file is there for, after one that can be made."""
    assert said(workflow, "--dry-run", "results/accuracy.tsv", target)[-1] == MISTYPED[target]


def test_options_values_are_no_targets(workflow):
    """A run may be named as a value of theirs, or as a step, and any file of them lie among the results."""
    run = "model: mistral-7b, dataset: pubmedqa, tensor_model_parallel_size: 1"
    (workflow / "resources").mkdir(exist_ok=True)
    (workflow / "resources/mine.yaml").write_text(f"runs: {{code: {{{run}}}, all: {{{run}}}}}\ntargets: [code, all]")
    options = "--dry-run --rerun-triggers mtime code --configfile"
    done = snakemake(workflow, "all", *options.split(), str(workflow / "resources/mine.yaml"))
    assert done.returncode == 0, done.stdout
    swept = f"swept: {{{run}, train: {{max_steps: 60, val_check_interval: 15, lr: {{sweep: [0.1, 0.2]}}}}}}"
    (workflow / "mine.yaml").write_text(f"targets: [base]\nruns: {{{swept}}}")
    words = "swept: is a sweep and no target. Put it under targets:, or ask for a file of it: "
    lines = said(workflow, "--forceall", "--dry-run", "swept", "--configfile", "mine.yaml")
    assert lines[-1] == f"{words}results/runs/swept-lr-0.1/fold0/seed0/metrics.json"


def test_results_that_cannot_be_written(workflow):
    (workflow / "mine.yaml").write_text("{image: null, accelerator: cpu, pathvars: {results: /proc/x}}")
    problem = "/proc/x: can't be written: /proc: No such file or directory"
    lines = said(workflow, "--configfile", "mine.yaml")
    assert lines == [f"{problem}. Let pathvars in the configuration point elsewhere"]


def test_what_snakemake_would_stumble_over(workflow, tmp_path):
    """config/config.yaml is read before it."""
    clone = tmp_path / "clone"
    shutil.copytree(workflow, clone)
    (clone / "config/config.yaml").write_text("targets: [base]\npathvars: [results]\n")
    words = "pathvars: has no directory's name here, as in {results: mine}"
    assert said(clone, "--dry-run") == [f"config/config.yaml, line 2: {words}"]


@contextmanager
def small_files():
    """What is started here can write no file of more than 100 kB."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_failed_job(workflow):
    """Its last lines are one sentence that names it and its log."""
    (workflow / "mine.yaml").write_text("{image: null, accelerator: cpu, datasets: {trials: {simulate: 0}}}")
    with small_files():
        done = snakemake(workflow, "resources/data/trials/ori_pqal.json", "--configfile", "mine.yaml")
        job = "--target-jobs", "simulate_trials:dataset=trials", "--mode", "remote", "--nolock"
        of_job = snakemake(workflow, *job, "--configfile", "mine.yaml")
    assert "simulate_trials (dataset=trials): failed. See logs/simulate_trials/trials.log." in done.stdout.splitlines()
    assert "File too large" in done.stdout and done.returncode == 1
    assert of_job.returncode == 1 and "failed. See" not in of_job.stdout  # on a cluster this is a job's log


def test_lost_records_are_told_of_before_the_jobs(workflow, tmp_path):
    copy, made = shutil.copytree(workflow, tmp_path / "copy", symlinks=True), "results/data/trials/items/test.json"
    (copy / "mine.yaml").write_text("{image: null, accelerator: cpu, datasets: {trials: {simulate: 0}}}")
    snakemake(copy, made, "--configfile", "mine.yaml")
    next((copy / ".snakemake/metadata").iterdir()).unlink()  # of one file
    done = snakemake(copy, made, "results/data/trials/final_decision/test.jsonl", "--configfile", "mine.yaml")
    assert done.stdout.index(".snakemake has no records of how 1 of the") < done.stdout.index("write_jsonl (dataset=tr")
    assert done.returncode == 0 and done.stdout.count("has no records") == 1


def test_image_that_is_not_used(workflow):
    (workflow / "mine.yaml").write_text("image: there_1.0.sif")
    words = "is only used with --sdm apptainer, as by a --profile; or set image: null to do without"
    assert said(workflow, "--configfile", "mine.yaml") == [f"mine.yaml: image: there_1.0.sif {words}"]


def test_missing_image(workflow, tmp_path, monkeypatch):
    if not shutil.which("apptainer"):  # Snakemake asks for its version before it comes to the image
        apptainer = tmp_path / "apptainer"
        apptainer.write_text("#!/bin/sh\necho apptainer version 1.4.5\n")
        apptainer.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (workflow / "mine.yaml").write_text("image: gone_25.02.sif")
    lines = said(workflow, "--configfile", "mine.yaml", "--sdm", "apptainer")
    pull = "apptainer pull gone_25.02.sif docker://nvcr.io/nvidia/nemo:25.02"
    assert lines == [f"mine.yaml: image: there is no gone_25.02.sif; get it: {pull}"]


@pytest.fixture
def four_gpus(tmp_path, monkeypatch):
    """A script stands in for nvidia-smi."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nfor card in 0 1 2 3; do echo $card, GPU-$card; done\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_more_devices_than_gpus(workflow, four_gpus):
    (workflow / "mine.yaml").write_text("{image: null, runs: {base: {devices: 8}}}")
    there = "8, but this machine has 4 GPUs; run on a cluster (--profile), or set fewer"
    assert said(workflow, "--configfile", "mine.yaml") == [f"mine.yaml: runs.base.devices: {there}"]
    limit = "--configfile", "mine.yaml", "--resources", "gpus=2"  # which Snakemake would count the job as, and start it
    assert said(workflow, *limit) == [f"mine.yaml: runs.base.devices: {there.replace('4', '2')}"]


def test_torch_for_cpus_has_no_gpus(workflow, four_gpus, tmp_path, monkeypatch):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("")
    (tmp_path / "torch/version.py").write_text("cuda: Optional[str] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (workflow / "mine.yaml").write_text("{image: null, accelerator: gpu}")
    problem = "gpu, but the torch of this environment is built for CPUs: make install TORCH=cuda, or set image:"
    assert said(workflow, "--configfile", "mine.yaml") == [f"mine.yaml: accelerator: {problem}"]


def test_what_failed_is_repeated(workflow, tmp_path):
    """With new settings, though what was made with the former ones is still there; twice."""
    copy, made = shutil.copytree(workflow, tmp_path / "copy", symlinks=True), "results/data/trials/items/test.json"
    mine, file = copy / "mine.yaml", copy / made
    mine.write_text(settings := "{image: null, accelerator: cpu, datasets: {trials: {simulate: 0}}}")
    assert snakemake(copy, made, "--configfile", "mine.yaml").returncode == 0
    first = file.read_bytes()
    mine.write_text(settings.replace("simulate: 0", "simulate: 1"))
    for _ in range(2):
        with small_files():
            failed = snakemake(copy, made, "--configfile", "mine.yaml")
        assert failed.returncode == 1 and "simulate_trials (dataset=trials): failed" in failed.stdout
        assert file.read_bytes() == first
    assert snakemake(copy, made, "--configfile", "mine.yaml").returncode == 0
    assert file.read_bytes() != first
    assert "Nothing to be done" in snakemake(copy, made, "--configfile", "mine.yaml").stdout

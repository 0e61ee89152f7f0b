"""A mistake ends at once, before any job, in one line that names file, key, value and remedy."""

import json
import re
import shutil

import pytest
from helpers import copy_workflow, snakemake

MISTAKES = {
    "target: [lora]": "mine.yaml: target: no such key; is it targets?",
    "targets: [bse]": "mine.yaml: targets: bse is not among runs: base, tutorial, lora, best",
    "accelerator: tpu": "mine.yaml: accelerator: 'tpu' is not one of ['gpu', 'cpu']",
    "runs: {lora: {train: {max_step: 5}}}": "mine.yaml: runs.lora.train.max_step: no such key; is it max_steps?",
    "runs: {lora: {train: {lr: 1e-4}}}": "mine.yaml: runs.lora.train.lr: '1e-4' is text to YAML; write a plain number",
    "runs: {lora: {train: {lr: -0.1}}}": "mine.yaml: runs.lora.train.lr: -0.1 is less than or equal to the minimum",
    "runs: {lora: {train: {max_steps: 0}}}": "mine.yaml: runs.lora.train.max_steps: 0 is less than the minimum of 1",
    "runs: {lora: {train: {repeat_maybe: 1}}}": "lora.train.repeat_maybe: 1 is less than the minimum of 2",
    "runs: {base: {repeat_maybe: 2}}": "mine.yaml: runs.base.repeat_maybe: no such key; there are model",
    "runs: {lora: {folds: [0, 10]}}": "mine.yaml: runs.lora.folds: 10 is greater than the maximum of 9",
    "runs: {lora: {label: gold}}": "mine.yaml: runs.lora.label: 'gold' is not one of ['final_decision'",
    "runs: {lora: {megatron_amp_O2: 1}}": "mine.yaml: runs.lora.megatron_amp_O2: 1 is not of type 'boolean'",
    "runs: {lora: []}": "mine.yaml: runs.lora: [] is not of type 'object'",
    "runs: {new: {dataset: pubmedqa}}": "mine.yaml: runs.new: model is missing: A name under models.",
    "runs: {lora: {model: mistrl}}": "mine.yaml: runs.lora.model: mistrl is not among models: mistral-7b",
    "runs: {lora: {dataset: medqa}}": "mine.yaml: runs.lora.dataset: medqa is not among datasets: pubmedqa",
    "runs: {lora: {tensor_model_parallel_size: 3}}": "tensor_model_parallel_size: 3 does not divide the 4 devices",
    "runs: {lora: {tensor_model_parallel_size: 2, train: {global_batch_size: 33}}}": (
        "mine.yaml: runs.lora.train.global_batch_size: 33 is no multiple of micro_batch_size 4 on 2 copies"
    ),
    "runs: {lora: {precision: 16}}": "mine.yaml: runs.lora.precision: with 16, NeMo trains without megatron",
    "runs: {lora: {train: {val_check_interval: 61}}}": "61 steps, but training ends after max_steps 60",
    "runs: {lora: {train: {warmup_steps: 61}}}": "61 steps, but training ends after max_steps 60",
    "models: {x: {repo: org/x}}": "mine.yaml: models.x: has repo; it needs repo and revision or snapshot or gguf",
    "models: {x: {repo: org/x, revision: main}}": "mine.yaml: models.x.revision: 'main' does not match",
    "runs: {lora: {train: {nemo: [model.optim.lrr=1]}}}": (
        "mine.yaml: runs.lora.train.nemo: train_lora.yaml has no model.optim.lrr; to add it, write +model.optim.lrr=1"
    ),
    "models: {x: org/x}": "mine.yaml: models.x: 'org/x' is not of type 'object'",
    "models: []": "mine.yaml: models: [] is not of type 'object'",
    "runs: {lora: {folds: al}}": "mine.yaml: runs.lora.folds: 'al' does not match '^all$'",
    "runs: {chosen: {model: mistral-7b, dataset: pubmedqa, choose: [base, lora]}}": (
        "mine.yaml: runs.chosen.choose: base is not among the runs that have train:"
    ),
    "runs: {chosen: {model: mistral-7b, dataset: pubmedqa, choose: [lora, tutorial]}}": (
        "mine.yaml: runs.chosen.choose: lora is under targets: that would be choosing on test"
    ),
    "{targets: [base], runs: {chosen: {model: mistral-7b, dataset: pubmedqa, choose: [lora, tutorial]}}}": (
        "mine.yaml: runs.chosen.choose: lora and chosen differ in tensor_model_parallel_size, in which they must agree"
    ),
    "{targets: [base], runs: {lora: {tensor_model_parallel_size: 4},"
    " chosen: {model: mistral-7b, dataset: pubmedqa, choose: [lora, tutorial]}}}": (
        "mine.yaml: runs.chosen.choose: tutorial and chosen differ in label, in which they must agree"
    ),
    "{targets: [base], runs: {lora: {choose: [lora, tutorial]}}}": "runs.lora.choose: stands beside train:",
    "datasets: {x: {simulate: 1, directory: d}}": "datasets.x: has simulate, directory; it needs revision or directory",
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
    assert len(lines) == 1 and MISTAKES[mistake] in lines[0], lines


def test_the_last_file_that_has_the_key_is_named(workflow):
    (workflow / "first.yaml").write_text("runs: {lora: {train: {lr: 1e-4}}}")
    (workflow / "second.yaml").write_text("runs: {lora: {train: {lr: 1e-5}}}")
    done = snakemake(workflow, "--dry-run", "--configfile", "first.yaml", "second.yaml")
    assert "second.yaml: runs.lora.train.lr: '1e-5' is text" in done.stdout


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("lra/fold0/seed0/metrics.json", "lra is not among runs: base, tutorial, lora, best"),
        ("lora/fold12/seed0/metrics.json", "fold12/seed0 is none of fold0/seed0, fold0/seed1, …, fold9/…"),
        ("lora/fold0/metrics.json", "fold0/metrics.json is none of fold0/seed0"),
    ],
)
def test_unknown_target(workflow, target, words):
    lines = said(workflow, "--dry-run", f"results/runs/{target}")
    assert len(lines) == 1 and lines[0].startswith(f"results/runs/{target}: {words}"), lines


def test_candidates_get_no_answers(workflow):
    run = "{model: mistral-7b, dataset: pubmedqa, label: reasoning_required_pred, choose: [tutorial, other]}"
    tutorial = "{model: mistral-7b, dataset: pubmedqa, label: reasoning_required_pred, train: {max_steps: 5, "
    other = f"{tutorial}val_check_interval: 5, lr: 0.1}}}}"
    (workflow / "mine.yaml").write_text(f"{{targets: [base], runs: {{chosen: {run}, other: {other}}}}}")
    target = "results/runs/other/fold0/seed0/metrics.json"
    lines = said(workflow, "--dry-run", target, "--configfile", "mine.yaml")
    assert lines == [f"{target}: other is a candidate of chosen: only what is chosen gets answers to the test items"]


def test_failed_job(workflow):
    """Its last lines are one sentence that names it and its log."""
    (workflow / "mine.yaml").write_text("models: {x: {snapshot: nowhere}}")
    done = snakemake(workflow, "resources/hf/x/manifest.json", "--configfile", "mine.yaml")
    assert "download_model (model=x): failed. See logs/download_model/x.log." in done.stdout.splitlines()
    assert "nowhere holds no config.json: `snapshot:` of the model must be" in done.stdout and done.returncode == 1


MACHINE = {
    "image: there_1.0.sif": "mine.yaml: image: there_1.0.sif is only used with --sdm apptainer, as by a --profile",
    "{image: null, runs: {base: {devices: 1024}}}": "mine.yaml: runs.base.devices: 1024, but this machine has",
}


@pytest.mark.parametrize("config", MACHINE)
def test_what_this_machine_has_not(workflow, config):
    (workflow / "mine.yaml").write_text(config)
    lines = said(workflow, "--configfile", "mine.yaml")
    assert len(lines) == 1 and MACHINE[config] in lines[0], lines


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


def test_tensor_parallelism_that_divides_no_heads(workflow, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 32, "num_key_value_heads": 8}))
    runs = "{lora: {model: local, devices: 16, tensor_model_parallel_size: 16}}"
    (workflow / "mine.yaml").write_text(f"{{models: {{local: {{snapshot: {tmp_path}}}}}, runs: {runs}}}")
    lines = said(workflow, "--dry-run", "--configfile", "mine.yaml")
    words = "runs.lora.tensor_model_parallel_size: 16 does not divide the 8 num_key_value_heads of local"
    assert lines == [f"mine.yaml: {words} ({tmp_path}/config.json)"]

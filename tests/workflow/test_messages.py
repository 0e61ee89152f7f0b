"""A mistake in the configuration ends at once, in one line that names file, key, value and remedy."""

import pytest
from conftest import copy_workflow, snakemake

MISTAKES = {
    "target: [lora]": "mine.yaml: target: no such key; is it targets?",
    "targets: [bse]": "mine.yaml: targets: bse is not among runs: base, tutorial, lora",
    "accelerator: tpu": "mine.yaml: accelerator: 'tpu' is not one of ['gpu', 'cpu']",
    "runs: {lora: {train: {max_step: 5}}}": "mine.yaml: runs.lora.train.max_step: no such key; is it max_steps?",
    "runs: {lora: {train: {lr: 1e-4}}}": "mine.yaml: runs.lora.train.lr: '1e-4' is text to YAML; write a plain number",
    "runs: {lora: {train: {lr: -0.1}}}": "mine.yaml: runs.lora.train.lr: -0.1 is less than or equal to the minimum",
    "runs: {lora: {train: {max_steps: 0}}}": "mine.yaml: runs.lora.train.max_steps: 0 is less than the minimum of 1",
    "runs: {lora: {folds: [0, 10]}}": "mine.yaml: runs.lora.folds: 10 is greater than the maximum of 9",
    "runs: {lora: {label: gold}}": "mine.yaml: runs.lora.label: 'gold' is not one of ['final_decision'",
    "runs: {lora: {megatron_amp_O2: 1}}": "mine.yaml: runs.lora.megatron_amp_O2: 1 is not of type 'boolean'",
    "runs: {lora: []}": "mine.yaml: runs.lora: [] is not of type 'object'",
    "runs: {new: {dataset: pubmedqa}}": "mine.yaml: runs.new: model is missing: A name under models.",
    "runs: {lora: {model: mistrl}}": "mine.yaml: runs.lora.model: mistrl is not among models: mistral-7b",
    "runs: {lora: {dataset: medqa}}": "mine.yaml: runs.lora.dataset: medqa is not among datasets: pubmedqa",
    "runs: {lora: {tensor_model_parallel_size: 3}}": "tensor_model_parallel_size: 3 does not divide the 4 devices",
    "runs: {lora: {tensor_model_parallel_size: 2, train: {global_batch_size: 33}}}": (
        "mine.yaml: runs.lora.train.global_batch_size: 33 is no multiple of micro_batch_size 1 on 2 copies"
    ),
    "runs: {lora: {train: {val_check_interval: 61}}}": "61 steps, but training ends after max_steps 60",
    "runs: {lora: {train: {warmup_steps: 61}}}": "61 steps, but training ends after max_steps 60",
    "models: {x: {repo: org/x}}": "mine.yaml: models.x: has repo; it needs repo and revision or snapshot or gguf",
    "models: {x: {repo: org/x, revision: main}}": "mine.yaml: models.x.revision: 'main' does not match",
    "runs: {lora: {train: {nemo: [model.optim.lrr=1]}}}": (
        "mine.yaml: runs.lora.train.nemo: train_lora.yaml has no model.optim.lrr; to add it, write +model.optim.lrr=1"
    ),
    "models: {x: org/x}": "mine.yaml: models.x: 'org/x' is not of type 'object'",
    "models: []": "mine.yaml: models: [] is not of type 'object'",
    "datasets: {x: {simulate: 1, directory: d}}": "datasets.x: has simulate, directory; it needs revision or directory",
}


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    directory = tmp_path_factory.mktemp("workflow")
    copy_workflow(directory)
    return directory


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_explained(workflow, mistake):
    (workflow / "mine.yaml").write_text(mistake)
    done = snakemake(workflow, "--dry-run", "--configfile", "mine.yaml")
    assert done.returncode == 1
    general = ("Using workflow", "Config file", "Assuming")
    said = [line for line in done.stdout.splitlines() if not line.startswith(general)]
    assert len(said) == 1 and MISTAKES[mistake] in said[0], done.stdout


def test_the_last_file_that_has_the_key_is_named(workflow):
    (workflow / "first.yaml").write_text("runs: {lora: {train: {lr: 1e-4}}}")
    (workflow / "second.yaml").write_text("runs: {lora: {train: {lr: 1e-5}}}")
    done = snakemake(workflow, "--dry-run", "--configfile", "first.yaml", "second.yaml")
    assert "second.yaml: runs.lora.train.lr: '1e-5' is text" in done.stdout

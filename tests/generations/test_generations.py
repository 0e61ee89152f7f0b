"""From one base, the workflow's scripts make the same under NeMo 2.0.0rc0 with megatron-core 0.7.0, in an environment
of its own, as under 2.2.1 with 0.11.0, on a CPU: adapters and predictions, bit for bit."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from common.files import read_json
from common.pubmedqa import LABELS
from helpers import ROOT, SCRIPTS, environment

ENVIRONMENTS = {"2.0.0rc0": ROOT / ".venv-2.0.0rc0", "2.2.1": Path(sys.prefix)}
MEGATRON_CORE = {"2.0.0rc0": "0.7.0", "2.2.1": "0.11.0"}
COMMON = {"devices": 1, "tensor_model_parallel_size": 1, "precision": "bf16", "megatron_amp_O2": True}
COMMON |= {"max_seq_length": 256}
TRAIN = COMMON | {"micro_batch_size": 2, "global_batch_size": 4, "max_steps": 4, "val_check_interval": 2, "lr": 1e-3}
TRAIN |= {"warmup_steps": 2, "adapter_dim": 8, "adapter_dropout": 0.1}
# not attention_dense: NeMo 2.0.0rc0 takes the heads to be hidden_size wide together, which the tiny model's are not
TRAIN |= {"target_modules": ["attention_qkv", "mlp_fc1", "mlp_fc2"]}
PREDICT = COMMON | {"batch_size": 7, "tokens_to_generate": 6}


def run(nemo, script, inputs, settings, *arguments):
    """Runs a script under that generation, as the rules do; returns the exit code and the output."""
    launcher = [ROOT / "tests/generations/old_nemo.py"] if nemo == "2.0.0rc0" else []
    command = [ENVIRONMENTS[nemo] / "bin/torchrun", "--standalone", "--nproc-per-node", 1, *launcher, SCRIPTS / script]
    command += ["--accelerator", "cpu", "--base", inputs / "base", "--settings", json.dumps(settings), *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment()}
    done = subprocess.run(list(map(str, command)), **options)
    return done.returncode, done.stdout


def train(nemo, inputs, output, minutes=60):
    """In the same directory every time, as the adapter names it."""
    files = "--train", inputs / "train.jsonl", "--val", inputs / "val.jsonl", "--work-dir", inputs / "work"
    options = "--seed", 0, "--time-limit", minutes, "--output", output
    return run(nemo, "train_lora.py", inputs, TRAIN, *files, *options)


@pytest.fixture(scope="module")
def adapters(inputs):
    """{generation: its adapter}."""
    files = {nemo: inputs / f"adapter-{nemo}.nemo" for nemo in ENVIRONMENTS}
    for nemo, file in files.items():
        code, output = train(nemo, inputs, file)
        assert code == 0, output
        versions = read_json(file.with_suffix(".provenance.json"))["versions"]
        assert (versions["nemo_toolkit"], versions["megatron-core"]) == (nemo, MEGATRON_CORE[nemo])
        shutil.rmtree(inputs / "work")
    return files


def contents(adapter):
    """An adapter's weights {name: tensor}, its configuration and its files {name: content}."""
    with tarfile.open(adapter) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    weights = torch.load(io.BytesIO(files["./model_weights.ckpt"]))
    return weights, yaml.safe_load(files.pop("./model_config.yaml")), files


def test_adapters(adapters):
    (old, old_config, old_files), (new, new_config, new_files) = (contents(adapters[nemo]) for nemo in ENVIRONMENTS)
    assert len(new) == 4 * 3 * 2 and all(tensor.any() for tensor in new.values())  # layers, targets; all are trained
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in new)
    assert old_files == new_files
    assert old_config | {"nemo_version": "2.2.1"} == new_config


def test_continued_training(adapters, inputs):
    """Stopped after its first step, the old generation ends with the very bytes of the undisturbed training."""
    code, output = train("2.0.0rc0", inputs, inputs / "continued.nemo", minutes=1)
    assert code != 0 and "Stopped after 1 of 4 steps" in output, output
    code, output = train("2.0.0rc0", inputs, inputs / "continued.nemo")
    assert code == 0 and "train_lora: continues after step 1" in output, output
    assert (inputs / "continued.nemo").read_bytes() == adapters["2.0.0rc0"].read_bytes()


@pytest.mark.parametrize("trained", ["2.0.0rc0", "2.2.1", None])
def test_predictions(adapters, inputs, tmp_path, trained):
    """Text and scores with each generation's adapter, and of the base alone."""
    predictions = {}
    for nemo in ENVIRONMENTS:
        options = "--adapter", *([adapters[trained]] if trained else []), "--test", inputs / "val.jsonl"
        work = "--work-dir", tmp_path / "prediction", "--output", tmp_path / f"{nemo}.jsonl"
        code, output = run(nemo, "predict.py", inputs, PREDICT, "--labels", *LABELS, *options, *work)
        assert code == 0, output
        predictions[nemo] = (tmp_path / f"{nemo}.jsonl").read_text().splitlines()
    assert len(predictions["2.2.1"]) == 50 and predictions["2.0.0rc0"] == predictions["2.2.1"]


def test_rope_scaling_that_this_generation_has_not(inputs, tmp_path):
    """A base that needs Llama 3.1's is refused by 2.0.0rc0, which would ignore it."""
    base = shutil.copytree(inputs / "base", tmp_path / "base")
    config = yaml.safe_load((base / "model_config.yaml").read_text())
    (base / "model_config.yaml").write_text(yaml.safe_dump(config | {"scale_positional_embedding": True}))
    options = "--adapter", "--test", inputs / "val.jsonl", "--work-dir", tmp_path / "prediction"
    code, output = run(
        "2.0.0rc0", "predict.py", tmp_path, PREDICT, *options, "--output", tmp_path / "predictions.jsonl"
    )
    assert code == 1 and "the model needs llama3 rope scaling, which this NeMo has not: take an image" in output, output

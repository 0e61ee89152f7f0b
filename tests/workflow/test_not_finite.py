"""Where a loss, a weight or an answer is no number, the step ends in a sentence, and nothing is published."""

import io
import json
import math
import subprocess
import tarfile
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers import ROOT, SCRIPTS, environment
from nemo_image.stop import refuse_divergence

SETTINGS = {"devices": 1, "tensor_model_parallel_size": 1, "precision": 32, "megatron_amp_O2": False}
SETTINGS |= {"max_seq_length": 256}
TRAIN = SETTINGS | {"micro_batch_size": 2, "global_batch_size": 4, "max_steps": 8, "val_check_interval": 4, "lr": 1e-3}
TRAIN |= {"warmup_steps": 0, "target_modules": ["attention_qkv"], "adapter_dim": 8, "adapter_dropout": 0.0}


def call(inputs, script, settings, *arguments, ranks=1):
    command = ["torchrun", "--standalone", "--nproc-per-node", ranks, script, "--accelerator", "cpu"]
    command += ["--base", inputs / "base", "--settings", json.dumps(settings | {"devices": ranks}), *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=environment())


def train(inputs, name, **options):
    files = "--train", inputs / "train.jsonl", "--val", inputs / "val.jsonl", "--seed", 0, "--time-limit", 60
    output = "--work-dir", inputs / f"work-{name}", "--output", inputs / f"{name}.nemo"
    script = ROOT / "tests/waits_at_its_end.py"
    return call(inputs, script, TRAIN | {"lr": 1e30}, *files, *output, **options)


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_that_diverges(inputs, ranks):
    """It ends before the validation, which would make a checkpoint of it, and at once: no rank waits for another."""
    done = train(inputs, "diverged", ranks=ranks)
    words = "of 8 steps: the training has diverged. Lower lr, or raise warmup_steps."
    assert done.returncode != 0 and done.stderr.count(words) == 1, done.stderr
    assert "The training loss is nan after 2 of" in done.stderr and "after 4 steps" not in done.stdout
    assert not list(inputs.glob("*diverged*.lock")) and not list(inputs.glob("diverged.*"))
    assert not list(inputs.glob("work-diverged/*/checkpoints/*"))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_validation_that_is_none(monkeypatch, loss):
    """With fp16 it is the first loss that is looked at."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    trainer = SimpleNamespace(global_step=4, max_steps=8)
    with pytest.raises(SystemExit, match=f"^The validation loss is {loss:g} after 4 of 8 steps: "):
        refuse_divergence(trainer, "validation", loss)
    refuse_divergence(trainer, "validation", 11.5)


def write_adapter(file, base, value):
    """One of NeMo's, of the first layer, all of whose weights are this number."""
    places = {"linear_in": (8, 128), "linear_out": (384, 8)}  # 8 heads and 2 times 4 groups of 24
    name = "model.decoder.layers.0.self_attention.adapter_layer.lora_kqv_adapter.{}.weight"
    saved = io.BytesIO()
    torch.save({name.format(side): torch.full(shape, value) for side, shape in places.items()}, saved)
    lora = {
        "variant": "nemo",
        "target_modules": ["attention_qkv"],
        "adapter_dim": 8,
        "alpha": 8,
        "adapter_dropout": 0.0,
    }
    lora |= {"column_init_method": "xavier", "row_init_method": "zero", "layer_selection": [1], "weight_tying": False}
    peft = {"peft_scheme": "lora", "restore_from_path": None, "lora_tuning": lora}
    config = yaml.safe_load((base / "model_config.yaml").read_text()) | {"peft": peft}
    with tarfile.open(file, "w") as tar:
        for member, content in (
            ("model_config.yaml", yaml.safe_dump(config).encode()),
            ("model_weights.ckpt", saved.getvalue()),
        ):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            math.nan,
            "linear_in.weight holds values that are no numbers: its training has diverged. Lower lr.",
        ),
        (1e30, "The model's output is not finite: weights of the adapter or the base are no numbers"),
    ],
)
def test_answers_that_are_none(inputs, value, words):
    """Of an adapter that is broken, or whose product overflows."""
    write_adapter(inputs / "adapter.nemo", inputs / "base", value)
    files = "--adapter", inputs / "adapter.nemo", "--test", inputs / "val.jsonl", "--labels", "yes", "no", "maybe"
    output = "--work-dir", inputs / "predicting", "--output", inputs / "predictions.jsonl"
    done = call(inputs, SCRIPTS / "predict.py", SETTINGS | {"batch_size": 8, "tokens_to_generate": 3}, *files, *output)
    assert done.returncode != 0 and done.stderr.count(words) == 1, done.stderr
    assert not list(inputs.glob("predictions*"))

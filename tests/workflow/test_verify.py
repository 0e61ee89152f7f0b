"""verify_model on the architectures that are converted, random and tiny."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from common.files import read_json
from helpers import SCRIPTS, environment, run_script, snakemake
from tiny import write_sentencepiece, write_snapshot, write_tokenizer_json
from transformers import LlamaConfig, MistralConfig

SHAPES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 1024}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0}
LLAMA3 |= {"original_max_position_embeddings": 64}  # shorter than the prompts: the scaling takes part
ARCHITECTURES = {  # name: configuration, tokenizer, tensor-parallel ranks
    # heads without groups; 401 words, which two ranks can't share evenly
    "llama-1": (LlamaConfig(**SHAPES, num_attention_heads=4, vocab_size=401), write_sentencepiece, 2),
    "llama-3.1": (
        LlamaConfig(
            **SHAPES, num_attention_heads=8, num_key_value_heads=2, vocab_size=500, rope_theta=5e5, rope_scaling=LLAMA3
        ),
        write_tokenizer_json,
        1,
    ),
    "smollm2": (  # nine heads in three groups, tied embeddings
        LlamaConfig(
            **SHAPES | {"hidden_size": 144},
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=500,
            tie_word_embeddings=True,
        ),
        write_tokenizer_json,
        1,
    ),
    "mistral-nemo": (  # head_dim is not width / heads; no sliding window
        MistralConfig(
            **SHAPES,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=40,
            vocab_size=500,
            rope_theta=1e6,
            sliding_window=None,
        ),
        write_tokenizer_json,
        1,
    ),
}


def verify(snapshot, base, output, ranks=1):
    """The finished process, whether it passes or not."""
    command = ["torchrun", "--standalone", "--nproc-per-node", ranks, SCRIPTS / "verify_model.py"]
    command += ["--accelerator", "cpu", "--snapshot", snapshot, "--base", base, "--output", output]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment())


@pytest.mark.parametrize("before", ["1", None])
def test_no_tf32(before):
    """Its libraries read the variable once torch is there. What TF32 does to the logits only a GPU shows."""
    code = "import os, sys, verify_model; print(os.environ['NVIDIA_TF32_OVERRIDE'], 'torch' in sys.modules)"
    env = {key: value for key, value in environment().items() if key != "NVIDIA_TF32_OVERRIDE"}
    env |= {"NVIDIA_TF32_OVERRIDE": before} if before else {}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env).stdout == "0 False\n"


@pytest.mark.parametrize(("precision", "override"), [("32", "0"), ('"bf16"', None)])
def test_no_tf32_in_predictions_of_precision_32(precision, override):
    """Nor where an exported adapter is compared with them. Set before torch is there, as above."""
    code = "import os, sys, predict\n"
    code += "say = lambda *_: sys.exit(f\"{os.environ.get('NVIDIA_TF32_OVERRIDE')} {'torch' in sys.modules}\")\n"
    code += "predict.load_config = say; predict.main()"
    files = [word for name in ("base", "test", "work-dir", "output") for word in (f"--{name}", "none")]
    options = "--accelerator", "gpu", "--settings", f'{{"precision": {precision}}}', *files
    env = environment(TORCHELASTIC_RUN_ID="0")
    env.pop("NVIDIA_TF32_OVERRIDE", None)
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, env=env)
    assert done.stderr == f"{override} False\n"


def largest_difference(output):
    """Of the table that verify_model wrote."""
    header, *rows = (line.split("\t") for line in output.read_text().splitlines())
    assert header == ["prompt", "tokens", "next", "hugging_face", "nemo", "largest_difference"] and len(rows) == 9
    return max(float(row[-1]) for row in rows)


@pytest.mark.parametrize("name", ["llama-1", "llama-3.1"])  # test_export.py compares answers of the others
def test_converted_model_has_the_snapshots_logits(tmp_path, name):
    config, write_tokenizer, ranks = ARCHITECTURES[name]
    write_snapshot(tmp_path / "hf", config, write_tokenizer)
    run_script("convert_model.py", "--snapshot", tmp_path / "hf", "--output-dir", tmp_path / "base")
    done = verify(tmp_path / "hf", tmp_path / "base", tmp_path / "table.tsv", ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert largest_difference(tmp_path / "table.tsv") < 1e-4


def test_rule_and_packed_model(chain, tmp_path):
    """The tiny Mistral with its sliding window; from the packed file NeMo restores it as one of NVIDIA's."""
    done = snakemake(
        chain, "results/base/tiny.verification.tsv", "results/base/tiny.nemo", "--configfile", "chain.yaml"
    )
    assert done.returncode == 0, done.stdout
    assert largest_difference(chain / "results/base/tiny.verification.tsv") < 1e-4
    assert "results/base/tiny: the largest difference is " in (chain / "logs/verify_model/tiny.log").read_text()
    done = verify(chain / "tiny", chain / "results/base/tiny.nemo", tmp_path / "table.tsv")
    assert done.returncode == 0 and largest_difference(tmp_path / "table.tsv") < 1e-4


@pytest.mark.parametrize(
    ("rule", "target"),
    [
        ("train_lora", "results/runs/lora/fold0/seed0/adapter.nemo"),
        ("predict", "results/runs/base-tp2/fold0/seed0/predictions.jsonl"),
        ("verify_model", "results/base/tiny.verification.tsv"),
    ],
)
def test_purged_chunk(chain, tmp_path, rule, target):
    """A disk for scratch lost a file of the converted model: each step says so before it reads the model."""
    project = shutil.copytree(chain, tmp_path / "project", symlinks=True)
    chunk = "results/base/tiny/model_weights/model.decoder.layers.mlp.linear_fc1.weight/1.0.0"
    (project / chunk).unlink()
    shutil.rmtree(project / "results/runs/lora/fold0/seed0/training")  # it would be taken over
    done = snakemake(project, target, "--configfile", "chain.yaml", "--allowed-rules", rule, "--forcerun", rule)
    assert done.returncode == 1 and not (project / target).exists()
    log = next((project / "logs" / rule).rglob("*.log" if rule == "verify_model" else f"{target.split('/')[2]}/*.log"))
    assert f"{chunk} is missing. Convert the model again: remove results/base/tiny/model_config.yaml" in log.read_text()


def test_another_model_fails(tmp_path, tiny_mistral):
    """By a sliding window that is one word longer."""
    base, window = tmp_path / "base", read_json(tiny_mistral / "config.json")["sliding_window"]
    run_script("convert_model.py", "--snapshot", tiny_mistral, "--output-dir", base)
    config = yaml.safe_load((base / "model_config.yaml").read_text())
    assert config["window_size"] == [window - 1, 0]
    (base / "model_config.yaml").write_text(json.dumps(config | {"window_size": [window, 0]}))
    done = verify(tiny_mistral, base, tmp_path / "table.tsv")
    assert done.returncode == 1 and not (tmp_path / "table.tsv").exists()
    assert re.search(
        r"base: the largest difference is \S+, the largest logit \S+: this is not the model of", done.stderr
    )


def test_model_that_transformers_does_not_know(tmp_path, tiny_mistral):
    """As the 24.03 image's does not know head_dim."""
    snapshot = shutil.copytree(tiny_mistral, tmp_path / "hf")
    config = read_json(snapshot / "config.json")
    (snapshot / "config.json").write_text(json.dumps(config | {"head_dim": 16}))
    done = verify(snapshot, tmp_path / "base", tmp_path / "table.tsv")
    assert done.returncode == 1
    assert re.search(r"hf: transformers \S+ does not load it, so nothing is compared: .*size mismatch", done.stderr)
    assert "in hugging_face_logits" not in done.stderr

"""Conversion."""

import json
import shutil

import numpy as np
import pytest
import torch
import zarr
from files import read_json, sha256
from helpers import run_script
from hub import serve_hub
from nemo_torch import build_blending_indices
from safetensors.torch import load_file, save_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def snapshot(tiny_mistral, tmp_path):
    """The tiny model linked by the workflow, its links replaced by files that a test may change."""
    directory = tmp_path / "hf"
    run_script("download_model.py", "--snapshot", tiny_mistral, "--output-dir", directory)
    assert set(read_json(directory / "manifest.json")["files"]) > {"config.json", "tokenizer.model"}
    for link in directory.iterdir():
        if link.is_symlink():
            source = link.resolve()
            link.unlink()
            shutil.copyfile(source, link)
    return directory


def convert(snapshot, output, check=True):
    return run_script("convert_model.py", "--snapshot", snapshot, "--output-dir", output, check=check)


def tensors(snapshot):
    return {name: tensor for shard in snapshot.glob("*.safetensors") for name, tensor in load_file(shard).items()}


def stored(array):
    """A bf16 zarr array; zarr does not know bfloat16, so it reads 16-bit integers."""
    header = read_json(array / ".zarray")
    assert header["dtype"] == "bfloat16"
    (array / ".zarray").write_text(json.dumps(header | {"dtype": "<i2"}))
    return torch.from_numpy(np.asarray(zarr.open(str(array), mode="r"))).view(torch.bfloat16)


def test_converted_tensors_are_the_snapshots(snapshot, tmp_path):
    convert(snapshot, tmp_path / "base")
    weights, hf = tmp_path / "base/model_weights", tensors(snapshot)
    assert torch.equal(stored(weights / "model.embedding.word_embeddings.weight"), hf["model.embed_tokens.weight"])
    assert torch.equal(stored(weights / "model.output_layer.weight"), hf["lm_head.weight"])
    assert torch.equal(stored(weights / "model.decoder.final_layernorm.weight"), hf["model.norm.weight"])
    for name, source in {
        "self_attention.linear_qkv.layer_norm_weight": "input_layernorm",
        "self_attention.linear_proj.weight": "self_attn.o_proj",
        "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm",
        "mlp.linear_fc2.weight": "mlp.down_proj",
    }.items():
        layers = torch.stack([hf[f"model.layers.{layer}.{source}.weight"] for layer in range(4)])
        assert torch.equal(stored(weights / f"model.decoder.layers.{name}"), layers)
    fc1 = stored(weights / "model.decoder.layers.mlp.linear_fc1.weight")
    qkv = stored(weights / "model.decoder.layers.self_attention.linear_qkv.weight")
    for layer in range(4):
        mlp = f"model.layers.{layer}.mlp"
        assert torch.equal(fc1[layer], torch.cat([hf[f"{mlp}.gate_proj.weight"], hf[f"{mlp}.up_proj.weight"]]))
        q, k, v = (hf[f"model.layers.{layer}.self_attn.{name}_proj.weight"] for name in "qkv")
        # 8 heads in 4 groups of head_dim 24: a group is two queries, a key, a value
        groups = [[q[48 * g : 48 * (g + 1)], k[24 * g : 24 * (g + 1)], v[24 * g : 24 * (g + 1)]] for g in range(4)]
        assert torch.equal(qkv[layer], torch.cat([part for group in groups for part in group]))


def test_states_that_transformer_engine_asks_for(snapshot, tmp_path):
    convert(snapshot, tmp_path / "base")
    layers = [f"shard_{layer}_4.pt" for layer in range(4)]
    expected = {"model.decoder.final_layernorm._extra_state": ["shard_0_1.pt"]}
    for module in ("linear_qkv", "linear_proj", "core_attention"):
        expected[f"model.decoder.layers.self_attention.{module}._extra_state"] = layers
    for module in ("linear_fc1", "linear_fc2"):
        expected[f"model.decoder.layers.mlp.{module}._extra_state"] = layers
    states = (tmp_path / "base/model_weights").glob("*._extra_state")
    assert {state.name: sorted(file.name for file in state.iterdir()) for state in states} == expected


def test_snapshot_is_never_touched(tiny_mistral, tmp_path):
    """Another source under the same name replaces the links, not the files behind them."""
    before = {file.name: sha256(file) for file in tiny_mistral.iterdir()}
    output = tmp_path / "hf"
    run_script("download_model.py", "--snapshot", tiny_mistral, "--output-dir", output)
    files = {"config.json": b"{}", "model-00001-of-00003.safetensors": b"other", "tokenizer.model": b"spm"}
    with serve_hub("org/model", COMMIT, files) as (endpoint, _):
        hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
        run_script("download_model.py", "--repo", "org/model", "--revision", COMMIT, "--output-dir", output, **hub)
    assert set(read_json(output / "manifest.json")["files"]) == set(files)  # no shard of the other is left
    assert {file.name: sha256(file) for file in tiny_mistral.iterdir()} == before
    done = run_script("download_model.py", "--snapshot", output, "--output-dir", output, check=False)
    assert done.returncode == 1 and "move the snapshot to another directory" in done.stderr
    assert (output / "config.json").read_bytes() == b"{}"


def test_truncated_shard_is_named(snapshot, tmp_path):
    shard = snapshot / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    done = convert(snapshot, tmp_path / "base", check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert f"{shard}: not a whole safetensors file" in done.stderr


def test_conversion_that_the_disk_cannot_hold(snapshot, tmp_path):
    with open(snapshot / "other.safetensors", "wb") as file:
        file.truncate(2 * shutil.disk_usage(tmp_path).free)  # a file of holes takes no room
    done = convert(snapshot, tmp_path / "base", check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "GB of disk, " in done.stderr
    assert not list(tmp_path.glob(".base*")) and not (tmp_path / "base").exists()


def test_tied_embeddings_write_no_output_layer(snapshot, tmp_path):
    config = read_json(snapshot / "config.json")
    (snapshot / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    for shard in snapshot.glob("*.safetensors"):
        kept = {name: tensor for name, tensor in load_file(shard).items() if name != "lm_head.weight"}
        save_file(kept, shard)
    convert(snapshot, tmp_path / "base")
    assert not (tmp_path / "base/model_weights/model.output_layer.weight").exists()
    assert "share_embeddings_and_output_weights: true" in (tmp_path / "base/model_config.yaml").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "architecture GemmaForCausalLM"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling is"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type is llama3"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"intermediate_size": 300}, "mlp.gate_proj.weight has the shape [256, 128]; config.json makes it [300, 128]"),
        ({"num_hidden_layers": 5}, "tensors are missing, model.layers.4"),
        ({"num_hidden_layers": 3}, "holds model.layers.3"),
    ],
)
def test_conversion_refuses(snapshot, tmp_path, change, words):
    config = read_json(snapshot / "config.json")
    (snapshot / "config.json").write_text(json.dumps(config | change))
    done = convert(snapshot, tmp_path / "out/base", check=False)
    assert done.returncode == 1 and words in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_missing_shard_is_refused(snapshot, tmp_path):
    (snapshot / "model-00002-of-00003.safetensors").unlink()
    done = convert(snapshot, tmp_path / "base", check=False)
    assert done.returncode == 1 and "is a *.safetensors file missing?" in done.stderr


def test_blending_keeps_to_the_weights():
    dataset, sample = np.zeros(100, np.uint8), np.zeros(100, np.int64)
    build_blending_indices(dataset, sample, [0.75, 0.25], 2, 100, False)
    assert np.bincount(dataset).tolist() == [75, 25]
    assert sample[dataset == 1].tolist() == list(range(25))
    build_blending_indices(dataset, sample, [1.0], 1, 100, False)
    assert sample.tolist() == list(range(100)) and not dataset.any()

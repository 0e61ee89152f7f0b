"""Which adapter.nemo is read, and what is refused. That the numbers are right: tests/workflow/test_export.py."""

import io
import json
import os
import pickle
import tarfile

import pytest
import torch
import yaml
from common.files import read_json
from helpers import run_script
from model_formats.lora import by_module, peft_config
from model_formats.snapshot import Snapshot
from safetensors.torch import load_file

SHAPE = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 4}
SHAPE |= {
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "num_key_value_heads": 2,
    "head_dim": 5,
    "vocab_size": 8,
    "architectures": ["MistralForCausalLM"],
}
QKV = "self_attention.adapter_layer.lora_kqv_adapter"
UNFUSED = "self_attention.adapter_layer.lora_unfused_kqv_adapter.q_adapter"  # of NeMo's `variant: canonical`
PAIRS = {  # (columns of linear_in, rows of linear_out)
    QKV: (12, (4 + 2 + 2) * 5),
    "self_attention.adapter_layer.lora_dense_attention_adapter": (20, 12),
    "mlp.adapter_layer.lora_hto4h_adapter": (12, 40),
    "mlp.adapter_layer.lora_4htoh_adapter": (20, 12),
}
CONFIG = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1}
LORA = {"adapter_dim": 4, "alpha": 8, "adapter_dropout": 0.1, "layer_selection": None, "weight_tying": False}


@pytest.fixture
def snapshot(tmp_path):
    """Without weights, which nobody reads."""
    directory = tmp_path / "hf"
    directory.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json", "generation_config.json"):
        (directory / name).write_text(name)
    (directory / "config.json").write_text(json.dumps(SHAPE))
    manifest = {"source": "mistralai/Mistral-7B-v0.1", "revision": 40 * "a", "files": {}}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return Snapshot(directory)


def weights(pairs=PAIRS, layers=(0, 1, 2), model="model"):
    """Of a model on one rank."""
    torch.manual_seed(0)
    names = {f"{model}.decoder.layers.{layer}.{pair}": shape for layer in layers for pair, shape in pairs.items()}
    return {
        f"{name}.{side}.weight": tensor
        for name, (columns, rows) in names.items()
        for side, tensor in (("linear_in", torch.randn(4, columns)), ("linear_out", torch.randn(rows, 4)))
    }


def saved(ranks_weights):
    file = io.BytesIO()
    torch.save(ranks_weights, file)
    return file.getvalue()


def write_adapter(file, members, lora=None, **config):
    """A tar; members: {name: bytes}, beside the configuration."""
    peft = {"peft_scheme": "lora", "lora_tuning": LORA | (lora or {})}
    members = {"model_config.yaml": yaml.safe_dump({"peft": peft} | CONFIG | config).encode()} | members
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def refused(file, snapshot):
    with pytest.raises(SystemExit) as error:
        by_module(file, snapshot)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("model", ["model", "model.module"])
@pytest.mark.parametrize("pairs", [*([pair] for pair in PAIRS), list(PAIRS)])
def test_each_module_alone_and_all(tmp_path, snapshot, pairs, model):
    found = weights({pair: PAIRS[pair] for pair in pairs}, model=model)
    file = write_adapter(tmp_path / "adapter.nemo", {"model_weights.ckpt": saved(found)})
    config, modules = by_module(file, snapshot)
    shapes = snapshot.expected_shapes()
    assert all((b @ a).shape == tuple(shapes[f"{module}.weight"]) for module, (a, b) in modules.items())
    if QKV in pairs:  # of the second group, its query heads and its key head
        whole = found[f"{model}.decoder.layers.1.{QKV}.linear_out.weight"].view(8, 5, 4)
        q, k = (modules[f"model.layers.1.self_attn.{name}_proj"][1].view(-1, 5, 4) for name in "qk")
        assert torch.equal(q[2:], whole[4:6]) and torch.equal(k[1], whole[6])
    written = peft_config(config, modules, snapshot, "base", None)
    assert (written["r"], written["lora_alpha"], written["lora_dropout"]) == (4, 8, 0.0)
    assert len(written["target_modules"]) == len(modules) / 3 and "layers_to_transform" not in written


def test_keys_of_the_configuration(tmp_path, snapshot):
    """Dropout that was on the input is PEFT's own; alpha without a value is the rank; only some layers."""
    lora = {"dropout_position": "pre", "alpha": None, "layer_selection": [1, 3]}
    file = write_adapter(tmp_path / "adapter.nemo", {"model_weights.ckpt": saved(weights(layers=[0, 2]))}, lora)
    written = peft_config(*by_module(file, snapshot), snapshot, "base", None)
    assert (written["lora_dropout"], written["lora_alpha"], written["layers_to_transform"]) == (0.1, 4, [0, 2])


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def test_no_code_of_a_pickle_runs(tmp_path, snapshot, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (saved(weights() | {"more": Malicious()}), pickle.dumps(Malicious()), saved([1]), saved({"a": 1})):
        file = write_adapter(tmp_path / "adapter.nemo", {"model_weights.ckpt": content})
        assert "model_weights.ckpt holds more than tensors, or is damaged, and is refused" in refused(file, snapshot)
    assert not (tmp_path / "made-by-a-pickle").exists()


@pytest.mark.parametrize(
    ("words", "found", "lora", "config"),
    [
        ("holds no mp_rank_00/model_weights.ckpt", weights(), {}, {"tensor_model_parallel_size": 2}),
        ("its pipeline_model_parallel_size is 2", weights(), {}, {"pipeline_model_parallel_size": 2}),
        ("its peft_scheme is ptuning", weights(), {}, {"peft": {"peft_scheme": "ptuning"}}),
        ("its peft_scheme is None", weights(), {}, {"peft": None}),
        ("lora_unfused_kqv_adapter.q_adapter.linear_in", weights({UNFUSED: (12, 20)}), {}, {}),
        ("has adapter_dim None and alpha", weights(), {"adapter_dim": None}, {}),
        ("has adapter_dim None and alpha None", weights(), {}, {"peft": {"peft_scheme": "lora"}}),
        ("no adapter of NeMo, or damaged", weights(), {}, {"tensor_model_parallel_size": "two"}),
        ("without weight_tying", weights(), {"weight_tying": True}, {}),
        ("are not whole", dict(list(weights().items())[:-1]), {}, {}),
        ("which do not fit", weights({QKV: (12, 30)}), {}, {}),
        ("which do not fit", weights({QKV: (16, 40)}), {}, {}),
        ("which do not fit", weights(), {"adapter_dim": 8}, {}),
        ("which do not fit", weights(layers=range(4)), {}, {}),
        ("has not the 3 layers", weights(layers=[0, 1]), {}, {}),
        ("has not the 2 layers", weights(), {"layer_selection": [1, 2]}, {}),
    ],
)  # fmt: skip
def test_refused(tmp_path, snapshot, words, found, lora, config):
    file = write_adapter(tmp_path / "adapter.nemo", {"model_weights.ckpt": saved(found)}, lora, **config)
    assert words in refused(file, snapshot)


def test_ranks_that_do_not_fit_together(tmp_path, snapshot):
    ranks = {f"mp_rank_{rank:02d}/model_weights.ckpt": saved(weights(layers=range(rank + 1))) for rank in range(2)}
    file = write_adapter(tmp_path / "adapter.nemo", ranks, tensor_model_parallel_size=2)
    assert "do not fit together" in refused(file, snapshot)


def test_files_that_are_no_adapter(tmp_path, snapshot):
    file = tmp_path / "adapter.nemo"
    assert "No such file" in refused(file, snapshot)
    file.write_text("text")
    assert "no adapter of NeMo, or damaged" in refused(file, snapshot)
    whole = write_adapter(file, {"model_weights.ckpt": saved(weights())}).read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "no adapter of NeMo, or damaged" in refused(file, snapshot)
    write_adapter(file, {"model_weights.ckpt": saved(weights())[:-100]})
    assert "or is damaged, and is refused" in refused(file, snapshot)
    with tarfile.open(file, "w") as tar:  # a link out of the tar
        link = tarfile.TarInfo("model_config.yaml")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert "holds no model_config.yaml" in refused(file, snapshot)


def test_directory(tmp_path, snapshot):
    """Files of another model's tokenizer go, others stay; readable for others; a base of the Hub by its name."""
    file = write_adapter(tmp_path / "adapter.nemo", {"model_weights.ckpt": saved(weights())})
    (tmp_path / "peft").mkdir()
    for name in ("README.md", "tokenizer.json", "tokenizer.model"):
        (tmp_path / "peft" / name).write_text("former")
    options = "--adapter", file, "--snapshot", snapshot.directory, "--output-dir", tmp_path / "peft"
    done = run_script("export_adapter.py", *options)
    assert "lora_dropout is 0: NeMo's dropout, 0.1, was on the adapter's output" in done.stdout
    found = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "peft").iterdir()}
    assert found == dict.fromkeys(
        ("README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.model", "tokenizer_config.json"),
        (tmp_path / "peft/README.md").stat().st_mode & 0o777,
    )
    assert (tmp_path / "peft/README.md").read_text() == "former"
    assert (tmp_path / "peft/tokenizer.model").read_text() == "tokenizer.model"
    config = read_json(tmp_path / "peft/adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == ("mistralai/Mistral-7B-v0.1", 40 * "a")
    assert len(load_file(tmp_path / "peft/adapter_model.safetensors")) == 3 * 7 * 2
    (snapshot.directory / "manifest.json").unlink()
    done = run_script("export_adapter.py", *options, check=False)
    assert (
        done.returncode == 1
        and done.stderr == f"{snapshot.directory}: holds no manifest.json, as download_model writes it.\n"
    )

"""import_adapter: adapters in PEFT's format and NeMo's become NeMo's of tensor parallelism 1, to the last bit; what
would not is refused. That NeMo answers with them as PEFT does: tests/workflow/test_imported.py."""

import itertools
import json
import shutil
import sys
import tarfile

import import_adapter
import pytest
import torch
import yaml
from common.files import read_json, sha256
from helpers import adapter_weights, change_weights, run_script
from model_formats.lora import by_module
from model_formats.snapshot import Snapshot
from peft import EvaConfig
from test_lora import PAIRS, QKV, Malicious, saved, weights
from test_lora import snapshot as nemo_snapshot  # noqa: F401
from test_lora import write_adapter as write_nemo
from test_merge import BASES, change_config
from tiny import ALL, write_snapshot
from tiny import write_adapter as write_peft

BASE = {"hidden_size": 128, "tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "precision": "bf16"}


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    return {name: write_snapshot(tmp_path_factory.mktemp(name) / "hf", *base) for name, base in BASES.items()}


@pytest.fixture
def take(tmp_path, monkeypatch):
    """take(snapshot, adapter, …): the configuration and modules of what import_adapter made of it."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base/model_config.yaml").write_text(yaml.safe_dump(BASE))

    def take(snapshot, adapter, *options):
        adapter = f"--{'directory' if adapter.is_dir() else 'nemo'}", adapter
        output = tmp_path / "imported/adapter.nemo"
        options = *adapter, "--snapshot", snapshot, "--base", tmp_path / "base", "--output", output, *options
        monkeypatch.setattr(sys, "argv", ["import_adapter.py", *map(str, options)])
        import_adapter.main()
        return by_module(output, Snapshot(snapshot))

    return take


@pytest.fixture
def refused(take, tmp_path):
    """refused(snapshot, adapter, words): import_adapter says them in one line, and makes nothing."""

    def refused(snapshot, adapter, words):
        with pytest.raises(SystemExit) as said:
            take(snapshot, adapter)
        said = str(said.value)
        assert words in said and said.startswith(str(adapter)) and len(said.splitlines()) == 1, said
        assert not (tmp_path / "imported").exists() or not list((tmp_path / "imported").iterdir())

    return refused


def whole(name, tensor):
    """Small whole numbers: their products and sums are exact."""
    return (tensor * 30).round()


def scale(config):
    lora = config["peft"]["lora_tuning"]
    return lora["alpha"] / lora["adapter_dim"]


EVA = EvaConfig()
CASES = {  # targets, options of peft, rank, alpha and layers in NeMo
    "all": (ALL, {}, 15, 36, None),
    "queries and values": (["q_proj", "v_proj"], {}, 10, 24, None),
    "keys": (["k_proj"], {}, 5, 12, None),
    "up": (["up_proj"], {}, 5, 12, None),
    "gate, up and down": (ALL[4:], {}, 10, 24, None),
    "alpha": (["o_proj"], {"r": 49, "lora_alpha": 1}, 49, 1, None),
    "rslora": (["q_proj", "v_proj", "o_proj"], {"r": 16, "use_rslora": True}, 32, 96, None),
    "rslora of no square": (["o_proj"], {"use_rslora": True}, 5, 12 / 5**0.5 * 5, None),
    "a layer": (ALL, {"layers_to_transform": [1]}, 15, 36, [2]),
    "layers by their pattern": (ALL, {"layers_to_transform": [1], "layers_pattern": "layers"}, 15, 36, [2]),
    "layers by patterns": (ALL, {"layers_to_transform": [1], "layers_pattern": ["layers"]}, 15, 36, [2]),
    "excluded": (["q_proj", "up_proj"], {"exclude_modules": ["lm_head", "layers.0.mlp.up_proj"]}, 5, 12, None),
    "excluded by expression": (["q_proj", "k_proj"], {"exclude_modules": r".*\.k_proj"}, 5, 12, None),
    "orthogonal": (["o_proj"], {"r": 4, "lora_alpha": 8, "init_lora_weights": "orthogonal"}, 4, 8, None),
    "eva": (["o_proj"], {"init_lora_weights": "eva", "eva_config": EVA}, 5, 12, None),
    "modules by layer": (r".*(layers\.1\..*q_proj|layers\.0\..*up_proj)", {}, 5, 12, None),
    "ranks and alphas": (
        ["q_proj", "k_proj", "down_proj"],
        {"r": 4, "lora_alpha": 8, "rank_pattern": {"k_proj": 6, r"^model.layers.1.mlp.down_proj": 8}}
        | {"alpha_pattern": {"self_attn.k_proj": 12}},  # scales 2, 2 and 1
        10,
        20,
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("base", "name"), [*itertools.product(["mistral"], CASES), ("tied", "all")])
def test_peft(snapshots, take, tmp_path, base, name):
    """Each module is changed by what PEFT changes it, and no other."""
    targets, options, rank, alpha, layers = CASES[name]
    write_peft(snapshots[base], tmp_path / "peft", targets, **options)
    change_weights(tmp_path / "peft", whole)
    config, modules = take(snapshots[base], tmp_path / "peft")
    lora = config["peft"]["lora_tuning"]
    assert (lora["adapter_dim"], lora["alpha"], lora["layer_selection"]) == (rank, alpha, layers)
    model = peft_model(snapshots[base], tmp_path / "peft")
    changed = set()
    for module, layer in model.items():
        a, b = (matrix["default"].weight.detach().double() for matrix in (layer.lora_A, layer.lora_B))
        ours = modules[module][1].double() @ modules[module][0].double()
        if layer.scaling["default"] == scale(config):
            assert torch.equal(ours, b @ a)
        assert torch.allclose(scale(config) * ours, layer.scaling["default"] * (b @ a), rtol=1e-15, atol=0)
        changed.add(module)
    assert changed and all(not modules[module][1].any() for module in modules.keys() - changed)


def peft_model(snapshot, adapter):
    """{module: PEFT's layer}"""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(snapshot), adapter)
    named = model.base_model.model.named_modules()
    return {name: module for name, module in named if hasattr(module, "lora_A")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_precision_is_kept(snapshots, take, tmp_path, dtype):
    """The weights' bits, too."""
    write_peft(snapshots["mistral"], tmp_path / "peft")
    change_weights(tmp_path / "peft", lambda name, tensor: tensor.to(dtype))
    _, modules = take(snapshots["mistral"], tmp_path / "peft")
    for module, layer in peft_model(snapshots["mistral"], tmp_path / "peft").items():
        a, b = modules[module]
        start = {"k_proj": 5, "v_proj": 10, "up_proj": 5}.get(module.split(".")[-1], 0)
        assert a.dtype == b.dtype == dtype
        assert torch.equal(a[start : start + 5].float(), layer.lora_A["default"].weight.float())
        assert torch.equal(b[:, start : start + 5].float(), layer.lora_B["default"].weight.float())


def test_mixed_precision_is_the_wider(snapshots, take, tmp_path):
    write_peft(snapshots["mistral"], tmp_path / "peft", ["q_proj", "o_proj"])
    change_weights(tmp_path / "peft", lambda name, tensor: tensor.to(torch.float16 if "q_" in name else torch.bfloat16))
    _, modules = take(snapshots["mistral"], tmp_path / "peft")
    assert {tensor.dtype for pair in modules.values() for tensor in pair} == {torch.float32}


LORA = {"adapter_dim": 4, "alpha": 6}
FC1 = "mlp.adapter_layer.lora_hto4h_adapter"


@pytest.mark.parametrize("way", ["peft", "nemo"])
@pytest.mark.parametrize(
    ("pairs", "layers", "dtype"),
    [
        *(([pair], (0, 1, 2), torch.float32) for pair in PAIRS),
        (list(PAIRS), (0, 1, 2), torch.bfloat16),
        (list(PAIRS), (0, 2), torch.float32),
    ],
)
def test_export_and_import(take, nemo_snapshot, tmp_path, pairs, layers, dtype, way):  # noqa: F811
    """Come back as they were: by export_adapter, and as adapter.nemo itself."""
    found = {name: tensor.to(dtype) for name, tensor in weights({pair: PAIRS[pair] for pair in pairs}, layers).items()}
    lora = LORA | {"layer_selection": None if len(layers) == 3 else [layer + 1 for layer in layers]}
    file = write_nemo(tmp_path / "adapter.nemo", {"model_weights.ckpt": saved(found)}, lora)
    if way == "peft":
        options = "--snapshot", nemo_snapshot.directory, "--output-dir", tmp_path / "peft"
        run_script("export_adapter.py", "--adapter", file, *options)
        write_linear_layers(nemo_snapshot.directory)
        file = tmp_path / "peft"
    config, _ = take(nemo_snapshot.directory, file)
    made = adapter_weights(tmp_path / "imported/adapter.nemo")
    assert made.keys() == found.keys()
    assert all(tensor.dtype == dtype and torch.equal(tensor, found[name]) for name, tensor in made.items())
    assert lora.items() <= config["peft"]["lora_tuning"].items()
    assert {key: value for key, value in config.items() if key != "peft"} == BASE


def write_linear_layers(directory):
    """The weights of test_lora's snapshot, which had none."""
    from safetensors.torch import save_file

    shapes = Snapshot(directory).expected_shapes()
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, directory / "model.safetensors")


def test_nemo_of_two_ranks(take, nemo_snapshot, tmp_path):  # noqa: F811
    """The whole of each rank's shares, as export_adapter sees it. Nothing of its configuration is taken over."""
    names = [f"model.decoder.layers.{layer}.{pair}" for layer in range(3) for pair in (QKV, FC1)]
    ranks = {}
    for rank in range(2):  # of rank 8, of which each has 4, and half of the rows of linear_out
        share = {f"{name}.linear_in.weight": torch.randn(4, 12) for name in names}
        share |= {f"{name}.linear_out.weight": torch.randn(20, 8) for name in names}
        ranks[f"mp_rank_0{rank}/model_weights.ckpt"] = saved(share)
    config = {"tensor_model_parallel_size": 2, "tokenizer": {"library": "theirs"}}
    file = write_nemo(tmp_path / "adapter.nemo", ranks, {"adapter_dim": 8}, **config)
    expected = by_module(file, nemo_snapshot)[1]
    config, modules = take(nemo_snapshot.directory, file)
    assert all(torch.equal(one, two) for name in expected for one, two in zip(expected[name], modules[name]))
    assert config["tensor_model_parallel_size"] == 1 and "tokenizer" not in config
    with tarfile.open(tmp_path / "imported/adapter.nemo") as tar:
        assert tar.getnames() == ["./model_config.yaml", "./model_weights.ckpt"]
        assert {member.mtime for member in tar} == {0}


def test_provenance(snapshots, take, tmp_path):
    write_peft(snapshots["mistral"], tmp_path / "peft", ["q_proj"])
    take(snapshots["mistral"], tmp_path / "peft", "--source", "org/adapter@0123")
    first = sha256(tmp_path / "imported/adapter.nemo")
    provenance = read_json(tmp_path / "imported/adapter.provenance.json")
    files = {name: tmp_path / "peft" / name for name in ("adapter_config.json", "adapter_model.safetensors")}
    files |= {"base": tmp_path / "base/model_config.yaml", "result": tmp_path / "imported/adapter.nemo"}
    assert provenance["sha256"] == {name: sha256(file) for name, file in files.items()}
    assert provenance["imported"] == "org/adapter@0123"
    settings = {"target_modules": ["attention_qkv"], "adapter_dim": 5, "alpha": 12}
    assert provenance["settings"] == {"adapter": "org/adapter@0123", **settings}
    take(snapshots["mistral"], tmp_path / "peft")
    assert sha256(tmp_path / "imported/adapter.nemo") == first
    assert read_json(tmp_path / "imported/adapter.provenance.json")["imported"] == str(tmp_path / "peft")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"use_dora": True}, "adapter_config.json: use_dora is True, which is not supported"),
        ({"bias": "lora_only"}, "bias is lora_only"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        ({"targets": ["q_proj", "lm_head"]}, "holds base_model.model.lm_head"),
        ({"targets": ["q_proj", "embed_tokens"]}, "holds base_model.model.model.embed_tokens"),
        ({"targets": ["q_proj", "o_proj"], "alpha_pattern": {"o_proj": 7}}, "NeMo has one for all"),
        ({"rank_pattern": {"q_proj": 3}, "targets": ["q_proj", "o_proj"]}, "alpha / rank is"),
    ],
)
def test_more_than_nemo_has(snapshots, refused, tmp_path, options, words):
    options = {"targets": ["q_proj"]} | options
    write_peft(snapshots["mistral"], tmp_path / "peft", **options)
    refused(snapshots["mistral"], tmp_path / "peft", words)


def test_another_base(snapshots, refused, tmp_path):
    write_peft(snapshots["mistral"], tmp_path / "peft", ["q_proj"])
    refused(snapshots["tied"], tmp_path / "peft", "q_proj has the shape [192, 5]; base and r make it [128, 5]")
    file = write_nemo(tmp_path / "adapter.nemo", {"model_weights.ckpt": saved(weights())})
    refused(snapshots["mistral"], file, "Is it another model's adapter?")
    snapshot = shutil.copytree(snapshots["mistral"], tmp_path / "hf-of-the-hub")
    (snapshot / "manifest.json").write_text(json.dumps({"source": "org/base", "revision": 40 * "1", "files": {}}))
    change_config(tmp_path / "peft", base_model_name_or_path="org/other")
    hint = "the snapshot is org/base; if the one is the other, write org/base into base_model_name_or_path"
    refused(snapshot, tmp_path / "peft", hint)


def test_nemo_with_code_or_without_numbers(refused, nemo_snapshot, tmp_path):  # noqa: F811
    file = write_nemo(tmp_path / "adapter.nemo", {"model_weights.ckpt": saved({"weight": Malicious()})})
    refused(nemo_snapshot.directory, file, "holds more than tensors")
    file = write_nemo(tmp_path / "adapter.nemo", {"model_weights.ckpt": saved({"weight": torch.ones(2, 2).int()})})
    refused(nemo_snapshot.directory, file, "holds more than tensors")
    for lora in ({"alpha": "${.adapter_dim}"}, {"adapter_dim": None}):
        file = write_nemo(tmp_path / "adapter.nemo", {"model_weights.ckpt": saved(weights())}, lora)
        refused(nemo_snapshot.directory, file, f"{next(iter(lora))} {next(iter(lora.values()))}")


def test_weights_that_are_no_numbers(snapshots, refused, nemo_snapshot, tmp_path):  # noqa: F811
    write_peft(snapshots["mistral"], tmp_path / "peft", ["q_proj"])
    change_weights(tmp_path / "peft", lambda name, tensor: tensor / ("layers.1." not in name))
    refused(snapshots["mistral"], tmp_path / "peft", "lora_A.weight holds values that are no numbers")
    broken = {name: tensor * float("nan") for name, tensor in weights().items()}
    file = write_nemo(tmp_path / "adapter.nemo", {"model_weights.ckpt": saved(broken)})
    refused(nemo_snapshot.directory, file, "holds values that are no numbers: its training has diverged")

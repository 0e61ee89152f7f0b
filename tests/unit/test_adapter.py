"""An adapter in NeMo's model: each rank's share, and what is refused. With NeMo: tests/workflow/test_shapes.py."""

import sys
import types

import pytest
import torch
from nemo_image.adapter import Adapter
from test_lora import PAIRS, QKV, saved, weights, write_adapter

GATE_UP = "mlp.adapter_layer.lora_hto4h_adapter"
DENSE = "self_attention.adapter_layer.lora_dense_attention_adapter"


@pytest.fixture
def rank(monkeypatch):
    """rank(number, ranks): this process is that rank, to megatron-core."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")

    def be(number, ranks):
        state = types.SimpleNamespace(
            get_tensor_model_parallel_rank=lambda: number, get_tensor_model_parallel_world_size=lambda: ranks
        )
        monkeypatch.setitem(sys.modules, "megatron.core", types.SimpleNamespace(parallel_state=state))

    return be


class Model:
    """Has parameters of these shapes, and one that is none of the adapter's."""

    def __init__(self, shapes):
        self.parameters = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
        self.base = torch.nn.Parameter(torch.ones(2))

    def named_parameters(self):
        return [*self.parameters.items(), ("model.embedding.weight", self.base)]


def adapter(tmp_path, found=None, **options):
    content = saved(weights() if found is None else found)
    return Adapter(write_adapter(tmp_path / "adapter.nemo", {"model_weights.ckpt": content}, **options))


def test_each_rank_gets_its_share(tmp_path, rank):
    """By the shapes that megatron-core's layers have on each of two ranks, with names as megatron_amp_O2 makes them."""
    own = {
        f"{QKV}.linear_in": (2, 12),
        f"{QKV}.linear_out": (20, 4),
        f"{DENSE}.linear_in": (4, 10),
        f"{DENSE}.linear_out": (6, 4),
        f"{GATE_UP}.linear_in": (2, 12),
        f"{GATE_UP}.linear_out": (20, 4),
        "mlp.adapter_layer.lora_4htoh_adapter.linear_in": (4, 10),
        "mlp.adapter_layer.lora_4htoh_adapter.linear_out": (6, 4),
    }
    shapes = {
        f"model.module.decoder.layers.{layer}.{name}.weight": shape for layer in range(3) for name, shape in own.items()
    }
    models = []
    for number in range(2):
        rank(number, 2)
        models.append(Model(shapes))
        adapter(tmp_path).fill(models[-1])
        assert torch.equal(models[-1].base, torch.ones(2))
    of_layer = "decoder.layers.1"
    one, two = ({name: p.data for name, p in model.parameters.items()} for model in models)
    for pair, (columns, rows) in PAIRS.items():
        for side, total in ("linear_in", 4 * columns), ("linear_out", rows * 4):
            name = f"{of_layer}.{pair}.{side}.weight"
            first, second, whole = one[f"model.module.{name}"], two[f"model.module.{name}"], weights()[f"model.{name}"]
            assert whole.numel() == total
            if (pair, side) == (GATE_UP, "linear_out"):  # 20 rows of gate, then 20 of up: each rank has ten of both
                assert torch.equal(first, torch.cat([whole[:10], whole[20:30]]))
                assert torch.equal(second, torch.cat([whole[10:20], whole[30:]]))
            else:
                assert torch.equal(torch.cat([first, second], dim=int(side == "linear_in" and columns == 20)), whole)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda shapes: shapes.popitem(),
            "has too much: layer 2, lora_4htoh_adapter.linear_out, of the 23 in the model.",
        ),
        (
            lambda shapes: shapes.update({f"model.decoder.layers.3.{QKV}.linear_in.weight": (4, 12)}),
            "lacks layer 3, lora_kqv_adapter.linear_in, of the 25 in the model.",
        ),
        (
            lambda shapes: shapes.update({f"model.decoder.layers.0.{QKV}.linear_in.weight": (4, 16)}),
            "layer 0, lora_kqv_adapter.linear_in is [4, 12], for 1 ranks of [4, 16]: another model's adapter.",
        ),
    ],
)
def test_weights_that_do_not_fit(tmp_path, rank, change, words):
    rank(0, 1)
    shapes = {name: tensor.shape for name, tensor in weights().items()}
    change(shapes)
    with pytest.raises(SystemExit) as error:
        adapter(tmp_path).fill(Model(shapes))
    assert str(error.value) == f"{tmp_path}/adapter.nemo: {words}"


def test_configuration_of_training(tmp_path, monkeypatch):
    """What it had changed of the model is kept; what is the base's, the tokenizer's or this step's is not."""
    from omegaconf import OmegaConf

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    own = {"rotary_base": 5, "fp8": True, "hidden_size": None, "num_layers": 3, "tokenizer": {"model": "/theirs"}}
    model_config = OmegaConf.create({"num_layers": 3, "hidden_size": 12, "tokenizer": {"model": "ours"}, "fp8": False})
    OmegaConf.set_struct(model_config, True)
    given = OmegaConf.create({"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 1, "fp8": False})
    given.peft = {"peft_scheme": "lora"}
    read = adapter(tmp_path, target="os.system", **own)
    read.complete("base", model_config, given)
    assert model_config == {
        **{"num_layers": 3, "hidden_size": 12, "tokenizer": {"model": "ours"}, "fp8": False, "rotary_base": 5}
    }
    for change, words in (
        (
            lambda: given.update(tensor_model_parallel_size=3),
            "tensor_model_parallel_size 3 does not divide its adapter_dim 4.",
        ),
        (
            lambda: model_config.update(num_layers=4),
            "its num_layers is 3, that of base 4: it is another model's adapter.",
        ),
    ):
        change()
        with pytest.raises(SystemExit) as error:
            read.complete("base", model_config, given)
        assert str(error.value) == f"{tmp_path}/adapter.nemo: {words}"


def test_start_of_another_form(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    form = {"adapter_dim": 4, "alpha": 8, "target_modules": ["attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2"]}
    for key, other in ("adapter_dim", 8), ("alpha", 24), ("target_modules", ["attention_qkv"]):
        with pytest.raises(SystemExit) as error:
            adapter(tmp_path).begin(None, form | {key: other})
        found = sorted(form[key]) if key == "target_modules" else form[key]
        problem = f"its {key} is {found}, but {other} in the training that starts from it."
        assert str(error.value) == f"{tmp_path}/adapter.nemo: {problem}"

"""A merged model is what peft makes of base and adapter: its weights, and its logits."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from common.files import read_json
from helpers import KILLED, SCRIPTS, change_weights, environment, run_script
from merge_model import from_fp32
from safetensors.torch import load_file, save_file
from tiny import ALL, write_adapter, write_sentencepiece, write_snapshot, write_tokenizer_json
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

SHAPES = {"hidden_size": 128, "intermediate_size": 1200, "num_hidden_layers": 2, "vocab_size": 400}  # several blocks
SHAPES |= {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 256}
BASES = {
    "mistral": (MistralConfig(**SHAPES, head_dim=24, sliding_window=16), write_sentencepiece),
    "tied": (LlamaConfig(**SHAPES, tie_word_embeddings=True), write_tokenizer_json),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """{name: its snapshot in bf16}"""
    directory = tmp_path_factory.mktemp("bases")
    return {name: write_snapshot(directory / name, *base) for name, base in BASES.items()}


@pytest.fixture
def base(bases, tmp_path):
    return shutil.copytree(bases["mistral"], tmp_path / "hf")


def change_config(adapter, **keys):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(read_json(file) | keys))


def merge(snapshot, adapter, output, check=True):
    arguments = "--snapshot", snapshot, "--adapter", adapter, "--output", output
    return run_script("merge_model.py", *arguments, check=check)


def weights(directory):
    """{name: tensor}"""
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def contents(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def header(file):
    data = file.read_bytes()
    return data[: 8 + int.from_bytes(data[:8], "little")]


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 63).view(2, 30)).logits


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (ALL[:3], {}),
        (["o_proj"], {}),
        (ALL[4:6], {}),
        (["down_proj"], {}),
        (ALL, {}),
        (ALL, {"use_rslora": True}),
        (ALL, {"layers_to_transform": [1]}),
        (ALL, {"layers_to_transform": 0}),
        (r".*layers\.1\..*(q_proj|up_proj)", {}),
        (ALL, {"rank_pattern": {"q_proj": 3, r"layers.1.mlp.up_proj": 8}, "alpha_pattern": {"v_proj": 7}}),
    ],
)
def test_merged_is_base_with_adapter_in_fp32(bases, tmp_path, name, targets, options):
    base = shutil.copytree(bases[name], tmp_path / "hf")
    change_weights(base, lambda name, tensor: tensor.float())
    model = write_adapter(base, tmp_path / "adapter", targets, **options)
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    with model.disable_adapter():
        before = logits(model)
    expected = logits(model)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", torch_dtype=torch.float32)
    assert (logits(merged) - expected).abs().max() < 1e-4 < 0.1 < (before - expected).abs().max()
    old, new, pefts = weights(base), weights(tmp_path / "merged"), model.merge_and_unload().state_dict()
    assert new.keys() == old.keys()
    for key, tensor in new.items():
        torch.testing.assert_close(tensor, pefts[key], rtol=1e-6, atol=1e-6)
    changed = {key for key in new if not torch.equal(old[key], new[key])}
    modules = {
        key.split("base_model.model.")[1].split(".lora")[0]
        for key in load_file(tmp_path / "adapter/adapter_model.safetensors")
    }
    assert changed == {f"{module}.weight" for module in modules}


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_rounded_once_to_the_snapshots_dtype(bases, tmp_path, name, dtype, bits):
    """No further from the exact sum than half of the dtype's last digit."""
    base = shutil.copytree(bases[name], tmp_path / "hf")
    change_weights(base, lambda name, tensor: tensor.to(dtype))
    model = write_adapter(base, tmp_path / "adapter").double().merge_and_unload().state_dict()
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    for key, tensor in weights(tmp_path / "merged").items():
        assert tensor.dtype == dtype
        exact = model[key]
        digit = 2.0 ** (torch.frexp(exact).exponent.double() - bits).clamp(min=-24)  # of f16; too small here for bf16
        assert ((tensor.double() - exact).abs() <= digit / 2 + 3e-7).all()


def test_rounding_is_torchs():
    """Of every bf16 and what lies between it and the next: ties go to even."""
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    values = ((np.arange(1 << 16, dtype=np.uint32) << 16)[:, None] | low).reshape(-1).view(np.float32)
    values = values[np.abs(values) < 2.0**128 - 2.0**119]
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    assert len(values) > 390_000 and (from_fp32(values.reshape(2, -1), "BF16").reshape(-1) == expected.view("u2")).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapter_in_half_precision(base, tmp_path, dtype):
    write_adapter(base, tmp_path / "adapter")
    change_weights(tmp_path / "adapter", lambda name, tensor: tensor.to(dtype))
    merge(base, tmp_path / "adapter", tmp_path / "half")
    change_weights(tmp_path / "adapter", lambda name, tensor: tensor.float())
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert contents(tmp_path / "half") == contents(tmp_path / "merged") != contents(base)


def test_all_else_is_the_snapshots_own(base, tmp_path):
    write_adapter(base, tmp_path / "adapter")
    (base / "manifest.json").write_text('{"source": "tiny", "revision": null, "files": {}}')
    moved = base.rename(tmp_path / "elsewhere")  # the workflow's own snapshots are links
    base.mkdir()
    for file in moved.iterdir():
        (base / file.name).symlink_to(file)
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    old, new = contents(base), contents(tmp_path / "merged")
    assert new.keys() == old.keys() - {"manifest.json"}
    assert not any(file.is_symlink() for file in (tmp_path / "merged").iterdir())
    shards = {name for name in new if name.endswith(".safetensors")}
    assert len(shards) > 1 and {name for name in new if new[name] != old[name]} == shards
    for name in shards:
        assert header(base / name) == header(tmp_path / "merged" / name) and len(old[name]) == len(new[name])


def check_refusal(base, adapter, output, *words):
    done = merge(base, adapter, output, check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not output.exists() and not list(output.parent.glob(f".{output.name}*"))


@pytest.fixture(scope="module")
def of_queries_and_values(bases, tmp_path_factory):
    write_adapter(bases["mistral"], directory := tmp_path_factory.mktemp("adapter"), ["q_proj", "v_proj"])
    return directory


@pytest.fixture
def adapter(of_queries_and_values, tmp_path):
    return shutil.copytree(of_queries_and_values, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"use_dora": True}, "use_dora is True, which is not supported"),
        ({"bias": "all"}, "bias is all"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"peft_type": "LOHA"}, "peft_type is LOHA; only LORA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern.q_proj is None, not a number"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern is ['q_proj'], no object"),
        ({"rank_pattern": {"q_proj": 3}}, "q_proj has the shape [5, 128]; base and r make it [3, 128]"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj is 0, not a positive number"),
        ({"rank_pattern": {"(": 3}}, "( is no regular expression"),
        ({"target_modules": "("}, "( is no regular expression"),
        ({"target_modules": 3}, "target_modules is 3"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is pissa"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"of_a_later_peft": {"a": 1}}, "of_a_later_peft is {'a': 1}"),
        ({"lora_alpha": None}, "lora_alpha is None, not a number"),
        ({"target_modules": ["q_proj"]}, "holds model.layers.0.self_attn.v_proj, which target_modules"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "model.layers.0.self_attn.o_proj is missing"),
        ({"layers_to_transform": [0]}, "holds model.layers.1.self_attn.q_proj, which target_modules"),
        ({"r": 4}, "lora_A of model.layers.0.self_attn.q_proj has the shape [5, 128]; base and r make it [4, 128]"),
    ],
)
def test_problem_in_adapter_config(base, adapter, tmp_path, keys, words):
    change_config(adapter, **keys)
    check_refusal(base, adapter, tmp_path / "merged", str(adapter), words)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"bias": "lora_only"}, {"modules_to_save": ["lm_head"]}])
def test_more_than_two_matrices_as_peft_saves_it(base, tmp_path, options):
    write_adapter(base, tmp_path / "adapter", **options)
    check_refusal(base, tmp_path / "adapter", tmp_path / "merged", next(iter(options)))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("layers.1.self_attn.v_proj.lora_B.weight", lambda tensor: None, "lora_B of model.layers.1.self_attn.v_proj"),
        ("layers.1.self_attn.q_proj.lora_A.weight", lambda tensor: tensor[:, :7], "has the shape [5, 7]; base and r"),
        (
            "layers.1.self_attn.q_proj.lora_A.weight",
            lambda tensor: tensor.double(),
            "q_proj is F64; BF16, F16, F32 can",
        ),
    ],
)
def test_problem_in_adapter_weights(base, adapter, tmp_path, name, change, words):
    change_weights(adapter, lambda key, tensor: change(tensor) if key.endswith(name) else tensor)
    check_refusal(base, adapter, tmp_path / "merged", "adapter_model.safetensors: ", words)


@pytest.mark.parametrize("name", ["base_model.model.model.embed_tokens.lora_embedding_A", "model.q_proj.weight"])
def test_weights_that_are_no_linear_layers(base, adapter, tmp_path, name):
    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file) | {name: torch.ones(5, 128)}, file)
    check_refusal(base, adapter, tmp_path / "merged", f"holds {name}, which is no lora_A or lora_B")


def test_adapter_of_another_base(base, adapter, bases, tmp_path):
    check_refusal(
        bases["tied"], adapter, tmp_path / "merged", "q_proj has the shape [192, 5]; base and r make it [128, 5]"
    )
    file = adapter / "adapter_model.safetensors"
    save_file({key.replace("layers.1", "layers.2"): tensor for key, tensor in load_file(file).items()}, file)
    check_refusal(base, adapter, tmp_path / "merged", "holds model.layers.2.self_attn.q_proj, which is no linear layer")


def test_base_is_the_one_that_the_adapter_names(base, adapter, tmp_path):
    (base / "manifest.json").write_text(json.dumps({"source": "org/base", "revision": 40 * "1", "files": {}}))
    change_config(adapter, base_model_name_or_path="org/other", revision=None)
    check_refusal(base, adapter, tmp_path / "merged", "the adapter is one of org/other, the snapshot is org/base")
    change_config(adapter, base_model_name_or_path="org/base", revision=40 * "2")
    check_refusal(base, adapter, tmp_path / "merged", f"org/base at {40 * '2'}, the snapshot is of {40 * '1'}")
    for keys in ({"revision": 40 * "1"}, {"revision": "main"}, {"base_model_name_or_path": "/data/base"}):
        change_config(adapter, **keys)
        merge(base, adapter, tmp_path / "merged")


@pytest.mark.parametrize("name", BASES)
def test_output_layer_is_not_merged(bases, tmp_path, name):
    """Where it is tied, the embedding would be another, too."""
    model = write_adapter(bases[name], tmp_path / "adapter", ["q_proj", "lm_head"])  # with the base's own weights, too
    check_refusal(bases[name], tmp_path / "adapter", tmp_path / "merged", "holds base_model.model.lm_head.base_layer")
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    check_refusal(bases[name], tmp_path / "adapter", tmp_path / "merged", "holds lm_head, which is no linear layer")


def test_files_that_are_missing_or_broken(base, adapter, tmp_path):
    output = tmp_path / "merged"
    check_refusal(tmp_path / "nowhere", adapter, output, "nowhere holds no config.json")
    check_refusal(base, tmp_path / "nowhere", output, "nowhere/adapter_config.json is missing")
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    check_refusal(base, adapter, output, "adapter_model.safetensors: not a whole safetensors file")
    file.rename(adapter / "adapter_model.bin")
    check_refusal(base, adapter, output, "adapter_model.safetensors is missing", "with safetensors")
    for text in ("{", "[]"):
        (adapter / "adapter_config.json").write_text(text)
        file.touch()
        check_refusal(base, adapter, output, "adapter_config.json: no object in JSON")


def test_shard_that_is_missing(base, adapter, tmp_path):
    next(base.glob("model-00002*")).unlink()
    check_refusal(base, adapter, tmp_path / "merged", "model-00002", "is missing. Fetch it again")


@pytest.mark.parametrize(("dtype", "value"), [("bfloat16", float("nan")), ("float16", 1e5), ("float32", float("inf"))])
def test_what_the_dtype_can_not_hold(base, adapter, tmp_path, dtype, value):
    change_weights(base, lambda name, tensor: tensor.to(getattr(torch, dtype)))
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    change_weights(adapter, lambda key, tensor: tensor.index_fill(0, torch.tensor(3), value) if key == name else tensor)
    check_refusal(
        base, adapter, tmp_path / "merged", "hf/model-", "layers.1.self_attn.v_proj.weight with the adapter holds"
    )


def test_only_a_merged_model_is_replaced(base, adapter, tmp_path):
    before = contents(base)
    done = merge(base, adapter, base, check=False)
    assert done.returncode == 1 and "is no merged model" in done.stderr and contents(base) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    done = merge(base, adapter, tmp_path / "mine", check=False)
    assert done.returncode == 1 and "is no merged model" in done.stderr and (tmp_path / "mine/thesis.tex").exists()
    merge(base, adapter, tmp_path / "merged")
    new = contents(tmp_path / "merged")
    (tmp_path / "merged/config.json").unlink()  # as Snakemake does before it calls
    (tmp_path / "merged/model-9.safetensors").touch()
    merge(base, adapter, tmp_path / "merged")
    assert contents(tmp_path / "merged") == new


def test_kill_at_any_moment_leaves_no_result_or_a_whole_one(base, adapter, tmp_path):
    output = tmp_path / "merged"
    merge(base, adapter, tmp_path / "new")
    new, old = contents(tmp_path / "new"), contents(base)
    tensors = len(weights(base))
    command = [SCRIPTS / "merge_model.py", "--snapshot", base, "--adapter", adapter, "--output", output]
    found = []
    for moment in (2, 3, 2 + tensors, 3 + tensors, 4 + tensors, 5 + tensors):
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(base, output)
        done = subprocess.run([sys.executable, "-c", KILLED, str(moment), *command], env=environment())
        assert done.returncode == -signal.SIGKILL
        found.append(contents(output) if output.exists() else None)
    assert found == [old, old, old, old, None, new]
    merge(base, adapter, output)
    assert contents(output) == new and not list(tmp_path.glob(".merged*"))

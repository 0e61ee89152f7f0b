"""The conversion of a snapshot to NeMo's format."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tarfile

import pytest
import tiny
import torch
from common.base_files import damage, refuse_damaged
from common.files import read_json
from helpers import KILLED, ROOT, SCRIPTS, change_weights, environment, run_script, torchrun
from model_formats.snapshot import Snapshot
from model_formats.zarr_checkpoint import write_checkpoint

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def snapshot(tiny_mistral, tmp_path):
    return shutil.copytree(tiny_mistral, tmp_path / "hf")


def convert(snapshot, output, check=True):
    return run_script("convert_model.py", "--snapshot", snapshot, "--output-dir", output, check=check)


def contents(directory):
    return {file.relative_to(directory): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def test_same_files_as_nvidias_converter(snapshot, tmp_path):
    """Byte by byte; those that only later generations of TransformerEngine ask for are further ones."""
    convert(snapshot, tmp_path / "base")
    torchrun(ROOT / "tests/nvidia_converter.py", snapshot, tmp_path / "base", tmp_path / "nvidia.nemo")
    with tarfile.open(tmp_path / "nvidia.nemo") as tar:
        tar.extractall(tmp_path / "nvidia", filter="data")
    ours, nvidias = (contents(tmp_path / name / "model_weights") for name in ("base", "nvidia"))
    for weights in ours, nvidias:
        for file in weights:
            if file.name in (".zarray", "metadata.json"):
                weights[file] = json.loads(weights[file])
    assert {file: ours.get(file) for file in nvidias} == nvidias
    further = {str(file.parent) for file in ours.keys() - nvidias.keys()}
    assert further == {
        "model.decoder.layers.self_attention.core_attention._extra_state",
        "model.decoder.final_layernorm._extra_state",
    }


def test_states_that_transformer_engine_asks_for(snapshot, tmp_path):
    convert(snapshot, tmp_path / "base")
    layers = [f"shard_{layer}_4.pt" for layer in range(4)]
    expected = {"model.decoder.final_layernorm._extra_state": ["shard_0_1.pt"]}
    for module in ("linear_qkv", "linear_proj", "core_attention"):
        expected[f"model.decoder.layers.self_attention.{module}._extra_state"] = layers
    for module in ("linear_fc1", "linear_fc2"):
        expected[f"model.decoder.layers.mlp.{module}._extra_state"] = layers
    states = list((tmp_path / "base/model_weights").glob("*._extra_state"))
    assert {state.name: sorted(file.name for file in state.iterdir()) for state in states} == expected
    assert all(torch.load(file) is None for state in states for file in state.iterdir())


@pytest.mark.parametrize(("dtype", "zarr", "precision"), [("float16", "<f2", "16"), ("float32", "<f4", "32")])
def test_dtype_is_the_snapshots(snapshot, tmp_path, dtype, zarr, precision):
    change_weights(snapshot, lambda name, tensor: tensor.to(getattr(torch, dtype)))
    convert(snapshot, tmp_path / "base")
    arrays = list((tmp_path / "base/model_weights").glob("*/.zarray"))
    assert len(arrays) == 9 and all(read_json(array)["dtype"] == zarr for array in arrays)
    assert f"precision: '{precision}'" in (tmp_path / "base/model_config.yaml").read_text()
    norm = (tmp_path / "base/model_weights/model.decoder.final_layernorm.weight/0").read_bytes()
    assert len(norm) == 128 * torch.finfo(getattr(torch, dtype)).bits // 8


def test_tied_embeddings_write_no_output_layer(snapshot, tmp_path):
    config = read_json(snapshot / "config.json")
    (snapshot / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    change_weights(snapshot, lambda name, tensor: None if name == "lm_head.weight" else tensor)
    convert(snapshot, tmp_path / "base")
    assert not (tmp_path / "base/model_weights/model.output_layer.weight").exists()
    assert "share_embeddings_and_output_weights: true" in (tmp_path / "base/model_config.yaml").read_text()


def check_refusal(snapshot, tmp_path, *words):
    done = convert(snapshot, tmp_path / "out/base", check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "architecture GemmaForCausalLM"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_type is linear"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1}}, "rope_type is yarn"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised weights (gptq); take the snapshot"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantised weights (awq)"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised weights (bitsandbytes)"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"intermediate_size": 300}, "mlp.gate_proj.weight has the shape [256, 128]; config.json makes it [300, 128]"),
        ({"num_hidden_layers": 5}, "tensors are missing, model.layers.4"),
        ({"num_hidden_layers": 3}, "holds model.layers.3"),
    ],
)
def test_problem_in_config_json(snapshot, change, words):
    assert Snapshot(snapshot).problem() is None
    config = read_json(snapshot / "config.json")
    (snapshot / "config.json").write_text(json.dumps(config | change))
    assert words in Snapshot(snapshot).problem()


def test_quantised_weights_that_config_json_does_not_tell_of(snapshot, tmp_path):
    change_weights(snapshot, lambda name, tensor: tensor.to(torch.int8) if name.endswith("up_proj.weight") else tensor)
    check_refusal(snapshot, tmp_path, "mlp.up_proj.weight is I8; all must be alike, one of BF16, F16, F32")


def break_weights(snapshot, dtype, value):
    def change(name, tensor):
        tensor = tensor.to(dtype)
        if name == "model.layers.2.mlp.down_proj.weight":
            tensor[-1, -1] = value
        return tensor

    change_weights(snapshot, change)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_broken_weights_are_found(snapshot, tmp_path, value, dtype):
    break_weights(snapshot, dtype, value)
    with pytest.raises(SystemExit, match=r"mlp\.down_proj.weight holds NaN"):
        write_checkpoint(Snapshot(snapshot), tmp_path / "weights")


def test_broken_weights_leave_nothing(snapshot, tmp_path):
    break_weights(snapshot, torch.bfloat16, float("nan"))
    check_refusal(snapshot, tmp_path, "model.layers.2.mlp.down_proj.weight holds NaN or infinity")


def test_names_a_missing_file(snapshot, tmp_path):
    (snapshot / SHARD).unlink()
    check_refusal(snapshot, tmp_path, f"{SHARD} is missing. Fetch it again")
    (snapshot / "model.safetensors.index.json").unlink()
    check_refusal(snapshot, tmp_path, "is a *.safetensors file missing?")


def test_tensor_that_is_there_twice(snapshot, tmp_path):
    """In a file that the index does not name it is not read; where there is no index, nobody can say which is right."""
    convert(snapshot, tmp_path / "expected")
    (tmp_path / "stray").mkdir()
    stray = shutil.copyfile(snapshot / SHARD, tmp_path / "stray/model-00009-of-00009.safetensors")
    change_weights(stray.parent, lambda name, tensor: -tensor)
    shutil.move(stray, snapshot)
    convert(snapshot, tmp_path / "base")
    assert contents(tmp_path / "base") == contents(tmp_path / "expected")
    (snapshot / "model.safetensors.index.json").unlink()
    check_refusal(snapshot, tmp_path, f"is in {SHARD} and in {stray.name}. Remove the one that is not the model's")


def test_names_a_truncated_file(snapshot, tmp_path):
    (snapshot / SHARD).write_bytes((snapshot / SHARD).read_bytes()[:-100])
    check_refusal(snapshot, tmp_path, f"{snapshot / SHARD}: not a whole safetensors file")


def test_refuses_a_snapshot_without_tokenizer(snapshot, tmp_path):
    (snapshot / "tokenizer.model").unlink()
    check_refusal(snapshot, tmp_path, "holds neither tokenizer.model nor tokenizer.json")


def test_tokenizer_json_is_taken_beside_one_of_tiktoken(snapshot, tmp_path):
    """As of Llama 3, whose tokenizer.model no sentencepiece can read."""
    (snapshot / "tokenizer.model").unlink()
    tiny.write_tokenizer_json(snapshot, 400)
    convert(snapshot, tmp_path / "alone")
    (snapshot / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    convert(snapshot, tmp_path / "base")
    assert contents(tmp_path / "base") == contents(tmp_path / "alone")
    (snapshot / "tokenizer.json").unlink()
    check_refusal(snapshot, tmp_path, "tokenizer.model is a vocabulary for tiktoken. Take a repository or revision")


def test_disk_that_is_too_small(snapshot, tmp_path):
    config = read_json(snapshot / "config.json")
    free = shutil.disk_usage(tmp_path).free
    vocabulary = 2 * free // (2 * 128)  # so large a snapshot, of holes
    (snapshot / "config.json").write_text(json.dumps(config | {"vocab_size": vocabulary, "tie_word_embeddings": True}))
    names = ("lm_head.weight", "model.embed_tokens.weight")
    change_weights(snapshot, lambda name, tensor: None if name in names else tensor)
    header = {"dtype": "BF16", "shape": [vocabulary, 128], "data_offsets": [0, vocabulary * 256]}
    header = json.dumps({"model.embed_tokens.weight": header}).encode()
    (snapshot / "model.safetensors.index.json").unlink()
    with open(snapshot / "model-0.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + vocabulary * 256)
    check_refusal(snapshot, tmp_path, " GB; the file system ", "Make room")


def test_manifest_of_the_base(snapshot, tmp_path):
    """Each file with its size and sha256, besides the two that are written after it."""
    convert(snapshot, tmp_path / "base")
    files = read_json(tmp_path / "base/manifest.json")["files"]
    written = contents(tmp_path / "base")
    expected = {
        str(file): {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for file, content in written.items()
        if str(file) not in ("manifest.json", "model_config.yaml")
    }
    assert files == expected and "tokenizer.model" in files
    assert not damage(tmp_path / "base", contents=True)


CHUNK = "model_weights/model.decoder.layers.mlp.linear_fc1.weight/1.0.0"


@pytest.mark.parametrize("name", [CHUNK, "tokenizer.model", "model_weights/common.pt"])
def test_damaged_base(snapshot, tmp_path, name):
    base = tmp_path / "base"
    convert(snapshot, base)
    file = base / name
    content = file.read_bytes()
    remedy = f"remove {base}/model_config.yaml and run Snakemake again; finished trainings are kept."
    for change, problem in (
        (bytes([content[0] ^ 1]) + content[1:], "has other bytes than convert_model wrote"),
        (content[:-1], f"has {len(content) - 1} bytes instead of {len(content)}"),
        (None, "is missing"),
    ):
        file.unlink() if change is None else file.write_bytes(change)
        with pytest.raises(SystemExit) as refusal:
            refuse_damaged(base, contents=True)
        assert str(refusal.value) == f"{file} {problem}. Convert the model again: {remedy}"
        if change != content and change and len(change) == len(content):
            refuse_damaged(base)  # sizes alone take no time
    done = run_script("pack_model.py", "--base-dir", base, "--output", tmp_path / "base.nemo", check=False)
    assert done.returncode == 1 and "is missing" in done.stderr and not (tmp_path / "base.nemo").exists()


def test_damaged_base_without_a_manifest(snapshot, tmp_path):
    """As older versions wrote them: NeMo would say AssertionError of a tokenizer that is not there."""
    base = tmp_path / "base"
    convert(snapshot, base)
    (base / "manifest.json").unlink()
    refuse_damaged(base, contents=True)
    for name in "tokenizer.model", "model_weights/common.pt", "model_weights/metadata.json", "tokenizer/tokenizer.json":
        if name.startswith("tokenizer/"):
            config = (base / "model_config.yaml").read_text().replace("nemo:tokenizer.model", "null")
            (base / "model_config.yaml").write_text(config.replace("library: sentencepiece", "library: huggingface"))
        else:
            content = (base / name).read_bytes()
            (base / name).unlink()
        with pytest.raises(SystemExit) as refusal:
            refuse_damaged(base)
        assert str(refusal.value).startswith(f"{base / name} is missing. Convert the model again: remove {base}/model_")
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_bytes(content)
        refuse_damaged(base)


def test_kill_at_any_moment_leaves_no_result_or_a_whole_one(snapshot, tmp_path):
    convert(snapshot, tmp_path / "old")
    change_weights(snapshot, lambda name, tensor: -tensor)
    convert(snapshot, tmp_path / "new")
    old, new = contents(tmp_path / "old"), contents(tmp_path / "new")
    output = tmp_path / "base"
    command = [SCRIPTS / "convert_model.py", "--snapshot", snapshot, "--output-dir", output]
    # of 37 calls: the two cleanings, the first and the last file, the two renamings, the removal of the old result
    found = []
    for moment in (1, 3, 33, 34, 35, 36):
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(tmp_path / "old", output)
        done = subprocess.run([sys.executable, "-c", KILLED, str(moment), *command], env=environment())
        assert done.returncode == -signal.SIGKILL
        found.append(contents(output) if output.exists() else None)
        assert found[-1] in (old, None, new)
    assert found == [old, old, old, old, None, new]
    convert(snapshot, output)
    assert contents(output) == new
    beside = {file.name.removesuffix(".provenance.json") for file in tmp_path.iterdir()}
    assert beside == {"hf", "old", "new", "base"}  # nothing is left


def test_two_conversions_at_once(snapshot, tmp_path):
    command = [sys.executable, SCRIPTS / "convert_model.py", "--snapshot", snapshot, "--output-dir"]
    options = {"stderr": subprocess.PIPE, "text": True, "env": environment()}
    outputs = [tmp_path / name for name in ("one", "two", "one")]
    processes = [subprocess.Popen([*command, output], **options) for output in outputs]
    said = [process.communicate()[1] for process in processes]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    codes = [process.returncode for process in processes]
    assert codes[1] == 0 and 0 in (codes[0], codes[2])
    for code, text in zip(codes, said):  # of two to one place, the later waits for its turn or is told of the other
        assert code == 0 or "has been at work there since" in text

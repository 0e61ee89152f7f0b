"""Models that are none: local snapshots are refused at planning, downloaded ones before anything of them is written."""

import json
import math
import random
import shutil

import pytest
from helpers import MODEL, run_script, weights
from model_formats.config_json import expected_shapes
from model_formats.peft_config import NEUTRAL, READ, SILENT, PeftConfig

from .conftest import is_sentence, plan


def without(key, **more):
    return json.dumps({name: value for name, value in (MODEL | more).items() if name != key})


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CONFIGS = {
    "": "is empty",
    "\ufeff" + json.dumps(MODEL): "no object in JSON (Unexpected UTF-8 BOM",
    "null": "no object in JSON",
    "[]": "no object in JSON",
    "5": "no object in JSON",
    "{": "no object in JSON",
    "version https://git-lfs.github.com/spec/v1\n": "no object in JSON",
    100_000 * "[": "no object in JSON",
    json.dumps(MODEL).encode("utf-16"): "no object in JSON ('utf-8' codec can't decode",
    "{}": "has no hidden_size",
    **{without(key): f"has no {key}" for key in MODEL if key not in ("architectures", "num_key_value_heads")},
    without("architectures"): "architecture none; MistralForCausalLM and",
    **{
        json.dumps(MODEL | change): words
        for change, words in (
            ({"hidden_size": "128"}, 'hidden_size is "128", no positive whole number'),
            ({"hidden_size": 128.5}, "hidden_size is 128.5, no positive whole number"),
            ({"vocab_size": True}, "vocab_size is true, no positive whole number"),
            ({"vocab_size": None}, "vocab_size is null, no positive whole number"),
            ({"num_attention_heads": 0}, "num_attention_heads is 0, no positive whole number"),
            ({"num_hidden_layers": -4}, "num_hidden_layers is -4, no positive whole number"),
            ({"num_key_value_heads": "4"}, 'num_key_value_heads is "4", no positive whole number'),
            ({"num_key_value_heads": 3}, "num_key_value_heads is 3, which does not divide"),
            ({"num_attention_heads": 12}, "hidden_size is 128, no multiple of num_attention_heads 12"),
            ({"rms_norm_eps": "1e-5"}, 'rms_norm_eps is "1e-5", no positive number'),
            ({"rms_norm_eps": float("nan")}, "rms_norm_eps is NaN, no positive number"),
            ({"sliding_window": "4096"}, 'sliding_window is "4096", no positive whole number'),
            ({"rope_theta": []}, "rope_theta is [], no positive number"),
            ({"rope_scaling": "llama3"}, 'rope_scaling is "llama3", no object'),
            ({"rope_scaling": LLAMA3}, "has no original_max_position_embeddings"),
            ({"rope_scaling": {"rope_type": "llama3"}}, "has no factor"),
            ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_type is linear"),
            ({"rope_parameters": {"rope_type": "default"}}, "has no rope_theta"),
            ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_type is yarn"),
            ({"architectures": "MistralForCausalLM"}, 'architectures is "MistralForCausalLM", no list'),
            ({"architectures": ["GemmaForCausalLM"]}, "architecture GemmaForCausalLM"),
            ({"tie_word_embeddings": "no"}, 'tie_word_embeddings is "no", neither true nor false'),
            ({"quantization_config": {"quant_method": "gptq"}}, "quantised weights (gptq)"),
            ({"quantization_config": "gptq"}, 'quantization_config is "gptq", no object'),
            ({"hidden_act": "gelu"}, "hidden_act is gelu"),
            ({"attention_bias": True}, "attention_bias is True"),
        )
    },
}


def numbers(contents):
    return pytest.mark.parametrize("number", range(len(contents)), ids=[str(text)[:40] for text in contents.values()])


@pytest.mark.kind("config.json of local snapshots, at planning")
@numbers(CONFIGS)
def test_config_json(here, number):
    content, words = [*CONFIGS.items()][number]
    (here / "tiny/config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    said = plan()
    assert is_sentence(said) and said.startswith("chain.yaml: models.tiny.snapshot: tiny/config.json") and words in said


@pytest.mark.kind("files of local snapshots, at planning")
@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.model", "tokenizer.json", "model.safetensors", "special_tokens_map.json"],
)
@pytest.mark.parametrize("what", ["empty", "dead link", "directory"])
def test_file_of_a_snapshot(here, name, what):
    file = here / "tiny" / name
    file.unlink(missing_ok=True)
    if what == "empty":
        file.touch()
    elif what == "directory":
        file.mkdir()
    else:
        file.symlink_to("gone")
    words = {"empty": " is empty", "dead link": " is a link to gone, which is not there", "directory": " is no file"}
    said = plan()
    assert is_sentence(said) and said.startswith(f"chain.yaml: models.tiny.snapshot: tiny/{name}{words[what]}"), said


INDEX = "model.safetensors.index.json"
SHARDS = {"model.safetensors": None, "model-1.safetensors": weights(expected_shapes(MODEL))}
LAST = {name: shape for name, shape in expected_shapes(MODEL).items() if ".3." in name}
TIKTOKEN = b"IQ== 0\nIg== 1\n"
FILES = {  # {file: content} beside those that there are, or instead; None: not there
    "no weights": ({"model.safetensors": None}, ": has no weights as model*.safetensors. Take"),
    "pickled weights": (
        {"model.safetensors": None, "pytorch_model.bin": b"PK"},
        ": has no weights as model*.safetensors, only pytorch_model.bin. Take",
    ),
    "cut off": ({"model.safetensors": b"\x99\0\0\0\0\0\0\0{"}, "/model.safetensors: not a whole safetensors file"),
    "no tensors": ({"model.safetensors": weights({})}, ": has 0 tensors, but 4 layers in config.json: is a"),
    "layers without end": (
        {"config.json": json.dumps(MODEL | {"num_hidden_layers": 10**12}).encode()},
        ": has 39 tensors, but 1000000000000 layers in config.json: is a *.safetensors file missing?",
    ),
    "a layer less": (
        {"config.json": json.dumps(MODEL | {"num_hidden_layers": 5}).encode()},
        ": 9 tensors are missing, model.layers.4.input_layernorm.weight the first: is a *.safetensors file missing?",
    ),
    "a layer more": (
        {"config.json": json.dumps(MODEL | {"num_hidden_layers": 3}).encode()},
        f": holds {min(LAST)}, which a MistralForCausalLM of 3 layers has not",
    ),
    "another vocabulary": (
        {"config.json": json.dumps(MODEL | {"vocab_size": 512}).encode()},
        ": model.embed_tokens.weight has the shape [400, 128]; config.json makes it [512, 128]",
    ),
    "no header": (
        {"model.safetensors": b"version https://git-lfs"},
        "/model.safetensors: not a whole safetensors file",
    ),
    "no shard": (
        SHARDS | {INDEX: b'{"weight_map": {"a": "model-2.safetensors"}}'},
        "/model-2.safetensors is not there",
    ),
    "index: number": (SHARDS | {INDEX: b'{"weight_map": 5}'}, f"/{INDEX}: no index of weights"),
    "index: none": (SHARDS | {INDEX: b'{"weight_map": {}}'}, f"/{INDEX}: no index of weights"),
    "index: list": (SHARDS | {INDEX: b"[]"}, f"/{INDEX}: no index of weights"),
    "index: numbers": (SHARDS | {INDEX: b'{"weight_map": {"a": 1}}'}, f"/{INDEX}: no index of weights"),
    "index: path": (SHARDS | {INDEX: b'{"weight_map": {"a": "../x"}}'}, f"/{INDEX}: no index of weights"),
    "index: text": (SHARDS | {INDEX: b"{"}, f"/{INDEX}: no index of weights"),
    "tiktoken": (
        {"tokenizer.json": None, "tokenizer.model": TIKTOKEN},
        ": tokenizer.model is a vocabulary for tiktoken. Take a repository or revision with tokenizer.json",
    ),
    "no tokenizer": ({"tokenizer.json": None}, ": holds neither tokenizer.model nor tokenizer.json"),
    "tokenizer: {}": ({"tokenizer.json": b"{}"}, ": tokenizer.json is empty or broken"),
    "tokenizer: list": ({"tokenizer.json": b"[]"}, ": tokenizer.json is empty or broken"),
    "sentencepiece": ({"tokenizer.model": b"\x0a"}, ": tokenizer.model is empty or broken"),
    "tokenizer's config": ({"tokenizer_config.json": b"{"}, ": tokenizer_config.json is empty or broken"),
    "special tokens": ({"special_tokens_map.json": b"[]"}, ": special_tokens_map.json is empty or broken"),
}


@pytest.mark.kind("files of local snapshots, at planning")
@pytest.mark.parametrize("case", FILES)
def test_snapshot_that_is_not_whole(here, case):
    files, words = FILES[case]
    for name, content in files.items():
        (here / "tiny" / name).unlink() if content is None else (here / "tiny" / name).write_bytes(content)
    said = plan()
    assert is_sentence(said) and said.startswith(f"chain.yaml: models.tiny.snapshot: tiny{words}"), said


HARMLESS = {  # {file: what it is} beside those that there are
    "tokenizer/": {"tokenizer": "directory"},
    "merges.txt": {"merges.txt": b""},
    "vocab.json": {"vocab.json": "dead link"},
    "code of a tokenizer": {"tokenizer_x.py": b""},
    "tiktoken": {"tokenizer.model": TIKTOKEN},
    "an index of shards that are gone": {INDEX: b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'},
    "an index that is none": {INDEX: b"{"},
    "weights that the index does not name": {
        **SHARDS,
        "model.safetensors": "dead link",
        "model-extra.safetensors": "dead link",
        INDEX: b'{"weight_map": {"a": "model-1.safetensors"}}',
    },
}


@pytest.mark.kind("files of local snapshots that do no harm, at planning")
@pytest.mark.parametrize("case", HARMLESS)
def test_harmless_files(here, case):
    """Planned with, and brought without what nobody reads."""
    for name, content in HARMLESS[case].items():
        file = here / "tiny" / name
        file.unlink(missing_ok=True)
        if content == "directory":
            file.mkdir()
        elif content == "dead link":
            file.symlink_to("gone")
        else:
            file.write_bytes(content)
    assert plan() is None
    run_script("download_model.py", "--snapshot", here / "tiny", "--output-dir", here / "out")
    assert all(file.is_file() for file in (here / "out").iterdir())


@pytest.mark.kind("files of local snapshots, at planning")
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("tiny/config.json", ", as it is a file. Name the directory that holds it"),
        ("models--org--x", f", as it has no config.json. Name models--org--x/snapshots/{40 * 'a'}"),
        ("resources/hf/tiny", " is where the workflow keeps its own files: move the snapshot elsewhere"),
    ],
)
def test_another_place_than_meant(here, place, words):
    shutil.copytree("tiny", f"models--org--x/snapshots/{40 * 'a'}")
    shutil.copytree("tiny", "resources/hf/tiny")
    (here / "mine.yaml").write_text(f"models: {{tiny: {{snapshot: {place}}}}}")
    said = plan("mine.yaml")
    assert said.startswith(f"mine.yaml: models.tiny.snapshot: {place}") and said.endswith(words) and is_sentence(said)


@pytest.mark.kind("GGUF files, at planning")
@pytest.mark.parametrize(
    "content",
    [b"GGUF", b"GGUF" + bytes(96), b"", b"GG", b"PK\x03\x04zip", b"version https://git-lfs.github.com/spec/v1\n"],
)
def test_gguf_that_is_none(here, content):
    (here / "x.gguf").write_bytes(content)
    (here / "mine.yaml").write_text("models: {tiny: {snapshot: null, gguf: x.gguf}}")
    said = plan("mine.yaml")
    assert said == "mine.yaml: models.tiny.gguf: x.gguf: no GGUF file. Fetch it again"


@pytest.fixture(scope="module")
def snapshot(tiny_mistral, tmp_path_factory):
    """One that nobody checked before it is converted, as one from the Hub."""
    return shutil.copytree(tiny_mistral, tmp_path_factory.mktemp("hub") / "snapshot")


@pytest.mark.kind("downloaded snapshots, before a weight is written")
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"", "config.json: no object in JSON"),
        ("config.json", b"[]", "config.json: no object in JSON"),
        ("config.json", without("rms_norm_eps").encode(), "config.json: has no rms_norm_eps"),
        ("config.json", without("vocab_size").encode(), "config.json: has no vocab_size"),
        ("tokenizer.model", b"", "tokenizer.model is empty or broken"),
        ("tokenizer.model", bytes(1000), "tokenizer.model is empty or broken"),
        ("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\n", "tokenizer.model is empty or broken"),
        ("model.safetensors.index.json", b"{", "model.safetensors.index.json: no index of weights"),
        ("model.safetensors.index.json", b"[]", "model.safetensors.index.json: no index of weights"),
        ("manifest.json", b"{}", "manifest.json: is damaged, it has no source"),
        ("manifest.json", b"", "manifest.json: is damaged, it holds no JSON"),
    ],
)
def test_downloaded_snapshot(snapshot, tmp_path, name, content, words):
    before = (snapshot / name).read_bytes() if (snapshot / name).exists() else None
    (snapshot / name).write_bytes(content)
    done = run_script("convert_model.py", "--snapshot", snapshot, "--output-dir", tmp_path / "out/base", check=False)
    (snapshot / name).unlink() if before is None else (snapshot / name).write_bytes(before)
    assert done.returncode == 1 and words in done.stderr and is_sentence(done.stderr.strip()), done.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.kind("downloaded snapshots, before a weight is written")
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_broken_tokenizer_json(tmp_path, name):
    import tiny
    from model_formats.tokenizer import problem

    tiny.write_tokenizer_json(tmp_path, 400)
    assert problem(tmp_path) is None
    for content in (b"", b"[]", b"{", b"\xff\xfe{}"):
        (tmp_path / name).write_bytes(content)
        assert problem(tmp_path).startswith(f"{name} is empty or broken (")


@pytest.mark.kind("GGUF files, in the step that reads them")
def test_gguf_that_is_cut_off(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(16))
    done = run_script(
        "dequantize_gguf.py", "--gguf", tmp_path / "x.gguf", "--output-dir", tmp_path / "out", check=False
    )
    assert done.returncode == 1 and "x.gguf: can't be read as GGUF (" in done.stderr and "Traceback" not in done.stderr


VALUES = [None, True, 0, 1, -1, 8, 2.5, float("nan"), float("inf"), 1e300, "", "x", "(", "org/x", [], ["q_proj"], ["("]]
VALUES += [[1], [None], [[]], [0], [99], {}, {"q_proj": 8}, {"(": 8}, {"q_proj": "8"}, {"q_proj": float("nan")}]


@pytest.mark.kind("adapter_config.json, each drawn by its seed")
@pytest.mark.parametrize("seed", range(300))
def test_adapter_config(tmp_path, seed):
    """It is refused in a sentence, or can be worked with."""
    rng, keys = random.Random(seed), sorted(READ | SILENT | {*NEUTRAL, "unknown"})
    values = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    values |= {rng.choice(keys): rng.choice(VALUES) for _ in range(rng.randint(1, 3))}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    config = PeftConfig(tmp_path / "adapter_config.json")
    if problem := config.problem("org/y", 40 * "a"):
        assert is_sentence(problem)
        return
    for module in "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj":
        config.is_target(module)
        assert type(config.rank(module)) is int and config.rank(module) > 0 and math.isfinite(config.scale(module))

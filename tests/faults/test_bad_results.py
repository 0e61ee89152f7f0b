"""Results that are no longer as a step wrote them end the next one in a sentence: empty, cut off, {} in their place."""

import hashlib
import importlib
import io
import json
import random
import sys
import tarfile

import pytest
import torch
import yaml
from common.adapter import read_adapter
from common.ending import run
from evaluation.table import tabulate
from model_formats.snapshot import read_header
from safetensors.torch import save
from write_report import read_table

from .conftest import is_sentence

DAMAGED = {
    "empty": b"",
    "cut off": b'{"run": "x", "sha',
    "{}": b"{}",
    "[]": b"[]",
    "null": b"null",
    "binary": b"\xff\xfe\0",
}
LABELS = "--labels", "yes", "no", "--gold", "gold", "--label", "gold"


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def results(tmp_path):
    """What evaluate, compare_runs, write_report, choose_run and pack_model read; none of them comes to its end."""
    files = {
        "predictions.jsonl": jsonl([{"id": "a", "pred": "yes"}]),
        "test.jsonl": jsonl([{"id": "a", "input": "?", "output": "yes"}]),
        "test.json": b'{"a": {"gold": "yes"}}',
        "predictions.provenance.json": b'{"sha256": {}}',
        "adapter.provenance.json": b'{"sha256": {}, "validation_loss": 1.0}',
        "metrics.json": b'{"run": "x", "dataset": "d", "answers": {}}',
        "provenance.json": b'{"predict": {}, "evaluate": {}}',
        "accuracy.json": b'{"references": [], "runs": [], "comparisons": []}',
        "accuracy.tsv": b"\n",
        "base/manifest.json": b'{"files": {}}',
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


READERS = {
    "predictions.jsonl": "evaluate",
    "test.jsonl": "evaluate",
    "test.json": "evaluate",
    "predictions.provenance.json": "evaluate",
    "adapter.provenance.json": "choose_run",
    "metrics.json": "compare_runs",
    "provenance.json": "write_report",
    "accuracy.json": "write_report",
    "base/manifest.json": "pack_model",
}


def command(step, directory):
    sources = "--sources", '{"datasets": {}, "models": {}}'
    return {
        "evaluate": [
            *("--predictions", directory / "predictions.jsonl", "--test", directory / "test.jsonl", *LABELS),
            *("--predict-provenance", directory / "predictions.provenance.json"),
            *("--test-items", directory / "test.json", "--provenance", directory / "out/p"),
        ],
        "choose_run": ["--provenance", directory / "adapter.provenance.json", "--fold", 0, "--seed", 0],
        "compare_runs": ["--metrics", directory / "metrics.json", *sources, "--json", directory / "out/json"],
        "write_report": [
            *("--table", directory / "accuracy.tsv", "--json", directory / "accuracy.json", *sources),
            *("--metrics", directory / "metrics.json", "--test-items", directory / "test.json"),
        ],
        "pack_model": ["--base-dir", directory / "base"],
    }[step] + ["--output", directory / "out/result"]


@pytest.mark.kind("damaged results, in the step that reads them")
@pytest.mark.parametrize(
    ("name", "how"),
    [
        (name, how)
        for name in READERS
        for how in ("cut off", "binary", *([] if name.endswith("l") else ["empty", "{}"]))
        if (name, how) != ("test.json", "{}")  # a test set may be empty
    ],
)
def test_damaged(results, monkeypatch, name, how):
    (results / name).write_bytes(DAMAGED[how])
    monkeypatch.setattr(sys, "argv", ["", *map(str, command(READERS[name], results))])
    with pytest.raises(SystemExit) as ended:
        run(importlib.import_module(READERS[name]).main)
    assert is_sentence(ended.value.code) and ended.value.code.startswith(f"{results / name}: is damaged")
    assert ended.value.code.endswith("Remove it and run Snakemake again, which makes it anew.")
    assert not (results / "out/result").exists()


TABLES = {  # what a table of one accuracy may have become
    "empty": lambda table: "",
    "cut off": lambda table: table[:-4],
    "without a run": lambda table: "".join(table.splitlines(keepends=True)[:-1]),
    "edited": lambda table: table.replace("40.0", "99.9"),
    "saved with CRLF": lambda table: table.replace("\n", "\r\n"),
}


@pytest.mark.parametrize("how", TABLES)
def test_table_of_other_figures(tmp_path, how):
    """accuracy.tsv is compared with accuracy.json, which has them all."""
    line = {"run": "x", "model": "m", "dataset": "d", "label": "gold", "accuracy": 0.4, "accuracy_interval": [0.1, 1.0]}
    result = {"references": [{"run": "majority", "dataset": "d", "accuracy": 1 / 3}], "runs": [line], "comparisons": []}
    table, file = tabulate(result["references"] + result["runs"], []), tmp_path / "accuracy.tsv"
    table.to_csv(file, sep="\t", index=False)
    assert read_table(file, json.loads(json.dumps(result)))["d", "x"]["accuracy"] == "40.0"
    damaged = TABLES[how](text := file.read_text())
    assert damaged != text
    file.write_bytes(damaged.encode())
    told = said(lambda file: read_table(file, result), file)
    assert "is not the table of accuracy.json, " in told and "Remove it and run Snakemake again" in told


@pytest.fixture(scope="module")
def adapter():
    """The bytes of an adapter.nemo."""
    names = [
        f"model.decoder.layers.0.self_attention.adapter_layer.lora_kqv_adapter.{side}.weight"
        for side in ("linear_in", "linear_out")
    ]
    weights = io.BytesIO()
    torch.save({name: torch.ones(4, 4) for name in names}, weights)
    config = {"peft": {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": 4, "alpha": 4}}}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in (
            ("model_config.yaml", yaml.safe_dump(config).encode()),
            ("model_weights.ckpt", weights.getvalue()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def said(function, file):
    with pytest.raises(SystemExit) as ended:
        function(file)
    assert is_sentence(ended.value.code) and str(file) in ended.value.code
    return ended.value.code


@pytest.mark.kind("adapters that are cut off or altered, each by its seed")
@pytest.mark.parametrize("seed", range(20))
def test_adapter(adapter, tmp_path, seed):
    file, rng = tmp_path / "adapter.nemo", random.Random(seed)
    file.write_bytes(adapter)
    read_adapter(file)
    end = len(adapter.rstrip(b"\0"))  # a tar ends with zeros
    file.write_bytes(adapter[: rng.randrange(end)] if seed else b"")
    said(read_adapter, file)
    altered = bytearray(adapter)
    for place in range(start := rng.randrange(400, end - 64), start + 64):
        altered[place] = rng.randrange(256)
    file.write_bytes(altered)
    try:
        read_adapter(file)  # in a number of a weight nobody sees it, where no checksum lies beside it
    except SystemExit as ended:
        assert is_sentence(ended.code)
    record = {"sha256": {"result": hashlib.sha256(adapter).hexdigest()}}
    file.with_suffix(".provenance.json").write_text(json.dumps(record))
    assert "is not the adapter that adapter.provenance.json tells of" in said(read_adapter, file)
    file.write_bytes(adapter)
    read_adapter(file)


@pytest.mark.kind("weights that are cut off, each by its seed")
@pytest.mark.parametrize("seed", range(20))
def test_safetensors(tmp_path, seed):
    content, rng = save({"a": torch.ones(8, 8), "b": torch.ones(3)}), random.Random(seed)
    file = tmp_path / "model.safetensors"
    file.write_bytes(content[: rng.randrange(len(content))] if seed else b"")
    assert "Fetch it again" in said(read_header, file)

"""On a terminal the long steps show a bar; what they write to a log is in test_chain.py."""

import json
import re
import sys

from common.files import read_json, read_jsonl
from helpers import SCRIPTS, on_terminal, run_script
from hub import COMMIT, serve_hub


def bar(step, total, unit):
    return re.compile(rf"{step}: 100%\|█+\| {total}/{total} \[.*{unit}")


def test_download_and_conversion(tiny_mistral, tmp_path, monkeypatch):
    files = {file.name: file.read_bytes() for file in tiny_mistral.iterdir()}
    with serve_hub("org/model", COMMIT, files) as (endpoint, _):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        arguments = "--repo", "org/model", "--revision", COMMIT, "--output-dir", tmp_path / "hf"
        code, shown = on_terminal(sys.executable, SCRIPTS / "download_model.py", *arguments)
        assert code == 0 and bar("download_model", r"[\d.]+M", "B/s").search(shown), shown
        (tmp_path / "hf/manifest.json").unlink()
        log = run_script("download_model.py", *arguments).stdout
        assert re.search(r"download_model: (\d+\.\d\d) of \1 GB", log)
    arguments = "--snapshot", tmp_path / "hf", "--output-dir", tmp_path / "base"
    code, shown = on_terminal(sys.executable, SCRIPTS / "convert_model.py", *arguments)
    assert code == 0 and bar("convert_model", r"[\d.]+M", "B/s").search(shown), shown


def test_training_and_prediction(chain, tmp_path):
    launch = "torchrun", "--standalone", "--nproc-per-node", 1
    data, run = chain / "results/data/trials/final_decision", chain / "results/runs/lora/fold0/seed0"
    base = "--accelerator", "cpu", "--base", chain / "results/base/tiny"
    settings = read_json(run / "adapter.provenance.json")["settings"]
    seed = settings.pop("seed")
    files = "--train", data / "fold0/train-maybe2.jsonl", "--val", data / "fold0/val.jsonl"
    work = (
        "--seed",
        seed,
        "--time-limit",
        60,
        "--work-dir",
        tmp_path / "training",
        "--output",
        tmp_path / "adapter.nemo",
    )
    options = *base, *files, "--settings", json.dumps(settings), *work
    code, shown = on_terminal(*launch, SCRIPTS / "train_lora.py", *options)
    assert code == 0 and bar("train_lora", 4, r"steps.*loss=\d").search(shown), shown

    settings = read_json(run / "predictions.provenance.json")["settings"]
    files = "--adapter", tmp_path / "adapter.nemo", "--test", data / "test.jsonl"
    work = "--work-dir", tmp_path / "prediction", "--output", tmp_path / "predictions.jsonl"
    options = *base, *files, "--settings", json.dumps(settings), *work
    code, shown = on_terminal(*launch, SCRIPTS / "predict.py", *options)
    assert code == 0 and bar("predict", 4, "batches").search(shown), shown
    assert len(read_jsonl(tmp_path / "predictions.jsonl")) == 24

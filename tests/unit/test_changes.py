"""What Snakemake is told to remember of the user's files, of settings at their defaults, and of code whose edit repeats
nothing."""

import copy
import json
import os
import shlex
import shutil
import time

import pytest
import yaml
from helpers import ROOT, SCRIPTS

from workflow.planning import changes
from workflow.planning.datasets import DataSets
from workflow.planning.parameters import Parameters, Unrecorded
from workflow.scripts.download_pubmedqa import SHA256

SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())


def touch(path):
    for file in (path, *path.rglob("*")):
        os.utime(file, (1, 1))


def test_small_files_by_contents(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/ori_pqal.json").write_text("1")
    one, file = changes.state(f"{tmp_path}/own"), changes.state(f"{tmp_path}/own/ori_pqal.json")
    touch(tmp_path / "own")
    (tmp_path / "own").rename(tmp_path / "moved")
    assert one == changes.state(f"{tmp_path}/moved") and file == changes.state(f"{tmp_path}/moved/ori_pqal.json")
    (tmp_path / "moved/ori_pqal.json").write_text("2")
    assert one != changes.state(f"{tmp_path}/moved") and file != changes.state(f"{tmp_path}/moved/ori_pqal.json")
    (tmp_path / "moved/ori_pqal.json").write_text("1")
    (tmp_path / "moved/test_ground_truth.json").touch()
    assert one != changes.state(f"{tmp_path}/moved")


def test_files_that_no_step_reads(tmp_path):
    """A snapshot's README, a log beside the data: they make nothing anew. Each file that a step reads does."""
    (tmp_path / "config.json").write_text("1")
    one = changes.state(str(tmp_path))
    for name in "README.md", "nohup.out", "consolidated.safetensors":
        (tmp_path / name).write_text("2")
    (tmp_path / "original").mkdir()
    assert one == changes.state(str(tmp_path))
    for name in *SHA256, "train-0.parquet", "tokenizer.model", "model-00001-of-00002.safetensors":
        (tmp_path / name).write_text("2")
        assert one != (one := changes.state(str(tmp_path)))


def test_large_files_by_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "LARGE", 3)
    file = tmp_path / "model.gguf"
    file.write_text("1234")
    one = changes.state(str(file))
    os.utime(file, (1, 1))
    assert one != changes.state(str(file))
    two = changes.state(str(file))
    copied = shutil.copy2(file, tmp_path / "moved")  # with its time, as by cp -a
    copied.rename(file)
    assert two == changes.state(str(file))
    file.write_text("12345")
    os.utime(file, (1, 1))
    assert two != changes.state(str(file))


def test_package_with_a_gguf_by_size(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "some_model").mkdir()
    (tmp_path / "some_model/__init__.py").touch()
    (tmp_path / "some_model/weights.gguf").write_text("1234")
    one = changes.state("some_model")
    touch(tmp_path / "some_model")
    assert one and one == changes.state("some_model")
    (tmp_path / "some_model/weights.gguf").write_text("12345")
    assert one != changes.state("some_model")


def test_nothing_there():
    assert changes.state("no/such/place") == changes.state("no_such_package") == ""


def own_settings(run, schema, group):
    parameters = Parameters(None, {"runs": {"lora": run}}, schema, SCRIPTS, (), "")
    (wildcards,) = [type("Wildcards", (), {"run": "lora"})]
    return parameters.own_settings(group)(wildcards)


def test_language_is_remembered_where_it_is_set():
    unset, japanese = (
        Parameters(None, {"runs": {}, **given}, SCHEMA, SCRIPTS, (), "").language()
        for given in ({}, {"language": "ja"})
    )
    assert isinstance(unset, Unrecorded) and str(unset) == "" and japanese == "--language ja"


@pytest.mark.parametrize("group", ["train", "predict"])
def test_key_that_comes_later(group):
    """At its default it is not in what Snakemake remembers: whoever upgrades repeats nothing."""
    shared = {"devices": 1, "tensor_model_parallel_size": 1, "precision": 32, "megatron_amp_O2": False}
    run = shared | {"max_seq_length": 256, group: {"lr": 1e-4} if group == "train" else {"batch_size": 64}}
    one, schema = own_settings(run, SCHEMA, group), copy.deepcopy(SCHEMA)
    assert json.loads(one)["devices"] == 1 and ("lr" in one) == (group == "train")
    for place, values in (schema["$defs"][group], run[group]), (schema["$defs"]["run"], run):
        place["properties"]["new"] = {"type": "integer", "default": 7}
        values["new"] = 7  # validate() puts it in
        assert own_settings(run, schema, group) == one
    run[group]["new"] = 8
    assert json.loads(own_settings(run, schema, group)) == json.loads(one) | {"new": 8}


@pytest.mark.parametrize(
    ("entry", "flags"),
    [
        (
            {"simulate": 0},
            "--labels yes no maybe --gold final_decision --human reasoning_required_pred",
        ),
        ({"items": "a.csv", "labels": ["x y", "it's"], "answer": "the answer"}, None),
        ({"test": "a.csv", "answer": "output"}, "--gold output"),
    ],
)
def test_task(entry, flags):
    config = {"datasets": {"d": entry}, "runs": {"r": {"dataset": "d"}}}
    (wildcards,) = [type("Wildcards", (), {"run": "r"})]
    told = DataSets(config).task("labels", "gold", "human")(wildcards)
    assert told == flags if flags else shlex.split(told) == ["--labels", "x y", "it's", "--gold", "the answer"]


def test_values_of_the_training_yaml(tmp_path):
    """Comments, order and later keys at what was done before are not in their checksum; values are."""
    file = tmp_path / "train_lora.yaml"
    values = yaml.safe_load((SCRIPTS / "train_lora.yaml").read_text())
    one = changes.values_of(SCRIPTS / "train_lora.yaml")

    def checksum():
        file.write_text("# comment\n" + yaml.safe_dump(values))  # in alphabetical order
        return changes.values_of(file)

    assert checksum() == one
    values["model"]["optim"] |= {"fixed": 1, "set": "${settings.set}"}
    values["settings"]["set"] = "???"
    assert checksum() != one
    values["later_keys"] |= {"model.optim.fixed": 1, "model.optim.set": 2}
    assert checksum() == one
    values["model"]["optim"]["fixed"] = 2
    assert checksum() != one


def test_results_of_other_code(tmp_path):
    """Of ten folds of many runs in a moment; a provenance of before code was recorded says nothing."""
    config = {"models": {"tiny": {}}, "runs": {f"run{i}": {"folds": range(10), "seeds": [0]} for i in range(400)}}
    for i in range(334):
        config["runs"][f"run{i}"]["train"] = {}
        for fold in range(10):
            place = tmp_path / f"runs/run{i}/fold{fold}/seed0"
            place.mkdir(parents=True)
            provenance = {"curve": [{"step": step, "loss": 0.123456789} for step in range(100)], "code": "abc123"}
            (place / "adapter.provenance.json").write_text(json.dumps(provenance, indent=1))

    def edited():
        return dict(changes.edited_steps(steps, SCRIPTS, config, lambda path: path.replace("<results>", str(tmp_path))))

    steps = ("download_model", "convert_model", "train_lora")
    start = time.process_time()
    found = edited()
    assert time.process_time() - start < 1
    assert found.keys() == {"train_lora"} and len(found["train_lora"]) == 3340
    for file in tmp_path.rglob("adapter.provenance.json"):
        file.write_text(json.dumps({"curve": []}))
    (tmp_path / "base").mkdir()
    (tmp_path / "base/tiny.provenance.json").write_text('{"code": "abc123"}')
    assert edited() == {"convert_model": [f"{tmp_path}/base/tiny.provenance.json"]}
    steps = ("train_lora",)
    assert edited() == {}
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "runs").touch()  # no directory: whoever writes there says so
    assert edited() == {}

"""Runs with `adapter:` from file to table: NeMo answers with others' adapters as transformers and PEFT do."""

import csv
import json
import re
import shutil

import pytest
import yaml
from common.files import read_json, read_jsonl, sha256, write_json
from helpers import copy_workflow, snakemake
from hub import COMMIT, TOKEN, serve_hub
from model_formats.snapshot import Snapshot
from tiny import ALL
from tiny import write_adapter as write_peft
from verify_export import ask_all, difference

RUN = {"model": "tiny", "dataset": "trials", "devices": 1, "tensor_model_parallel_size": 1, "precision": 32}
RUN |= {"megatron_amp_O2": False, "predict": {"batch_size": 8, "tokens_to_generate": 3}}
NAME = f"org--adapter@{COMMIT}"
ADAPTERS = {"theirs": {"directory": "peft"}, "hub": {"repo": "org/adapter", "revision": COMMIT}}
CONFIG = {
    "targets": ["base", *ADAPTERS],
    "accelerator": "cpu",
    "image": None,
    "models": {"tiny": {"snapshot": "tiny"}},
    "datasets": {"trials": {"simulate": 0, "sample": 12}},
    "runs": {"base": RUN} | {name: RUN | {"adapter": adapter} for name, adapter in ADAPTERS.items()},
}
CONFIG["runs"]["hub"] |= {"devices": 2, "tensor_model_parallel_size": 2}


def call(directory, *arguments, config=CONFIG):
    (directory / "import.yaml").write_text(yaml.safe_dump(config))
    return snakemake(directory, *arguments, "--configfile", "import.yaml")


def rules(done):
    """{rule: how many of its jobs} that were planned."""
    assert done.returncode == 0, done.stdout
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE))
    return {rule: int(number) for rule, number in jobs.items() if rule not in ("total", "all")}


@pytest.fixture(scope="module")
def project(tiny_mistral, tmp_path_factory):
    """A finished run. theirs: all seven modules, each with its own lora_A, rsLoRA; hub: queries and values, shared
    out to two processes."""
    directory = tmp_path_factory.mktemp("import")
    copy_workflow(directory)
    shutil.copytree(tiny_mistral, directory / "tiny")
    write_peft(directory / "tiny", directory / "peft", ALL, r=4, use_rslora=True)
    write_peft(directory / "tiny", directory / "served", ["q_proj", "v_proj"])
    files = {file.name: file.read_bytes() for file in (directory / "served").iterdir()}
    with serve_hub("org/adapter", COMMIT, files, gated=TOKEN) as (endpoint, _), pytest.MonkeyPatch.context() as patch:
        for name, value in {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(directory / "home")}.items():
            patch.setenv(name, value)
        done = call(directory, "--set-threads", "predict=1")
        assert done.returncode == 0, done.stdout
    return directory


def largest_difference(project, run, adapter, items=12):
    """Of NeMo's and PEFT's log-probabilities in fp32. The texts are alike, if these are."""
    for file in (project / "tiny").glob("tokenizer*"):
        shutil.copyfile(file, project / adapter / file.name)
    rows = read_jsonl(project / f"results/runs/{run}/fold0/seed0/predictions.jsonl")
    assert len(rows) == 12
    answers = ask_all(Snapshot(project / "tiny"), project / adapter, None, rows[:items], 3)
    found = difference(answers["nemo"], answers["peft"])
    texts = [(nemo.text, peft.text) for nemo, peft in zip(answers["nemo"], answers["peft"])]
    texts = [
        pair for pair in texts if "\ufffd" not in pair[1]
    ]  # of tokens that are no UTF-8, decoders make what they like
    assert found > 1e-4 or (texts and all(nemo == peft for nemo, peft in texts))
    return found


def test_nemo_answers_as_peft_does(project):
    """And not as the base does."""
    for run, adapter in ("theirs", "peft"), ("hub", "served"):
        assert largest_difference(project, run, adapter) < 1e-4
        assert largest_difference(project, "base", adapter, items=2) > 1e-3


def test_from_the_hub(project):
    """Its two files and no more; they are what the run was made with."""
    fetched = project / "resources/hf" / NAME
    manifest = read_json(fetched / "manifest.json")
    assert (manifest["source"], manifest["revision"]) == ("org/adapter", COMMIT)
    used = read_json(project / "results/runs/hub/fold0/seed0/provenance.json")["import_adapter"]["sha256"]
    for name in manifest["files"]:
        assert used[name] == sha256(fetched / name) == sha256(project / "served" / name)
    assert manifest["files"].keys() == {"adapter_config.json", "adapter_model.safetensors"}
    assert not [file for file in project.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]


def test_table_report_and_provenance_say_where_it_is_from(project):
    runs, sources = project / "results/runs", {"theirs": "peft", "hub": f"org/adapter@{COMMIT}"}
    with open(project / "results/accuracy.tsv", newline="") as file:
        table = {row["run"]: row for row in csv.DictReader(file, delimiter="\t")}
    for run in ("base", "majority"):
        assert table[run]["adapter"] == ""
    log = (project / "logs/compare_runs.log").read_text()
    page = (project / "results/report.html").read_text()
    for run, source in sources.items():
        row = table[run]
        assert (row["adapter"], row["configurations"], row["validation_loss"]) == (source, "", "")
        assert float(row["accuracy"]) >= 0 and row["p_base"] != ""
        assert f"{run} is {source}, which was trained elsewhere." in log
        assert f"<dt>adapters: {run}</dt>" in page and f"{run} not known, its adapter is from elsewhere" in page
        steps = read_json(runs / run / "fold0/seed0/provenance.json")
        assert list(steps) == ["import_adapter", "predict", "evaluate"]
        assert steps["import_adapter"]["sha256"]["result"] == steps["predict"]["sha256"]["adapter"]
        assert steps["import_adapter"]["imported"] == source
    assert steps["import_adapter"]["settings"]["adapter_dim"] == 10
    assert f"repo org/adapter, revision {COMMIT}" in page and "directory peft" in page


def test_nothing_is_done_again_until_the_adapter_changes(project, tmp_path):
    project = shutil.copytree(project, tmp_path / "project", symlinks=True)
    assert "Nothing to be done" in call(project, "--dry-run").stdout
    config = project / "peft/adapter_config.json"
    config.touch()
    assert "Nothing to be done" in call(project, "--dry-run").stdout
    write_json(config, read_json(config) | {"lora_alpha": 3})
    again = {"import_adapter": 1, "predict": 1, "evaluate": 1, "compare_runs": 1, "write_report": 1}
    assert rules(call(project, "--dry-run")) == again
    write_json(config, read_json(config) | {"use_dora": True})
    done = call(project, "--dry-run")
    words = "import.yaml: runs.theirs.adapter: peft/adapter_config.json: use_dora is True, which is not supported"
    assert done.returncode == 1 and words in done.stdout and "Traceback" not in done.stdout


def test_adapter_nemo_from_elsewhere(project, tmp_path):
    """The table's own file, brought to another name, is the same again; one adapter of two runs is fetched once."""
    project = shutil.copytree(project, tmp_path / "project", symlinks=True)
    made = project / "results/runs/theirs/fold0/seed0/adapter.nemo"
    shutil.copyfile(made, project / "mine.nemo")
    runs = CONFIG["runs"] | {"mine": RUN | {"adapter": {"nemo": "mine.nemo"}}, "hub2": CONFIG["runs"]["hub"]}
    config = json.loads(json.dumps(CONFIG | {"targets": [*CONFIG["targets"], "mine", "hub2"], "runs": runs}))
    planned = rules(call(project, "--dry-run", config=config))
    assert planned == {"import_adapter": 2, "predict": 2, "evaluate": 2, "compare_runs": 1, "write_report": 1}
    target = "results/runs/mine/fold0/seed0/adapter.nemo"
    done = call(project, target, config=config)
    assert done.returncode == 0, done.stdout
    assert (project / target).read_bytes() == made.read_bytes()
    shutil.rmtree(project / "resources/hf" / NAME)
    planned = rules(call(project, "--dry-run", "--forcerun", "download_model", config=config))
    assert planned["download_model"] == 2  # the base's, and one adapter's
    assert planned["import_adapter"] == 4


def test_export_of_it(project):
    """In PEFT's format again, with NeMo's rank."""
    target = "results/runs/hub/fold0/seed0/peft/adapter_config.json"
    done = call(project, target)
    assert done.returncode == 0, done.stdout
    assert read_json(project / target)["r"] == 10
    assert largest_difference(project, "hub", target.rpartition("/")[0]) < 1e-4


def test_no_model_card_of_what_was_not_trained_here(project):
    assert "export_adapter" not in call(project, "export", "--dry-run").stdout
    done = call(project, "results/runs/hub/fold0/seed0/peft/README.md", "--dry-run")
    assert done.returncode == 1 and "peft/README.md: no step makes it" in done.stdout

"""Trainings that are kept: what their fingerprint is of, when one is taken over, the command that lists and removes."""

import errno
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from functools import reduce
from operator import getitem

import pytest
import yaml
from common.files import read_json, read_jsonl, sha256, write_json
from helpers import ROOT, SCRIPTS
from nemo_image import kept, loading
from nemo_image.resume import fingerprint, prepare

from workflow.planning.changes import values_of

SETTINGS = {"devices": 1, "tensor_model_parallel_size": 1, "precision": 32, "megatron_amp_O2": False}
SETTINGS |= {"micro_batch_size": 1, "global_batch_size": 4, "max_steps": 4, "val_check_interval": 2, "lr": 1e-4}
SETTINGS |= {"warmup_steps": 0, "target_modules": ["attention_qkv"], "adapter_dim": 8, "adapter_dropout": 0.0}
SETTINGS |= {"max_seq_length": 256}


@pytest.fixture
def project(tmp_path):
    """A directory with what a training reads."""
    project = tmp_path / "project"
    (project / "base").mkdir(parents=True)
    (project / "base/model_config.yaml").write_text("num_layers: 2\nsnapshot_manifest_sha256: abc\n")
    write_json(project / "base.provenance.json", {"code": "123", "snapshot": {"config.json": "def"}})
    for name in ("train", "val"):
        (project / f"{name}.jsonl").write_text(f"{name}\n")
    return project


def save(directory, step, best=None):
    """A checkpoint after this step; best: the name of the best one until then, of which it tells."""
    (directory / "checkpoints").mkdir()
    name = f"lora--validation_loss=1.5-step={step}-consumed_samples=16.0-last.ckpt"
    with zipfile.ZipFile(directory / "checkpoints" / name, "w") as checkpoint:
        state = {"global_step": step, "callbacks": {"checkpoint": {"best_model_path": best}}}
        checkpoint.writestr("archive/data.pkl", pickle.dumps(state if best else None))


def training(project, seed=0, start=None, chat=None, **changes):
    """The one with these settings, as train_lora.py makes it out. start: the adapter that it begins with; chat: the
    file with its chat template."""

    def config_for(**paths):
        return loading.load_config(
            "train_lora.yaml", {**SETTINGS, **changes, "accelerator": "cpu", "seed": 1234 + seed, **paths}
        )

    inputs = {
        "base": project / "base/model_config.yaml",
        "train": project / "train.jsonl",
        "val": project / "val.jsonl",
    }
    inputs |= {name: file for name, file in (("start_from", start), ("chat_template", chat)) if file}
    paths = {"base": project / "base", "train": inputs["train"], "val": inputs["val"], "work_dir": project / "training"}
    paths = {name: str(path.resolve()) for name, path in paths.items()}
    return kept.Training(project / "training", project / "adapter.nemo", config_for, paths, inputs)


def finish(training, content="weights"):
    """Does what train_lora.py does, but for the training itself."""
    training.find("")
    prepare(training.directory, 1, training.mark)
    training.adapter.write_text(content)
    result = {"result": sha256(training.adapter)} | {name: sha256(file) for name, file in training.inputs.items()}
    write_json(training.provenance, {"sha256": result, "validation_loss": 1.5})
    training.take_over()


def test_fingerprint_is_of_what_changes_the_numbers(project):
    one = training(project).fingerprint
    for changes in ({"lr": 1e-3}, {"seed": 1}, {"devices": 2}, {"nemo": ["model.optim.weight_decay=0.1"]}):
        assert training(project, **changes).fingerprint != one, changes
    for file, content in (
        ("train.jsonl", "other prompt\n"),
        ("val.jsonl", "other item\n"),
        ("base/model_config.yaml", "num_layers: 3\nsnapshot_manifest_sha256: abc\n"),
        ("base.provenance.json", json.dumps({"code": "123", "snapshot": {"config.json": "other"}})),
    ):
        before = (project / file).read_text()
        (project / file).write_text(content)
        assert training(project).fingerprint != one, file
        (project / file).write_text(before)
    assert training(project).fingerprint == one


def test_fingerprint_is_of_all_nodes_devices_together(project):
    """How they lie on nodes changes no number."""
    four = training(project, devices=4).fingerprint
    assert (
        four == training(project, devices=2, nodes=2).fingerprint == training(project, devices=1, nodes=4).fingerprint
    )
    assert four != training(project, devices=2).fingerprint != training(project, devices=4, nodes=2).fingerprint != four


def test_fingerprint_is_of_the_adapter_that_training_begins_with(project):
    """Of what is in the file, whatever run it is of."""
    start, found = project / "start.nemo", [training(project).fingerprint]
    for content in "one", "other":
        start.write_text(content)
        found.append(training(project, start=start, start_from="a").fingerprint)
    assert len(set(found)) == 3
    start = start.rename(project / "moved.nemo")
    assert training(project, start=start, start_from="b").fingerprint == found[-1]


def test_fingerprint_has_no_path_and_no_code(project, tmp_path):
    one = training(project).fingerprint
    # a manifest names the place of the snapshot, as an absolute path that moved with the project
    (project / "base/model_config.yaml").write_text("num_layers: 2\nsnapshot_manifest_sha256: other\n")
    write_json(project / "base.provenance.json", {"code": "456", "snapshot": {"config.json": "def"}})
    assert training(project.rename(tmp_path / "moved")).fingerprint == one


def test_fingerprint_of_a_base_that_says_nothing_of_its_snapshot(project):
    """Converted from a directory without a manifest, or before there was the provenance."""
    one = training(project).fingerprint
    write_json(project / "base.provenance.json", {"code": "123", "snapshot": {}})
    other = training(project).fingerprint
    (project / "base.provenance.json").unlink()
    assert training(project).fingerprint == other != one
    (project / "base/model_config.yaml").write_text("num_layers: 3\n")
    assert training(project).fingerprint != other


def test_key_that_comes_later(project, monkeypatch, tmp_path):
    """At the value of later_keys it is in no fingerprint; at another it is, fixed or from a setting."""
    one = training(project).fingerprint
    values = yaml.safe_load((SCRIPTS / "train_lora.yaml").read_text())
    monkeypatch.setattr(loading, "SCRIPTS", tmp_path)

    def with_values(**settings):
        (tmp_path / "train_lora.yaml").write_text(yaml.safe_dump(values))
        return training(project, **settings).fingerprint

    values["model"]["optim"]["new"] = 1
    assert with_values() != one
    values["later_keys"]["model.optim.new"] = 1
    assert with_values() == one
    values["settings"]["new"] = "???"
    values["model"]["optim"]["new"] = "${settings.new}"
    assert with_values(new=1) == one
    assert with_values(new=2) != one


def remove_later_keys(values):
    """Of a dict: leaves what was there before they came."""
    for key in values.pop("later_keys"):
        *above, last = key.split(".")
        del reduce(getitem, above, values)[last]


def test_keys_that_came_later_train_nothing_again(project, monkeypatch, tmp_path):
    """Those of train_lora.yaml: without them it has the same fingerprint, and Snakemake sees the same values."""
    now = training(project), values_of(SCRIPTS / "train_lora.yaml")
    values = yaml.safe_load((SCRIPTS / "train_lora.yaml").read_text())
    assert values["later_keys"]
    remove_later_keys(values)
    (tmp_path / "train_lora.yaml").write_text(yaml.safe_dump(values | {"later_keys": {}}))
    monkeypatch.setattr(loading, "SCRIPTS", tmp_path)
    before = training(project), values_of(tmp_path / "train_lora.yaml")
    assert now[1] == before[1] and now[0].fingerprint == before[0].fingerprint and now[0].former == before[0].former


@pytest.fixture
def one_rank(monkeypatch):
    """Of a step that is called here: it speaks at once."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")


AGAIN = (
    "Convert the model again: remove {}/base/model_config.yaml and run Snakemake again; finished trainings are kept."
)


@pytest.mark.parametrize("content", ["", "num_layers: 2\n", "num_layers: [2\n", "num_layers", "- 2\n", "\0\n"])
def test_base_whose_configuration_is_damaged(project, one_rank, content):
    (project / "base/model_config.yaml").write_text(content)
    with pytest.raises(SystemExit) as told:
        training(project)
    assert told.value.code == f"{project}/base/model_config.yaml: is damaged. {AGAIN.format(project)}"


def test_base_whose_configuration_is_cut_off(project, one_rank):
    """Also in its last line, where it is YAML all the same. A base of before has no manifest, and may end so."""
    one = training(project).fingerprint
    write_json(project / "base/manifest.json", {"files": {}})
    assert training(project).fingerprint == one
    (project / "base/model_config.yaml").write_text("num_layers: 2\nsnapshot_manifest_sha256: a")
    with pytest.raises(SystemExit, match="yaml: is damaged"):
        training(project)
    (project / "base/manifest.json").unlink()
    assert training(project).fingerprint == one


@pytest.mark.parametrize("content", ["{", "[]", "null", "", "{}", None])
def test_base_whose_provenance_is_lost(project, content):
    """Trainings are not found without it: it is told before one begins again. One that was begun without it goes on."""
    finish(training(project))
    record = project / "base.provenance.json"
    before = record.read_text()
    write_json(project / "base/manifest.json", {"files": {}})
    record.unlink() if content is None else record.write_text(content)
    found = training(project)
    with pytest.raises(SystemExit) as told:
        found.find("")
    how = "missing" if content is None else "damaged"
    words = f"{record}: is {how}, by which the trainings of this model are found. {AGAIN.format(project)}"
    assert told.value.code == words
    assert len(list((project / "training").iterdir())) == 1
    found.directory.mkdir()
    found.find("")
    record.write_text(before)
    found = training(project)
    found.find("")
    assert found.is_finished()


def test_how_items_are_grouped_changes_no_fingerprint(project):
    """As it changes rounding only."""
    assert training(project, micro_batch_tokens=4096).fingerprint == training(project).fingerprint


def test_alpha(project):
    """Without the key it is the rank, as before there was one; with it, what nemo: could say before."""
    assert training(project, adapter_alpha=8).fingerprint == training(project).fingerprint
    other = training(project, adapter_alpha=16).fingerprint
    by_nemo = training(project, nemo=["model.peft.lora_tuning.alpha=16"]).fingerprint
    assert by_nemo == other != training(project).fingerprint
    assert training(project, adapter_alpha=16).former != training(project).former
    assert (
        training(project, adapter_alpha=16, nemo=["model.peft.lora_tuning.alpha=8"]).fingerprint
        == training(project).fingerprint
    )


def test_what_prompts_become(project):
    """A template is in the fingerprint by what is in its file."""
    files = [project / "chat_template.jinja", project / "other.jinja"]
    for file in files:
        file.write_text(file.name)
    found = [training(project).fingerprint, training(project, add_bos=True).fingerprint]
    found += [training(project, chat=file, chat_template=True).fingerprint for file in files]
    found.append(training(project, chat=files[0], chat_template=True, add_bos=True).fingerprint)
    assert len(set(found)) == 5
    config = loading.load_config("train_lora.yaml", SETTINGS | {"add_bos": True, "chat_template": True})
    assert config.model.data.train_ds.add_bos and config.model.data.validation_ds.add_bos
    assert loading.load_config("predict.yaml", {"add_bos": True}).model.data.test_ds.add_bos
    assert not loading.load_config("predict.yaml", {}).model.data.test_ds.add_bos


def test_corrected_setting_is_taken_over(project):
    """The mistake's own training is kept as well."""
    finish(training(project), "right")
    finish(training(project, lr=1e-2), "wrong")
    again = training(project)
    again.find("")
    assert again.is_finished()
    write_json(project / "base/manifest.json", {"files": {}})
    again.take_over()
    assert (project / "adapter.nemo").read_text() == "right"
    recorded = read_json(project / "adapter.provenance.json")["sha256"]
    assert recorded["result"] == sha256(project / "adapter.nemo")
    assert recorded["base_files"] == sha256(project / "base/manifest.json")
    assert training(project, lr=1e-2).is_finished()


def test_damaged_training_is_not_taken_over(project):
    finish(training(project))
    training(project).adapter.write_text("weig")
    assert not training(project).is_finished()
    finish(training(project))
    training(project).provenance.unlink()
    assert not training(project).is_finished()


@pytest.mark.parametrize("content", [None, "", "0123"])
def test_training_whose_mark_is_lost(project, content):
    """Its directory has the same name: it goes on."""
    begun = training(project)
    begun.find("")
    assert begun.prepare(1) == 0
    mark, before = begun.directory / "state/fingerprint", begun.mark
    save(begun.directory, step=2)
    assert mark.read_text() == before
    shutil.rmtree(mark.parent) if content is None else mark.write_text(content)
    again = training(project)
    again.find("")
    assert again.prepare(1) == 2 and mark.read_text() == before


def test_attempts_are_noted(project):
    """A process may be killed while it writes; of before, such a line may have another one in it."""
    begun = training(project)
    begun.find("")
    begun.prepare(1)
    save(begun.directory, step=2)
    with open(begun.attempts, "ab") as file:
        file.write(b'{"started": "2026{"started": "2026-01-01", "after_step": 0}\n{"after_step": 1}\n\xe3')
    for _ in range(2):
        begun.prepare(1)
    attempts = read_jsonl(begun.attempts)
    assert [attempt["after_step"] for attempt in attempts] == [0, 1, 2, 2]
    assert attempts[0].keys() == {"started", "host", "after_step"}


def test_half_a_training_with_the_loss_of_before_whose_best_checkpoint_is_lost(project):
    """It did all steps; what it must do again, it does with the loss of now."""
    former(project, best="lora--validation_loss=1.5-step=2-consumed_samples=8.0.ckpt")
    found = training(project)
    found.find("")
    assert found.loss is None
    assert found.prepare(1) == 0 and found.loss == kept.LOSS
    assert (found.directory / "state/fingerprint").read_text() == found.mark == f"{found.fingerprint} {kept.LOSS}"


def test_forced_training(project):
    """Starts anew once a call; a further attempt of the same call goes on. What it replaces is kept."""
    finish(training(project), "first")
    forced = training(project)
    forced.find("call-1")
    assert not forced.directory.joinpath("adapter.nemo").exists()
    assert prepare(forced.directory, 1, forced.mark) == 0
    (forced.directory / "checkpoint").touch()
    for anew in ("call-1", ""):  # cut off: by the same call, or by one that forces nothing
        again = training(project)
        again.find(anew)
        prepare(again.directory, 1, again.mark)
        assert (again.directory / "checkpoint").exists()
    (first,) = (project / "training").glob("*-before-call-1")
    assert (first / "adapter.nemo").read_text() == "first"
    finish(again, "second")
    again.find("call-2")
    assert not again.is_finished()
    assert sorted(file.read_text() for file in (project / "training").glob("*/adapter.nemo")) == ["first", "second"]


def former(project, step=SETTINGS["max_steps"], best=None, **changes):
    """A training as it lay before trainings were kept: training/ is its directory, with paths in the fingerprint. It
    has been saved after its last step."""
    paths = {"base": "base", "train": "train.jsonl", "val": "val.jsonl", "work_dir": "training"}
    paths = {name: str((project / path).resolve()) for name, path in paths.items()}
    settings = {**SETTINGS, **changes, "accelerator": "cpu", "seed": 1234, **paths}
    config = loading.OmegaConf.to_container(loading.load_config("train_lora.yaml", settings))
    remove_later_keys(config)
    del config["settings"]["micro_batch_tokens"]
    files = (project / "base/model_config.yaml", project / "train.jsonl", project / "val.jsonl")
    prepare(project / "training", 1, fingerprint(config, files))
    (project / "training/checkpoint").write_text(str(changes))
    save(project / "training", step, best)


def test_training_of_before_they_were_kept(project):
    former(project)
    other = training(project, lr=1e-2)  # it has other settings: it waits for the return of its own
    other.find("")
    assert not other.directory.exists()
    for _ in range(2):
        found = training(project)
        found.find("")
        prepare(found.directory, 1, found.mark)
        assert (found.directory / "checkpoint").exists() and found.loss is None
        assert [place.name for place in (project / "training").iterdir()] == [found.fingerprint[:12]]


def test_half_a_training_with_the_loss_of_before_starts_anew(project):
    """As its steps would lower one loss after the other, and the best checkpoint be taken from both."""
    former(project, step=2)
    found = training(project)
    found.find("")
    assert found.loss == kept.LOSS and prepare(found.directory, 1, found.mark) == 0
    assert not (found.directory / "checkpoint").exists()


def test_forced_training_has_the_loss_of_now(project):
    """Whatever loss the one had that it replaces; a further attempt of the call goes on."""
    former(project)
    for _ in range(2):
        forced = training(project)
        forced.find("call-1")
        assert forced.loss == kept.LOSS and forced.prepare(1) == 0 and forced.loss == kept.LOSS
    assert len(list((project / "training").iterdir())) == 2


def test_upgrade_that_was_cut_off(project):
    """While what lay in training/ moved."""
    former(project)
    place = project / "training" / (project / "training/state/fingerprint").read_text()[:12]
    place.mkdir()
    (project / "training/checkpoint").rename(place / "checkpoint")
    found = training(project)
    found.find("")
    assert (found.directory / "checkpoint").exists() and (found.directory / "state/fingerprint").exists()
    assert list((project / "training").iterdir()) == [found.directory]


def test_upgrade_of_a_training_on_another_disk(project):
    """To which training/ is a link: what comes later lies there, too."""
    (project.parent / "disk").mkdir()
    (project / "training").symlink_to("../disk")
    former(project)
    found = training(project)
    found.find("")
    assert (found.directory / "checkpoint").exists() and (project / "training").is_symlink()
    assert [place.name for place in (project.parent / "disk").iterdir()] == [found.fingerprint[:12]]


def test_forced_on_a_full_disk(project, monkeypatch):
    """The next attempt of the call finds the training where it was, and forces it."""
    finish(training(project), "first")
    forced = training(project)
    write = kept.Path.write_text

    def full(file, text):
        write(file, "")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(kept.Path, "write_text", full)
        forced.find("call-1")
    assert forced.is_finished()
    forced.find("call-1")
    assert not forced.is_finished() and prepare(forced.directory, 1, forced.mark) == 0
    assert (forced.directory / "state/anew").read_text() == "call-1"
    assert len(list((project / "training").iterdir())) == 2


def trainings(*arguments, check=True):
    """What the command says; it runs from anywhere."""
    command = [sys.executable, ROOT / "workflow/tools/trainings.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout if check else done


@pytest.fixture
def results(project):
    """Results with a used training of 3 MB, an unused one of 2 MB, and one that was cut off."""
    seed = project.parent / "results/runs/lora/fold0/seed0"
    seed.parent.mkdir(parents=True)
    finish(training(project, lr=1e-2), "w" * 2_000_000)
    finish(training(project), "w" * 3_000_000)
    cut_off = training(project, lr=1e-3)
    cut_off.find("")
    prepare(cut_off.directory, 1, cut_off.fingerprint)
    project.rename(seed)
    return seed.parents[3]


def everything_else(results):
    return {file: file.read_bytes() for file in results.rglob("*") if file.is_file() and "training" not in file.parts}


def test_trainings_are_listed(results):
    lines = trainings(results).splitlines()
    found = {(words[0], *words[2:4]) for words in map(str.split, lines[:-1])}
    assert found == {("0.00", "finished", "used"), ("0.00", "finished", "unused"), ("0.00", "unfinished", "unused")}
    assert lines[-1].split() == ["0.01", "GB", "in", "all"] and "validation loss 1.50000" in lines[0] + lines[1]
    assert len(list(results.rglob("state/fingerprint"))) == 3


def test_unused_trainings_are_removed(results):
    before = everything_else(results)
    assert trainings(results, "--remove", "unused").count("(removed)") == 2
    (left,) = results.rglob("training/*")
    assert len((left / "adapter.nemo").read_bytes()) == 3_000_000
    assert everything_else(results) == before


@pytest.mark.parametrize("content", ["{}", "[]", "null", "", '{"sha256": null}', None])
def test_training_whose_record_is_damaged_is_kept(results, content):
    """The others are listed, and removed, all the same."""
    (used,) = (file for file in results.rglob("training/*/adapter.nemo") if file.stat().st_size == 3_000_000)
    record = used.with_suffix(".provenance.json")
    record.unlink() if content is None else record.write_text(content)
    lines = trainings(results).splitlines()
    assert len(lines) == 4 and sum("damaged    used" in line and str(used.parent) in line for line in lines) == 1
    said = trainings(results, "--remove", "unused")
    assert said.count("(removed)") == 2
    assert said.count(f"{used.parent} (adapter.provenance.json is missing or damaged: counts as used)\n") == 1
    assert list(results.rglob("training/*")) == [used.parent]
    assert trainings(results, "--remove", "all").count("(removed)") == 1 and not used.exists()


@pytest.mark.parametrize("content", ["{}", "", None])
def test_adapter_whose_record_is_damaged(results, content):
    """The adapter itself says which training it is from."""
    record = results / "runs/lora/fold0/seed0/adapter.provenance.json"
    record.unlink() if content is None else record.write_text(content)
    assert trainings(results, "--remove", "unused").count("(removed)") == 2
    (left,) = results.rglob("training/*")
    assert len((left / "adapter.nemo").read_bytes()) == 3_000_000


def test_training_that_was_repeated_is_unused(project):
    """To the same bytes, as where nothing changed; but for as long as the repetition is not finished."""
    finish(training(project))
    again = training(project)
    again.find("call-1")
    before = again.directory.with_name(f"{again.directory.name}-before-call-1")
    assert [line.split()[3] for line in trainings(before).splitlines()[:-1]] == ["used"]
    finish(again)
    assert trainings(project, "--remove", "unused").count("(removed)") == 1
    assert again.is_finished() and not before.exists()


def test_all_trainings_are_removed(results):
    before = everything_else(results)
    assert trainings(results, "--remove", "all").count("(removed)") == 3
    assert not list(results.rglob("training/*"))
    assert everything_else(results) == before


def test_one_training_is_removed_from_within(results):
    (used,) = (file.parent for file in results.rglob("training/*/adapter.nemo") if file.stat().st_size == 3_000_000)
    command = [sys.executable, ROOT / "workflow/tools/trainings.py", ".", "--remove", "all"]
    subprocess.run(command, check=True, cwd=used)
    assert len(list(results.rglob("training/*"))) == 2 and not used.exists()


def test_training_at_work_is_not_removed(results):
    lock = results / "runs/lora/fold0/seed0/training.lock"
    holder = {"pid": os.getpid(), "machine": "other", "host": "node7", "job": None, "since": "2026-01-01 00:00"}
    command = [sys.executable, ROOT / "workflow/tools/trainings.py", results, "--remove", "all"]
    lock.write_text(json.dumps(holder | {"beat": 0}))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        beat = 0
        while process.poll() is None:
            lock.write_text(json.dumps(holder | {"beat": (beat := beat + 1)}))
            time.sleep(0.1)
        assert process.stdout.read().count("(at work: not removed)") == 3
    assert len(list(results.rglob("training/*"))) == 3


def test_trainings_on_another_disk(results, tmp_path):
    shutil.move(results / "runs", tmp_path / "scratch")
    (results / "runs").symlink_to(tmp_path / "scratch")
    assert len(trainings(results).splitlines()) == 4


def test_nothing_is_listed_where_nothing_is(tmp_path):
    assert trainings(tmp_path) == "    0.00 GB in all\n"
    done = trainings(tmp_path / "no", check=False)
    assert done.returncode == 1 and done.stderr == f"{tmp_path}/no: no such directory\n"


def test_the_log_names_the_command(project):
    project = project.rename(project.parent / "a project")
    finish(training(project))
    said = training(project).disk()
    assert said.startswith("1 training is kept here, 0.00 GB; ")
    tool, directory = shlex.split(said.partition(": python ")[2])
    assert trainings(directory).count("finished") == 1
    assert (ROOT / "workflow/tools/trainings.py").samefile(tool)

"""Training that is interrupted or killed, and started again, ends with the very bytes of an undisturbed training."""

import argparse
import collections
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from common.files import read_json, read_jsonl, sha256, write_jsonl
from helpers import ROOT, SCRIPTS, adapter_weights, environment, of_slurm
from nemo_image.resume import fingerprint, prepare, refuse_unfinished

STEPS = 8
SETTINGS = {"precision": "bf16", "megatron_amp_O2": True, "max_seq_length": 256, "adapter_dropout": 0.1}
SETTINGS |= {"micro_batch_size": 2, "global_batch_size": 4, "max_steps": STEPS, "val_check_interval": 2, "lr": 1e-3}
SETTINGS |= {"warmup_steps": 2, "target_modules": ["attention_qkv", "mlp_fc2"], "adapter_dim": 8}


def heed_interrupts():
    """pytest may run in the background, where they are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(inputs, ranks, minutes=60, work="work", script=SCRIPTS / "train_lora.py", moment="", nodes=1, **changes):
    """Starts training in inputs/{work} (the same paths every time, as in a workflow); returns the process, in a process
    group of its own. moment: when interrupted.py sends that a Ctrl-C. nodes: to which the ranks are shared out."""
    settings = SETTINGS | {"devices": ranks // nodes, "tensor_model_parallel_size": ranks} | changes
    settings |= {"nodes": nodes} if nodes > 1 else {}
    command = [sys.executable, ROOT / "workflow/tools/run_on_nodes.py", "--nodes", nodes] if nodes > 1 else []
    command += [sys.executable, ROOT / "workflow/tools/stop_after_step.py", "torchrun", "--standalone"]
    command += ["--nproc-per-node", str(ranks // nodes), ROOT / "tests/interrupted.py" if moment else script]
    command += ["--accelerator", "cpu", "--base", inputs / "base", "--train", inputs / "train.jsonl"]
    command += ["--val", inputs / "val.jsonl", "--settings", json.dumps(settings), "--seed", "0"]
    command += ["--time-limit", minutes, "--work-dir", inputs / work, "--output", inputs / "adapter.nemo"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    options |= {"preexec_fn": heed_interrupts, "env": (of_slurm if nodes > 1 else environment)(MOMENT=moment)}
    return subprocess.Popen(list(map(str, command)), **options)


def finish(process):
    """Waits for the end; returns the output."""
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def kill_at(process, inputs, step, ranks):
    """Kills what started torchrun once the checkpoint of `step` is being written; waits for all's end."""
    pattern = f"*/checkpoints/{'mp_rank_00/' if ranks > 1 else ''}*-step={step}-*"
    while not list((inputs / "work").glob(pattern)):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()  # ends when the last rank has closed its output: no rank outlives torchrun
    assert process.returncode != 0 and not (inputs / "adapter.nemo").exists()


def stop(process, inputs, step, why):
    """Waits for a training that stops after `step`, with a checkpoint; returns the output."""
    output = process.communicate()[0]
    words = f"Stopped after {step} of {STEPS} steps, as {why}. Run again to continue."
    assert process.returncode != 0 and output.count(words) == 1, output
    assert not (inputs / "adapter.nemo").exists() and not list(inputs.glob("*.lock"))
    return output


def end_by_a_rank(process):
    """A rank is killed while the other waits in C for it, as in NCCL: torchrun's SIGKILL would come after 30 s. SIGTERM
    is what torchrun sends; to the ranks it is no request, which others of this test are."""
    output = process.communicate()[0]
    (killed,) = (line for line in output.splitlines() if line.startswith("killed at "))
    seconds = time.time() - float(killed.split()[2])
    assert process.returncode != 0 and seconds < 10, output


@pytest.mark.parametrize("ranks", [1, 2])
def test_interrupted_training_ends_with_the_same_bytes(inputs, ranks):
    """Two ranks also on two nodes: it is the same training."""
    assert "train_lora: starts" in finish(start(inputs, ranks))
    undisturbed = (inputs / "adapter.nemo").read_bytes()
    loss = read_json(inputs / "adapter.provenance.json")["validation_loss"]
    curve = read_json(inputs / "adapter.provenance.json")["curve"]
    assert [step["step"] for step in curve] == list(range(1, STEPS + 1))
    shutil.rmtree(inputs / "work")
    (inputs / "adapter.nemo").unlink()

    if ranks == 1:  # no time is left: it stops at the first step that it can
        stop(start(inputs, ranks, minutes=1), inputs, 1, "the time limit is near")
        # an excursion to another learning rate: another training, which touches nothing of this one
        output = stop(start(inputs, ranks, minutes=1, lr=1e-2), inputs, 1, "the time limit is near")
        assert "train_lora: starts" in output
        # the project is moved, and back: checkpoints name each other by paths
        (inputs / "work").rename(inputs / "moved")
        output = stop(start(inputs, ranks, work="moved", moment="validate 2"), inputs, 2, "requested")
        assert "train_lora: continues after step 1" in output and "validation loss" not in output
        (inputs / "moved").rename(inputs / "work")
    else:
        output = stop(start(inputs, ranks, nodes=2, moment="train 1"), inputs, 1, "requested")
        assert "run_on_nodes: node1, node2 have reported" in output
        assert "ended first" not in output and "Interrupted" not in output  # on either node
        end_by_a_rank(start(inputs, ranks, script=ROOT / "tests/killed_rank.py"))
    kill_at(start(inputs, ranks, nodes=ranks), inputs, 6, ranks)  # of two nodes the launcher; no rank outlives it
    (checkpoints,) = (place for place in (inputs / "work").glob("*/checkpoints") if list(place.rglob("*step=6*")))
    places = [checkpoints] if ranks == 1 else list(checkpoints.glob("mp_rank_*"))
    last = 6
    if all(list(place.glob("*step=4*.0.ckpt")) for place in places):  # NeMo has not yet removed it: cut the newer one
        last = 4
        for newest in checkpoints.rglob("*step=6*.ckpt"):
            newest.write_bytes(newest.read_bytes()[:1000])
    if ranks == 2:  # in the last validation, with which the next call begins, and ends
        output = stop(start(inputs, ranks, moment=f"validate {STEPS}"), inputs, STEPS, "requested")
        assert f"train_lora: continues after step {last}" in output
        last = STEPS
    output = finish(start(inputs, ranks))
    assert f"train_lora: continues after step {last}" in output
    assert ("train_lora: takes over from a process that is gone" in output) == (ranks == 1)
    assert (inputs / "adapter.nemo").read_bytes() == undisturbed
    provenance = read_json(inputs / "adapter.provenance.json")
    assert provenance["validation_loss"] == loss
    assert provenance["curve"] == curve  # each step once, those before the interruptions, too
    attempts = [attempt["after_step"] for attempt in provenance["attempts"]]
    assert attempts[:3] == ([0, 1, 2] if ranks == 1 else [0, 1, 1]) and attempts[-1] == last

    (inputs / "adapter.nemo").unlink()  # asked for once more
    output = finish(start(inputs, ranks))  # torchrun ends with 0: each rank did
    assert f"train_lora: takes over the finished training in {checkpoints.parent}" in output
    assert "NeMo is imported" not in output
    assert (inputs / "adapter.nemo").read_bytes() == undisturbed
    assert read_json(inputs / "adapter.provenance.json") == provenance
    (inputs / "adapter.nemo").unlink()

    if ranks == 2:  # test_the_best_checkpoint_wins_though_training_goes_on has two ranks
        return
    kept = checkpoints.parent / "adapter.nemo"  # damaged: it is made again from the last checkpoint, the best one, too
    kept.write_bytes(undisturbed[:1000])
    (best,) = checkpoints.glob(f"*step={STEPS}*.0.ckpt")
    best.write_bytes(best.read_bytes()[:1000])
    assert f"train_lora: continues after step {STEPS}" in finish(start(inputs, ranks))
    assert (inputs / "adapter.nemo").read_bytes() == kept.read_bytes() == undisturbed
    assert read_json(inputs / "adapter.provenance.json")["validation_loss"] == loss
    assert read_json(inputs / "adapter.provenance.json")["curve"] == curve
    (inputs / "adapter.nemo").unlink()


def test_a_training_that_nemo_stops_is_not_taken_for_done(inputs):
    for _ in range(2):  # it has no checkpoint, or it goes on from one
        stopped = start(inputs, 1, nemo=["+exp_manager.max_time_per_run=00:00:00:00"])
        output = stopped.communicate()[0]
        assert stopped.returncode != 0 and f"of {STEPS}: run again to continue." in output, output
        assert not (inputs / "adapter.nemo").exists()


def test_the_best_checkpoint_wins_though_training_goes_on(inputs):
    """Also where all steps are done, the adapter is not, and the training's directory was moved meanwhile; and where
    the best checkpoint is then lost: without it, no later one leads to the same adapter."""
    items = [item | {"output": "the"} for item in read_jsonl(inputs / "val.jsonl")]  # an answer that it unlearns
    write_jsonl(inputs / "val.jsonl", items)
    results = {}  # by the place, as NeMo notes it in the adapter's configuration
    for work, words in ("work", "starts"), ("moved", f"continues after step {STEPS}"), ("moved", "starts"):
        output = finish(start(inputs, 2, work=work, lr=0.1))
        assert f"train_lora: {words}" in output
        provenance = read_json(inputs / "adapter.provenance.json")
        losses = {step["step"]: step["validation_loss"] for step in provenance["curve"] if "validation_loss" in step}
        best = min(losses, key=losses.get)
        made = provenance["sha256"]["result"]
        assert made == results.setdefault(work, made)
        (kept,) = (kept for kept in (inputs / work).glob("*/adapter.nemo") if sha256(kept) == made)
        assert best < STEPS and provenance["validation_loss"] == losses[best]
        for rank in ("mp_rank_00", "mp_rank_01"):
            file = f"checkpoints/{rank}/*-step={best}-consumed_samples={best * 4}.0.ckpt"
            (file,) = kept.parent.glob(file)
            saved = torch.load(file, weights_only=False)["state_dict"]
            weights = adapter_weights(inputs / "adapter.nemo", rank)
            assert weights.keys() == saved.keys() and all(weights[name].equal(saved[name]) for name in weights)
        (inputs / "adapter.nemo").unlink()
        kept.unlink()
        if work == "work":
            (inputs / "work").rename(inputs / "moved")
        elif words != "starts":
            assert "does not continue" not in output
            file.unlink()  # of one rank
        else:
            lost = f"{file.parent.with_name('mp_rank_00') / file.name}, the best until then, is missing or damaged"
            assert output.count(f"train_lora: does not continue after step {STEPS}, as {lost}") == 1


def checkpoint(path, whole=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.parent / "archive"
    source.mkdir()
    (source / "data").write_bytes(b"0" * 1000)
    shutil.make_archive(str(path), "zip", source)
    shutil.rmtree(source)
    content = path.with_name(f"{path.name}.zip").read_bytes()
    path.with_name(f"{path.name}.zip").unlink()
    path.write_bytes(content if whole else content[:-30])


def test_prepare_keeps_the_newest_whole_checkpoint(tmp_path):
    work_dir, name = tmp_path / "work", "lora--validation_loss=1.5-step={}-consumed_samples={}.0{}.ckpt"
    assert prepare(work_dir, 2, "a") == 0
    for rank in range(2):
        place = work_dir / f"checkpoints/mp_rank_{rank:02d}"
        checkpoint(place / name.format(2, 8, ""))
        checkpoint(place / name.format(4, 16, "-last"))
        checkpoint(place / name.format(6, 24, "-last"), whole=rank == 0)
    checkpoint(work_dir / "checkpoints/mp_rank_00" / name.format(8, 32, "-last"))
    assert prepare(work_dir, 2, "a") == 4
    for rank in range(2):
        left = sorted(file.name for file in (work_dir / f"checkpoints/mp_rank_{rank:02d}").iterdir())
        assert left == [name.format(2, 8, ""), name.format(4, 16, "-last")]
    (work_dir / "checkpoints" / name.format(4, 16, "-last").replace(".ckpt", "-unfinished")).touch()
    assert prepare(work_dir, 2, "a") == 2  # the best one becomes the last
    assert (work_dir / "checkpoints/mp_rank_01" / name.format(2, 8, "-last")).exists()
    assert prepare(work_dir, 2, "b") == 0
    assert not (work_dir / "checkpoints").exists()


NAME = "lora--validation_loss=1.5-step={}-consumed_samples={}.0{}.ckpt"


def saved(directory, step, best, suffix="", found=None):
    """A checkpoint as Lightning writes it: of this step, with the step of the best one until then, if there is one.
    found: the step that is in the file."""
    file = directory / "checkpoints" / NAME.format(step, 4 * step, suffix)
    best = best and f"/elsewhere/0123456789ab/checkpoints/{NAME.format(best, 4 * best, '')}"
    state = {"best_model_path": best, "best_model_score": torch.tensor(1.5)}
    state = {"checkpoint": state | {"dirpath": "/elsewhere/0123456789ab/checkpoints"}, "progress": {"curve": {}}}
    content = {"global_step": found or step, "callbacks": state, "hyper_parameters": argparse.Namespace(lr=1)}
    content |= {"optimizer_states": [collections.OrderedDict(a=torch.zeros(3)), pathlib.PurePosixPath("a")]}
    torch.save(content, file)
    return file


@pytest.fixture
def work_dir(tmp_path):
    work_dir = tmp_path / "0123456789ab"
    (work_dir / "checkpoints").mkdir(parents=True)
    (work_dir / "state").mkdir()
    (work_dir / "state/fingerprint").write_text("a")
    return work_dir


def test_prepare_wants_the_best_checkpoint(work_dir, capsys):
    """Without it another model would be taken for the best one."""
    assert saved(work_dir, 1, "", "-last") and prepare(work_dir, 1, "a") == 1  # before the first validation
    best, older = saved(work_dir, 30, 30), saved(work_dir, 15, 15)
    last = saved(work_dir, 31, 30, "-last")
    assert prepare(work_dir, 1, "a") == 31 and capsys.readouterr().out == ""
    best.write_bytes(best.read_bytes()[:-30])
    assert prepare(work_dir, 1, "a") == 15  # it had not yet been removed
    words = f"does not continue after step 31, as {best}, the best until then, is missing or damaged"
    assert capsys.readouterr().out.count(words) == 1
    assert not last.exists() and older.with_name(NAME.format(15, 60, "-last")).exists()
    older.unlink()
    saved(work_dir, 31, 30, "-last")
    assert prepare(work_dir, 1, "a") == 15 and older.exists()  # the last one is of the same step: a copy of the best
    older.unlink()
    older.with_name(NAME.format(15, 60, "-last")).unlink()
    saved(work_dir, 31, 30, "-last")
    assert prepare(work_dir, 1, "a") == 0 and not list((work_dir / "checkpoints").iterdir())


@pytest.mark.parametrize("named", [60, 31])
def test_prepare_refuses_a_checkpoint_of_more_steps(work_dir, named):
    file = saved(work_dir, named, 60, "-last", found=60)
    with pytest.raises(SystemExit, match=f"^{file}: is another training's, of step 60. Move it away and run again"):
        prepare(work_dir, 1, "a", 45)
    assert file.exists()
    assert prepare(work_dir, 1, "a", 60) == named


def test_prepare_refuses_another_trainings_checkpoint(work_dir):
    """It knows its training's directory."""
    work_dir = work_dir.rename(work_dir.with_name("ab0123456789"))
    file = saved(work_dir, 31, 31)
    with pytest.raises(SystemExit, match=f"^{file}: is another training's, of step 31. Move it away and run again"):
        prepare(work_dir, 1, "a", 45)
    assert file.exists()


def test_prepare_leaves_a_users_own_files(work_dir):
    last = saved(work_dir, 31, "", "-last")
    own = [shutil.copyfile(last, last.with_name(name)) for name in ("mycopy.ckpt", "notes.txt")]
    assert prepare(work_dir, 1, "a") == 31 and all(file.exists() for file in own)
    file = shutil.copyfile(last, last.with_name("copy-of-last.ckpt"))
    with pytest.raises(SystemExit, match=f"^{file}: NeMo would take it for this training's checkpoint. Move it away"):
        prepare(work_dir, 1, "a")
    assert file.exists() and last.exists()


def test_a_training_without_a_best_checkpoint_is_told_of(monkeypatch):
    """All steps are done, in a checkpoint from elsewhere, and none was validated."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    callback = SimpleNamespace(best_model_score=None, dirpath="work/checkpoints")
    with pytest.raises(SystemExit, match="no checkpoint there is known as the best"):
        refuse_unfinished(SimpleNamespace(global_step=8, max_steps=8, checkpoint_callback=callback))


def test_fingerprint(tmp_path):
    (tmp_path / "train.jsonl").write_text("1")
    one = fingerprint({"lr": 1e-4, "seed": 0}, [tmp_path / "train.jsonl"])
    assert one == fingerprint({"seed": 0, "lr": 1e-4}, [tmp_path / "train.jsonl"])
    assert one != fingerprint({"seed": 1, "lr": 1e-4}, [tmp_path / "train.jsonl"])
    (tmp_path / "train.jsonl").write_text("2")
    assert one != fingerprint({"seed": 0, "lr": 1e-4}, [tmp_path / "train.jsonl"])

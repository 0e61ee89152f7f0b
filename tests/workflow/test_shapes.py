"""An adapter is one thing, whatever tensor parallelism made it: it answers the same at any other, and a training begins
with it at any other."""

import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from common.adapter import read_adapter
from common.files import read_json, read_jsonl, sha256, write_jsonl
from common.pubmedqa import LABELS
from helpers import SCRIPTS, environment

SHARED = {"precision": 32, "megatron_amp_O2": False, "max_seq_length": 256}
TRAIN = {"micro_batch_size": 2, "global_batch_size": 4, "max_steps": 2, "val_check_interval": 1, "lr": 1e-2}
TRAIN |= {"warmup_steps": 0, "adapter_dim": 8, "adapter_dropout": 0.0}
TRAIN |= {"target_modules": ["attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2"]}
TRAIN |= {"nemo": ["model.peft.lora_tuning.alpha=24", "+trainer.num_sanity_val_steps=-1"]}
PREDICT = {"batch_size": 8, "tokens_to_generate": 4}


@pytest.fixture(scope="module", autouse=True)
def few(inputs):
    """Items, of each file; the answers to learn are all yes, those to validate with are not."""
    for split, step in ("train", 1), ("val", 6):
        rows = read_jsonl(inputs / f"{split}.jsonl")
        write_jsonl(inputs / f"{split}.jsonl", rows[: 8 * step : step])


def call(inputs, script, ranks, settings, *arguments):
    """Runs a script under torchrun on so many ranks; returns the exit code and what it said."""
    settings = settings | SHARED | {"devices": ranks, "tensor_model_parallel_size": ranks}
    command = ["torchrun", "--standalone", "--nproc-per-node", ranks, SCRIPTS / script, "--accelerator", "cpu"]
    command += ["--base", inputs / "base", "--settings", json.dumps(settings), *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment()}
    done = subprocess.run(list(map(str, command)), **options)
    return done.returncode, done.stdout


def train(inputs, output, ranks, *arguments, minutes=60, **changes):
    files = "--train", inputs / "train.jsonl", "--val", inputs / "val.jsonl", "--work-dir", output.with_suffix("")
    options = "--seed", 0, "--time-limit", minutes, "--output", output
    return call(inputs, "train_lora.py", ranks, TRAIN | changes, *files, *options, *arguments)


def predict(inputs, adapter, output, ranks):
    files = "--adapter", adapter, "--test", inputs / "val.jsonl", "--work-dir", output.with_suffix("")
    files += "--labels", *LABELS
    return call(inputs, "predict.py", ranks, PREDICT, *files, "--output", output)


def at_first(said):
    """(validation loss, accuracy in percent) before the first step, in the words of the log."""
    loss, accuracy = re.search(r"validation loss (\S+) after 0 steps, accuracy (\S+)%", said).groups()
    return float(loss), float(accuracy)


@pytest.fixture(scope="module")
def adapters(inputs):
    """{ranks: adapter.nemo that so many have made}; before the first step they had the same loss."""
    files, losses = {ranks: inputs / f"tp{ranks}.nemo" for ranks in (1, 2, 4)}, []
    for ranks, file in files.items():
        code, said = train(inputs, file, ranks)
        assert code == 0, said
        losses.append(at_first(said)[0])
    assert losses == pytest.approx(losses[:1] * 3, abs=1e-4)
    return files


@pytest.mark.parametrize(("trained", "asked"), [(1, [1, 4]), (2, [2, 1]), (4, [1])])
def test_predictions_are_the_same_at_any_tensor_parallelism(inputs, adapters, tmp_path, trained, asked):
    """What is read is one thing, whoever made it: how it is shared out is seen with one of them."""
    found = {}
    for ranks in asked:
        code, said = predict(inputs, adapters[trained], tmp_path / f"{ranks}.jsonl", ranks)
        assert code == 0, said
        found[ranks] = read_jsonl(tmp_path / f"{ranks}.jsonl")
    for rows in found.values():
        assert [row["pred"] for row in rows] == [row["pred"] for row in found[1]]
        for row, same in zip(rows, found[1], strict=True):
            assert row["logprob"] == pytest.approx(same["logprob"], abs=1e-5)
    # what validation said of its answers, which it read as one, is what they are, written token by token
    right = [row["pred"] == row["label"] for row in found[1]]
    steps = read_json(adapters[trained].with_suffix(".provenance.json"))["curve"]
    assert 0 < sum(right) < 8 and steps[1]["validation_accuracy"] == sum(right) / 8 != steps[0]["validation_accuracy"]


def test_damaged_adapter_is_refused_in_a_line(inputs, adapters, tmp_path):
    (tmp_path / "cut.nemo").write_bytes(adapters[2].read_bytes()[:3000])
    code, said = predict(inputs, tmp_path / "cut.nemo", tmp_path / "predictions.jsonl", 2)
    (line,) = (line for line in said.splitlines() if "cut.nemo: " in line)
    assert code != 0 and line == f"{tmp_path}/cut.nemo: no adapter of NeMo, or damaged: unexpected end of data"
    assert 'predict.py", line' not in said


def whole(file):
    """{place: tensor} of an adapter's weights."""
    return {(place, side): tensor for place, pair in read_adapter(file)[1].items() for side, tensor in enumerate(pair)}


SECOND = {"start_from": "other", "val_check_interval": 2}


@pytest.fixture(scope="module")
def seconds(inputs, adapters):
    """{ranks: (adapter.nemo, what was said) of a training on so many that begins with what four have made}"""
    found = {}
    for ranks in (1, 2):
        file = inputs / f"second-tp{ranks}.nemo"
        code, said = train(inputs, file, ranks, "--start-from", adapters[4], **SECOND)
        assert code == 0, said
        found[ranks] = file, said
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_begins_with_the_adapter(adapters, seconds, ranks):
    """Before its first step it has that one's validation loss, and accuracy."""
    file, said = seconds[ranks]
    first, second = (read_json(adapter.with_suffix(".provenance.json")) for adapter in (adapters[4], file))
    best = min((step for step in first["curve"]), key=lambda step: step["validation_loss"])
    assert at_first(said)[0] == pytest.approx(first["validation_loss"], abs=1e-4)
    assert at_first(said)[1] == 100 * best["validation_accuracy"]
    assert second["sha256"]["start_from"] == sha256(adapters[4]) and second["settings"]["start_from"] == "other"
    assert "start_from" not in first["sha256"] and "start_from" not in first["settings"]


def test_training_is_the_same_at_any_tensor_parallelism(adapters, seconds):
    """From the same first weights, which otherwise each rank draws for itself."""
    before, one, two = (whole(file) for file in (adapters[4], seconds[1][0], seconds[2][0]))
    assert before.keys() == one.keys() == two.keys() and len(before) == 4 * 4 * 2
    for place, weight in before.items():
        assert (one[place] - weight).norm() > 100 * (one[place] - two[place]).norm(), place


def test_killed_training_goes_on_and_does_not_begin_again(inputs, adapters, seconds, tmp_path):
    start = "--start-from", adapters[4]
    code, said = train(inputs, tmp_path / "cut.nemo", 1, *start, minutes=1, **SECOND)
    assert code != 0 and "Stopped after 1 of 2 steps" in said, said
    code, said = train(inputs, tmp_path / "cut.nemo", 1, *start, **SECOND)
    assert code == 0 and "train_lora: continues after step 1" in said, said
    made, found = whole(seconds[1][0]), whole(tmp_path / "cut.nemo")
    assert all(torch.equal(found[place], made[place]) for place in made)


def test_start_of_another_form_is_refused_in_a_line(inputs, adapters, tmp_path):
    """Other keys than alpha: tests/unit/test_adapter.py."""
    code, said = train(inputs, tmp_path / "second.nemo", 1, "--start-from", adapters[1], nemo=[])
    assert code != 0 and f"\n{adapters[1]}: its alpha is 24, but 8 in the training that starts from it.\n" in said, said


def test_an_item_that_is_too_long_is_told_before_the_model_loads(inputs, tmp_path):
    first, second = read_jsonl(inputs / "train.jsonl")[:2]
    write_jsonl(tmp_path / "long.jsonl", [first, second | {"input": second["input"] * 9}])
    files = "--test", tmp_path / "long.jsonl", "--work-dir", tmp_path / "work", "--output", tmp_path / "out.jsonl"
    with ThreadPoolExecutor() as pool:
        trained = pool.submit(train, inputs, tmp_path / "adapter.nemo", 1, "--train", tmp_path / "long.jsonl")
        predicted = pool.submit(call, inputs, "predict.py", 1, PREDICT, *files, "--labels", *LABELS)
        ended = trained.result(), predicted.result()
    for code, said in ended:
        told = rf"long\.jsonl, line 2: the prompt of {second['pmid']} \(QUESTION:.+…\) has \d+ tokens; "
        told += r"max_seq_length leaves \d+ for it: raise that"
        assert code != 0 and re.search(told, said), said
        assert "the model is loaded" not in said

"""What the whole chain made of a tiny random Mistral: tests/chain.yaml."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pandas as pd
import pytest
import torch
import yaml
from common.files import read_json, read_jsonl, sha256
from common.pubmedqa import LABELS
from helpers import ROOT, SCRIPTS, adapter_weights, environment, run_script, snakemake, torchrun

BASES = ["base", "base-tp2", "base-dp2-tp2"]
RUNS = [*BASES, "tutorial", "lora"]


def test_table(chain):
    table = pd.read_csv(chain / "results/accuracy.tsv", sep="\t").set_index("run")
    assert list(table.index) == ["majority", "human", *RUNS]
    assert (table.test_set == "24 of 500, stratified").all()
    assert table.loc["majority", "accuracy"] == 54.2  # 13 of 24
    assert table.agreement_reasoning_required_pred.notna().to_dict()["tutorial"]
    metrics = read_json(chain / "results/runs/lora/fold0/seed0/metrics.json")
    assert table.loc["lora", "accuracy"] == round(100 * metrics["accuracy"], 1)
    lines = {line["run"]: line for line in read_json(chain / "results/accuracy.json")["runs"]}
    assert list(lines) == RUNS and lines["lora"]["accuracy_interval"] == metrics["accuracy_interval"]
    assert lines["lora"]["validation_loss"] == pytest.approx(min(losses(chain, "lora").values()), abs=1e-5)


@pytest.mark.parametrize("run", RUNS)
def test_predictions_are_in_the_test_sets_order(chain, run):
    label = "reasoning_required_pred" if run == "tutorial" else "final_decision"
    test = read_jsonl(chain / f"results/data/trials/{label}/test.jsonl")
    predictions = read_jsonl(chain / f"results/runs/{run}/fold0/seed0/predictions.jsonl")
    assert [(row["pmid"], row["input"], row["label"]) for row in predictions] == [
        (row["pmid"], row["input"], row["output"]) for row in test
    ]
    assert all(set(row["logprob"]) == set(LABELS) for row in predictions)
    assert max(score for row in predictions for score in row["logprob"].values()) < 0


def test_every_setting_reaches_nemo(chain):
    """As NeMo itself wrote it into the adapter."""
    for run, expected in (
        ("tutorial", {"lr": 1e-3, "warmup_steps": 4, "weight_decay": 0.01}),
        ("lora", {"lr": 1e-4, "warmup_steps": 1, "weight_decay": 0.1}),
    ):
        with tarfile.open(chain / f"results/runs/{run}/fold0/seed0/adapter.nemo") as adapter:
            model = yaml.safe_load(adapter.extractfile("./model_config.yaml"))
        assert model["seed"] == 1234 and model["data"]["train_ds"]["seed"] == 1234
        assert (model["micro_batch_size"], model["global_batch_size"]) == (2, 4)
        assert model["tensor_model_parallel_size"] == (2 if run == "tutorial" else 1)
        assert (model["precision"], model["megatron_amp_O2"]) == (("bf16", True) if run == "tutorial" else (32, False))
        lora = model["peft"]["lora_tuning"]
        assert (lora["target_modules"], lora["adapter_dim"], lora["alpha"]) == (["attention_qkv"], 32, 32)
        assert model["optim"]["sched"]["max_steps"] == 4
        found = model["optim"] | model["optim"]["sched"]
        assert {key: found[key] for key in expected} == expected
        file = "reasoning_required_pred/fold0/train" if run == "tutorial" else "final_decision/fold0/train-maybe2"
        assert model["data"]["train_ds"]["file_names"][0].endswith(f"data/trials/{file}.jsonl")


def test_training_changes_the_scores(chain):
    base, lora = (read_jsonl(chain / f"results/runs/{run}/fold0/seed0/predictions.jsonl") for run in ("base", "lora"))
    assert all(b["logprob"] != t["logprob"] for b, t in zip(base, lora, strict=True))


def test_provenance(chain):
    """Every step of a run with the files that it read and made, and the commit of the workflow."""
    directory = chain / "results/runs/lora/fold0/seed0"
    train, predict, evaluate = (
        read_json(directory / "provenance.json")[s] for s in ("train_lora", "predict", "evaluate")
    )
    assert train["sha256"]["result"] == predict["sha256"]["adapter"] == sha256(directory / "adapter.nemo")
    assert train["sha256"]["train"] == sha256(chain / "results/data/trials/final_decision/fold0/train-maybe2.jsonl")
    assert train["sha256"]["base"] == sha256(chain / "results/base/tiny/model_config.yaml")
    listed = sha256(chain / "results/base/tiny/manifest.json")
    assert train["sha256"]["base_files"] == predict["sha256"]["base_files"] == listed
    assert predict["sha256"]["result"] == sha256(directory / "predictions.jsonl")
    manifest = yaml.safe_load((chain / "results/base/tiny/model_config.yaml").read_text())["snapshot_manifest_sha256"]
    assert manifest == sha256(chain / "resources/hf/tiny/manifest.json")
    assert train["settings"]["lr"] == 1e-4 and train["settings"]["seed"] == 0
    assert train["settings"]["repeat_maybe"] == 2
    assert [attempt["after_step"] for attempt in train["attempts"]] == [0]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=chain, capture_output=True, text=True).stdout.strip()
    for step in (train, predict, evaluate):
        assert step["workflow"] == head and len(head) == 40
        assert step["versions"]["torch"] == torch.__version__ and step["versions"]["nemo_toolkit"] == "2.2.1"
        assert 0 < step["seconds"] < 600 and step["peak_memory_mb"] > 50 and step["host"]


def test_caches_of_jobs_are_in_the_project(chain):
    assert list((chain / ".snakemake/cache/matplotlib").glob("fontlist*"))


def test_evaluate_refuses_what_does_not_belong_together(chain, tmp_path):
    lora, tutorial = (chain / f"results/runs/{run}/fold0/seed0" for run in ("lora", "tutorial"))
    data = chain / "results/data/trials"
    files = {
        "predictions": lora / "predictions.jsonl",
        "predict-provenance": lora / "predictions.provenance.json",
        "train-provenance": lora / "adapter.provenance.json",
        "test": data / "final_decision/test.jsonl",
        "test-items": data / "items/test.json",
    }
    base, empty = chain / "results/runs/base/fold0/seed0/predictions.jsonl", tmp_path / "empty/predictions.jsonl"
    empty.parent.mkdir()
    empty.touch()
    shorter = empty.with_name("test.jsonl")
    shorter.write_text("".join(files["test"].read_text().splitlines(keepends=True)[:-1]))
    told, other = files["predict-provenance"], tutorial / "adapter.provenance.json"
    for wrong, words in (
        ({"train-provenance": other}, f"{files['predictions']}: is of another adapter than {other} tells of."),
        ({"predictions": base}, f"{base}: is not the result that {told} tells of."),
        ({"predictions": empty}, f"{empty}: is not the result that {told} tells of."),
        ({"test": shorter}, f"{shorter}: is not the test that {told} tells of."),
    ):
        options = [argument for name, path in (files | wrong).items() for argument in (f"--{name}", path)]
        outputs = "--provenance", tmp_path / "provenance.json", "--output", tmp_path / "metrics.json"
        task = "--labels", *LABELS, "--gold", "final_decision", "--label", "final_decision"
        done = run_script("evaluate.py", *options, *task, *outputs, check=False)
        remedy = "Remove it and run Snakemake again, which makes it anew."
        assert (done.returncode, done.stderr) == (1, f"{words} {remedy}\n")
        assert list(tmp_path.iterdir()) == [empty.parent]


def losses(chain, run):
    """{step: validation loss} as the log shows it."""
    log = (chain / f"logs/train_lora/{run}/fold0-seed0.log").read_text()
    found = re.findall(r"train_lora: validation loss (\S+) after (\d+) steps", log)
    return {int(step): float(loss) for loss, step in found}


def test_log_tells_stage_step_loss_and_end(chain):
    log = (chain / "logs/train_lora/lora/fold0-seed0.log").read_text()
    first = [line.split(" train_lora: ")[1] for line in log.splitlines() if " train_lora: " in line][:4]
    assert re.fullmatch(r"on \S+, image none", first[0]) and first[3] == "starts"
    assert first[1] == "1 process on the CPU; tensor parallelism 1, precision 32"
    assert f"torch {torch.__version__}, nemo_toolkit 2.2.1, megatron-core 0.11.0" in first[2]
    assert re.search(r"train_lora: 1 of 4 steps, ends about \d\d \w+ \d\d:\d\d, loss \d", log)
    assert re.search(r"train_lora: 4 of 4 steps, loss \d", log) and list(losses(chain, "lora")) == [0, 2, 4]
    log = (chain / "logs/predict/lora/fold0-seed0.log").read_text()
    assert "predict: the model is loaded" in log and "predict: 4 of 4 batches" in log


@pytest.fixture(scope="module")
def copies(chain):
    """The trainings on two copies of the model, and the one that they are compared with."""
    adapters = [f"results/runs/{run}/fold0/seed0/adapter.nemo" for run in ("lora-dp2", "half", "half-dp2")]
    done = snakemake(chain, *adapters, "--configfile", "chain.yaml", "--set-threads", "train_lora=1")
    assert done.returncode == 0, done.stdout
    return chain


def test_losses_are_the_same_with_data_parallelism(copies):
    """With tensor parallelism: test_shapes.py."""
    alone, shared = losses(copies, "lora"), losses(copies, "lora-dp2")
    assert alone[4] < alone[0] - 0.04  # it learns, by more than what is allowed between the shapes
    assert shared[0] == pytest.approx(alone[0], abs=1e-4)  # untrained
    assert shared == pytest.approx(alone, abs=1e-3)


def output_weights(chain, run):
    """Of the adapter's second matrices, which training alone moves from zero, as one vector."""
    weights = adapter_weights(chain / f"results/runs/{run}/fold0/seed0/adapter.nemo")
    return torch.cat([weights[name].float().flatten() for name in sorted(weights) if "linear_out" in name])


def test_copies_of_the_model_average_their_gradients(copies):
    """With megatron_amp_O2, for which NeMo has other code. A copy that went by its own items alone had 0.7."""
    alone, shared = (output_weights(copies, run) for run in ("half", "half-dp2"))
    assert torch.cosine_similarity(alone, shared, dim=0) > 0.999


def test_choice_on_validation_data(chain, tmp_path):
    """Of two seeds each: the candidates' adapters and no answers to the test items are made."""
    copy = shutil.copytree(chain, tmp_path / "chain", symlinks=True)
    config = yaml.safe_load((copy / "chain.yaml").read_text())
    slow = config["runs"]["lora"] | {"seeds": [0, 1]}
    fast = slow | {"train": slow["train"] | {"lr": 1.0e-3}}
    chosen = {key: value for key, value in slow.items() if key != "train"} | {"choose": ["slow", "fast"]}
    config |= {"targets": ["base", "chosen"], "runs": config["runs"] | {"slow": slow, "fast": fast, "chosen": chosen}}
    (copy / "choose.yaml").write_text(yaml.safe_dump(config))
    done = snakemake(copy, "--configfile", "choose.yaml", "--set-threads", "train_lora=1", "predict=1")
    assert done.returncode == 0, done.stdout
    runs = copy / "results/runs"
    for seed in (0, 1):
        provenance = read_json(runs / f"chosen/fold0/seed{seed}/adapter.provenance.json")
        losses = provenance["chosen"]["validation_losses"]
        assert losses["fast"] < losses["slow"] and provenance["chosen"]["run"] == "fast"
        assert sha256(runs / f"chosen/fold0/seed{seed}/adapter.nemo") == provenance["sha256"]["result"]
        assert provenance["sha256"]["result"] == sha256(runs / f"fast/fold0/seed{seed}/adapter.nemo")
    assert not [*runs.glob("fast/*/*/predictions*"), *runs.glob("slow/*/*/predictions*")]
    table = pd.read_csv(copy / "results/accuracy.tsv", sep="\t").set_index("run")
    assert list(table.index) == ["majority", "human", "base", "chosen", "chosen (ensemble)"]
    assert table.configurations.to_list()[2:] == [1, 2, 2]
    assert table.loc["chosen", "validation_loss"] == pytest.approx(losses["fast"], rel=1e-3)
    done = snakemake(copy, "--configfile", "choose.yaml")
    assert "Nothing to be done" in done.stdout


@pytest.fixture(scope="module")
def hugging_face(tiny_mistral):
    """The tiny model and its tokenizer in Hugging Face's transformers, fp32."""
    import sentencepiece
    from transformers import AutoModelForCausalLM

    options = {"torch_dtype": torch.float32, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(tiny_mistral, **options).eval()
    return model, sentencepiece.SentencePieceProcessor(model_file=str(tiny_mistral / "tokenizer.model"))


def check_scores_and_text(predictions, hugging_face):
    model, tokenizer = hugging_face
    assert max(len(tokenizer.encode(label)) for label in LABELS) > 1  # so that more than a first token is scored
    for row in predictions:
        prompt = tokenizer.encode(row["input"].strip(" "))
        for label, score in row["logprob"].items():
            answer = tokenizer.encode(label)
            with torch.no_grad():
                logprobs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            expected = sum(logprobs[len(prompt) + i - 1, token] for i, token in enumerate(answer))
            assert score == pytest.approx(float(expected), abs=1e-4)
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2}
        text = model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
        assert row["pred"] == tokenizer.decode(text[: text.index(2)] if 2 in text else text)


@pytest.mark.parametrize("run", BASES)
def test_scores_and_text_are_hugging_faces(chain, hugging_face, run):
    """On one to four processes, data parallel, tensor parallel and both."""
    check_scores_and_text(read_jsonl(chain / f"results/runs/{run}/fold0/seed0/predictions.jsonl"), hugging_face)


def test_padded_words_take_no_part(chain, hugging_face, tmp_path):
    """A vocabulary that two processes can't share evenly gets further words, here 112."""
    base = shutil.copytree(chain / "results/base/tiny", tmp_path / "base")
    config = yaml.safe_load((base / "model_config.yaml").read_text())
    (base / "model_config.yaml").write_text(yaml.safe_dump(config | {"make_vocab_size_divisible_by": 128}))
    settings = read_json(chain / "results/runs/base-tp2/fold0/seed0/predictions.provenance.json")["settings"]
    files = "--base", base, "--test", chain / "results/data/trials/final_decision/test.jsonl"
    work = "--work-dir", tmp_path / "prediction", "--output", tmp_path / "predictions.jsonl"
    options = *files, "--settings", json.dumps(settings), *work
    torchrun(SCRIPTS / "predict.py", "--accelerator", "cpu", "--labels", *LABELS, *options, processes=2)
    check_scores_and_text(read_jsonl(tmp_path / "predictions.jsonl"), hugging_face)


def test_adapter_trained_with_fused_rotary_embedding(chain, tmp_path):
    """Whose configuration says so: not for predict.py. NeMo would refuse it on this machine, and fail on others."""
    run, adapter = chain / "results/runs/lora/fold0/seed0", tmp_path / "adapter.nemo"
    with tarfile.open(run / "adapter.nemo") as source, tarfile.open(adapter, "w") as target:
        for member in source.getmembers():
            content = source.extractfile(member).read() if member.isfile() else b""
            if member.name.endswith("model_config.yaml"):
                config = yaml.safe_load(content) | {"apply_rope_fusion": True}
                content = yaml.safe_dump(config).encode()
                member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    files = "--base", chain / "results/base/tiny", "--test", chain / "results/data/trials/final_decision/test.jsonl"
    settings = "--settings", json.dumps(read_json(run / "predictions.provenance.json")["settings"])
    work = "--work-dir", tmp_path / "prediction", "--output", tmp_path / "predictions.jsonl", "--labels", *LABELS
    torchrun(SCRIPTS / "predict.py", "--accelerator", "cpu", *files, "--adapter", adapter, *settings, *work)
    found, expected = (read_jsonl(directory / "predictions.jsonl") for directory in (tmp_path, run))
    assert [(row["pmid"], row["pred"]) for row in found] == [(row["pmid"], row["pred"]) for row in expected]
    for ours, chains in zip(found, expected):  # by another number of threads, which rounds otherwise
        assert ours["logprob"] == pytest.approx(chains["logprob"], abs=1e-4)


def test_interrupted_prediction_continues(chain, hugging_face, tmp_path):
    """By Ctrl-C after some of its 24 batches, which ends it at once: it predicts the others; scores and text depend
    neither on the batches nor on how many items are in memory at once."""
    provenance = read_json(chain / "results/runs/base/fold0/seed0/predictions.provenance.json")
    files = "--base", chain / "results/base/tiny", "--test", chain / "results/data/trials/final_decision/test.jsonl"
    settings = "--settings", json.dumps(provenance["settings"] | {"batch_size": 1})
    work = "--work-dir", tmp_path / "prediction", "--output", tmp_path / "predictions.jsonl"
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", ROOT / "tests/small_parts.py"]
    command = list(map(str, [*command, "--accelerator", "cpu", *files, *settings, *work, "--labels", *LABELS]))
    options = {"env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    stoppable = [sys.executable, ROOT / "workflow/tools/stop_after_step.py", *command]
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # ignored in the background
    with subprocess.Popen(stoppable, **options, **heed, start_new_session=True) as process:
        while not (done := list(tmp_path.glob("prediction/batches/*.json"))):
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=20)[0]  # no rank is left that would hold the output open
    words = "Interrupted; no training step was under way. The same command goes on from what is there."
    assert said.splitlines()[-1] == words and process.returncode == 1
    done = len(list(tmp_path.glob("prediction/batches/[0-9]*.json")))
    assert 0 < done < 24 and not (tmp_path / "predictions.jsonl").exists()
    said = subprocess.run(command, **options, check=True).stdout
    assert f"predict: continues after {done} batch" in said and "predict: 24 of 24 batches" in said
    check_scores_and_text(read_jsonl(tmp_path / "predictions.jsonl"), hugging_face)
    assert not (tmp_path / "prediction").exists()

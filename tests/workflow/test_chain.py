"""The whole chain with the real NeMo on a tiny random Mistral: two processes in bf16 as the tutorial, one in fp32."""

import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, copy_workflow, snakemake, torchrun
from files import read_json, read_jsonl
from pubmedqa import LABELS

TRAIN = {"micro_batch_size": 2, "global_batch_size": 4, "max_steps": 4, "val_check_interval": 2, "lr": 1.0e-3}
TRAIN |= {"warmup_steps": 1}
FP32 = {"devices": 1, "tensor_model_parallel_size": 1, "precision": 32, "megatron_amp_O2": False}
TP2 = {"devices": 2, "tensor_model_parallel_size": 2}
DP2 = {"devices": 2, "tensor_model_parallel_size": 1}
NEMO = ["model.optim.weight_decay=0.1", "+trainer.limit_val_batches=1"]
RUN = {"model": "tiny", "dataset": "trials", "predict": {"batch_size": 7, "tokens_to_generate": 6}}


@pytest.fixture(scope="module")
def chain(tiny_mistral, tmp_path_factory):
    """A finished run of the workflow: its directory."""
    directory = tmp_path_factory.mktemp("chain")
    copy_workflow(directory)
    config = {
        "accelerator": "cpu",
        "image": None,
        "targets": ["base", "base-tp2", "tutorial", "lora"],
        "models": {"tiny": {"snapshot": str(tiny_mistral)}},
        "datasets": {"trials": {"simulate": 0, "sample": 24}},
        "runs": {
            "base": RUN | FP32 | DP2,
            "base-tp2": RUN | FP32 | TP2,
            "tutorial": RUN | TP2 | {"label": "reasoning_required_pred", "train": TRAIN | {"warmup_steps": 4}},
            "lora": RUN | FP32 | {"train": TRAIN | {"nemo": NEMO}},
        },
    }
    (directory / "test.yaml").write_text(yaml.safe_dump(config))
    done = snakemake(directory, "--configfile", "test.yaml")
    assert done.returncode == 0, done.stdout
    return directory


def test_table(chain):
    table = pd.read_csv(chain / "results/accuracy.tsv", sep="\t").set_index("run")
    assert list(table.index) == ["majority", "human", "base", "base-tp2", "tutorial", "lora"]
    assert (table.test_set == "24 of 500, stratified").all()
    assert table.loc["majority", "accuracy"] == 54.2  # 13 of 24
    assert table.agreement_reasoning_required_pred.notna().to_dict()["tutorial"]
    metrics = read_json(chain / "results/runs/lora/fold0/seed0/metrics.json")
    assert table.loc["lora", "accuracy"] == round(100 * metrics["accuracy"], 1)


@pytest.mark.parametrize("run", ["base", "base-tp2", "tutorial", "lora"])
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
    for run, expected in (("tutorial", {"warmup_steps": 4, "weight_decay": 0.01}), ("lora", {"weight_decay": 0.1})):
        with tarfile.open(chain / f"results/runs/{run}/fold0/seed0/adapter.nemo") as adapter:
            model = yaml.safe_load(adapter.extractfile("./model_config.yaml"))
        assert model["seed"] == 1234 and model["data"]["train_ds"]["seed"] == 1234
        assert (model["micro_batch_size"], model["global_batch_size"]) == (2, 4)
        assert model["tensor_model_parallel_size"] == (2 if run == "tutorial" else 1)
        assert (model["precision"], model["megatron_amp_O2"]) == (("bf16", True) if run == "tutorial" else (32, False))
        lora = model["peft"]["lora_tuning"]
        assert (lora["target_modules"], lora["adapter_dim"], lora["alpha"]) == (["attention_qkv"], 32, 32)
        assert model["optim"]["lr"] == 1e-3 and model["optim"]["sched"]["max_steps"] == 4
        found = model["optim"] | model["optim"]["sched"]
        assert {key: found[key] for key in expected} == expected
        label = "reasoning_required_pred" if run == "tutorial" else "final_decision"
        assert model["data"]["train_ds"]["file_names"][0].endswith(f"data/trials/{label}/fold0/train.jsonl")


def test_training_changes_the_scores(chain):
    base, lora = (read_jsonl(chain / f"results/runs/{run}/fold0/seed0/predictions.jsonl") for run in ("base", "lora"))
    assert all(b["logprob"] != t["logprob"] for b, t in zip(base, lora, strict=True))


def test_a_second_run_has_nothing_to_do(chain):
    done = snakemake(chain, "--configfile", "test.yaml", "--dry-run")
    assert "Nothing to be done" in done.stdout, done.stdout


@pytest.fixture(scope="module")
def hugging_face(tiny_mistral):
    """The tiny model and its tokenizer in Hugging Face's transformers, fp32."""
    import sentencepiece
    from transformers import AutoModelForCausalLM

    options = {"torch_dtype": torch.float32, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(tiny_mistral, **options).eval()
    return model, sentencepiece.SentencePieceProcessor(model_file=str(tiny_mistral / "tokenizer.model"))


@pytest.mark.parametrize("run", ["base", "base-tp2"])  # data parallel and tensor parallel, with a padded vocabulary
def test_scores_and_text_are_hugging_faces(chain, hugging_face, run):
    model, tokenizer = hugging_face
    for row in read_jsonl(chain / f"results/runs/{run}/fold0/seed0/predictions.jsonl"):
        prompt = tokenizer.encode(row["input"].strip(" "))
        for label, score in row["logprob"].items():
            answer = tokenizer.encode(label)
            assert len(answer) > 1  # so that scores of more than one token are put to the test
            with torch.no_grad():
                logprobs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            expected = sum(logprobs[len(prompt) + i - 1, token] for i, token in enumerate(answer))
            assert score == pytest.approx(float(expected), abs=1e-4)
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2}
        text = model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
        assert row["pred"] == tokenizer.decode(text[: text.index(2)] if 2 in text else text)


def test_packed_model_has_hugging_faces_logits(chain, hugging_face, tmp_path):
    done = snakemake(chain, "results/base/tiny.nemo", "--configfile", "test.yaml")
    assert done.returncode == 0, done.stdout
    model, tokenizer = hugging_face
    rows = read_jsonl(chain / "results/data/trials/final_decision/test.jsonl")[:4]
    tokens = np.array([tokenizer.encode(row["input"])[:120] for row in rows])
    np.save(tmp_path / "tokens.npy", tokens)
    files = chain / "results/base/tiny.nemo", tmp_path / "tokens.npy", tmp_path / "logits.npy"
    torchrun(ROOT / "tests/nemo_logits.py", *files)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    assert expected.std() > 0.5
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=1e-4)

"""predict.py with other answers than PubMedQA's: scores and texts against Hugging Face's, on the tiny Mistral."""

import json

import pytest
import sentencepiece
import torch
from common.files import read_json, read_jsonl, write_jsonl
from common.labels import told_apart
from helpers import SCRIPTS, torchrun

EOS, GENERATED = 2, 6
SETTINGS = {"devices": 1, "tensor_model_parallel_size": 1, "precision": 32, "megatron_amp_O2": False}
SETTINGS |= {"batch_size": 2, "tokens_to_generate": GENERATED, "max_seq_length": 512}
PROMPTS = ["Report: the trial was small.\nFinding: ", "所見：骨折を認める。\n判定：", "Report: the trial ended. "]
LABELS = ["no", "no change", "No", "骨折", "骨折の疑い"]


@pytest.fixture(scope="module")
def predict(inputs, tmp_path_factory):
    """predict(*labels): (predictions, provenance) of prompts of which the second has an answer."""

    def predict(*labels):
        directory = tmp_path_factory.mktemp("predicted")
        rows = [{"input": prompt, "id": f"n{place}"} for place, prompt in enumerate(PROMPTS)]
        rows[1]["output"] = "骨折"
        write_jsonl(directory / "test.jsonl", rows)
        files = "--base", inputs / "base", "--test", directory / "test.jsonl", "--work-dir", directory / "work"
        options = *files, "--settings", json.dumps(SETTINGS), "--output", directory / "predictions.jsonl"
        flags = ("--labels", *labels) if labels else ()
        torchrun(SCRIPTS / "predict.py", "--accelerator", "cpu", *options, *flags)
        predictions = read_jsonl(directory / "predictions.jsonl")
        assert [(row["id"], row["input"]) for row in predictions] == [(row["id"], row["input"]) for row in rows]
        assert [row["label"] for row in predictions] == [None, "骨折", None]
        return predictions, read_json(directory / "predictions.provenance.json")

    return predict


@pytest.fixture(scope="module")
def hugging_face(tiny_mistral):
    from transformers import AutoModelForCausalLM

    options = {"torch_dtype": torch.float32, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(tiny_mistral, **options).eval()
    return model, sentencepiece.SentencePieceProcessor(model_file=str(tiny_mistral / "tokenizer.model"))


def logprob(model, prompt, answer):
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(float(logprobs[len(prompt) + place - 1, token]) for place, token in enumerate(answer))


def test_labels_that_begin_others_are_scored_to_their_end(predict, hugging_face):
    model, tokenizer = hugging_face
    tokens = {label: tokenizer.encode(label) for label in LABELS}
    assert tokens["no change"][: len(tokens["no"])] == tokens["no"]
    predictions, provenance = predict(*LABELS)
    assert provenance["label_tokens"] == {label: len(ids) + 1 for label, ids in tokens.items()}
    for row in predictions:
        prompt = tokenizer.encode(row["input"].strip(" "))
        assert list(row["logprob"]) == LABELS
        for label, ids in tokens.items():
            assert row["logprob"][label] == pytest.approx(logprob(model, prompt, [*ids, EOS]), abs=1e-4)


def test_free_text_has_no_scores_and_the_same_text(predict, hugging_face):
    model, tokenizer = hugging_face
    predictions, provenance = predict()
    assert "label_tokens" not in provenance and not any("logprob" in row for row in predictions)
    for row in predictions:
        prompt = tokenizer.encode(row["input"].strip(" "))
        options = {"max_new_tokens": GENERATED, "do_sample": False, "pad_token_id": EOS}
        text = model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
        assert row["pred"] == tokenizer.decode(text[: text.index(EOS)] if EOS in text else text)


def test_told_apart():
    labels = {"yes": [5, 6], "no": [7], "maybe": [8, 9, 6]}
    assert told_apart(labels, [EOS]) == labels and told_apart({}, [EOS]) == {}
    assert told_apart(labels | {"not": [7, 1]}, [EOS])["yes"] == [5, 6, EOS]
    with pytest.raises(ValueError, match=r"labels: no and No are the same tokens to this model, \[7\]: rename one"):
        told_apart(labels | {"No": [7]}, [EOS])

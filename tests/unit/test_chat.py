"""Prompts through a chat template: the tokens are those of transformers' apply_chat_template, with tokenizers of
sentencepiece and of tokenizers, by templates of real models. Where a model's template comes from."""

import json
import re
from unittest import mock

import extract_chat_template
import pytest
import requests
from chat_templates import CHATML, MISTRAL_V1, MISTRAL_V3, ZEPHYR
from common.chat import Chat
from common.files import read_json, write_json
from helpers import run_script
from hub import COMMIT, serve_hub
from huggingface_hub import errors
from nemo_image.prompts import example_of
from tiny import lines, write_sentencepiece
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TURNS = (
    ("QUESTION:Is it?\nCONTEXT: So it was.\nTARGET: (yes|no): ", "maybe"),
    ("骨折は？", "no, it is not"),
    ("a ", "7"),
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """{name: directory} of a tokenizer with [INST] as text, of one with it as a token, and of SmolLM2's kind."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("text", "token", "smollm2")}
    write_sentencepiece(made["text"], 400)
    write_sentencepiece(made["token"], 400, control_symbols=["[INST]", "[/INST]"])
    control = {str(3 + place): {"content": token, "special": True} for place, token in enumerate(("[INST]", "[/INST]"))}
    file = made["token"] / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens_decoder": control}))
    bpe, special = ByteLevelBPETokenizer(), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe.train_from_iterator(lines(), 400, special_tokens=special)
    names = dict(zip(("unk_token", "bos_token", "eos_token"), special))
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **names).save_pretrained(made["smollm2"])
    return {name: AutoTokenizer.from_pretrained(directory) for name, directory in made.items()}


CASES = [("text", MISTRAL_V1), ("token", MISTRAL_V3), ("text", ZEPHYR), ("smollm2", CHATML), ("smollm2", ZEPHYR)]


def conversation(*turns):
    return [{"role": role, "content": turn.strip(" ")} for role, turn in zip(("user", "assistant"), turns)]


@pytest.mark.parametrize(("name", "template"), CASES)
def test_tokens_are_those_of_transformers(tokenizers, name, template):
    """Of a row in training, and of a prompt in prediction. What is behind the end of a turn is left out."""
    tokenizer = tokenizers[name]
    chat = Chat(tokenizer, template)
    for prompt, answer in TURNS:
        asked = tokenizer.apply_chat_template(
            conversation(prompt), chat_template=template, add_generation_prompt=True, tokenize=True
        )
        whole = tokenizer.apply_chat_template(conversation(prompt, answer), chat_template=template, tokenize=True)
        row = example_of(chat, {"input": prompt, "output": answer})
        assert chat.prompt(prompt) == row["context_ids"] == asked and row["answer_start_idx"] == len(asked)
        assert row["input_ids"] == whole[: len(row["input_ids"])]
        assert not tokenizer.decode(whole[len(row["input_ids"]) :]).strip()
        assert chat.end == [tokenizer.eos_token_id] and row["input_ids"][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row["answer_ids"]).strip() == answer
        assert example_of(chat, {"input": prompt, "output": ""})["context_ids"] == asked


def test_control_tokens_are_tokens(tokenizers):
    prompts = {name: Chat(tokenizers[name], template).prompt("x") for name, template in CASES[:4]}
    assert prompts["token"][1] == 3 and prompts["token"][-1] == 4 and len(prompts["text"]) > len(prompts["token"])
    assert prompts["smollm2"].count(tokenizers["smollm2"].convert_tokens_to_ids("<|im_start|>")) == 3


@pytest.mark.parametrize(("name", "template"), CASES)
def test_bos_is_there_once(tokenizers, name, template):
    tokenizer = tokenizers[name]
    without, prompt = (Chat(tokenizer, template, add_bos).prompt("x") for add_bos in (False, True))
    has_one = without[0] == tokenizer.bos_token_id
    assert has_one == (template != ZEPHYR)
    assert prompt == (without if has_one else [tokenizer.bos_token_id, *without])


def test_templates_with_other_ends(tokenizers):
    """One that ends an answer with text, and a model whose EOS ends no turn."""
    template = "{% for m in messages %}{{ '#' + m['role'] + '\n' + m['content'] + '\n\n' }}{% endfor %}"
    template += "{{ '#assistant\n' if add_generation_prompt }}"
    tokenizer = tokenizers["text"]
    chat = Chat(tokenizer, template)
    assert chat.end[-1] == tokenizer.eos_token_id and tokenizer.decode(chat.end[:-1]) == "\n\n"
    chat = Chat(tokenizers["smollm2"], CHATML.replace("<|im_end|>", "<|endoftext|>"))
    assert chat.end == [tokenizers["smollm2"].convert_tokens_to_ids("<|endoftext|>")]


def test_prompt_and_answer_with_a_token_in_common(tokenizers):
    """ "ASSISTANT: " and "yes" are no prompt and answer where " yes" is a token."""
    template = "{{ 'Q ' + messages[0]['content'] + ' (yes|no|maybe): ' }}"
    template += "{% if not add_generation_prompt %}{{ messages[1]['content'] + eos_token }}{% endif %}"
    tokenizer = tokenizers["smollm2"]
    assert len(tokenizer(" yes").input_ids) == 1
    with pytest.raises(ValueError, match="prompt and answer have tokens in common"):
        Chat(tokenizer, template).split("x", "yes")


@pytest.fixture
def extract(tmp_path, monkeypatch, capsys):
    """extract(*source): what extract_chat_template says, or how it ends, of a model with a sentencepiece tokenizer."""
    write_sentencepiece(tmp_path, 400)

    def extract(*source):
        output = "--output", str(tmp_path / "chat_template.jinja")
        monkeypatch.setattr("sys.argv", ["extract_chat_template.py", *map(str, source), *output])
        try:
            extract_chat_template.main()
        except SystemExit as end:
            return str(end)
        return capsys.readouterr().out

    return extract


def test_template_of_a_local_model(extract, tmp_path):
    """Its file before its configuration. One that asks for the date has a fixed one."""
    source, config = tmp_path / "source", tmp_path / "tokenizer_config.json"
    source.mkdir()
    named = [{"name": "tool_use", "template": ZEPHYR}, {"name": "default", "template": MISTRAL_V1}]
    write_json(config, read_json(config) | {"chat_template": named})
    said = "chat_template.jinja: '<s>[INST] PROMPT [/INST]', and '</s>' after the answer\n"
    assert extract("--snapshot", source).endswith(said)
    assert (tmp_path / "chat_template.jinja").read_text() == MISTRAL_V1
    dated = MISTRAL_V1.replace("'[INST] '", "'[INST] ' + strftime_now('%d %b %Y') + ' '")
    (source / "chat_template.jinja").write_text(dated)
    assert "<s>[INST] 26 Jul 2024 PROMPT [/INST]" in extract("--snapshot", source)
    assert (tmp_path / "chat_template.jinja").read_text().endswith(dated)
    for wrong, words in {"{{ raise_exception('no!') }}": "no!", "{% for": "unexpected '.*'"}.items():
        (source / "chat_template.jinja").write_text(wrong)
        assert re.search(f": its chat template can't be used: {words}", extract("--snapshot", source), re.I)


def test_template_of_a_gguf_file_with_tokens_that_are_lost(extract, monkeypatch, tmp_path):
    """Where the tokenizer that was made of it has a control token as text."""
    monkeypatch.setattr(extract_chat_template, "of_gguf", lambda file: (MISTRAL_V1, ["</s>", "[INST]", "<|other|>"]))
    lacks = f"{tmp_path}: made from GGUF, its tokenizer lacks [INST]; take the model by repo or snapshot."
    assert extract("--gguf", "model.gguf") == lacks
    monkeypatch.setattr(extract_chat_template, "of_gguf", lambda file: (MISTRAL_V1, ["</s>", "<|other|>"]))
    assert "'<s>[INST] PROMPT [/INST]'" in extract("--gguf", "model.gguf")
    monkeypatch.setattr(extract_chat_template, "of_gguf", lambda file: (None, []))
    assert extract("--gguf", "model.gguf").startswith("model.gguf: has no chat template; take the Instruct model")


def test_template_of_the_hub(extract, tmp_path, monkeypatch):
    """As a file of its own, where tokenizer_config.json has none."""
    source, response = ("--repo", "org/model", "--revision", COMMIT), requests.Response()
    has_none = "org/model: has no chat template; take the Instruct model, or chat_template: true out of the run."
    not_there = errors.EntryNotFoundError("404", response=response)
    not_asked = errors.LocalEntryNotFoundError("The Hub could not be asked.")
    not_asked.__cause__ = requests.ConnectionError()
    for error, offline, words in (
        (not_there, False, has_none),
        (not_asked, True, has_none),
        (not_asked, False, "org/model: the Hub did not deliver: ConnectionError. Run again; what has arrived is kept."),
    ):
        monkeypatch.setattr(extract_chat_template, "download", mock.Mock(side_effect=error))
        monkeypatch.setattr(extract_chat_template, "HF_HUB_OFFLINE", offline)
        assert extract(*source) == words
    with serve_hub("org/model", COMMIT, {"chat_template.jinja": ZEPHYR.encode()}) as (endpoint, _):
        output = "--output", tmp_path / "chat_template.jinja"
        run_script("extract_chat_template.py", *source, *output, HF_ENDPOINT=endpoint)
    assert (tmp_path / "chat_template.jinja").read_text() == ZEPHYR

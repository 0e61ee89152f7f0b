"""Items that are too long: shortened in one column only, or refused by name."""

from types import SimpleNamespace

import pytest
from common.files import read_jsonl, write_jsonl
from common.template import fill, place_of
from nemo_image import lengths
from nemo_image.prompts import Plain

TEMPLATE = "Q {question}\n{{C}} {context}Answer {question}:"


class Words:
    """A tokenizer, for which each word is a token."""

    bos_id, eos_id = "<s>", "</s>"

    def text_to_ids(self, text):
        return text.split()


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")


def row(words, output="yes", name="7"):
    item = {"question": "what now", "context": [" ".join(f"w{n}" for n in range(words)), "end"], "C": "other"}
    place = place_of("context", TEMPLATE, item)
    return {"input": fill(TEMPLATE, item), "output": output, "id": name, "truncate": place}


class Wrapped(Plain):
    """As a chat template adds tokens: three before a prompt, one behind, two after an answer."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.end = ["</s>", "end"]

    def prompt(self, text):
        return ["<s>", "user", ":", *super().prompt(text), "assistant"]


class Pieces:
    """A sentencepiece model with control tokens."""

    def vocab_size(self):
        return 4

    def is_control(self, number):
        return number < 3

    def id_to_piece(self, number):
        return ["</s>", "[INST]", "[/INST]", "Q"][number]


class OfControl(Words):
    tokenizer = Pieces()


def test_control_tokens_in_the_template(tmp_path, monkeypatch):
    """transformers finds them in a text, sentencepiece does not. In an item's own text they are what it says."""
    prompts, rows = Plain(OfControl()), [row(5, name=str(n)) for n in range(3)]
    rows[1]["input"] += " [/INST]"
    refuse(tmp_path, rows, prompts)
    for each in rows:
        each["input"] = f"[INST] {each['input']}"
    refuse(tmp_path, rows, Plain(Words()))
    with pytest.raises(SystemExit, match=r"a.jsonl: \[INST\] in the prompts is one token to transformers and vLLM"):
        refuse(tmp_path, rows, prompts)


def refuse(tmp_path, rows, prompts):
    write_jsonl(tmp_path / "a.jsonl", rows)
    lengths.refuse_marks(prompts, tmp_path / "a.jsonl")


def fit(tmp_path, rows, most, generated, key="max_seq_length", prompts=None):
    write_jsonl(tmp_path / "a.jsonl", rows)
    prompts = prompts or Plain(Words())
    return lengths.fit(prompts, tmp_path / "a.jsonl", (most, key), generated, tmp_path / "short.jsonl")


def test_place_of_a_column():
    made = row(3)
    begin, end = made["truncate"]
    assert (
        made["input"] == "Q what now\n{C} w0 w1 w2\nend\nAnswer what now:"
        and made["input"][begin:end] == "w0 w1 w2\nend"
    )


def test_what_fits_is_left_alone(tmp_path):
    """11 tokens of prompt, 2 of answer and end."""
    assert fit(tmp_path, [row(3)], 13, 0) == (tmp_path / "a.jsonl", 0)
    assert not (tmp_path / "short.jsonl").exists()


def test_only_the_column_is_shortened(tmp_path):
    rows = [row(2), row(90), row(3, output="yes but not now"), row(1)]
    assert fit(tmp_path, rows, 13, 0) == (tmp_path / "short.jsonl", 2)
    short = read_jsonl(tmp_path / "short.jsonl")
    assert [a for a, b in zip(short, rows) if a == b] == [rows[0], rows[3]]
    assert short[1]["input"] == "Q what now\n{C} w0 w1 w2 w3\nAnswer what now:"
    assert short[2]["input"] == "Q what now\n{C} w0\nAnswer what now:"
    assert [row["output"] for row in short] == [row["output"] for row in rows]


@pytest.mark.parametrize(("prompts", "more"), [(Plain(Words(), add_bos=True), 1), (Wrapped(Words()), 5)])
def test_added_tokens_count(tmp_path, prompts, more):
    assert fit(tmp_path, [row(3)], 13 + more, 0, prompts=prompts)[1] == 0
    assert fit(tmp_path, [row(3)], 12 + more, 0, prompts=prompts)[1] == 1
    (short,) = read_jsonl(tmp_path / "short.jsonl")
    assert short["input"] == "Q what now\n{C} w0 w1 w2\nAnswer what now:"


def test_room_for_what_is_generated(tmp_path):
    assert fit(tmp_path, [row(3)], 13, 1)[1] == 0 and fit(tmp_path, [row(3)], 13, 2)[1] == 1


@pytest.mark.parametrize("key", ["truncate", "context"])
def test_what_can_not_be_shortened_is_refused(tmp_path, key):
    """It has no column for that, or is too long without it."""
    rows = [row(1), row(50, name="long") | ({"output": "x " * 90} if key == "context" else {})]
    for each in rows:
        each.pop("truncate" if key == "truncate" else "", None)
    then = "as shortening is not enough" if key == "context" else "or name a column by truncate:"
    long = r"the prompt of long \(Q what now \{C\} w0 .{32}…\) has 58 tokens; max_seq_length leaves (38|0) for it"
    with pytest.raises(SystemExit, match=rf"a\.jsonl, line 2: {long}: raise that, {then}\.$"):
        fit(tmp_path, rows, 40, 0)
    if key == "truncate":
        rows = [rows[1]]
        words = "max_position_embeddings of the base leaves 38 for it: take another base, or name a column by truncate:"
        with pytest.raises(SystemExit, match=words):
            fit(tmp_path, rows, 40, 0, "max_position_embeddings of the base")


def test_room_is_what_the_base_has(tmp_path):
    (tmp_path / "model_config.yaml").write_text("max_position_embeddings: 1024")
    settings = SimpleNamespace(base=str(tmp_path), max_seq_length=512)
    assert lengths.room_of(settings) == (512, "max_seq_length")
    settings.max_seq_length = 2048
    assert lengths.room_of(settings) == (1024, "max_position_embeddings of the base")

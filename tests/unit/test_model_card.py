"""The model card of an adapter: for the Hub, by what its data, base and results are. That its lines work:
tests/workflow/test_export.py."""

import json
import re

import pytest
import yaml
from common.files import sha256, write_json, write_jsonl
from common.template import fill
from evaluate import evaluate
from evaluation.answers import Task
from helpers import ROOT, run_script
from huggingface_hub import ModelCard
from write_model_card import literal

REVISION = "27d67f1b5f57dc0953326b2601d68371d40ea8da"
HUB = {"base_model_name_or_path": "mistralai/Mistral-7B-v0.1", "revision": REVISION}
LOCAL = {"base_model_name_or_path": "resources/hf/mine", "revision": None}
LORA = {"r": 32, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["k_proj", "q_proj", "v_proj"]}
SETTINGS = {"precision": "bf16", "devices": 4, "adapter_dropout": 0.0, "nemo": [], "lr": 1e-4}
VERSIONS = {"nemo_toolkit": "2.2.1"}
PUBMEDQA = {"revision": 40 * "d"}
GOLD = ["yes"] * 5 + ["no"] * 3 + ["maybe"] * 2
PROMPT = "QUESTION:Is it \\so?\nCONTEXT: “So”\u2009it is.\nTARGET: (yes|no|maybe): "


def metrics(score, label="final_decision"):
    """Of a model that gives these answers, by score and text; the annotator's are always yes."""
    items = {f"{n}": {"final_decision": gold, "reasoning_required_pred": "yes"} for n, gold in enumerate(GOLD)}
    rows = [{"pmid": pmid, "output": item[label]} for pmid, item in items.items()]
    logprobs = [{name: -1.0 if name == answer else -9.0 for name in ("yes", "no", "maybe")} for answer in score]
    predictions = [
        {"pmid": row["pmid"], "pred": a, "logprob": p} for row, a, p in zip(rows, score, logprobs, strict=True)
    ]
    return evaluate(predictions, rows, items, Task("final_decision", ["yes", "no", "maybe"]), label)


@pytest.fixture
def write_card(tmp_path, monkeypatch):
    """write_card(data set's entry, base, metrics, …) writes a card in a working directory, and returns its path."""
    monkeypatch.chdir(tmp_path)
    peft = tmp_path / "results/runs/lora/fold3/seed1/peft"
    peft.mkdir(parents=True)

    def write(dataset, base, models=(), label="final_decision", lora=(), settings=(), **provenance):
        write_json(peft / "adapter_config.json", LORA | base | dict(lora))
        (peft / "adapter_model.safetensors").write_bytes(b"weights")
        tokens = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
        write_json(peft / "tokenizer_config.json", tokens)
        (tmp_path / "adapter.nemo").write_bytes(b"adapter")
        facts = {
            "settings": SETTINGS | dict(settings),
            "versions": VERSIONS,
            "workflow": None,
            "gpus": [],
            "sha256": {},
        }
        write_json(tmp_path / "provenance.json", facts | {"validation_loss": 0.5} | provenance)
        rows = [{"input": PROMPT, "output": answer} for answer in GOLD]
        write_jsonl(tmp_path / "train.jsonl", rows * 45)
        write_jsonl(tmp_path / "val.jsonl", rows[::-1])
        for number, model in enumerate(models):
            write_json(tmp_path / f"metrics{number}.json", model)
        model = {"repo": base["base_model_name_or_path"]} if base["revision"] else {"snapshot": "/home/me/secret"}
        arguments = "--config", "results/runs/lora/fold3/seed1/peft/adapter_config.json", "--adapter", "adapter.nemo"
        arguments += "--provenance", "provenance.json", "--train", "train.jsonl", "--val", "val.jsonl", "--metrics"
        arguments += *(f"metrics{number}.json" for number in range(len(models))), "--max-new-tokens", 20
        arguments += "--sources", json.dumps({"model": model, "dataset": dataset})
        arguments += "--name", "run=lora", "fold=3", "seed=1", "model=mine", "dataset=own", f"label={label}"
        run_script("write_model_card.py", *arguments, "--output", peft / "README.md")
        return peft / "README.md"

    return write


def test_of_pubmedqa_and_a_model_on_the_hub(write_card):
    right_but_one = [*GOLD[:-1], "yes"]
    file = write_card(PUBMEDQA, HUB, [metrics(right_but_one), metrics(["yes"] * 8 + ["no"] * 2)])
    card, data = file.read_text(), ModelCard.load(file).data
    assert (data.base_model, data.library_name, data.license) == (HUB["base_model_name_or_path"], "peft", "apache-2.0")
    assert (data.pipeline_tag, data.datasets, data.language) == ("text-generation", ["qiaojin/PubMedQA"], "en")
    assert data.model_name == "lora-fold3-seed1"
    found = {result.metric_type: result for result in data.eval_results}
    assert found["accuracy"].metric_value == 0.9 and 0.75 < found["f1"].metric_value < 0.9
    assert found["accuracy"].dataset_type == "qiaojin/PubMedQA" and found["accuracy"].dataset_split == "test"
    assert (
        f"[mistralai/Mistral-7B-v0.1](https://huggingface.co/mistralai/Mistral-7B-v0.1) at revision `{REVISION}`"
        in card
    )
    assert f"[PubMedQA](https://github.com/pubmedqa/pubmedqa) at commit `{40 * 'd'}`." in card
    assert (
        "fold 3; 450 training, 10 validation and 10 test items.\n- Answers: `final_decision`, the gold answer.\n"
        in card
    )
    assert re.search(r"\| this adapter \| 90\.0 \(59\.6 to 98\.2\) \| \d\d\.\d \(.*\) \|  \|", card)
    assert re.search(r"\| the base model alone \| 50\.0 \(.*\) \| .* \| \+40\.0 \(\+10\.0 to \+70\.0\) \|", card)
    assert re.search(r"\| the most frequent answer, yes \| 50\.0 \(.*\) \| .* \| \+40\.0 \(.*\) \|", card)
    assert "90.0 % of the texts generated with the code above equal the gold answer." in card
    assert "**Not for clinical use.**" in card and "Jiang et al." in card and "Jin et al." in card
    assert "no `<s>` stands before it" in card and "here ` maybe`, and\n`</s>` ends it." in card
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"):
        assert f"| {name} | `{sha256(file.with_name(name))}` |" in card
    assert f"| adapter.nemo | `{sha256('adapter.nemo')}` |" in card and "| README.md |" not in card


def test_the_same_input_gives_the_same_card(write_card):
    first = write_card(PUBMEDQA, HUB, [metrics(GOLD)]).read_bytes()
    assert write_card(PUBMEDQA, HUB, [metrics(GOLD)]).read_bytes() == first


def test_of_other_data_on_a_model_from_elsewhere(write_card):
    """Nothing of PubMedQA is in it, no place of this machine but what PEFT's configuration has, and no result."""
    file = write_card({"simulate": 0, "sample": 24}, LOCAL)
    card, data = file.read_text(), ModelCard.load(file).data
    assert "pubmed" not in card.lower() and "secret" not in card
    assert (
        "A LoRA adapter with which mine answers questions about simulated trial reports with yes, no or maybe." in card
    )
    assert (data.base_model, data.datasets, data.license) == (None, None, "unknown") and data.eval_results is None
    assert "Results" not in card and "450 training and 10 validation items." in card and "model-index" not in card
    assert "vllm serve resources/hf/mine --enable-lora" in card and "--revision" not in card
    assert "PubMedQA" in write_card({"directory": "/home/me/secret"}, LOCAL).read_text()
    assert "secret" not in file.read_text()


def test_each_kind_of_data_has_its_words():
    words = yaml.safe_load((ROOT / "workflow/report/datasets.yaml").read_text())
    schema = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())["$defs"]
    assert list(words) == [way["required"][0] for way in schema["dataset"]["oneOf"]]
    for kind, entry in words.items():
        labels = [] if kind in ("items", "test") else schema["run"]["properties"]["label"]["enum"]
        assert list(entry.get("answers", ())) == labels


@pytest.mark.parametrize("labels", [["yes", "no", "maybe"], None])
def test_of_ones_own_data(write_card, labels):
    """Nothing of an item stands in it, and nothing of PubMedQA; free text has metrics of its own."""
    items = {f"{n}": {"answer": gold} for n, gold in enumerate(GOLD)}
    rows = [{"id": id, "output": item["answer"]} for id, item in items.items()]
    scores = {"yes": -1.0, "no": -2.0, "maybe": -3.0}
    more = {"logprob": scores} if labels else {}
    predictions = [{"id": row["id"], "pred": row["output"]} | more for row in rows]
    found = evaluate(predictions, rows, items, Task("answer", labels))
    form = "Report: {text}\n{text.at 1} {{so}}? "
    entry = {"items": "secret/place.csv", "prompt": form, "answer": "finding"}
    entry |= {"labels": labels} if labels else {}
    card = write_card(entry, LOCAL, [found, found], "answer").read_text()
    for word in ("PubMedQA", "clinical", "QUESTION:", "secret", "pmid", " 500 "):
        assert word not in card
    assert "- Data: own, from `place.csv`, 470 items.\n" in card and "- Answers: column `finding`.\n" in card
    code = re.search(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)[1]
    assert code == 'text = "…"\n_text_at_1 = "…"\nprompt = f"""Report: {text}\n{_text_at_1} {{so}}? """\n'
    exec(code.replace("…", "It is."), names := {})
    assert names["prompt"] == fill(form, {"text": "It is.", "text.at 1": "It is."})
    assert ("| this adapter | 50.0 (" in card) == bool(labels) and ("exact match" in card) == (labels is None)
    assert ModelCard(card).data.tags[:2] == ["lora", "nemo"]


def test_what_else_it_tells(write_card):
    chosen = {"run": "lora-16", "validation_losses": {"lora-8": 0.6, "lora-16": 0.5}}
    settings = {"adapter_dropout": 0.1, "repeat_maybe": 2, "precision": 16}
    label = "reasoning_required_pred"
    options = {"lora": {"r": 17}, "settings": settings, "chosen": chosen, "gpus": ["NVIDIA H100", "NVIDIA H100"]}
    card = write_card(PUBMEDQA, HUB, [metrics(GOLD, label)], label, **options).read_text()
    assert "NeMo's dropout, 0.1, was on the adapter's output" in card and "`lora_dropout` is 0" in card
    assert "whose answer is `maybe` 2 times each." in card and 'torch_dtype="float16"' in card
    assert "the adapter of `lora-16`, the one of 2 runs" in card and "Trained on 4 × NVIDIA H100 with" in card
    assert (
        "--max-lora-rank 32" in card and "With `reasoning_required_pred`, which it learnt, it agrees in 50.0 %." in card
    )
    assert "| the base model alone |" not in card and "the most frequent answer, yes" in card
    options = {"lora": {"r": 600, "lora_dropout": 0.1}, "settings": settings}
    card = write_card(PUBMEDQA, HUB, **options).read_text()
    assert "vLLM takes no adapter of rank 600" in card and "vllm serve" not in card and "NeMo's dropout" not in card


def blocks(text):
    """The code blocks of a Markdown text, {the first line's language: contents}, the last of each."""
    return dict(re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def test_documentation_has_the_cards_lines(write_card):
    """Of `lora` in config/config.yaml."""
    model = yaml.safe_load((ROOT / "config/config.yaml").read_text())["models"]["mistral-7b"]
    assert {"base_model_name_or_path": model["repo"], "revision": model["revision"]} == HUB
    card = write_card(PUBMEDQA, HUB).read_text().replace("fold3/seed1", "fold0/seed0")
    section = (ROOT / "docs/adapter.md").read_text().partition("## From Python and vLLM\n")[2]
    assert blocks(section) == blocks(card) and len(blocks(card)) == 2


@pytest.mark.parametrize("text", [PROMPT, "plain: ", 'a "quoted"', 'three """', "a ``` fence", "a\rb", "tab\tand\n\n"])
def test_prompt_as_python(text):
    assert eval(literal(text)) == text and "\n```" not in literal(text)

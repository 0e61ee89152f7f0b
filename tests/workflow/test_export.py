"""export_adapter: transformers and PEFT give the answers that NeMo gave, with adapters of several shapes that
train_lora.py trained. merge_model: the merged model is theirs. verify_export: it sees both, and what is wrong.
write_model_card and tools/ask.py: their lines work."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import yaml
from chat_templates import MISTRAL_V1, ZEPHYR
from common.files import read_json, read_jsonl, write_json
from common.pubmedqa import LABELS
from helpers import ROOT, SCRIPTS, run_script, snakemake, torchrun
from model_formats.manifest import write_manifest
from model_formats.snapshot import Snapshot
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from test_verify import ARCHITECTURES
from tiny import write_snapshot
from transformers import AutoModelForCausalLM, AutoTokenizer
from verify_export import ask_all, compare, same

ALL = ["attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2"]
TRAIN = {"micro_batch_size": 2, "global_batch_size": 4, "max_steps": 2, "val_check_interval": 2, "lr": 1e-2}
TRAIN |= {"warmup_steps": 0, "target_modules": ALL, "adapter_dim": 8, "adapter_dropout": 0.1}
PRE = "+model.peft.lora_tuning.dropout_position=pre"  # as `best` has it, and PEFT
ALPHA = {"nemo": ["model.peft.lora_tuning.alpha=24"]}
BOS = {"add_bos": True}
CASES = {  # snapshot, tensor-parallel ranks, further settings, what prompts become
    "mistral": ("tiny", 1, {}, {}),  # 8 heads in 4 groups, head_dim 24 is not width / heads
    "mistral at TP 2": ("tiny", 2, ALPHA, {"chat_template": MISTRAL_V1}),
    "smollm2": ("smollm2", 1, ALPHA, BOS),  # 9 heads in 3 groups, tied embeddings
    "mistral-nemo": (  # one group
        "mistral-nemo",
        1,
        {"nemo": ["model.peft.lora_tuning.layer_selection=[2]", PRE]},
        BOS | {"chat_template": ZEPHYR},
    ),
}


@pytest.fixture(scope="module", params=CASES)
def answered(request, inputs, tiny_mistral, tmp_path_factory):
    """A directory with snapshot/, adapter.nemo, NeMo's predictions.jsonl and prompts.json, how prompts were put."""
    name, ranks, settings, prompts = CASES[request.param]
    directory = tmp_path_factory.mktemp("answered")
    snapshot, base = directory / "snapshot", directory / "base"
    if name == "tiny":
        shutil.copytree(tiny_mistral, snapshot)
    else:
        write_snapshot(snapshot, *ARCHITECTURES[name][:2])
    write_manifest(snapshot, "local", None)
    run_script("convert_model.py", "--snapshot", snapshot, "--output-dir", base)
    for split, items in (("train", 8), ("val", 8)):
        lines = (inputs / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (directory / f"{split}.jsonl").write_text("".join(lines[:items]))
    shared = {"devices": ranks, "tensor_model_parallel_size": ranks, "precision": 32, "megatron_amp_O2": False}
    shared |= {"max_seq_length": 512, **prompts}
    write_json(directory / "prompts.json", prompts)
    val, common, chat = directory / "val.jsonl", ("--accelerator", "cpu", "--base", base), ()
    if "chat_template" in prompts:
        (snapshot / "chat_template.jinja").write_text(prompts["chat_template"])
        chat = "--chat-template", snapshot / "chat_template.jinja"
        shared["chat_template"] = True
    train = "--train", directory / "train.jsonl", "--val", val, "--settings", json.dumps(TRAIN | settings | shared)
    train += "--seed", 0, "--time-limit", 60, "--work-dir", directory / "training"
    torchrun(SCRIPTS / "train_lora.py", *common, *train, *chat, "--output", directory / "adapter.nemo", processes=ranks)
    predict = "--adapter", directory / "adapter.nemo", "--test", val, "--work-dir", directory / "prediction"
    predict += "--labels", *LABELS, "--settings", json.dumps(shared | {"batch_size": 8, "tokens_to_generate": 4})
    torchrun(
        SCRIPTS / "predict.py", *common, *predict, *chat, "--output", directory / "predictions.jsonl", processes=ranks
    )
    run_script(
        *("export_adapter.py", "--adapter", directory / "adapter.nemo"),
        *("--snapshot", snapshot, "--output-dir", directory / "peft", *chat),
    )
    return directory


def verified(answered, adapter, merged=None, items=8, free=False):
    """What verify_export says, and whether it is content; free: of the texts alone, as where there are no labels."""
    rows = [{**row, "logprob": {}} if free else row for row in read_jsonl(answered / "predictions.jsonl")[:items]]
    assert len(rows) == items
    prompts = read_json(answered / "prompts.json")
    return compare(ask_all(Snapshot(answered / "snapshot"), adapter, merged, rows, 4, **prompts))


def tokens_of(tokenizer, row, add_bos=False, chat_template=None):
    """(the prompt's tokens, the answer's with its end) of a row, by transformers alone."""
    prompt, answer = row["input"].strip(" "), row["output"]
    if chat_template:
        turns, options = [{"role": "user", "content": prompt}], {"chat_template": chat_template, "tokenize": True}
        asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, **options)
        whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], **options)
        end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)
        answer = whole[len(asked) : end]
    else:
        asked = tokenizer(prompt, add_special_tokens=False).input_ids
        answer = tokenizer(f"{prompt} {answer}", add_special_tokens=False).input_ids[len(asked) :]
        answer.append(tokenizer.eos_token_id)
    return [tokenizer.bos_token_id] * (add_bos and asked[0] != tokenizer.bos_token_id) + asked, answer


def test_training_and_validation_see_the_same_tokens(answered):
    """NeMo's validation loss is that of transformers, of the tokens that the prompts should become."""
    model = AutoPeftModelForCausalLM.from_pretrained(answered / "peft", torch_dtype=torch.float32).eval()
    tokenizer, losses = AutoTokenizer.from_pretrained(answered / "peft"), []
    for row in read_jsonl(answered / "val.jsonl"):
        prompt, answer = tokens_of(tokenizer, row, **read_json(answered / "prompts.json"))
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        losses.append(-float(logprobs.gather(1, torch.tensor(answer)[:, None]).mean()))
    found = read_json(answered / "adapter.provenance.json")["validation_loss"]
    assert found == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_card_and_ask_put_prompts_so(answered, tmp_path, capsys):
    """Each line of the card's, as it stands there, and tools/ask.py give NeMo's answer."""
    prompts, rows = read_json(answered / "prompts.json"), read_jsonl(answered / "predictions.jsonl")
    files = "--config", answered / "peft/adapter_config.json", "--adapter", answered / "adapter.nemo"
    files += "--provenance", answered / "adapter.provenance.json", "--output", answered / "peft/README.md"
    files += "--train", answered / "train.jsonl", "--val", answered / "val.jsonl", "--max-new-tokens", 4
    name = "--name", "run=lora", "fold=0", "seed=0", "model=tiny", "dataset=trials", "label=final_decision"
    sources = {"model": {"snapshot": "tiny"}, "dataset": {"simulate": 0}}
    run_script("write_model_card.py", *files, *name, "--sources", json.dumps(sources))
    card = (answered / "peft/README.md").read_text()
    assert ("there is no chat\ntemplate" in card) == ("chat_template" not in prompts)
    assert ("--chat-template" in card) == ("chat_template" in prompts) and ("`ids` of above" in card) == (
        "add_bos" in prompts
    )
    prompt, use = re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    exec(prompt, names := {})
    assert names["prompt"] == rows[0]["input"]
    load = re.split(r"^(?=(?:turns|ids|tokens) = )", use, maxsplit=1, flags=re.MULTILINE)[0]
    exec(load, names)
    for row in rows:
        names["prompt"] = row["input"]
        capsys.readouterr()
        exec(use.removeprefix(load), names)
        found = capsys.readouterr().out.removesuffix("\n")
        assert "\ufffd" in row["pred"] or found == row["pred"]
    row = next(row for row in rows if "\ufffd" not in row["pred"])
    done = ask(answered / "peft", row["input"], *(["--add-bos"] if "add_bos" in prompts else []), cwd=tmp_path)
    assert done.stdout.startswith(row["pred"].strip()), done.stderr


def test_texts_of_bytes_that_are_no_utf8():
    """As sentencepiece and transformers decode them."""
    assert same("\ufffdSesG", "\ufffd\ufffdesG") and same(" yes \ufffd", "yes\ufffd\ufffd") and same(" yes", "yes")
    assert not same("yes\ufffd", "no\ufffd") and not same("yes", "yes and no") and not same("yes \ufffd", "no")


def swapped(one, other):
    return lambda name, tensor: (name.replace(one, other) if one in name else name.replace(other, one), tensor)


def with_rows_shifted(module):
    """By one; of heads in a wrong order more are."""
    return lambda name, tensor: (name, tensor.roll(1, 0) if f"{module}.lora_B" in name else tensor)


def with_first_rank_only(name, tensor):
    """As where of two tensor-parallel ranks only the first one's linear_in is read."""
    half = len(tensor) // 2
    return name, torch.cat([tensor[:half], 0 * tensor[half:]]) if "lora_A" in name else tensor


WRONG = {  # exports that are wrong in one thing
    "gate is up": swapped("gate_proj", "up_proj"),
    "key is value": swapped("k_proj", "v_proj"),
    **{f"{module}'s rows are shifted": with_rows_shifted(module) for module in ("q_proj", "k_proj", "v_proj")},
    "a rank is missing": with_first_rank_only,
}


def changed(peft, directory, change, **config):
    """A copy of the adapter with other weights, or other values in its configuration."""
    shutil.copytree(peft, directory)
    weights = load_file(directory / "adapter_model.safetensors")
    weights = dict(change(name, tensor) for name, tensor in weights.items())
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(directory / "adapter_config.json", read_json(directory / "adapter_config.json") | config)
    return directory


def test_peft_answers_as_nemo_does(answered, tmp_path):
    """And what is wrong in one thing does not, and is seen."""
    said, good = verified(answered, answered / "peft")
    assert good, said
    assert float(re.search(r"peft and nemo differ by (\S+) and in 0 of 8 texts", said)[1]) < 1e-4
    said, good = verified(answered, answered / "peft", free=True)
    assert good and "log-probabilities by up to 0.0e+00 and " in said, said
    wrong = {name: changed(answered / "peft", tmp_path / name, change) for name, change in WRONG.items()}
    config = read_json(answered / "peft/adapter_config.json")
    assert config["lora_dropout"] == (0.1 if "layers_to_transform" in config else 0.0)
    alpha = config["lora_alpha"]
    wrong["scale"] = changed(answered / "peft", tmp_path / "scale", lambda *weight: weight, lora_alpha=alpha / 2)
    for name, adapter in wrong.items():
        assert not verified(answered, adapter, items=2)[1], name
    for name, factor in ("opposite", -1), ("none", 0):  # texts of four tokens may stay where the scale is half
        adapter = changed(answered / "peft", tmp_path / name, lambda *weight: weight, lora_alpha=factor * alpha)
        assert not verified(answered, adapter, free=True)[1], name


def test_merged_model_is_what_peft_makes_of_it(answered, tmp_path):
    """Each weight, but for its one rounding to bf16."""
    snapshot, merged = answered / "snapshot", tmp_path / "merged"
    run_script("merge_model.py", "--snapshot", snapshot, "--adapter", answered / "peft", "--output", merged)
    model = AutoPeftModelForCausalLM.from_pretrained(answered / "peft", torch_dtype=torch.float32)
    expected, found, base = (
        model.merge_and_unload().state_dict(),
        AutoModelForCausalLM.from_pretrained(merged, torch_dtype="auto").state_dict(),
        AutoModelForCausalLM.from_pretrained(snapshot, torch_dtype="auto").state_dict(),
    )
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16} and found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.float(), expected[name], rtol=2**-8, atol=1e-6)
    changed = {name.split(".")[-2] for name in found if not torch.equal(found[name], base[name])}
    assert changed == set(read_json(answered / "peft/adapter_config.json")["target_modules"])
    said, good = verified(answered, answered / "peft", merged)
    assert good and "merged and rounded differ by" in said, said
    assert not verified(answered, answered / "peft", snapshot, items=2)[1], "the base, without the adapter"
    config = read_json(merged / "config.json")
    write_json(merged / "config.json", config | {"rope_theta": 2 * config["rope_theta"]})
    assert not verified(answered, answered / "peft", merged, items=2)[1], "of other rotary angles"


def test_rules_of_merge_and_verification(chain, tmp_path):
    """Of the chain's adapter of TP 2 in bf16. An export that is wrong leaves no table."""
    directory = chain / "results/runs/tutorial/fold0/seed0"
    tables = [f"results/runs/tutorial/fold0/seed0/{form}.verification.tsv" for form in ("peft", "merged")]
    done = snakemake(chain, *tables, "--configfile", "chain.yaml")
    assert done.returncode == 0, done.stdout
    assert {file.name for file in (directory / "merged").iterdir()} == {
        file.name for file in (chain / "tiny").iterdir()
    }
    model = AutoModelForCausalLM.from_pretrained(directory / "merged")
    base = AutoModelForCausalLM.from_pretrained(chain / "tiny")
    assert not torch.equal(model(torch.tensor([[5, 6]])).logits, base(torch.tensor([[5, 6]])).logits)
    for table, names in zip(tables, (["peft"], ["peft", "rounded", "merged"])):
        header, *rows = ((chain / table).read_text()).splitlines()
        assert header.split("\t") == ["item", "answer", "nemo", "base", *names, "difference"]
        assert [row.split("\t")[:2] for row in rows] == [
            [str(item), answer] for item in range(1, 11) for answer in (*LABELS, "text")
        ]
    settings = read_json(directory / "verification/predictions.provenance.json")["settings"]
    assert (settings["precision"], settings["megatron_amp_O2"]) == (32, False)
    wrong = changed(directory / "peft", tmp_path / "peft", WRONG["key is value"])
    files = "--snapshot", chain / "tiny", "--predictions", directory / "verification/predictions.jsonl"
    options = "--adapter", wrong, "--tokens-to-generate", 6, "--items", 2, "--output", tmp_path / "table.tsv"
    done = run_script("verify_export.py", *files, *options, check=False)
    assert done.returncode == 1 and not (tmp_path / "table.tsv").exists()
    assert re.search(r"peft, 2 items: the adapter changes .*: this is not NeMo's adapter", done.stderr)
    (wrong / "adapter_config.json").write_text('{"peft_type": "NEW"}')
    done = run_script("verify_export.py", *files, *options, check=False)
    assert re.search(r"peft: transformers \S+ and PEFT \S+ do not load it: \S", done.stderr)
    assert "Traceback" not in done.stderr


def test_rule(chain):
    """The chain's adapter of TP 2 in bf16, and one of the base's tokenizer files; the same bytes when made again."""
    directory = chain / "results/runs/tutorial/fold0/seed0/peft"
    call = "results/runs/tutorial/fold0/seed0/peft/adapter_config.json", "--configfile", "chain.yaml"
    made = []
    for options in ((), ("--forcerun", "export_adapter")):
        done = snakemake(chain, *call, *options)
        assert done.returncode == 0, done.stdout
        made.append({file.name: file.read_bytes() for file in directory.iterdir() if file.name != "README.md"})
    assert made[0] == made[1]
    assert made[0].keys() == {
        *("adapter_config.json", "adapter_model.safetensors", "tokenizer.model", "tokenizer_config.json")
    }
    config = json.loads(made[0]["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("resources/hf/tiny", None)
    weights = load_file(directory / "adapter_model.safetensors")
    assert len(weights) == 4 * 3 * 2 and {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


@pytest.fixture(scope="module")
def exported(chain):
    """The chain after `snakemake export`."""
    done = snakemake(chain, "export", "--configfile", "chain.yaml")
    assert done.returncode == 0, done.stdout
    return chain


@pytest.fixture(scope="module")
def answers(exported):
    """NeMo's rows with the adapter of `lora`, some of which the base alone answers otherwise. Without those with bytes
    that are no UTF-8, as a random model writes them: sentencepiece and transformers read these differently."""
    with_adapter, base = (
        read_jsonl(exported / f"results/runs/{run}/fold0/seed0/predictions.jsonl") for run in ("lora", "base")
    )
    pairs = [pair for pair in zip(with_adapter, base, strict=True) if "\ufffd" not in pair[0]["pred"]]
    assert len(pairs) > 4 and any(row["pred"] != other["pred"] for row, other in pairs)
    return [row for row, _ in pairs]


def test_all_targets_are_exported(exported):
    files = {file.relative_to(exported / "results/runs").as_posix() for file in exported.rglob("peft/README.md")}
    assert files == {f"{run}/fold0/seed0/peft/README.md" for run in ("tutorial", "lora")}
    for file in files:
        assert (exported / "results/runs" / file).with_name("adapter_model.safetensors").exists()
        assert "pubmed" not in (exported / "results/runs" / file).read_text().lower()  # the trials are simulated
    again = snakemake(exported, "export", "--configfile", "chain.yaml")
    assert "Nothing to be done" in again.stdout
    for name in "adapter_config.json", "adapter_model.safetensors":  # as a disk is purged, with the card left
        file = exported / "results/runs/lora/fold0/seed0/peft" / name
        content = file.read_bytes()
        file.unlink()
        again = snakemake(exported, "export", "--configfile", "chain.yaml")
        assert again.returncode == 0 and file.read_bytes() == content, again.stdout


def test_no_adapter_goes_out_without_its_tokenizer(exported, tmp_path):
    """Of a snapshot that was purged in part."""
    adapter, snapshot = exported / "results/runs/lora/fold0/seed0/adapter.nemo", tmp_path / "hf"
    shutil.copytree(exported / "resources/hf/tiny", snapshot)
    files = "--adapter", adapter, "--snapshot", snapshot, "--output-dir", tmp_path / "peft"
    for damage, what in (
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "has other bytes than were fetched"),
        (lambda file: file.unlink(), "is missing"),
    ):
        damage(snapshot / "tokenizer.model")
        done = run_script("export_adapter.py", *files, check=False)
        remedy = f"Remove {snapshot}/manifest.json and run Snakemake again, which fetches it."
        assert (done.returncode, done.stderr) == (1, f"{snapshot}/tokenizer.model: {what}. {remedy}\n")
        assert not (tmp_path / "peft").exists()


def test_lines_of_the_card(exported, answers, monkeypatch, capsys):
    """As they stand there they print NeMo's answers."""
    monkeypatch.chdir(exported)
    card = (exported / "results/runs/lora/fold0/seed0/peft/README.md").read_text()
    prompt, use = re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    exec(prompt, names := {})
    val = read_jsonl(exported / "results/data/trials/final_decision/fold0/val.jsonl")
    assert names["prompt"] == val[0]["input"]
    load, comma, ask = use.partition("tokens = ")
    exec(load, names)
    for row in answers:
        names["prompt"] = row["input"]
        capsys.readouterr()
        exec(comma + ask, names)
        assert capsys.readouterr().out == f"{row['pred']}\n"


def ask(directory, *arguments, cwd, text=""):
    command = [sys.executable, ROOT / "workflow/tools/ask.py", directory, *arguments]
    return subprocess.run(command, cwd=cwd, input=text, capture_output=True, text=True)


def test_ask(exported, answers, tmp_path):
    directory, row = "results/runs/lora/fold0/seed0/peft", answers[-1]
    for arguments, text in (([row["input"]], ""), ([], row["input"] + "\n")):
        done = ask(directory, *arguments, text=text, cwd=exported)
        assert done.stdout.startswith(row["pred"].strip()), done.stderr
    refused = ask(exported / directory, "x", cwd=tmp_path)  # from where the base model can't be seen
    said = f"resources/hf/tiny: no base model, neither there, seen from {tmp_path}, nor on the Hugging Face Hub. "
    loading, why = refused.stderr.splitlines()
    assert refused.returncode == 1 and loading == "Loading the model…" and why.startswith(said)
    refused = ask(tmp_path, "x", cwd=tmp_path)
    what = "holds no adapter_config.json. Name a peft/ directory, as `snakemake export` makes them."
    assert (refused.returncode, refused.stderr) == (1, f"{tmp_path}: {what}\n")


def config_of(directory, **changes):
    write_json(directory / CONFIG, read_json(directory / CONFIG) | changes)


def cut(file):
    """In the place of a link, of which a fetched shard may be one."""
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[: len(content) // 2])


CONFIG, WEIGHTS, SHARD = "adapter_config.json", "adapter_model.safetensors", "model-00002-of-00003.safetensors"
EXPORT = "run `snakemake export` again."
BROKEN = {  # what became of copies of peft/ and its base, and what is said
    "weights cut off": (lambda peft, base: cut(peft / WEIGHTS), f"peft/{WEIGHTS}: no whole safe", f"it and {EXPORT}"),
    "shard cut off": (lambda peft, base: cut(base / SHARD), f"base/{SHARD}: no whole", "base/manifest.json and run Sn"),
    "shard cut off elsewhere": (
        lambda peft, base: cut(base / SHARD) or (base / "manifest.json").unlink(),
        f"base/{SHARD}: no whole safetensors file",
        ". Fetch it again.",
    ),
    "shard gone": (
        lambda peft, base: (base / SHARD).unlink(),
        f"base: the base model is not whole (No such file or directory: base/{SHARD}). ",
        "Remove base/manifest.json and run Snakemake again.",
    ),
    "configuration empty": (
        lambda peft, base: (peft / CONFIG).write_text(""),
        f"peft/{CONFIG}: is damaged, it",
        EXPORT,
    ),
    "configuration {}": (lambda peft, base: (peft / CONFIG).write_text("{}"), f"peft/{CONFIG}: is damaged, it", EXPORT),
    "configuration []": (lambda peft, base: (peft / CONFIG).write_text("[]"), f"peft/{CONFIG}: is damaged, it", EXPORT),
    "of a new kind": (
        lambda peft, base: config_of(peft, peft_type="NEW"),
        "peft: transformers ",
        f"Remove peft/{CONFIG} and {EXPORT}",
    ),
    "no tokenizer.model": (
        lambda peft, base: (peft / "tokenizer.model").unlink(),
        "peft: holds no whole tokenizer (",
        f"Remove peft/{CONFIG} and {EXPORT}",
    ),
    "no tokenizer": (
        lambda peft, base: [file.unlink() for file in peft.glob("tokenizer*")],
        "peft: holds no whole tokenizer (",
        f"Remove peft/{CONFIG} and {EXPORT}",
    ),
}


def test_ask_says_in_a_sentence_what_is_broken(exported, tmp_path, monkeypatch, capsys):
    """In this process: imports take longest."""
    monkeypatch.chdir(tmp_path)
    for how, (damage, begin, remedy) in BROKEN.items():
        shutil.copytree(exported / "results/runs/lora/fold0/seed0/peft", "peft")
        shutil.copytree(exported / "resources/hf/tiny", "base")  # what its links lead to
        config_of(Path("peft"), base_model_name_or_path="base")
        damage(Path("peft"), Path("base"))
        monkeypatch.setattr(sys, "argv", ["ask.py", "peft", "Is it so?"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(ROOT / "workflow/tools/ask.py", run_name="__main__")
        said = str(ended.value.code)
        assert said.startswith(begin) and remedy in said and "\n" not in said and len(said) < 600, (how, said)
        shutil.rmtree("peft"), shutil.rmtree("base")


def test_prompts_that_are_none(tmp_path):
    write_json(tmp_path / CONFIG, {"base_model_name_or_path": "somewhere/else"})
    (tmp_path / WEIGHTS).touch()
    command = [sys.executable, ROOT / "workflow/tools/ask.py", tmp_path]
    for arguments, given, words in (
        ([], b"", "The prompt is empty. Write it after the directory, or give it on standard input.\n"),
        ([""], b"\n", "The prompt is empty. Write it after the directory, or give it on standard input.\n"),
        (
            [],
            "感想".encode("shift_jis"),
            "The prompt is not in UTF-8. Convert it, as by iconv -f SHIFT_JIS -t UTF-8.\n",
        ),
        ([b"\xff"], b"", "The prompt is not in UTF-8. Convert it, as by iconv -f SHIFT_JIS -t UTF-8.\n"),
    ):
        done = subprocess.run([*command, *arguments], input=given, capture_output=True)
        assert (done.returncode, done.stderr.decode()) == (1, words)


def test_an_empty_answer_asks_for_the_prompts_form(tmp_path, monkeypatch, capsys):
    """Of a model that ends each answer at once."""
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": "somewhere/else"})
    save_file({}, tmp_path / "adapter_model.safetensors")
    tokenizer = Mock(return_value=SimpleNamespace(input_ids=[5, 6]), decode=lambda ids, **_: "x" * len(ids))
    model = SimpleNamespace(device="cpu", generate=lambda input_ids, **_: input_ids)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda _: tokenizer)
    monkeypatch.setattr(AutoPeftModelForCausalLM, "from_pretrained", lambda *_, **__: model)
    monkeypatch.setattr(sys, "argv", ["ask.py", str(tmp_path), "Is it so?"])
    runpy.run_path(ROOT / "workflow/tools/ask.py", run_name="__main__")
    shown = capsys.readouterr()
    assert shown.out == "\n" and shown.err.endswith(f"exactly the form that is shown in {tmp_path}/README.md?\n")


def test_the_demonstration_ends_with_a_command_that_works(exported, tmp_path):
    """Here with another adapter in the place of its own."""
    (tmp_path / "Makefile").write_text(f"include {ROOT}/Makefile\nlast:\n\t@printf '%s\\n' '$(ASK)'\n")
    said = subprocess.check_output(["make", "-s", "last"], cwd=tmp_path, text=True)
    (line,) = said.splitlines()
    demo = ".venv/bin/python workflow/tools/ask.py demo/results/runs/lora/fold0/seed0/peft"
    assert line.endswith(f" | {demo}")
    prompt = subprocess.check_output(line.removesuffix(f" | {demo}"), shell=True, text=True)
    assert prompt.count("\n") == 3 and prompt.endswith("(yes|no|maybe):")
    directory = "results/runs/lora/fold0/seed0/peft"
    line = line.replace(demo, f"{sys.executable} {ROOT}/workflow/tools/ask.py {directory}")
    answer = subprocess.check_output(line, shell=True, cwd=exported, text=True)
    assert answer and answer == ask(directory, prompt, cwd=exported).stdout


def test_candidate_is_exported_without_answers_to_test_items(chain, tmp_path):
    lora = yaml.safe_load((chain / "chain.yaml").read_text())["runs"]["lora"]
    slow, chosen = lora | {"seeds": [0, 1]}, {key: value for key, value in lora.items() if key != "train"}
    runs = {"slow": slow, "fast": slow | {"train": lora["train"] | {"lr": 1.0e-3}}}
    runs["chosen"] = chosen | {"seeds": [0, 1], "choose": ["slow", "fast"]}
    write_json(tmp_path / "choose.yaml", {"targets": ["base", "chosen"], "runs": runs})
    plans = {}
    asked = [f"results/runs/slow/fold0/seed0/{file}" for file in ("peft/README.md", "merged/config.json")]
    for name, targets in {"candidate": asked, "all": ["export"]}.items():
        call = *targets, "--dry-run", "--configfile", "chain.yaml", tmp_path / "choose.yaml"
        done = snakemake(chain, *call)
        assert done.returncode == 0, done.stdout
        plans[name] = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE))
    assert plans["candidate"].keys() & {"predict", "evaluate", "compare_runs"} == set()
    assert plans["candidate"]["write_model_card"] == plans["candidate"]["merge_model"] == "1"
    assert plans["all"]["predict"] == plans["all"]["evaluate"] == plans["all"]["write_model_card"] == "2"  # of chosen

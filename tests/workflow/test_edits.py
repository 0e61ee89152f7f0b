"""What an edit of a file re-runs: of the workflow's own, each in turn, and of the user's. Plans only, but of every
rule, in a project whose outputs are marked as made."""

import itertools
import json
import os
import re
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from helpers import ROOT, snakemake, write_snapshot

NOT_REPEATED = {"download_model", "convert_model", "train_lora"}
OTHERS = {file.stem for file in (ROOT / "workflow/scripts").glob("*.py")} - NOT_REPEATED
NOTHING = set()
OF_SNAPSHOT = {"export_adapter", "import_adapter", "merge_model", "verify_export"}

# For each file below workflow/ the rules that an edit of it re-runs, besides those that read their results. Training,
# conversion and download are in NOT_REPEATED: a file that only these have re-runs nothing.
RERUNS = {
    "Snakefile": NOTHING,
    "where.smk": NOTHING,
    "checks.smk": NOTHING,
    "hooks.smk": NOTHING,
    "planning/__init__.py": NOTHING,
    "planning/adapters.py": NOTHING,
    "planning/changes.py": NOTHING,
    "planning/config.py": NOTHING,
    "planning/container.py": NOTHING,
    "planning/datasets.py": NOTHING,
    "planning/defaults.py": NOTHING,
    "planning/forced.py": NOTHING,
    "planning/machine.py": NOTHING,
    "planning/models.py": NOTHING,
    "planning/nemo_keys.py": NOTHING,
    "planning/nodes.py": NOTHING,
    "planning/own_files.py": NOTHING,
    "planning/parameters.py": NOTHING,
    "planning/prompts.py": NOTHING,
    "planning/questions.py": NOTHING,
    "planning/places.py": NOTHING,
    "planning/schema.py": NOTHING,
    "planning/slurm.py": NOTHING,
    "planning/speed.py": NOTHING,
    "planning/start.py": NOTHING,
    "planning/stop.py": NOTHING,
    "planning/sweeps.py": NOTHING,
    "planning/targets.py": NOTHING,
    "planning/table.py": NOTHING,
    "planning/terminal.py": NOTHING,
    "planning/yaml_files.py": NOTHING,
    "planning/warm_start.py": NOTHING,
    "report/accuracy.rst": NOTHING,  # captions of --report, which is made anew each time
    "report/datasets.yaml": {"write_model_card"},
    "report/licences.yaml": {"write_report", "write_model_card"},
    "report/model_card.md.j2": {"write_model_card"},
    "report/published.yaml": {"compare_runs"},
    "report/report.html.j2": {"write_report"},
    "report/report.rst": NOTHING,
    "report/words.en.yaml": {"write_report"},
    "report/words.ja.yaml": {"write_report"},
    "report/workflow.rst": NOTHING,
    "rules/answers.smk": NOTHING,
    "rules/choose.smk": NOTHING,
    "rules/common.smk": NOTHING,
    "rules/convert.smk": NOTHING,
    "rules/data.smk": NOTHING,
    "rules/evaluate.smk": NOTHING,
    "rules/export.smk": NOTHING,
    "rules/model.smk": NOTHING,
    "rules/predict.smk": NOTHING,
    "rules/report.smk": NOTHING,
    "rules/splits.smk": NOTHING,
    "rules/train.smk": NOTHING,
    "rules/verify.smk": NOTHING,
    "schemas/config.schema.yaml": NOTHING,
    "scripts/choose_run.py": {"choose_run"},
    "scripts/common/__init__.py": OTHERS,
    "scripts/evaluation/__init__.py": {"evaluate", "compare_runs", "write_report", "write_model_card"},
    "scripts/model_formats/__init__.py": {"dequantize_gguf", "extract_chat_template", *OF_SNAPSHOT},
    "scripts/nemo_image/__init__.py": {"predict", "verify_model"},
    "scripts/common/user_files/__init__.py": {"download_pubmedqa", "read_items", "read_questions", "split_items"},
    "scripts/common/base_files.py": {"pack_model", "predict", "verify_model"},
    "scripts/common/adapter.py": {"predict", "export_adapter", "import_adapter"},
    "scripts/common/chat.py": {"extract_chat_template", "export_adapter", "merge_model", "predict", "verify_export"},
    "scripts/common/code.py": {"predict"},  # its own checksum lies beside an interrupted prediction
    "scripts/common/ending.py": OTHERS,
    "scripts/common/files.py": OTHERS,
    "scripts/common/gpus.py": NOTHING,
    "scripts/common/items.py": {"predict", "evaluate", "write_answers", "write_report"},
    "scripts/common/labels.py": {"predict", "verify_export"},
    "scripts/common/later_keys.py": NOTHING,
    "scripts/common/lock.py": {"predict", "merge_model"},
    "scripts/common/progress.py": {"extract_chat_template", "predict", "merge_model", "verify_model", "verify_export"},
    "scripts/common/provenance.py": {"predict", "evaluate", "import_adapter", "verify_model"},
    "scripts/common/pubmedqa.py": {
        "download_pubmedqa",
        "simulate_trials",
        "split_folds",
        "write_jsonl",
        "compare_runs",
        "write_report",
    },
    "scripts/common/user_files/items.py": {"read_items", "read_questions", "split_items"},
    "scripts/common/user_files/parquet.py": {"download_pubmedqa", "read_items", "read_questions", "split_items"},
    "scripts/common/user_files/reading.py": {"read_items", "read_questions", "split_items"},
    "scripts/common/template.py": OTHERS
    - {"choose_run", "dequantize_gguf", "export_adapter", "import_adapter", "merge_model", "pack_model"}
    - {"verify_model", "verify_export", "write_answers", "extract_chat_template"},
    "scripts/compare_runs.py": {"compare_runs"},
    "scripts/convert_model.py": NOTHING,
    "scripts/convert_model.yaml": NOTHING,
    "tools/deal_gpus.py": NOTHING,
    "scripts/dequantize_gguf.py": {"dequantize_gguf", "extract_chat_template"},
    "scripts/download_model.py": {"extract_chat_template"},
    "scripts/download_pubmedqa.py": {"download_pubmedqa"},
    "scripts/evaluate.py": {"evaluate"},
    "scripts/extract_chat_template.py": {"extract_chat_template"},
    "scripts/export_adapter.py": {"export_adapter"},
    "scripts/evaluation/answers.py": {"evaluate"},
    "scripts/evaluation/facts.py": {"write_report", "write_model_card"},
    "scripts/evaluation/lines.py": {"compare_runs", "write_model_card"},
    "scripts/evaluation/metrics.py": {"evaluate", "compare_runs", "write_report", "write_model_card"},
    "scripts/evaluation/pictures.py": {"write_report"},
    "scripts/evaluation/significance.py": {"evaluate", "compare_runs", "write_report", "write_model_card"},
    "scripts/evaluation/table.py": {"compare_runs", "write_report"},
    "scripts/evaluation/text_metrics.py": {"evaluate", "compare_runs", "write_report", "write_model_card"},
    "scripts/evaluation/words.py": {"write_report"},
    "scripts/import_adapter.py": {"import_adapter"},
    "scripts/merge_model.py": {"merge_model"},
    "scripts/model_formats/config_json.py": {*OF_SNAPSHOT},
    "scripts/model_formats/directory.py": {"merge_model"},
    "scripts/model_formats/hub.py": {"extract_chat_template"},
    "scripts/model_formats/lora.py": {"export_adapter", "import_adapter"},
    "scripts/model_formats/lora_writer.py": {"import_adapter"},
    "scripts/model_formats/manifest.py": {
        "dequantize_gguf",
        "extract_chat_template",
        *OF_SNAPSHOT,
    },
    "scripts/model_formats/peft_adapter.py": {"import_adapter", "merge_model"},
    "scripts/model_formats/peft_config.py": {"import_adapter", "merge_model"},
    "scripts/model_formats/snapshot.py": {*OF_SNAPSHOT},
    "scripts/model_formats/tokenizer.py": {*OF_SNAPSHOT},
    "scripts/model_formats/zarr_checkpoint.py": NOTHING,
    "scripts/nemo_image/adapter.py": {"predict"},
    "scripts/nemo_image/checkpoint.py": {"predict", "verify_model"},
    "scripts/nemo_image/cpu.py": {"predict", "verify_model"},
    "scripts/nemo_image/fused.py": {"predict", "verify_model"},
    "scripts/nemo_image/kept.py": NOTHING,
    "scripts/nemo_image/lazy_imports.py": {"predict", "verify_model"},
    "scripts/nemo_image/lengths.py": {"predict"},
    "scripts/nemo_image/loading.py": {"predict", "verify_model"},
    "scripts/nemo_image/packing.py": NOTHING,
    "scripts/nemo_image/predictor.py": {"predict", "verify_model"},
    "scripts/nemo_image/prompts.py": {"predict"},
    "scripts/nemo_image/resume.py": {"predict"},
    "scripts/nemo_image/rows.py": {"predict", "verify_model"},
    "scripts/nemo_image/saved.py": {"predict"},
    "scripts/nemo_image/setup.py": {"predict", "verify_model"},
    "scripts/nemo_image/stop.py": NOTHING,
    "scripts/nemo_image/torch_parts.py": {"predict", "verify_model"},
    "scripts/pack_model.py": {"pack_model"},
    "scripts/predict.py": {"predict"},
    "scripts/predict.yaml": {"predict"},
    "scripts/read_items.py": {"read_items"},
    "scripts/read_questions.py": {"read_questions"},
    "scripts/simulate_trials.py": {"simulate_trials"},
    "scripts/split_folds.py": {"download_pubmedqa", "simulate_trials", "split_folds"},  # the first two by its code
    "scripts/split_items.py": {"split_items"},
    "scripts/train_lora.py": NOTHING,
    "scripts/train_lora.yaml": NOTHING,  # of a comment; its values are settings
    "scripts/verify_export.py": {"verify_export"},
    "scripts/verify_model.py": {"verify_model"},
    "scripts/write_answers.py": {"write_answers"},
    "scripts/write_jsonl.py": {"write_jsonl"},
    "scripts/write_model_card.py": {"write_model_card"},
    "scripts/write_report.py": {"write_report"},
    "tools/ask.py": NOTHING,
    "tools/on_each_node.py": NOTHING,
    "tools/run_on_nodes.py": NOTHING,
    "tools/stop_after_step.py": NOTHING,
    "tools/trainings.py": NOTHING,
}
PREDICT = {"predict", "predict_for_export", "predict_questions"}  # which have one script
READ_BY = {  # rules by what they read of others'
    "download_pubmedqa": {"split_folds"},
    "simulate_trials": {"split_folds"},
    "split_folds": {"write_jsonl", "evaluate", "write_report"},
    "split_items": {"write_jsonl", "evaluate", "write_report"},
    "read_items": {"write_jsonl", "evaluate", "write_report"},
    "write_jsonl": {"train_lora", "predict", "predict_for_export", "evaluate", "write_model_card"},
    "download_model": {
        "convert_model",
        "verify_model",
        *OF_SNAPSHOT,
    },
    "extract_chat_template": {"train_lora", "predict", "predict_for_export", "export_adapter", "verify_export"},
    "dequantize_gguf": {
        "convert_model",
        "extract_chat_template",
        "verify_model",
        *OF_SNAPSHOT,
    },
    "read_questions": {"predict_questions"},
    "convert_model": {"pack_model", "verify_model", "train_lora", "import_adapter", *PREDICT},
    "train_lora": {"choose_run", *PREDICT, "evaluate", "export_adapter", "write_model_card"},
    "choose_run": {*PREDICT, "evaluate", "export_adapter", "write_model_card"},
    "import_adapter": {*PREDICT, "evaluate", "export_adapter"},
    "predict": {"evaluate", "write_report"},
    "predict_questions": {"write_answers"},
    "evaluate": {"compare_runs", "write_report", "write_model_card"},
    "compare_runs": {"write_report"},
    "export_adapter": {"merge_model", "write_model_card", "verify_export"},
    "merge_model": {"verify_export"},
    "predict_for_export": {"verify_export"},
    "verify_export": NOTHING,
    "pack_model": NOTHING,
    "verify_model": NOTHING,
    "write_answers": NOTHING,
    "write_model_card": NOTHING,
    "write_report": NOTHING,
}
NEUTRAL = {".rst": "\n.. edited\n", ".j2": "\n{# edited #}\n"}  # others: a comment

CONFIG = """
targets: [base, a, b, c, d, e, f]
accelerator: cpu
image: null
models:
  tiny: {snapshot: tiny}
  packed: {gguf: packed.gguf}
datasets:
  trials: {simulate: 0}
  own: {directory: own}
  three: {train: own.csv, val: val.csv, test: test.csv}
  one: {items: own.csv}
  questions: {test: questions.csv}
runs:
  base: {model: tiny, dataset: trials}
  a1: &a1 {model: tiny, dataset: trials, train: {max_steps: 4, val_check_interval: 2, lr: 1.0e-3}}
  a2: &a2 {<<: *a1, train: {max_steps: 4, val_check_interval: 2, lr: 1.0e-2}}
  a: {model: tiny, dataset: trials, choose: [a1, a2]}
  b1: &b1 {<<: *a1, model: packed, dataset: own, chat_template: true}
  b2: {<<: *b1, train: {max_steps: 4, val_check_interval: 2, lr: 1.0e-2}}
  b: {model: packed, dataset: own, chat_template: true, choose: [b1, b2]}
  e: {model: tiny, dataset: trials, adapter: {directory: peft}}
  f: {model: packed, dataset: own, adapter: {nemo: theirs.nemo}}
  c1: {<<: *a1, dataset: three}
  c2: {<<: *a2, dataset: three}
  c: {model: tiny, dataset: three, choose: [c1, c2]}
  d1: {<<: *a1, dataset: one}
  d2: {<<: *a2, dataset: one}
  d: {model: tiny, dataset: one, choose: [d1, d2]}
"""
CSV = "own.csv", "val.csv", "test.csv", "questions.csv"
TARGETS = ["results/accuracy.tsv", "results/report.html"]
TARGETS += [f"results/base/{model}{what}" for model in ("tiny", "packed") for what in (".nemo", ".verification.tsv")]
TARGETS += [f"results/runs/{run}/fold0/seed0/merged.verification.tsv" for run in "abcdef"]
TARGETS += [f"results/runs/{run}/fold0/seed0/peft/README.md" for run in "abcd"]
TARGETS += [f"results/answers/{run}/questions.tsv" for run in "abcdef"]


def with_readers(rules):
    """The rules and those that read their results, directly or not."""
    found, waiting = set(), [*rules, *(PREDICT if "predict" in rules else NOTHING)]
    while waiting:
        if (rule := waiting.pop()) not in found:
            found.add(rule)
            waiting += READ_BY[rule]
    if "import_adapter" in rules:  # others' adapters have no cards here
        found -= {"write_model_card"} - with_readers(rules - {"import_adapter"})
    return found


def call(clone, project, *arguments):
    done = snakemake(project, "--snakefile", clone / "Snakefile", "--configfile", "plan.yaml", *arguments, *TARGETS)
    assert done.returncode == 0, done.stdout
    return done.stdout


def planned(clone, project):
    """The rules that would run there, and all that was said."""
    said = call(clone, project, "--dry-run")
    assert ("Nothing to be done" in said) != ("Job stats:" in said)
    return set(re.findall(r"^(\w+) +\d+$", said, re.MULTILINE)) - {"total"}, said


def clone_to(directory):
    """A fresh copy, without the files' times."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("workflow", "config"):
        shutil.copytree(ROOT / name, directory / name, ignore=ignore, copy_function=shutil.copyfile)
    shutil.copyfile(ROOT / "Snakefile", directory / "Snakefile")
    return directory


def weights(length=356):
    """A safetensors file, as text: LoRA of one module, all zeros. length: of its header, filled up with blanks."""
    name, shape = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight", {"dtype": "F32", "shape": [8, 8]}
    header = json.dumps({name.format("AB"[n]): shape | {"data_offsets": [256 * n, 256 * n + 256]} for n in (0, 1)})
    return length.to_bytes(8, "little").decode() + header.ljust(length) + 512 * "\0"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A working directory apart from any clone, all of whose outputs are there, marked as made."""
    project = tmp_path_factory.mktemp("project")
    (project / "plan.yaml").write_text(CONFIG)
    files = "own/ori_pqal.json", "own/test_ground_truth.json", "packed.gguf", "theirs.nemo"
    write_snapshot(project / "tiny")
    for file in (*files, "peft/adapter_config.json", "peft/adapter_model.safetensors", *CSV):
        (project / file).parent.mkdir(exist_ok=True)
        texts = {"packed.gguf": "GGUF" + 20 * "\1", "peft/adapter_model.safetensors": weights()}
        text = texts.get(file, '{"peft_type": "LORA", "target_modules": ["q_proj"]}')
        rows = "".join(f"{file} {n},answer\n" for n in range(13))
        (project / file).write_text(f"input,output\n{rows}" if file in CSV else text)
    with tarfile.open(project / "theirs.nemo", "w"):
        pass
    for files in re.findall(r"^    output: (.+)$", call(ROOT, project, "--dry-run"), re.MULTILINE):
        for file in map(project.joinpath, files.split(", ")):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
    call(ROOT, project, "--touch", "--forceall")
    assert planned(ROOT, project)[0] == NOTHING
    return project


def test_every_file_is_in_the_table():
    files = {path.relative_to(ROOT / "workflow").as_posix() for path in (ROOT / "workflow").rglob("*.*")}
    files = {file for file in files if "__pycache__" not in file} | {"Snakefile"}
    assert files - RERUNS.keys() == NOTHING, "say in RERUNS what an edit of it re-runs, by its meaning"
    assert RERUNS.keys() - files == NOTHING, "they are gone"
    assert all(with_readers(rules) for rules in RERUNS.values() if rules)


def test_each_file_edited(project, tmp_path):
    """In turn, each in a clone of its own; those that re-run nothing at once."""

    def plan(files):
        clone = clone_to(tmp_path / files[0].replace("/", "-"))
        for file in files:
            with open(clone / "workflow" / file, "a") as edited:
                edited.write(NEUTRAL.get(os.path.splitext(file)[1], "\n# edited\n"))
        return planned(clone, project)[0]

    edits = [[file] for file, rules in RERUNS.items() if rules]
    edits.append([file for file, rules in RERUNS.items() if not rules])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        plans = dict(zip(itertools.chain.from_iterable(edit[:1] for edit in edits), pool.map(plan, edits)))
    assert plans == {edit[0]: with_readers(RERUNS[edit[0]]) for edit in edits}


def test_a_clone_moved_touched_or_cloned_again(project, tmp_path):
    clone = clone_to(tmp_path / "clone")  # elsewhere than where the results were made
    assert planned(clone, project)[0] == NOTHING
    clone = clone.rename(tmp_path / "moved")
    for file in clone.rglob("*.*"):
        file.touch()
    assert planned(clone, project)[0] == NOTHING


def test_training_yaml(project, tmp_path):
    """Its values are settings: edited, they train again. Comments and the order of keys are not."""
    clone = clone_to(tmp_path / "clone")
    file = clone / "workflow/scripts/train_lora.yaml"
    values = yaml.safe_load(file.read_text())
    file.write_text("# another comment\n" + yaml.safe_dump(dict(reversed(values.items()))))
    assert planned(clone, project)[0] == NOTHING
    values["model"]["optim"]["weight_decay"] = 0.02
    file.write_text(yaml.safe_dump(values))
    assert planned(clone, project)[0] == with_readers({"train_lora"})


@pytest.mark.parametrize(
    ("file", "rules"),
    [
        ("own/ori_pqal.json", {"download_pubmedqa"}),
        ("tiny/config.json", {"download_model"}),
        ("packed.gguf", {"dequantize_gguf"}),
        ("own.csv", {"read_items", "split_items"}),
        ("test.csv", {"read_items"}),
        ("questions.csv", {"read_questions"}),
        ("peft/adapter_config.json", {"import_adapter"}),
        ("peft/adapter_model.safetensors", {"import_adapter"}),
        ("theirs.nemo", {"import_adapter"}),
    ],
)
def test_the_users_own_files(project, file, rules):
    """By their contents: touched, they re-run nothing."""
    file = project / file
    before = file.read_text()
    file.touch()
    assert planned(ROOT, project)[0] == NOTHING
    edited = {".csv": f"{before}one more,answer\n", ".safetensors": weights(357)}  # otherwise they would be refused
    file.write_text(edited.get(file.suffix, f"{before} "))
    found = planned(ROOT, project)[0]
    file.write_text(before)
    assert found == with_readers(rules)

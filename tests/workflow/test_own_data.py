"""Data sets of one's own from the configuration alone: planned with all that follows, and made up to the JSON Lines."""

import csv
import json
import random
import re
import shutil
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from common.files import read_json, read_jsonl
from helpers import ROOT, copy_workflow, snakemake, write_snapshot

FIVE = ["yes", "yes, partly", "yes, partly so", "no", "Not known"]
CONFIG = """
targets: [base, reviews, free, five]
accelerator: cpu
image: null
models:
  tiny: {snapshot: tiny}
datasets:
  reviews:
    train: data/train.csv
    val: data/val.csv
    test: data/test.csv
    prompt: "文: {文}\\n極性(肯定|否定): "
    answer: 極性
    id: 番号
    labels: [肯定, 否定]
    sample: 10
  free: {items: data/free.parquet, prompt: "{passages}Q: {question.text}\\nA:", answer: number}
  five: {items: data/five.jsonl, labels: ["yes", "yes, partly", "yes, partly so", "no", Not known], seed: 3}
  many: {test: data/many.tsv, prompt: "{{q}} {input}"}
runs:
  defaults:
    model: tiny
    dataset: reviews
    devices: 1
    tensor_model_parallel_size: 1
    precision: 32
    megatron_amp_O2: false
    train: {max_steps: 2, val_check_interval: 2, lr: 1.0e-3}
  base:
  reviews: {train: {lr: 1.0e-4}}
  free: {dataset: free, folds: all, train: {}}
  five: {dataset: five, folds: [9], train: {adapter_dim: 4}}
  many: {dataset: many}
"""


def write_reviews(file, number, seed):
    rng = random.Random(seed)
    with open(file, "w", newline="", encoding="utf-8-sig") as lines:
        writer = csv.writer(lines)
        writer.writerow(["番号", "文", "極性"])
        for n in range(number):
            kind = rng.choice(["肯定", "否定"])
            words = f"「{seed}-{n}」の{rng.choice(['料理', '接客'])}は、\n{'最高' if kind == '肯定' else 'NA'}"
            writer.writerow([f"{file.stem}{n:03}", words, kind])


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = tmp_path_factory.mktemp("project")
    copy_workflow(project)
    (project / "data").mkdir()
    write_snapshot(project / "tiny")
    (project / "own.yaml").write_text(CONFIG)
    for seed, (name, number) in enumerate({"train": 40, "val": 10, "test": 20}.items()):
        write_reviews(project / f"data/{name}.csv", number, seed)
    records = [{"question": {"text": f"{n} + 1?"}, "passages": [f"{n}", "one"], "number": n + 1} for n in range(60)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), project / "data/free.parquet")
    rows = [{"input": f"Is it {n}?", "output": FIVE[n % 5]} for n in range(100)]
    (project / "data/five.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (project / "data/many.tsv").write_text("input\n" + "".join(f"question {n}\n" for n in range(100_000)))
    return project


def call(project, *arguments):
    done = snakemake(project, *arguments, "--configfile", "own.yaml")
    assert done.returncode == 0, done.stdout
    return done.stdout


def planned(project, *targets):
    said = call(project, *targets, "--dry-run")
    return {rule: int(number) for rule, number in re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE)}


def test_plan(project):
    """Up to the table, each from its own files."""
    steps = {"read_items": 3, "split_items": 2, "write_jsonl": 3 + 21 + 3, "train_lora": 12, "predict": 13}
    assert steps.items() <= planned(project).items()


def test_from_files_to_json_lines(project):
    files = {
        "reviews": ["test", "fold0/train", "fold0/val"],
        "free": ["test", "fold0/train", "fold9/val"],
        "five": ["test", "fold3/train"],
        "many": ["test"],
    }
    call(project, *(f"results/data/{name}/answer/{split}.jsonl" for name in files for split in files[name]))
    made = {
        (name, split): read_jsonl(project / f"results/data/{name}/answer/{split}.jsonl")
        for name in files
        for split in files[name]
    }
    sizes = [len(rows) for rows in made.values()]
    assert sizes == [10, 40, 10, 12, 43, 4, 20, 72, 100_000]
    with open(project / "data/train.csv", encoding="utf-8-sig", newline="") as lines:
        first = next(csv.DictReader(lines))
    assert made["reviews", "fold0/train"][0] == {
        "input": f"文: {first['文']}\n極性(肯定|否定): ",
        "output": first["極性"],
        "id": "train000",
    }
    assert read_json(project / "results/data/reviews/items/fold0/train.json")["train000"] == first
    number = int(made["free", "test"][0]["output"]) - 1
    assert made["free", "test"][0]["input"] == f"{number}\none\nQ: {number} + 1?\nA:"
    assert Counter(row["output"] for row in made["five", "test"]) == dict.fromkeys(FIVE, 4)
    many = made["many", "test"]
    call(project, "results/data/many/questions.jsonl")
    assert read_jsonl(project / "results/data/many/questions.jsonl") == many
    assert list(many[99_999]) == ["input", "id"] and many[99_999]["input"] == "{q} question 99999"
    assert len({row["id"] for row in many}) == 100_000


def test_questions_to_runs_on_other_data(project):
    """Planned of all models of a run, or of one; with labels of their own or those of the run's data set."""
    (project / "more.yaml").write_text("datasets: {some: {test: data/many.tsv, labels: [-a, b c]}}")
    files = "--configfile", "own.yaml", "more.yaml", "--dry-run", "--printshellcmds"
    labels = {  # of what is asked
        "reviews/many.tsv": "--labels '肯定' '否定'",
        "free/fold3/seed0/many.tsv": "",
        "free/some.tsv": "--labels=-a '--labels=b c'",
        "base/some.tsv": "--labels=-a '--labels=b c'",
        "many/many.tsv": "",
    }
    said = snakemake(project, *(f"results/answers/{target}" for target in labels), *files).stdout
    jobs = {rule: int(number) for rule, number in re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE)}
    assert not jobs.keys() & {"predict", "evaluate"}, said
    steps = {"train_lora": 1 + 10, "predict_questions": 4 + 10, "write_answers": 5}  # other tests may have read some
    assert steps.items() <= jobs.items(), said
    for target, flags in labels.items():
        run, *model, dataset = target.removesuffix(".tsv").split("/")
        output = rf"--output results/answers/{run}/{'/'.join(model or [r'fold.', 'seed0'])}/{dataset}/predictions.jsonl"
        commands = re.findall(rf".*/predict\.py.* {output}", said)
        assert len(commands) == (10 if target == "free/some.tsv" else 1), said
        told = f"}}' {flags} --work-dir".split()
        assert all(" ".join(told) in " ".join(command.split()) for command in commands), commands
    done = snakemake(project, "results/answers/free/many.tsv", *files)
    words = "without labels: 10 models have no answer together. Ask one: results/answers/free/fold0/seed0/many.tsv"
    assert done.returncode == 1 and done.stdout.splitlines()[-1] == f"results/answers/free/many.tsv: {words}"


def test_what_is_wrong_in_a_file_is_shown(project, tmp_path):
    """Before any job where the table needs the file, else by the job."""
    copy = shutil.copytree(project, tmp_path / "copy", symlinks=True)
    with open(copy / "data/test.csv", "a", encoding="utf-8") as lines:
        lines.write("last,文,中立\n")
    done = snakemake(copy, "results/data/reviews/answer/test.jsonl", "--configfile", "own.yaml")
    assert done.returncode == 1 and "Traceback" not in done.stdout
    words = "data/test.csv, line 42: the answer, 極性, is '中立', none of 肯定, 否定"
    assert done.stdout.endswith(f"\nown.yaml: datasets.reviews.test: {words}\n")
    shutil.copyfile(project / "data/test.csv", copy / "data/test.csv")
    with open(copy / "data/many.tsv", "a") as lines:
        lines.write("one\tmore\n")
    done = snakemake(copy, "results/data/many/answer/test.jsonl", "--configfile", "own.yaml")
    assert done.returncode == 1 and "Traceback" not in done.stdout
    assert "data/many.tsv, line 100002: has 2 fields, but there are 1 columns: put a field" in done.stdout


def test_a_changed_file_is_noticed(project):
    """And what it is no part of is not made again; the rest is as it was."""
    target = "results/data/reviews/answer/fold0/train.jsonl"
    call(project, target, "results/data/reviews/answer/test.jsonl")
    assert planned(project, target) == {}
    file = project / "data/val.csv"
    before = file.read_bytes()
    file.touch()
    assert planned(project, target) == {}
    file.write_bytes(before + "more,文,肯定\r\n".encode())
    assert planned(project, target) == {"read_items": 1, "write_jsonl": 1, "total": 2}  # nothing of it is in there
    assert planned(project, "results/data/reviews/answer/test.jsonl") == {}
    file.write_bytes(before)


def test_a_renamed_file_is_the_same(project, tmp_path):
    """Its contents count, and the ending of its name, by which it is read."""
    copy = shutil.copytree(project, tmp_path / "copy", symlinks=True)
    targets = "results/data/reviews/answer/fold0/train.jsonl", "results/data/five/answer/test.jsonl"
    targets += "results/data/many/questions.jsonl", "results/data/reviews/answer/test.jsonl"
    call(copy, *targets)
    (copy / "data").rename(copy / "new")
    config = re.sub(r"data/(\w+)", r"new/\1-2", CONFIG)
    for file in (copy / "new").iterdir():
        file.rename(file.with_stem(f"{file.stem}-2"))
    (copy / "own.yaml").write_text(config)
    assert planned(copy, *targets) == {}
    (copy / "new/many-2.tsv").rename(copy / "new/many-2.csv")
    (copy / "own.yaml").write_text(config.replace("many-2.tsv", "many-2.csv"))
    assert planned(copy, *targets) == {"read_questions": 1, "total": 1}


def test_the_example_in_the_documentation(project, tmp_path):
    """Its ten lines, over config/config.yaml, plan a table; as do those of `defaults`, and of questions answers."""
    readme = (ROOT / "config/README.md").read_text()
    examples = re.findall(r"```\n((?:targets|runs|datasets):.*?)```", readme, re.DOTALL)
    (example,) = (text for text in examples if "notes.csv" in text)
    (defaults,) = (text for text in examples if "defaults:" in text)
    (questions,) = (text for text in examples if "questions.csv" in text)
    (project / "questions.csv").write_text("number,text\n1,report\n")
    (project / "questions.yaml").write_text(questions)
    assert len(example.splitlines()) == 10
    lines = "".join(f"report {n},{['fracture', 'none', 'unclear'][n % 3]}\n" for n in range(60))
    (project / "notes.csv").write_text(f"text,finding\n{lines}")
    (project / "mine.yaml").write_text(example)
    (project / "cpu.yaml").write_text("{accelerator: cpu, image: null}")
    (project / "defaults.yaml").write_text(defaults)
    options = "--configfile", "mine.yaml", "defaults.yaml", "questions.yaml", "cpu.yaml"
    answers = re.findall(r"results/answers/notes/[\w/]+\.tsv", readme)
    done = snakemake(project, "all", *answers, "--dry-run", *options)
    assert done.returncode == 0 and "results/data/notes/answer/test.jsonl" in done.stdout, done.stdout
    assert len(answers) == 2 and re.search(r"^write_answers +2$", done.stdout, re.MULTILINE)
    made = "results/data/notes/answer/test.jsonl"
    done = snakemake(project, made, *options)
    assert done.returncode == 0, done.stdout
    assert Counter(row["output"] for row in read_jsonl(project / made)) == dict.fromkeys(
        yaml.safe_load(example)["datasets"]["notes"]["labels"], 4
    )

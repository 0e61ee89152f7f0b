"""The split and the JSON Lines; on the real files, byte for byte PubMedQA's own split and the tutorial's data."""

import hashlib
import json
import random
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
from common.files import read_json, read_jsonl
from common.pubmedqa import PROMPT, prompt
from helpers import run_script
from simulate_trials import LABEL_COUNTS, simulate
from split_folds import split
from write_jsonl import stratified_sample

OFFICIAL_SPLIT = {
    "test.json": "f420f49d97516329d81f62d7d454055e3a063dbd0913ebaff915993bb321cbab",
    "fold0/train.json": "7e539dceebfe5d9fbfc8fa1313713436a1e10f6d6f5bad1ed3fd39d1442be265",
    "fold0/val.json": "9d8982fa88a2a7f68230c2757e7eb5b495577a61cdca9e03c3ab308bc725d9f5",
}
TUTORIALS_JSONL = {
    "fold0/train": "f0d1baf5e3e6d1d985d89f003e3c89a26ecd3f8e6bc437e4d15e84890cc2b0eb",
    "fold0/val": "177ca2d8d9588a6e1cb737fdcf8b8e67a203409a5dc4e6498ad30fd8d0662479",
    "test": "2ed8faa73da8e9b651f119a459abce0f4e5e8ff9dedfffc91941c16fd1f8cb43",
}


@pytest.fixture(scope="module")
def official(pubmedqa_dir, tmp_path_factory):
    """The real data downloaded (from the local directory) and split by the workflow's scripts."""
    directory = tmp_path_factory.mktemp("pubmedqa")
    run_script("download_pubmedqa.py", "--directory", pubmedqa_dir, "--output-dir", directory)
    files = "--ori-pqal", directory / "ori_pqal.json", "--ground-truth", directory / "test_ground_truth.json"
    run_script("split_folds.py", *files, "--output-dir", directory)
    return directory


def test_split_is_the_official_one(official):
    for name, sha256 in OFFICIAL_SPLIT.items():
        assert hashlib.sha256((official / name).read_bytes()).hexdigest() == sha256, name
    folds = [
        [list(read_json(official / f"fold{fold}/{split}.json")) for split in ("train", "val")] for fold in range(10)
    ]
    everything = {pmid for pmid in read_json(official / "ori_pqal.json")}
    test = set(read_json(official / "test.json"))
    assert [(len(train), len(val)) for train, val in folds] == [(450, 50)] * 10
    assert all(set(train) | set(val) == everything - test for train, val in folds)
    assert len({pmid for _, val in folds for pmid in val}) == 500


@pytest.mark.parametrize("split", TUTORIALS_JSONL)
def test_jsonl_is_the_tutorials(official, tmp_path, split):
    output = tmp_path / "out.jsonl"
    items = official / f"{split}.json"
    run_script("write_jsonl.py", "--json", items, "--label", "reasoning_required_pred", "--output", output)
    rows = read_jsonl(output)
    tutorials = "".join(json.dumps({"input": row["input"], "output": row["output"]}) + "\n" for row in rows)
    assert hashlib.sha256(tutorials.encode()).hexdigest() == TUTORIALS_JSONL[split]
    assert [row["pmid"] for row in rows] == list(read_json(items))


def test_repeated_maybe(official, tmp_path):
    """The same lines, in the same order, as without."""
    for fold in range(10):
        files = {times: tmp_path / f"{times}.jsonl" for times in (1, 2)}
        for times, file in files.items():
            items = "--json", official / f"fold{fold}/train.json", "--label", "final_decision"
            run_script("write_jsonl.py", *items, "--repeat-maybe", times, "--output", file)
        plain, repeated = map(read_jsonl, files.values())
        counts = Counter(row["output"] for row in plain)
        assert Counter(row["output"] for row in repeated) == counts | {"maybe": 2 * counts["maybe"]}
        assert list({row["pmid"]: row for row in repeated}.values()) == plain


def test_download_refuses_changed_data(pubmedqa_dir, tmp_path):
    for name in ("ori_pqal.json", "test_ground_truth.json"):
        (tmp_path / name).write_bytes((pubmedqa_dir / name).read_bytes() + b" ")
    output = tmp_path / "out"
    done = run_script("download_pubmedqa.py", "--directory", tmp_path, "--output-dir", output, check=False)
    assert done.returncode == 1
    assert "ori_pqal.json: its sha256 is" in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(output.iterdir()) == []


def test_download_names_a_missing_directory(tmp_path):
    done = run_script("download_pubmedqa.py", "--directory", tmp_path / "no", "--output-dir", tmp_path, check=False)
    assert done.returncode == 1
    assert "no/ori_pqal.json: no such file." in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.fixture
def of_hub(official, tmp_path):
    """of_hub(change) writes the real items as the Hub's pqa_labeled has them, after change(rows); returns the file."""

    def write(change=lambda rows: None):
        rows = [
            {
                "pubid": int(pmid),
                "question": item["QUESTION"],
                "context": {
                    "contexts": item["CONTEXTS"],
                    "labels": item["LABELS"],
                    "meshes": item["MESHES"],
                    **{key: list(item[key]) for key in ("reasoning_required_pred", "reasoning_free_pred")},
                },
                "long_answer": item["LONG_ANSWER"],
                "final_decision": item["final_decision"],
            }
            for pmid, item in read_json(official / "ori_pqal.json").items()
        ]
        change(rows)
        file = tmp_path / "hub/train-00000-of-00001.parquet"
        file.parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        return file

    return write


def test_hubs_file_gives_the_same_lines(official, of_hub, tmp_path):
    """The same split; its items differ in their years, which the Hub's file has not."""
    output = tmp_path / "out"
    run_script("download_pubmedqa.py", "--directory", of_hub().parent, "--output-dir", output)
    truth = (output / "test_ground_truth.json").read_bytes()
    assert truth == (official / "test_ground_truth.json").read_bytes()
    items = {pmid: item | {"YEAR": None} for pmid, item in read_json(official / "ori_pqal.json").items()}
    assert (output / "ori_pqal.json").read_text() == json.dumps(items, indent=4)
    files = "--ori-pqal", output / "ori_pqal.json", "--ground-truth", output / "test_ground_truth.json"
    run_script("split_folds.py", *files, "--output-dir", output)
    for label, part in (
        ("final_decision", "test"),
        ("reasoning_free_pred", "fold3/train"),
        ("final_decision", "fold9/val"),
    ):
        made = {}
        for directory in official, output:
            jsonl = "--json", directory / f"{part}.json", "--label", label, "--output", tmp_path / "a.jsonl"
            run_script("write_jsonl.py", *jsonl)
            made[directory] = (tmp_path / "a.jsonl").read_bytes()
        assert made[official] == made[output]


def test_another_file_than_the_hubs_is_refused(of_hub, tmp_path):
    def said(change):
        call = "--directory", of_hub(change).parent, "--output-dir", tmp_path / "out"
        done = run_script("download_pubmedqa.py", *call, check=False)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()
        return done.stderr

    assert "the test answers of its split have the sha256" in said(lambda rows: rows.reverse())
    assert "row 1: has no 'context': is it not the Hub's pqa_labeled?" in said(lambda rows: rows[0].pop("context"))


def test_prompt_of_ones_own(official, tmp_path):
    """For PubMedQA; a column that may be shortened is marked."""
    call = "--json", official / "test.json", "--label", "final_decision", "--output", tmp_path / "a.jsonl"
    run_script("write_jsonl.py", *call, "--prompt", "{CONTEXTS}{QUESTION}", "--truncate", "CONTEXTS")
    rows, items = read_jsonl(tmp_path / "a.jsonl"), read_json(official / "test.json")
    for row in rows:
        item = items[row["pmid"]]
        contexts = "\n".join(item["CONTEXTS"])
        assert row["input"] == f"{contexts}\n{item['QUESTION']}" and list(row)[:3] == ["input", "output", "pmid"]
        begin, end = row["truncate"]
        assert row["input"][begin:end] == contexts.rstrip()


def test_pubmedqas_unlabelled_and_artificial_items(official, tmp_path):
    """PQA-A and PQA-U have no annotators; as files of one's own they are asked as the tutorial asks."""
    kept = ("QUESTION", "CONTEXTS", "LABELS", "MESHES", "LONG_ANSWER", "final_decision")
    items = {pmid: {key: item[key] for key in kept} for pmid, item in read_json(official / "fold0/train.json").items()}
    for item in items.values():
        item["final_decision"] = item["final_decision"].replace("maybe", "no")
    (tmp_path / "ori_pqaa.json").write_text(json.dumps(items))
    columns = {"prompt": PROMPT, "answer": "final_decision", "labels": ["yes", "no"]}
    columns = "--columns", json.dumps(columns)
    run_script("read_items.py", "--file", tmp_path / "ori_pqaa.json", *columns, "--output", tmp_path / "items.json")
    run_script("write_jsonl.py", "--json", tmp_path / "items.json", *columns, "--output", tmp_path / "a.jsonl")
    assert [row["id"] for row in read_jsonl(tmp_path / "a.jsonl")] == list(items)
    assert [row["input"] for row in read_jsonl(tmp_path / "a.jsonl")] == [prompt(item) for item in items.values()]


def test_simulated_trials_split_like_pubmedqa():
    items = simulate(random.Random(0))
    assert Counter(item["final_decision"] for item in items.values()) == LABEL_COUNTS
    assert items == simulate(random.Random(0)) != simulate(random.Random(1))
    development, test = split(items, 2, random.Random(0))
    assert Counter(item["final_decision"] for item in test.values()) == {"yes": 276, "no": 169, "maybe": 55}
    assert [len(part) for part in split(development, 10, random.Random(0))] == [50] * 10


def test_split_refuses_another_releases_answers(tmp_path):
    run_script("simulate_trials.py", "--simulate", 1, "--output-dir", tmp_path)
    run_script("simulate_trials.py", "--simulate", 2, "--output-dir", tmp_path / "other")
    files = "--ori-pqal", tmp_path / "ori_pqal.json", "--ground-truth", tmp_path / "other/test_ground_truth.json"
    done = run_script("split_folds.py", *files, "--output-dir", tmp_path / "items", check=False)
    assert done.returncode == 1 and "not the test items of" in done.stderr
    assert not (tmp_path / "items").exists()


def test_stratified_sample():
    items = simulate(random.Random(0))
    sample = stratified_sample(items, 200, seed=0)
    assert Counter(item["final_decision"] for item in sample.values()) == {"yes": 110, "no": 68, "maybe": 22}
    assert list(sample) == [pmid for pmid in items if pmid in sample]
    assert sample == stratified_sample(items, 200, seed=0) != stratified_sample(items, 200, seed=1)
    assert stratified_sample(items, len(items), seed=0) == items

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, copy_workflow, environment, run_script, snakemake


def pytest_runtest_setup():
    """transformers collects garbage a dozen times when it loads a model. To look through all imported modules each time
    took most of the time of tests that load tiny models."""
    gc.freeze()


@pytest.fixture(scope="session")
def pubmedqa_dir():
    """PubMedQA's real files. In CI they must be there."""
    if "PUBMEDQA_DIR" not in os.environ:
        pytest.skip("PUBMEDQA_DIR is not set: the directory with PubMedQA's ori_pqal.json and test_ground_truth.json")
    directory = Path(os.environ["PUBMEDQA_DIR"])
    assert (directory / "ori_pqal.json").is_file(), f"PUBMEDQA_DIR={directory} holds no ori_pqal.json"
    return directory


@pytest.fixture(scope="session")
def tiny_mistral(tmp_path_factory):
    """A tiny random Mistral as a Hugging Face snapshot."""
    directory = tmp_path_factory.mktemp("tiny") / "snapshot"
    subprocess.run([sys.executable, ROOT / "tests/tiny.py", directory], check=True, env=environment())
    return directory


@pytest.fixture(scope="module")
def inputs(tiny_mistral, tmp_path_factory):
    """Directory with base/, train.jsonl and val.jsonl."""
    directory = tmp_path_factory.mktemp("inputs")
    run_script("convert_model.py", "--snapshot", tiny_mistral, "--output-dir", directory / "base")
    run_script("simulate_trials.py", "--output-dir", directory)
    files = "--ori-pqal", directory / "ori_pqal.json", "--ground-truth", directory / "test_ground_truth.json"
    run_script("split_folds.py", *files, "--output-dir", directory)
    for split in ("train", "val"):
        jsonl = "--json", directory / f"fold0/{split}.json", "--output", directory / f"{split}.jsonl"
        run_script("write_jsonl.py", *jsonl, "--label", "final_decision")
    return directory


@pytest.fixture(scope="module")
def apptainer(tmp_path_factory):
    """Snakemake asks for its version; nothing is run in a plan."""
    directory = tmp_path_factory.mktemp("bin")
    (directory / "apptainer").write_text("#!/bin/sh\necho apptainer version 1.3.4\n")
    (directory / "apptainer").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        yield


@pytest.fixture(scope="session")
def chain(tiny_mistral, tmp_path_factory):
    """The directory of a finished run of the workflow, tests/chain.yaml on the tiny Mistral, two jobs at a time."""
    directory = tmp_path_factory.mktemp("chain")
    copy_workflow(directory)
    shutil.copyfile(ROOT / "tests/chain.yaml", directory / "chain.yaml")
    commit = "git init -q && git add . && git -c user.name=test -c user.email=test@localhost commit -q -m test"
    subprocess.run(commit, shell=True, check=True, cwd=directory)
    shutil.copytree(tiny_mistral, directory / "tiny")
    done = snakemake(directory, "--configfile", "chain.yaml", "--set-threads", "train_lora=1", "predict=1")
    assert done.returncode == 0, done.stdout
    return directory

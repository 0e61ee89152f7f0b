"""What a change re-runs, shown by dry runs after a full one; each job is written as rule/run."""

import os
import re
import shutil
from glob import glob

import pytest
import yaml
from helpers import ROOT, snakemake, write_snapshot

LORA = {"train_lora/lora", "predict/lora", "evaluate/lora"}
TABLE = {"compare_runs", "write_report"}
ADAPTER = "results/runs/lora/fold0/seed0/adapter.nemo"


def planned(directory, *arguments, config="chain.yaml"):
    """The jobs that Snakemake would run there, `all` left out."""
    done = snakemake(directory, *arguments, "--dry-run", "--configfile", config)
    assert done.returncode == 0, done.stdout
    jobs = set()
    for rule, job in re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)*)", done.stdout, re.MULTILINE):
        wildcards = dict(part.split("=") for part in re.findall(r"\w+=[^,\s]+", job.split("wildcards: ")[-1]))
        jobs.add(f"{rule}/{wildcards['run']}" if "wildcards: " in job and "run" in wildcards else rule)
    return jobs - {"all"}


@pytest.fixture
def copy(chain, tmp_path):
    """A copy of the finished run, to change."""
    return shutil.copytree(chain, tmp_path / "chain", symlinks=True)


@pytest.fixture
def changed(chain):
    """changed(change) is what would run with a configuration on which change(config) has been done."""

    def planned_after(change):
        config = yaml.safe_load((chain / "chain.yaml").read_text())
        change(config)
        (chain / "changed.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        return planned(chain, config="changed.yaml")

    return planned_after


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_nothing_changed(chain):
    assert planned(chain) == set()


def test_lost_records_are_told_of(copy):
    """Without .snakemake, Snakemake takes whatever is there for up to date. In a normal project nothing is told."""
    call = ("--configfile", "chain.yaml")
    assert ".snakemake has no records" not in snakemake(copy, *call).stdout
    shutil.rmtree(copy / ".snakemake")
    told = (
        ".snakemake has no records of how 24 of the existing results (resources/data/trials/ori_pqal.json, …) were made"
    )
    again = "to make them again, --forcerun download_model simulate_trials"
    for arguments in (), ("--dry-run",), ("--rerun-triggers", "mtime"):
        done = snakemake(copy, *arguments, *call)
        assert "Nothing to be done" in done.stdout and (told in done.stdout) == ("mtime" not in arguments), done.stdout
        assert (again in done.stdout) == (told in done.stdout)
    snakemake(copy, "--touch", "--forceall", *call)
    assert ".snakemake has no records" not in snakemake(copy, *call).stdout
    edit(copy / "chain.yaml", "lr: 1.0e-4", "lr: 2.0e-4")
    assert planned(copy) == LORA | TABLE


def test_deleted_provenance_is_made_again(copy):
    (copy / "results/runs/lora/fold0/seed0/provenance.json").unlink()
    assert planned(copy) == {"evaluate/lora"} | TABLE


def test_order_and_comments_in_the_configuration(chain):
    config = yaml.safe_load((chain / "chain.yaml").read_text())

    def reverse(value):
        return {key: reverse(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    (chain / "changed.yaml").write_text("# a comment\n" + yaml.safe_dump(reverse(config), sort_keys=False))
    assert planned(chain, config="changed.yaml") == set()


def test_language_of_the_report(changed):
    assert changed(lambda config: config.update(language="ja")) == {"write_report"}


def test_learning_rate_of_a_run(changed):
    assert changed(lambda config: config["runs"]["lora"]["train"].update(lr=2.0e-3)) == LORA | TABLE


def test_repeated_items_of_a_run(changed):
    """They are a file of their own: no other run's changes."""
    jobs = changed(lambda config: config["runs"]["lora"]["train"].update(repeat_maybe=3))
    assert jobs == LORA | TABLE | {"write_jsonl"}


def test_prediction_setting(changed):
    def change(config):
        config["runs"]["lora"]["predict"] = {**config["runs"]["lora"]["predict"], "tokens_to_generate": 5}

    assert changed(change) == {"predict/lora", "evaluate/lora"} | TABLE


def test_prediction_in_another_shape(chain, changed):
    """Of an adapter that two processes made together."""

    def change(config):
        predict = config["runs"]["tutorial"]["predict"]
        config["runs"]["tutorial"]["predict"] = {**predict, "devices": 1, "tensor_model_parallel_size": 1}

    assert changed(change) == {"predict/tutorial", "evaluate/tutorial"} | TABLE
    said = snakemake(chain, "--dry-run", "--printshellcmds", "--configfile", "changed.yaml").stdout
    assert "--nproc-per-node 1 " in said and "--nproc-per-node 2 " not in said


def test_training_that_starts_from_another_run(changed):
    """Changes that run's adapter, too, if it is to be made anew; the other run stays as it is."""

    def change(config):
        config["runs"]["lora"] |= {"train": config["runs"]["lora"]["train"] | {"start_from": "tutorial"}}

    assert changed(change) == LORA | TABLE

    def change_both(config):
        change(config)
        config["runs"]["tutorial"]["train"] = config["runs"]["tutorial"]["train"] | {"lr": 2.0e-3}

    assert changed(change_both) == LORA | TABLE | {f"{step}/tutorial" for step in ("train_lora", "predict", "evaluate")}


def test_new_run(changed):
    def change(config):
        config["runs"]["new"] = config["runs"]["lora"]
        config["targets"].append("new")

    assert changed(change) == {"train_lora/new", "predict/new", "evaluate/new"} | TABLE


def test_new_seed(chain, changed):
    jobs = changed(lambda config: config["runs"]["lora"].update(seeds=[0, 1]))
    assert jobs == LORA | TABLE
    done = snakemake(chain, "--dry-run", "--configfile", "changed.yaml")
    assert "seed=1" in done.stdout and "seed=0" not in done.stdout


def test_new_fold(chain, changed):
    jobs = changed(lambda config: config["runs"]["lora"].update(folds=[0, 3]))
    assert jobs == LORA | TABLE | {"write_jsonl"}
    done = snakemake(chain, "--dry-run", "--configfile", "changed.yaml")
    assert "fold=3" in done.stdout and "fold=0" not in done.stdout
    assert "fold3/train-maybe2.jsonl" in done.stdout and "test.jsonl\n    jobid" not in done.stdout


def test_removed_run(changed):
    assert changed(lambda config: config["targets"].remove("base-tp2")) == TABLE


def test_data_that_is_only_tested_on(copy):
    """Touched, with other contents: nothing is trained."""
    edit(copy / "results/data/trials/items/test.json", "a", "b")
    jobs = planned(copy)
    assert "write_jsonl" in jobs and {"predict/lora", "evaluate/lora"} <= jobs
    assert not any(job.startswith(("train_lora", "convert_model", "split_folds")) for job in jobs)


@pytest.mark.parametrize("step", ["train_lora", "convert_model"])
def test_edited_code_that_repeats_nothing(copy, step):
    """The plan says so, and how to force it; else it says nothing of the kind."""
    words, config = "has changed since it made", ("--configfile", "chain.yaml")
    assert words not in snakemake(copy, "--dry-run", *config).stdout
    edit(
        copy / f"workflow/scripts/{step}.py",
        "import argparse" if step == "convert_model" else "import json",
        "import os",
    )
    said = snakemake(copy, "--dry-run", *config).stdout
    assert said.count(words) == 1 and "Nothing to be done" in said
    results = {"train_lora": "results/runs/*/fold*/seed*/adapter", "convert_model": "results/base/tiny"}[step]
    here = {file.removesuffix(".provenance.json") for file in glob(f"{copy}/{results}.provenance.json")}
    made, first = re.search(
        rf"The code of {step} {words} (\d+) of the existing results \(([^ ,)]+)(?:, …)?\)\. (?:It is|They are) kept; ",
        said,
    ).groups()
    assert int(made) == len(here) and f"{copy}/{first}" in here
    assert f", add --forcerun {step}." in said
    assert step in {job.split("/")[0] for job in planned(copy, "--forcerun", step)}


def test_forced_training_alone(copy):
    forced = planned(copy, "results/runs/lora/fold0/seed0/metrics.json", "--forcerun", "train_lora")
    assert forced == LORA


def test_edited_prompt_is_written_and_trained_on(copy):
    edit(copy / "workflow/scripts/common/pubmedqa.py", "TARGET: the answer", "TARGET: the reply")
    assert {"train_lora/lora", "train_lora/tutorial", "write_jsonl"} <= planned(copy)
    train = "results/data/trials/final_decision/fold0/train-maybe2.jsonl"
    before = (copy / train).read_text()
    done = snakemake(copy, train, "--configfile", "chain.yaml")
    assert done.returncode == 0, done.stdout
    assert (copy / train).read_text() == before.replace("TARGET: the answer", "TARGET: the reply") != before
    assert "train_lora/lora" in planned(copy)


def test_threads_resources_and_profile(copy):
    edit(copy / "workflow/rules/train.smk", "threads: nodes.threads(nodes.shape())", "threads: 8")
    assert planned(copy) == set()
    assert planned(copy, "--set-resources", "train_lora:mem_mb=9000", "--set-threads", "train_lora=3") == set()
    assert planned(copy, "--profile", "profiles/nig-slurm") == set()


def test_project_copied_or_moved(copy):
    """By cp -a, and by mv: of what it was there is nothing left. Its own snapshot is linked where it is now."""
    assert planned(copy) == set()
    copy = copy.rename(copy.with_name("moved"))
    assert planned(copy) == set()
    assert (copy / "resources/hf/tiny/config.json").resolve() == copy.resolve() / "tiny/config.json"


def train(project, *force, config="chain.yaml"):
    """Makes run lora's adapter; returns its bytes and what training said of itself."""
    done = snakemake(project, ADAPTER, *force, "--configfile", config)
    assert done.returncode == 0, done.stdout
    return (project / ADAPTER).read_bytes(), (project / "logs/train_lora/lora/fold0-seed0.log").read_text()


def test_mistyped_setting_that_is_corrected(copy):
    """With the project moved meanwhile, to which its snapshot belongs."""
    right = (copy / ADAPTER).read_bytes()
    edit(copy / "chain.yaml", "lr: 1.0e-4", "lr: 1.0e-2")
    wrong, said = train(copy)
    assert "train_lora: starts\n" in said and wrong != right
    assert "2 trainings are kept here" in said and f"python {copy}/workflow/tools/trainings.py" in said
    copy = copy.rename(copy.with_name("moved"))
    edit(copy / "chain.yaml", "lr: 1.0e-2", "lr: 1.0e-4")
    taken_over, said = train(copy)
    assert "train_lora: takes over the finished training in" in said and "NeMo is imported" not in said
    assert taken_over == right
    assert planned(copy, ADAPTER) == set()


@pytest.fixture
def empty(tmp_path):
    for name in ("workflow", "config", "profiles", "envs"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("Snakefile", "tests/chain.yaml"):
        (tmp_path / os.path.basename(name)).symlink_to(ROOT / name)
    write_snapshot(tmp_path / "tiny")
    return tmp_path


DATA = {"simulate_trials", "split_folds", "write_jsonl"}
MODEL = {"download_model", "convert_model"}


def test_one_target(empty):
    assert planned(empty, "results/runs/lora/fold0/seed0/metrics.json") == LORA | DATA | MODEL
    assert planned(empty, "results/base/tiny.nemo") == MODEL | {"pack_model"}


def test_until(empty):
    assert planned(empty, "--until", "convert_model", "write_jsonl") == DATA | MODEL


def test_forced_training_starts_anew(copy):
    """Not forced, what is kept is taken over. The snapshot, then at an absolute path, is the same one."""
    made = (copy / ADAPTER).read_bytes()
    edit(copy / "chain.yaml", "snapshot: tiny", f"snapshot: {copy}/tiny")
    assert {"download_model", "convert_model", "train_lora/lora"} <= planned(copy, ADAPTER)
    taken_over, said = train(copy)
    assert "train_lora: takes over the finished training in" in said and taken_over == made
    (copy / ADAPTER).unlink()
    assert "train_lora: starts\n" in train(copy, "--forcerun", "train_lora")[1]
    (before,) = (copy / ADAPTER).with_name("training").glob("*-before-*")
    assert (before / "adapter.nemo").read_bytes() == made

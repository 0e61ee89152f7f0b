"""The ten changes of CONTRIBUTING.md re-run what it says, by plans for config/config.yaml whose outputs are marked as
made, in an image."""

import re
import shutil

import pytest
import yaml
from helpers import copy_workflow, snakemake

RESULTS = {"compare_runs", "write_report"}


def of(*runs, steps=("train_lora", "predict", "evaluate")):
    return {f"{step}/{run}" for step in steps for run in runs}


ALL = of("lora", "tutorial") | of("base", steps=("predict", "evaluate"))
NEW = {"model": "mistral-7b", "dataset": "pubmedqa", "devices": 1, "tensor_model_parallel_size": 1}


def run(name, **settings):
    """A change of the configuration: a further run, with some settings of its own, is trained."""

    def change(config):
        config["runs"][name] = {**config["runs"]["lora"], **settings}
        config["targets"].append(name)

    return change


def new_model(config):
    config["models"]["new"] = {"repo": "mistralai/Mistral-7B-v0.3", "revision": 40 * "0"}
    run("new", model="new")(config)


def new_dataset(config):
    config["datasets"]["few"] = {**config["datasets"]["pubmedqa"], "sample": 100}
    run("few", dataset="few")(config)


METRIC = '    "kappa": Metric(cohen_kappa_score, {"": "kappa"}, percent=False),\n'
CHANGES = {  # what is changed: a function of the configuration, or (file, old, new); what runs
    "rank": (lambda config: config["runs"]["lora"]["train"].update(adapter_dim=16), of("lora") | RESULTS),
    "rank of a new run": (
        run("new", train={"max_steps": 60, "val_check_interval": 15, "lr": 1e-4}),
        of("new") | RESULTS,
    ),
    "seed": (lambda config: config["runs"]["lora"].update(seeds=[0, 1]), of("lora") | RESULTS),
    "label": (
        lambda config: config["runs"]["lora"].update(label="reasoning_free_pred"),
        of("lora") | {"write_jsonl"} | RESULTS,
    ),
    "prompt": (
        lambda config: config["datasets"]["pubmedqa"].update(prompt="{QUESTION}\n{CONTEXTS}Answer:"),
        ALL | {"write_jsonl"} | RESULTS,
    ),
    "metric": (
        ("scripts/evaluation/metrics.py", "METRICS = {", "METRICS = {\n" + METRIC),
        of("base", "lora", "tutorial", steps=["evaluate"]) | RESULTS,
    ),
    "picture": (("scripts/evaluation/pictures.py", '"#3b82c4"', '"#3b82c5"'), {"write_report"}),
    "template": (("report/report.html.j2", "<table>", "<table >"), {"write_report"}),
    "model": (new_model, of("new") | {"download_model", "convert_model"} | RESULTS),
    "data set": (new_dataset, of("few") | {"download_pubmedqa", "split_folds", "write_jsonl"} | RESULTS),
    "image": (lambda config: config.update(image="nemo_24.03.sif"), ALL | RESULTS),
    "partition": (("../profiles/mine/config.yaml", "slurm_partition: l40s", "slurm_partition: gpu"), set()),
    "value of train_lora.yaml": (
        ("scripts/train_lora.yaml", "gradient_clip_val: 1.0", "gradient_clip_val: 0.5"),
        of("lora", "tutorial") | RESULTS,
    ),
    "train_lora.py": (("scripts/train_lora.py", "START_UP = 1 ", "START_UP = 2 "), set()),
}


def call(directory, *arguments):
    done = snakemake(directory, "--software-deployment-method", "apptainer", *arguments)
    assert done.returncode == 0, done.stdout
    return done.stdout


def planned(directory, *arguments):
    jobs = set()
    said = call(directory, "--dry-run", *arguments)
    for rule, job in re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)*)", said, re.MULTILINE):
        of_run = re.search(r"wildcards: run=([^,\s]+)", job)
        jobs.add(f"{rule}/{of_run[1]}" if of_run else rule)
    return jobs - {"all"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, apptainer):
    directory = tmp_path_factory.mktemp("made")
    copy_workflow(directory)
    shutil.copytree(directory / "profiles/nig-slurm", directory / "profiles/mine")
    file = directory / "config/config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"accelerator": "cpu"}))
    (directory / "nemo_25.02.sif").touch()
    for files in re.findall(r"^    output: (.+)$", call(directory, "--dry-run"), re.MULTILINE):
        for file in map(directory.joinpath, files.split(", ")):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text('{"source": ""}')
    call(directory, "--touch", "--forceall")
    assert planned(directory) == set()
    return directory


@pytest.mark.parametrize("name", CHANGES)
def test_change(made, tmp_path, name):
    change, jobs = CHANGES[name]
    directory = shutil.copytree(made, tmp_path / "copy", symlinks=True)
    file = directory / "config/config.yaml"
    if callable(change):
        config = yaml.safe_load(file.read_text())
        change(config)
        file.write_text(yaml.safe_dump(config))
    else:
        name, old, new = change
        text = (directory / "workflow" / name).read_text()
        assert old in text
        (directory / "workflow" / name).write_text(text.replace(old, new))
    profile = ["--profile", "profiles/mine"] if "profiles" in name else []
    assert planned(directory, *profile) == jobs

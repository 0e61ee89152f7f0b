"""Runs on several nodes: what jobs ask for, what starts them, what is refused; and that one node is what it was."""

import json
import shlex
import sys
from types import SimpleNamespace

import pytest
import yaml
from helpers import ROOT, SCRIPTS, snakemake, write_snapshot
from snakemake.settings.types import DeploymentMethod

from workflow.planning import Problem, nodes
from workflow.planning.parameters import Parameters

SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
RUN = {"model": "mistral-7b", "dataset": "pubmedqa", "devices": 2, "tensor_model_parallel_size": 1}
TRAIN = {"max_steps": 2, "val_check_interval": 2, "lr": 1e-3, "warmup_steps": 1, "global_batch_size": 8}
WIDE = SimpleNamespace(run="wide", model="mistral-7b")


def planned(directory, runs, *arguments, more=None):
    """What a dry run says, by profiles/nig-slurm."""
    (directory / "runs.yaml").write_text(json.dumps({"targets": [*runs], "runs": runs} | (more or {})))
    files = ("--snakefile", ROOT / "Snakefile", "--configfile", "runs.yaml", "--profile", ROOT / "profiles/nig-slurm")
    return snakemake(directory, "--dry-run", *files, *arguments, cores=None)


def test_jobs_ask_for_their_nodes(tmp_path, apptainer):
    """As many GPUs and CPUs on each as it has devices; one node is asked for as before."""
    runs = {"one": {**RUN, "train": TRAIN}, "wide": {**RUN, "nodes": 2, "train": TRAIN, "predict": {"nodes": 1}}}
    runs["huge"] = {**RUN, "nodes": 2, "devices": 4, "tensor_model_parallel_size": 8}  # a copy lies on both
    targets = "results/accuracy.tsv", "results/base/mistral-7b.verification.tsv"
    done = planned(tmp_path, runs, "--printshellcmds", *targets)
    assert done.returncode == 0, done.stdout
    found = {}
    for block in done.stdout.split("\nrule ")[1:]:
        lines = dict(line.strip().split(": ", 1) for line in block.split("\n\n")[0].splitlines() if ": " in line)
        asked = dict(pair.split("=", 1) for pair in lines.get("resources", "").split(", ") if "=" in pair)
        name = block.partition(":")[0], lines.get("wildcards", "").partition("run=")[2][:4].rstrip(",")
        command = next((line for line in block.splitlines() if "torchrun" in line), "")
        found[name] = asked.get("nodes"), asked.get("gres"), lines.get("threads"), command.partition("torchrun")
    for name in ("train_lora", "one"), ("predict", "one"), ("predict", "wide"):
        assert found[name][:3] == ("1", "gpu:2", "8") and "run_on_nodes" not in found[name][3][0]
    assert found["train_lora", "wide"][:3] == ("2", "gpu:2", "8")
    before, _, words = found["train_lora", "wide"][3]
    assert "run_on_nodes.py --nodes 2 apptainer exec --home " in before and "nemo_25.02.sif python3 " in before
    assert "deal_gpus.py --devices 2 python3 " in before and words.startswith(" --standalone --nproc-per-node 2 ")
    assert words.replace("wide", "one").replace('"nodes": 2, ', "") == found["train_lora", "one"][3][2]
    assert found["predict", "huge"][:3] == found["verify_model", ""][:3] == ("2", "gpu:4", "16")


def workflow(*methods):
    settings = SimpleNamespace(deployment_method=set(methods), apptainer_args="--nv --bind '/a b:/a b'")
    return SimpleNamespace(deployment_settings=settings, local_exec=False)


def test_what_starts_a_command_on_each_node(tmp_path, monkeypatch):
    """As Snakemake enters the image on one, with the same options; its paths may hold spaces."""
    (tmp_path / "my work").mkdir()
    monkeypatch.chdir(tmp_path / "my work")
    config = {"image": "nemo.sif", "accelerator": "gpu", "runs": {"wide": {**RUN, "nodes": 2}}}
    of_run = nodes.Nodes(workflow(DeploymentMethod.APPTAINER), config, ROOT / "workflow/tools")
    words = shlex.split(str(of_run.on_gpus(of_run.shape())(WIDE)))
    tools = f"{ROOT}/workflow/tools"
    assert words[:4] == [sys.executable, f"{tools}/run_on_nodes.py", "--nodes", "2"]
    assert words[4] in ("apptainer", "singularity")
    assert words[5:11] == ["exec", "--home", f"{tmp_path}/my work", "--nv", "--bind", "/a b:/a b"]
    assert words[11:] == [
        "nemo.sif",
        "python3",
        f"{tools}/deal_gpus.py",
        "--devices",
        "2",
        "python3",
        f"{tools}/stop_after_step.py",
    ]
    assert of_run.image(of_run.shape())(WIDE) is None
    config["runs"]["wide"]["nodes"] = 1
    assert of_run.image(of_run.shape())(WIDE) == "nemo.sif"
    assert shlex.split(str(of_run.on_gpus(of_run.shape())(WIDE))) == words[12:]
    config |= {"image": None, "accelerator": "cpu", "runs": {"wide": {**RUN, "nodes": 3}}}
    words = shlex.split(str(of_run.on_gpus(of_run.shape())(WIDE)))
    assert words == [
        sys.executable,
        f"{tools}/run_on_nodes.py",
        "--nodes",
        "3",
        "python3",
        f"{tools}/stop_after_step.py",
    ]


def settings_of(group, run):
    """What Snakemake remembers of the settings, and what the script gets."""
    parameters = Parameters(None, {"runs": {"wide": run}}, SCHEMA, SCRIPTS, (), "")
    return json.loads(parameters.own_settings(group)(WIDE)), json.loads(str(parameters.settings(group)(WIDE)))


def test_one_node_stands_nowhere():
    """A run that says it, or does not, is what it was before there was the key."""
    run = RUN | {"train": TRAIN, "predict": {"batch_size": 4}}
    for group in "train", "predict":
        assert settings_of(group, run | {"nodes": 1}) == settings_of(group, run)
        remembered, given = settings_of(group, run | {"nodes": 2})
        assert remembered.pop("nodes") == given.pop("nodes") == 2
        assert (remembered, given) == settings_of(group, run)
    alone = run | {"nodes": 2, "predict": {"batch_size": 4, "nodes": 1}}
    assert settings_of("predict", alone) == settings_of("predict", run)
    assert settings_of("train", alone)[1]["nodes"] == 2


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([], (1, 1)),
        ([(1, 4, 1), (1, 4, 4)], (1, 4)),
        ([(2, 2, 2)], (1, 2)),
        ([(2, 2, 4), (1, 4, 1)], (2, 2)),
        ([(2, 2, 4), (1, 4, 4)], (1, 4)),
    ],
)
def test_verification_takes_nodes_where_a_copy_needs_them(shapes, expected):
    """(nodes, devices, tensor parallelism) of the model's runs."""
    keys = "nodes", "devices", "tensor_model_parallel_size"
    runs = {str(number): {"model": "x", **dict(zip(keys, shape))} for number, shape in enumerate(shapes)}
    assert nodes.of_model({"runs": runs}, "x") == expected


def job(number, **resources):
    rule = SimpleNamespace(name="train_lora")
    return SimpleNamespace(rule=rule, wildcards=["wide"], params=SimpleNamespace(nodes=number), resources=resources)


def test_jobs_get_their_nodes_or_are_refused():
    slurm, other = SimpleNamespace(array_jobs=None), SimpleNamespace()
    fine = [job(1, nodes=1), job(1), job(2, nodes=2, gres="gpu:a100:4"), job(2, nodes=2, tasks=2)]
    nodes.check_jobs(fine, slurm)
    nodes.check_jobs([job(1, nodes=1), job(1)], None)
    for wrong, of, words in (
        (job(2, nodes=2), None, "nodes: 2, but only SLURM starts a job on several; run with a profile for one, or"),
        (job(2, nodes=2), other, "nodes: 2, but only SLURM starts a job on several; run with a profile for one, or"),
        (job(2, nodes=1, gres="gpu:2"), slurm, "would get 1 nodes, but has nodes: 2; the rule asks for them: leave"),
        (job(1, nodes=2, gres="gpu:2"), slurm, "would get 2 nodes, but has nodes: 1; the rule asks for them: leave"),
        (job(2, nodes=2, gpu=2), slurm, "gpu: in the profile asks for GPUs of one node, but it has nodes: 2; instead"),
        (job(2, nodes=2), slurm, "SLURM would give it one node; write tasks: 2 beside gres in the profile"),
    ):
        with pytest.raises(Problem) as problem:
            nodes.check_jobs([job(1), wrong], of)
        assert str(problem.value).startswith(f"train_lora of wide: {words}")


def test_nodes_without_slurm_are_refused_before_any_job(tmp_path):
    run = {"model": "tiny", "dataset": "trials", "nodes": 2, "devices": 1, "tensor_model_parallel_size": 1}
    config = {"targets": ["wide"], "accelerator": "cpu", "image": None, "runs": {"wide": run}}
    config |= {"datasets": {"trials": {"simulate": 0}}, "models": {"tiny": {"snapshot": str(tmp_path)}}}
    (tmp_path / "wide.yaml").write_text(json.dumps(config))
    write_snapshot(tmp_path)
    done = snakemake(tmp_path, "--snakefile", ROOT / "Snakefile", "--configfile", "wide.yaml")
    words = "predict of wide: nodes: 2, but only SLURM starts a job on several; run with a profile for one, or leave"
    assert done.returncode == 1 and done.stdout.splitlines()[-1].startswith(words), done.stdout

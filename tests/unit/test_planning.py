"""What stands in the way of jobs on this machine, and what makes planning faster."""

import gc
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import ROOT
from snakemake.iocontainers import Wildcards
from snakemake.pathvars import Pathvars
from snakemake.settings.types import DeploymentMethod

from workflow.planning import Problem, container, machine, places, speed, start
from workflow.planning.config import Checks


@pytest.fixture
def checks(tmp_path, monkeypatch):
    """Of an image, a run with 4 devices in the first file, and one in the last."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first.yaml").write_text("{image: nemo_25.02.sif, accelerator: gpu, runs: {four: {devices: 4}}}")
    (tmp_path / "last.yaml").write_text("{image: null, runs: {one: {devices: 1}}}")
    config = {"image": None, "accelerator": "gpu", "runs": {"four": {"devices": 4}, "one": {"devices": 1}}}
    return Checks(config, ["first.yaml", "last.yaml"])


@pytest.fixture
def torch(tmp_path, monkeypatch):
    """torch(lines): from now on this environment's torch is one whose version.py has these lines."""
    package = tmp_path / "packages/torch"
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "path", [str(package.parent)])

    def install(version):
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("")
        (package / "version.py").write_text(version)
        importlib.invalidate_caches()

    return install


@pytest.mark.parametrize(
    ("version", "for_cpus"),
    [
        ("from typing import Optional\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", True),
        ("cuda = None\n", True),
        ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\nxpu: Optional[str] = None\n", False),
        ("debug = False\n", False),
    ],
)
def test_torch_for_cpus_is_told(torch, version, for_cpus):
    torch(version)
    assert machine.torch_is_built_for_cpus() is for_cpus


def test_no_torch_is_not_one_for_cpus(torch):
    assert machine.torch_is_built_for_cpus() is False


def test_torch_of_this_environment_is_told():
    import torch

    assert machine.torch_is_built_for_cpus() == (torch.version.cuda is None)


@pytest.mark.parametrize(
    ("run", "gpus", "key", "problem"),
    [
        ("four", 3, "first.yaml: runs.four.devices", "4, but this machine has 3 GPUs; {cluster}, or set fewer"),
        ("one", 0, "last.yaml: runs.one.devices", "1, but this machine has 0 GPUs; {cluster}, or {cpu}"),
        ("one", 1, "first.yaml: accelerator", "gpu, but the torch of this environment is built for CPUs: {install}"),
    ],
)
def test_gpus_that_are_not_there(checks, torch, run, gpus, key, problem):
    torch("cuda: Optional[str] = None\n")
    with pytest.raises(Problem) as raised:
        machine.check_gpus(checks, *reversed(machine.devices(checks.config["runs"], run, False)), gpus)
    cluster, cpu = "run on a cluster (--profile)", "set accelerator: cpu, for a small model"
    expected = problem.format(cluster=cluster, cpu=cpu, install="make install TORCH=cuda, or set image:")
    assert str(raised.value) == f"{key}: {expected}"


def test_gpus_that_are_there(checks, torch):
    torch("cuda: Optional[str] = '12.8'\n")
    machine.check_gpus(checks, ["runs", "four", "devices"], 4, 4)
    torch("cuda: Optional[str] = None\n")
    checks.config["image"] = "nemo_25.02.sif"  # which has a torch of its own
    machine.check_gpus(checks, ["runs", "four", "devices"], 4, 4)


def test_gpus_of_predictions_are_their_own(checks, torch):
    torch("cuda: Optional[str] = '12.8'\n")
    checks.config |= {"models": {}}
    checks.config["runs"]["four"]["predict"] = {"devices": 1}
    rules = {name: name for name in ("train_lora", "predict", "verify_model", "predict_for_export")}

    def check(rule):
        files = {"output": [], "log": [], "benchmark": None}
        job = SimpleNamespace(rule=SimpleNamespace(name=rule), wildcards=Wildcards(fromdict={"run": "four"}), **files)
        job.params, job.resources = SimpleNamespace(nodes=1), {}
        dag = SimpleNamespace(needrun_jobs=lambda: [job], jobs=[])
        settings = SimpleNamespace(cores=1, nodes=None, overwrite_resources={}, overwrite_threads={})
        workflow = SimpleNamespace(dag=dag, local_exec=True, executor_settings=None, resource_settings=settings)
        workflow.rules, workflow.dag_settings = [], SimpleNamespace(omit_from=(), batch=None)
        start.check_jobs(workflow, checks, rules, None, 1)

    for rule in ("predict", "predict_for_export"):
        check(rule)
    with pytest.raises(Problem, match="this machine has 1 GPU;"):
        check("train_lora")


def test_path_variables_are_tidied_up():
    """x/ is x; what a reference stands for is put in first."""
    pathvars = Pathvars.with_defaults()
    given = {"results": "x/", "logs": "<root>/../logs", "root": ".//real/", "resources": "//tmp//./r"}
    pathvars.update(Pathvars.from_config({"pathvars": given}))
    places.tidy_up(pathvars)
    tidied = {name: pathvars.apply(f"<{name}>") for name in places.USED}
    assert tidied == {"results": "x", "logs": "logs", "resources": "/tmp/r", "benchmarks": "benchmarks"}


def test_directory_in_which_snakemake_cannot_write(tmp_path, monkeypatch):
    """Whoever runs the tests, as root writes everywhere."""
    monkeypatch.chdir(tmp_path)
    places.check_here()
    refused = [tmp_path]
    monkeypatch.setattr(places.os, "access", lambda place, mode: Path(place).absolute() not in refused)
    for name in "", ".snakemake", ".snakemake/metadata":
        refused[0] = tmp_path / name
        refused[0].mkdir(exist_ok=True)
        with pytest.raises(
            Problem, match=f"^{refused[0]}: can't be written, and Snakemake keeps its records there. Run"
        ):
            places.check_here()
    refused[0] = tmp_path
    places.check_here()  # nothing is made in it


def test_room_for_models(tmp_path, monkeypatch):
    """All that are converted and merged on one disk; of snapshots that are not here yet, the size is not known."""
    monkeypatch.chdir(tmp_path)
    for snapshot in "resources/hf/one", "two":
        (tmp_path / snapshot).mkdir(parents=True)
        (tmp_path / snapshot / "model.safetensors").write_bytes(b"0" * 3000)
    (tmp_path / "resources/hf/one/manifest.json").write_text("{}")

    def job(rule, model, output):
        params = SimpleNamespace(snapshot=f"resources/hf/{model}")
        return SimpleNamespace(rule=SimpleNamespace(name=rule), params=params, output=[output])

    jobs = [job("peft_convert_model", name, f"results/base/{name}/x") for name in ("one", "two", "three")]
    jobs += [job("merge_model", "one", "results/runs/lora/x"), SimpleNamespace(rule=SimpleNamespace(name="predict"))]
    models = {"one": {"repo": "a/b"}, "two": {"snapshot": "two"}, "three": {"repo": "a/c"}}
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: SimpleNamespace(free=9000))
    places.check_room(jobs, models)
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: SimpleNamespace(free=8000))
    with pytest.raises(Problem) as problem:
        places.check_room(jobs, models)
    words = f"{tmp_path}: the models to convert and merge take 9.0 kB, but 8.0 kB are free on the file system /"
    assert str(problem.value).startswith(words)


@pytest.mark.parametrize(("name", "version"), [("nemo_24.03.sif", "24.03"), ("mine.sif", "25.02")])
def test_image_that_is_not_there(checks, tmp_path, name, version):
    """A name without a version is taken for the default's."""
    image = checks.config["image"] = f"{tmp_path}/{name}"
    with pytest.raises(Problem) as problem:
        container.check_image(checks, {DeploymentMethod.APPTAINER})
    pull = f"apptainer pull {image} docker://nvcr.io/nvidia/nemo:{version}"
    assert str(problem.value) == f"last.yaml: image: there is no {image}; get it: {pull}"
    (tmp_path / image).write_text("")
    container.check_image(checks, {DeploymentMethod.APPTAINER})
    with pytest.raises(Problem, match=f"^last.yaml: image: {image} is only used with --sdm apptainer"):
        container.check_image(checks, {DeploymentMethod.CONDA})
    checks.config["image"] = "~/nemo.sif"
    with pytest.raises(Problem, match=r"^last\.yaml: image: `~` stays as it is in a path: write /"):
        container.check_image(checks, {DeploymentMethod.APPTAINER})
    sandbox = tmp_path / "sandbox"  # Apptainer's, where it can mount no file
    sandbox.mkdir()
    for checks.config["image"] in (str(sandbox), "docker://nvcr.io/nvidia/nemo:25.02"):  # which Snakemake pulls
        container.check_image(checks, {DeploymentMethod.APPTAINER})
        container.keep_checksum(checks.config["image"], tmp_path / "images")
    assert not (tmp_path / "images").exists()


def test_commit_of_a_clone(tmp_path, monkeypatch):
    """Also in a hook of another repository, whose GIT_DIR is in the environment."""
    assert machine.commit_of(tmp_path) == ""
    commands = "git init -q && git -c user.name=t -c user.email=t@localhost commit -q --allow-empty -m t"
    subprocess.run(f"{commands} && touch file && git add file", shell=True, check=True, cwd=tmp_path)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    assert machine.commit_of(tmp_path) == f"{head}-dirty"
    (tmp_path / "file").unlink()
    subprocess.run("git rm -q --cached file", shell=True, check=True, cwd=tmp_path)
    assert machine.commit_of(tmp_path) == head
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))
    assert machine.commit_of(tmp_path) == head


def test_signature_is_worked_out_once():
    @speed.quickly
    def of_job(wildcards, output):
        return wildcards, output

    assert of_job(1, output=2) == (1, 2)
    assert inspect.signature(of_job) is of_job.__signature__
    assert list(inspect.signature(of_job).parameters) == ["wildcards", "output"]


def test_less_garbage_is_collected():
    """In a process of its own: nothing is left behind for the other tests."""
    code = "import gc; from workflow.planning import speed; speed.collect_less_garbage(); print(gc.get_threshold())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "(100000, 50, 50)"
    assert gc.get_threshold() != (100_000, 50, 50)

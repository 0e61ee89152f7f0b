"""What is looked at before jobs go to SLURM: the profile, the GPUs they would get, arrays."""

import datetime
import json
import re
from types import SimpleNamespace

import pytest
import yaml
from helpers import ROOT, snakemake

from workflow.planning import Problem, forced, slurm

DEVICES = {"one": 1, "two": 2, "four": 4}
TRAIN = {"max_steps": 2, "val_check_interval": 2, "lr": 1e-3, "warmup_steps": 1, "global_batch_size": 8}
RULES = ("train_lora", "predict", "verify_model")


@pytest.fixture
def here(tmp_path, monkeypatch, apptainer):
    """A working directory with three runs, of 1, 2 and 4 devices."""
    run = {"model": "mistral-7b", "dataset": "pubmedqa", "tensor_model_parallel_size": 1, "train": TRAIN}
    runs = {name: {**run, "devices": devices} for name, devices in DEVICES.items()}
    (tmp_path / "three.yaml").write_text(json.dumps({"targets": [*runs], "runs": runs}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dry_run(directory, *arguments, profile="nig-slurm"):
    """What `snakemake -n --profile` says here, and whether it ended well."""
    name = profile if "/" in str(profile) else ROOT / "profiles" / profile
    files = ("--snakefile", ROOT / "Snakefile", "--configfile", "three.yaml", "--profile", name)
    return snakemake(directory, "--dry-run", *files, *arguments, cores=None)


def resources(said, rule):
    """{run: {resource: value}} of a rule's jobs, as a dry run shows them."""
    found = {}
    for block in said.split("\nrule ")[1:]:
        if block.startswith(f"{rule}:"):
            lines = dict(line.strip().split(": ", 1) for line in block.split("\n\n")[0].splitlines() if ": " in line)
            run = dict(pair.split("=") for pair in lines["wildcards"].split(", "))["run"]
            found[run] = dict(pair.split("=", 1) for pair in lines["resources"].split(", ")) | {
                "threads": lines["threads"]
            }
    return found


def changed(directory, change, profile="nig-slurm"):
    """A copy of a profile, changed as a user would."""
    values = yaml.safe_load((ROOT / "profiles" / profile / "config.yaml").read_text())
    change(values)
    (directory / "mine").mkdir()
    (directory / "mine/config.yaml").write_text(yaml.safe_dump(values))
    return directory / "mine"


def test_gpus_and_cpus_follow_the_devices(here):
    """-n shows what will be asked for, with no --cores given."""
    said = dry_run(here).stdout
    for rule in "train_lora", "predict":
        asked = resources(said, rule)
        assert {run: asked[run]["gres"] for run in DEVICES} == {"one": "gpu:1", "two": "gpu:2", "four": "gpu:4"}
        assert {run: asked[run]["threads"] for run in DEVICES} == {"one": "4", "two": "8", "four": "16"}
        assert {asked[run]["mem_mb_per_cpu"] for run in DEVICES} == {"8192"}


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ({"gres": "f'gpu:a100:{threads // 4}'"}, {"gres": ["gpu:a100:1", "gpu:a100:2", "gpu:a100:4"]}),
        ({"gres": None, "gpu": "threads // 4"}, {"gpu": ["1", "2", "4"]}),
        (
            {"cpus_per_task": "8 * threads // 4"},
            {"cpus_per_task": ["8", "16", "32"], "gres": ["gpu:1", "gpu:2", "gpu:4"]},
        ),
    ],
)
def test_one_line_for_a_site_of_another_kind(here, line, asked):
    """As the comments in the profiles say."""

    def change(values):
        for rule in RULES:
            values["set-resources"][rule].update(line)
            values["set-resources"][rule] = {k: v for k, v in values["set-resources"][rule].items() if v is not None}

    done = dry_run(here, profile=changed(here, change))
    assert done.returncode == 0, done.stdout
    found = resources(done.stdout, "train_lora")
    for name, values in asked.items():
        assert [found[run][name] for run in DEVICES] == values


def test_the_example_in_the_documentation(here):
    """Of docs/clusters.md, laid over profiles/slurm-generic: types of GPUs, a QOS, one day, memory by node."""
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/clusters.md").read_text(), re.DOTALL)
    done = dry_run(here, profile=changed(here, lambda values: values.update(yaml.safe_load(example)), "slurm-generic"))
    assert done.returncode == 0, done.stdout
    asked = resources(done.stdout, "train_lora")
    for run, devices in DEVICES.items():
        assert "mem_mb_per_cpu" not in asked[run] and asked[run]["mem_mb"] == str(32768 * devices)
        assert [asked[run][name] for name in ("gres", "qos", "runtime")] == [f"gpu:a100:{devices}", "normal", "1440"]


def last_line(done):
    assert done.returncode == 1 and "Traceback" not in done.stdout
    return done.stdout.splitlines()[-1]


def test_placeholder_in_a_profile(here):
    words = "the profile: default-resources: slurm_partition: YOUR_CPU_PARTITION is a placeholder: put in your site's"
    assert last_line(dry_run(here, profile="slurm-generic")).startswith(words)


def test_profile_that_asks_for_no_gpu(here):
    profile = changed(here, lambda values: values["set-resources"].pop("predict"))
    words = "the profile: predict would get no GPU: set-resources asks for none, as by gres in profiles/slurm-generic"
    assert last_line(dry_run(here, profile=profile)).startswith(words)
    words = "the profile: train_lora would get no GPU: set-resources asks for none"
    line = last_line(dry_run(here, "--set-resources", "predict:runtime=60"))
    assert line.startswith(words) and line.endswith("--set-resources in a command replaces all of the profile's")


def test_profile_of_before_predict_for_export(here):
    profile = changed(here, lambda values: values["set-resources"].pop("predict_for_export"))
    assert dry_run(here, profile=profile).returncode == 0


def test_profile_that_asks_for_no_gpu_where_none_is_needed(here):
    profile = changed(here, lambda values: values.pop("set-resources"))
    done = dry_run(here, "--config", "accelerator=cpu", profile=profile)
    assert done.returncode == 0, done.stdout


def settings(default=None, cores=None, nodes=None, threads=(), **rules):
    given = {"default_resources": default, "overwrite_resources": rules, "overwrite_threads": dict(threads)}
    return SimpleNamespace(cores=cores, nodes=nodes, **given)


@pytest.mark.parametrize(
    "asked",
    [
        {"gres": "gpu:4"},
        {"gpu": 4},
        {"slurm_extra": "'--gpus=4'"},
        {"slurm_extra": "'--gres=gpu:4'"},
        {"slurm_extra": "'--exclusive'"},
    ],
)
def test_ways_to_ask_for_gpus(asked):
    slurm.check_profile(settings({"slurm_account": "x"}, train_lora=asked), ["train_lora"])
    slurm.check_profile(settings({"slurm_account": "x"} | asked), ["train_lora"])


def test_settings_with_which_nothing_runs_as_meant(capsys):
    there = ["train_lora", "predict", "peft_predict"]
    slurm.check_settings(settings(cores=1, nodes=30, threads={"predict": 1}, train_lora={"gpu": 4}), there)
    assert not capsys.readouterr().err
    for numbers in {"cores": 0}, {"cores": 2, "nodes": 0}, {"nodes": 0}:
        with pytest.raises(Problem, match=r"^--cores or --jobs 0: no job could start"):
            slurm.check_settings(settings(**numbers), there)
    for key, given in ("set-resources", {"train_loara": {"gpu": 4}}), ("set-threads", {"threads": {"train_loara": 1}}):
        with pytest.raises(Problem, match=f"^{key}, of .*: there is no rule train_loara; is it train_lora.$"):
            slurm.check_settings(settings(**given), there)
    slurm.check_settings(settings(bwa_mem={"runtime": 5}, star={"runtime": 5}), there)  # of other workflows
    assert capsys.readouterr().err == "set-resources: there is no rule bwa_mem, star in this workflow.\n"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("--set-resources split_folds:runtime=xyz", "Resource 'runtime' with value 'xyz' could not be parsed as min"),
        ("--set-resources split_folds:mem_mb=many", "Resource 'mem_mb' assigned callable that returned 'many'"),
        ("--default-resources runtime=xyz", "Resource 'runtime' with value 'xyz' could not be parsed as minutes"),
        ("--set-threads split_folds=x", "Resource(threads, \"x\") of type 'str' was constrained by mismatched type"),
        ("--set-resources splt_folds:mem_mb=5", "there is no rule splt_folds; is it split_folds?"),
        ("--cores 0", "no job could start: let it be at least 1"),
        ("--omit-from predct", "--omit-from predct: there is no such step; is it predict?"),
        ("--batch compare_run=1/2", "--batch compare_run: there is no such step; is it compare_runs?"),
    ],
)
def test_values_that_cannot_be_worked_out(here, asked, words):
    """Before the first job: it would run, and the job be told of hours later, when it is its turn."""
    (here / "trials.yaml").write_text("{image: null, accelerator: cpu, datasets: {trials: {simulate: 0}}}")
    call = ("--snakefile", ROOT / "Snakefile", "results/data/trials/items/test.json", "--cores", 1, *asked.split())
    done = snakemake(here, *call, "--configfile", "trials.yaml", cores=None)
    assert words in last_line(done) and not (here / "resources").exists()
    if "no " in words:
        done = snakemake(here, *call, "-n", "--configfile", "trials.yaml", cores=None)
        assert done.stdout.splitlines()[-1].startswith("Without -n this call would stop: ") and words in done.stdout


def as_module(directory, use):
    """A dry run of a workflow that uses this one as a module, by profiles/nig-slurm."""
    module = f"configfile: 'three.yaml'\nmodule peft:\n    snakefile: '{ROOT}/workflow/Snakefile'\n    config: config\n"
    config = json.loads((directory / "three.yaml").read_text())
    config |= {"models": {"mistral-7b": {"snapshot": "there"}}, "datasets": {"pubmedqa": {"simulate": 0}}}
    (directory / "three.yaml").write_text(json.dumps(config | {"accelerator": "gpu", "image": "nemo_25.02.sif"}))
    (directory / "Snakefile").write_text(f"{module}use rule {use}\n")
    profile = ROOT / "profiles/nig-slurm"
    return snakemake(directory, "--dry-run", "results/data/pubmedqa/items/test.json", "--profile", profile, cores=None)


def test_profile_in_a_module(here):
    """With a prefix its rules have other names than in the profile; of a rule that is not used nothing is asked."""
    words = "the profile: peft_train_lora would get no GPU: set-resources has train_lora: it needs peft_train_lora"
    done = as_module(here, "* from peft as peft_*")
    assert done.returncode == 1 and words in done.stdout and "Traceback" not in done.stdout
    done = as_module(here, "split_folds, simulate_trials from peft as peft_*")
    assert done.returncode == 0 and "rule peft_split_folds:" in done.stdout, done.stdout


def test_call_without_a_cluster_needs_no_gres():
    slurm.check_profile(settings(), ["train_lora"])
    slurm.check_profile(settings({"mem_mb": 1000}, train_lora={"runtime": 60}), ["train_lora"])


def job(devices, run="lora", **resources):
    return SimpleNamespace(
        rule=SimpleNamespace(name="train_lora"),
        wildcards=[run],
        resources=resources,
        params=SimpleNamespace(devices=str(devices)),
    )


def test_gpus_are_as_many_as_the_processes():
    """Else torchrun would start more than there are GPUs for, or some would be paid for in vain."""
    none = SimpleNamespace(array_jobs=None)
    fine = [
        job(1, gres="gpu:1"),
        job(4, "b", gres="gpu:a100:4"),
        job(2, "c", gpu=2),
        job(2, "d"),
        job(1, "e", gres="gpu:a100"),
    ]
    slurm.check_submissions(fine, none, False)
    for wrong in job(4, gres="gpu:0"), job(2, gres="gpu:4"), job(1, gres="gpu:a100:4"), job(2, gpu=4):
        with pytest.raises(Problem, match=r"train_lora of lora: would get \S+ for \d devices; write gres: as"):
            slurm.check_submissions([*fine, wrong], none, False)
    with pytest.raises(Problem, match="--slurm-array-jobs, or slurm-array-jobs: in the profile: all jobs of an array"):
        slurm.check_submissions(fine, SimpleNamespace(array_jobs="all"), False)


def test_no_gpu_at_a_site_with_default_partition_and_account():
    """Whose profile has nothing of SLURM's: only the executor tells that jobs go there."""
    slurm.check_profile(settings({"mem_mb": 1000}), ["train_lora"])
    executor = SimpleNamespace(array_jobs=None)
    slurm.check_submissions([job(1, gres="gpu:1"), job(2, "b", gpu=2)], executor, True)
    for jobs, of, on_gpus in ([job(1)], executor, False), ([job(1)], SimpleNamespace(), True):  # another executor
        slurm.check_submissions(jobs, of, on_gpus)
    with pytest.raises(Problem, match="train_lora of lora: would get no GPU from SLURM; ask for them by gres"):
        slurm.check_submissions([job(1, slurm_extra="'--mail-type=END'")], executor, True)


def test_a_name_with_your_in_it_is_no_placeholder():
    slurm.check_profile(settings({"slurm_account": "FOR_YOUR_LAB", "gpu": 1}), ["train_lora"])


def call(main=True, **how):
    """A Snakemake, as planning.forced sees it."""
    settings = {"targets": [], "forcetargets": False, "forceall": False, "forcerun": set()} | how
    started = datetime.datetime.now()
    return SimpleNamespace(is_main_process=main, dag_settings=SimpleNamespace(**settings), start_time=started)


def test_forced_training_is_told_to_its_job(monkeypatch):
    """By the environment, which sbatch hands on; as two modules of one workflow, each to its own."""
    monkeypatch.setenv(forced.VARIABLE, "")
    one = forced.anew(call(forcerun={"one_train"}), "one_train")
    two = forced.anew(call(targets=["b x"], forcetargets=True), "two_train")
    flags = [str(one("", ["a"])), str(two("", ["b x"]))]
    assert all(flag.startswith("--anew ") for flag in flags)
    assert [str(one("", ["a"])), str(two("", ["b x"]))] == flags  # of a second attempt
    assert str(two("", ["c"])) == ""
    provenance = forced.anew(call(forcerun={"./d.json"}), "one_train")
    assert str(provenance("", ["d", "d.json"])).startswith("--anew ")  # its other output, as Snakemake takes it
    in_job = call(main=False)
    assert str(forced.anew(in_job, "one_train")("", ["other"])) == flags[0]
    assert str(forced.anew(in_job, "two_train")("", ["b x"])) == flags[1]
    assert str(forced.anew(in_job, "two_train")("", ["c"])) == ""
    both = forced.flags_of_training(one)
    assert (
        str(both("", SimpleNamespace(start_from="a b.nemo", chat_template=[]), ["a"]))
        == f"--start-from 'a b.nemo' {flags[0]}"
    )
    assert str(both("", SimpleNamespace(start_from=[], chat_template=[]), ["a"])) == flags[0]

"""The unchanged profiles/nig-slurm on a real SLURM with a real Apptainer. What is shown comes from SLURM's own records,
from the processes and from the logs. The tests go through one project's life, in this order."""

import json
import os
import re
import shlex
import signal
import subprocess
import threading
from pathlib import Path

import pandas as pd
import pytest
import yaml
from cluster.lab import HOME, LAB, TOKEN, USER, Project, finish, in_queue, output_of, wait_until, weights
from common.files import read_json, sha256

RUN = "results/runs/lora/fold0/seed0"
TIMEOUT_LOG = "logs/train_lora/timeout/fold0-seed0.log"


def rule_of(job):
    return re.search(r"--comment rule_(\w+?)_wildcards_", job["SubmitLine"])[1]


def variables_of_jobs():
    """The environment variables of all processes that run in SLURM jobs just now, read as their user."""
    of_jobs = "grep -lzs ^SLURM_JOB_ID= /proc/[0-9]*/environ | xargs -r cat 2>/dev/null; true"
    return output_of("runuser", "-u", USER, "--", "sh", "-c", of_jobs).split("\0")


@pytest.fixture(scope="module")
def chain(project):
    """The chain, run through: what it said, its jobs' variables and all command lines that were seen meanwhile."""
    variables, command_lines, end = set(), set(), threading.Event()

    def watch():
        while not end.wait(0.3):
            variables.update(variables_of_jobs())
            command_lines.update(output_of("ps", "-e", "-ww", "-o", "args=").splitlines())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        said = project.run()
    finally:
        end.set()
        thread.join()
    return said, variables, command_lines


def test_whole_chain(project, chain):
    said = chain[0]
    table = pd.read_csv(project.directory / "results/accuracy.tsv", sep="\t")
    assert list(table.run) == ["majority", "human", "base", "lora"]
    assert re.search(r"^ *lora +1 +\d", said, re.MULTILINE)  # the table
    assert set(table.test_set) == {"4 of 500, stratified"}
    rules = [rule_of(job) for job in project.jobs()]
    for rule, times in {"convert_model": 1, "train_lora": 1, "predict": 2, "evaluate": 2, "split_folds": 1}.items():
        assert rules.count(rule) == times
    assert not {"download_model", "compare_runs", "write_report"} & set(rules)  # they ran beside Snakemake
    assert {job["State"] for job in project.jobs()} == {"COMPLETED"}
    (report,) = (project.directory / "logs/slurm").glob("efficiency_report_*.csv")
    assert "train_lora" in report.read_text()


def test_training_had_four_gpus_and_ran_in_the_image(project, chain):
    (job,) = project.jobs("rule_train_lora_wildcards_lora_0_0")
    assert "gres/gpu=4" in job["AllocTRES"].split(",") and job["NNodes"] == "1"
    image = project.directory / "nemo-cpu_2.2.1.sif"
    log = project.read("logs/train_lora/lora/fold0-seed0.log")
    first = [line.split(" train_lora: ")[1] for line in log.splitlines() if " train_lora: " in line]
    assert first[0].endswith(f" in SLURM job {job['JobIDRaw']}, image {image}")
    assert first[1] == "4 processes on the CPU; tensor parallelism 4, precision 32"
    assert "All distributed processes registered. Starting with 4 processes" in log
    provenance = read_json(project.directory / RUN / "provenance.json")
    for step in "train_lora", "predict":
        assert provenance[step]["image"] == str(image) and provenance[step]["image_sha256"] == sha256(image)
    assert provenance["train_lora"]["slurm_job"] == job["JobIDRaw"]
    assert provenance["evaluate"]["image"] is None  # it ran on the host
    assert provenance["evaluate"]["slurm_job"] == project.jobs("rule_evaluate_wildcards_lora_0_0")[0]["JobIDRaw"]


def check_submission(project, job, minutes, gpus):
    """sbatch's flags, each of them, and what SLURM gave: so many GPUs, four CPUs and 32 GB with each."""
    rule, run = re.match(
        r"rule_(\w+)_wildcards_(\w+)_0_0$", comment := re.search(r"--comment (\S+)", job["SubmitLine"])[1]
    ).groups()
    flags, command = job["SubmitLine"].split(" --wrap=")
    words = flags.split()
    assert words.pop(3) and words[2] == "--job-name"  # Snakemake's number for this call
    assert words == [
        "sbatch", "--parsable", "--job-name",
        "--output", f"{project.directory}/logs/slurm/rule_{rule}/{run}_0_0/%j.log",
        "--export=ALL", "--comment", comment,
        "-A", "l40s", "-p", "l40s", "-t", str(minutes), "--mem-per-cpu", "8192", "--nodes=1", "--requeue",
        f"--cpus-per-task={4 * gpus}", "-D", str(project.directory), f"--gres=gpu:{gpus}",
    ]  # fmt: skip
    assert re.match(rf"\S+/python\S* -m snakemake .*--target-jobs '{rule}:run={run},fold=0,seed=0' ", command)
    given = {f"cpu={4 * gpus}", f"gres/gpu={gpus}", f"mem={32 * gpus}G", "node=1"}
    assert {entry for entry in job["AllocTRES"].split(",") if not entry.startswith("billing=")} == given


def test_submissions_flag_by_flag(project, chain):
    """Those of 4 devices and of 1. That of 2 is looked at where there is one: test_killed_snakemake."""
    check_submission(project, *project.jobs("rule_train_lora_wildcards_lora_0_0"), minutes=2880, gpus=4)
    check_submission(project, *project.jobs("rule_predict_wildcards_lora_0_0"), minutes=240, gpus=4)
    check_submission(project, *project.jobs("rule_predict_wildcards_base_0_0"), minutes=240, gpus=1)
    (host_job,) = project.jobs("rule_convert_model_wildcards_tiny")
    assert "gres/gpu" not in host_job["AllocTRES"] and "--gres" not in host_job["SubmitLine"]


def test_no_job_knows_the_token(project, chain):
    """The model is gated: the download had the token. Nothing else has it, or a record of it."""
    said, variables, command_lines = chain
    assert any(variable.startswith("APPTAINER_CONTAINER=") for variable in variables)  # the jobs were seen
    assert not [variable for variable in variables if TOKEN in variable or variable.startswith("HF_TOKEN=")]
    assert any("train_lora.py" in line for line in command_lines)  # and so were the command lines
    assert not [line for line in (said, *command_lines) if TOKEN in line]
    records = output_of("scontrol", "show", "jobs", "-dd") + "".join(
        output_of("sacct", option, "-j", job["JobIDRaw"]) + str(job)
        for job in project.jobs()
        for option in ("--batch-script", "--env-vars")
    )
    assert "snakemake" in records and f"HF_ENDPOINT={project.endpoint}" in records and TOKEN not in records
    for place in project.directory, LAB / "slurm":
        found = subprocess.run(["grep", "-rl", "--exclude=*.sif", TOKEN, place], capture_output=True, text=True)
        assert found.stdout == "" and found.returncode == 1, found.stdout


def adapter_of(run):
    return f"results/runs/{run}/fold0/seed0/adapter.nemo"


def attempts(project, run):
    provenance = read_json(project.directory / f"results/runs/{run}/fold0/seed0/adapter.provenance.json")
    return [attempt["after_step"] for attempt in provenance["attempts"]]


def training_processes():
    """The ids of the ranks that train just now, by their command line."""
    command = ["pgrep", "-u", USER, "-f", r"python\S* -u \S*/workflow/scripts/train_lora.py"]
    return [int(pid) for pid in subprocess.run(command, capture_output=True, text=True).stdout.split()]


@pytest.fixture(scope="module")
def hanging(project, chain, start_early, changed_profile):
    """The Snakemake of a training with a limit of one minute. The first attempt stopped in time, the second hangs.

    While SLURM waits for its limit, another test can have the machine: this Snakemake is stopped too. Its third attempt
    gets done within four minutes, as a busy machine takes one to import NeMo.
    """
    limits = changed_profile('runtime: "2d" #', 'runtime: "1 if attempt < 3 else 4" #')
    process = start_early(adapter_of("timeout"), profile=limits)
    project.wait_for_log(TIMEOUT_LOG, "Stopped after 1 of 3 steps, as the time limit is near")
    project.wait_for_log(TIMEOUT_LOG, "continues after step 1")
    for pid in training_processes():
        os.kill(pid, signal.SIGSTOP)
    os.killpg(process.pid, signal.SIGSTOP)
    return process


def test_same_result_as_without_a_cluster(project, chain, hanging):
    """Bit for bit, on the host with the same packages, seed and tensor parallelism."""
    local = Project(HOME / "local", project.endpoint)
    (local.directory / "local.yaml").write_text("image: null")
    local.run(f"{RUN}/metrics.json", profile=None, config=("cluster.yaml", "local.yaml"))
    here, there = weights(local.directory / RUN / "adapter.nemo"), weights(project.directory / RUN / "adapter.nemo")
    assert here == there and len(here) == 4  # ranks
    for name in "predictions.jsonl", "metrics.json":
        assert (local.directory / RUN / name).read_bytes() == (project.directory / RUN / name).read_bytes()


def test_time_limits(project, hanging):
    """The first attempt stops in time, the second hangs until SLURM ends it, the third gets done."""
    os.killpg(hanging.pid, signal.SIGCONT)
    code, said = finish(hanging)
    assert code == 0, said
    states = [job["State"] for job in project.jobs("rule_train_lora_wildcards_timeout")]
    assert states == ["FAILED", "TIMEOUT", "COMPLETED"]
    assert attempts(project, "timeout") == [0, 1, 1]
    assert "3 of 3 steps" in project.read(TIMEOUT_LOG)
    assert "takes over from a process of SLURM job" in project.read(TIMEOUT_LOG)


def test_partial_rerun_submits_what_is_needed(project, chain, changed_profile):
    """With GPUs of a type, by one line in the profile."""
    config = yaml.safe_load(project.read("cluster.yaml"))
    config["runs"]["base"]["predict"] = {"batch_size": 8, "tokens_to_generate": 2}
    (project.directory / "changed.yaml").write_text(yaml.safe_dump(config))
    last = project.last_job()
    project.run(config=("changed.yaml",), profile=changed_profile("f'gpu:{", "f'gpu:l40s:{"))
    assert [rule_of(job) for job in project.jobs(after=last)] == ["predict", "evaluate"]
    (job,) = project.jobs("rule_predict_wildcards_base_0_0", after=last)
    assert "--gres=gpu:l40s:1" in job["SubmitLine"].split() and "gres/gpu=1" in job["AllocTRES"].split(",")


@pytest.fixture(scope="module")
def starving(project, chain, start_early, changed_profile):
    """The Snakemake of a training whose first attempt has too little memory, which takes its time."""
    profile = changed_profile('"8192 * min(attempt, 2)"', '"100 if attempt == 1 else 4096"')
    return start_early(adapter_of("memory"), profile=profile)


def test_ten_thousand_jobs_are_planned(project, chain, starving):
    """In how many seconds, benchmarks/dag.py tells."""
    (project.directory / "many.yaml").write_text(
        json.dumps({"targets": ["lora"], "runs": {"lora": {"folds": list(range(10)), "seeds": list(range(334))}}})
    )
    said = project.run("--dry-run", "--quiet", "rules", config=("cluster.yaml", "many.yaml"))
    assert int(re.findall(r"^total +(\d+)$", said, re.MULTILINE)[0]) > 10000


def test_out_of_memory(project, starving):
    code, said = finish(starving)
    assert code == 0, said
    if not Path("/sys/fs/cgroup/memory").is_dir():
        pytest.skip("this machine has no memory cgroup of version 1: its SLURM cannot limit a job's memory")
    first, second = project.jobs("rule_train_lora_wildcards_memory")
    assert "OUT_OF_MEMORY" in output_of("sacct", "-n", "-P", "-o", "State", "-j", first["JobIDRaw"])
    assert first["State"] in ("FAILED", "OUT_OF_MEMORY")  # a rank is ended, or Snakemake's process
    assert second["State"] == "COMPLETED"
    assert "--mem-per-cpu 100 " in first["SubmitLine"] and "--mem-per-cpu 4096 " in second["SubmitLine"]


def test_killed_snakemake(project, chain, start):
    """Its job goes on; it is not done twice, neither while it runs nor afterwards."""
    process = start(adapter_of("killed"))
    log = "logs/train_lora/killed/fold0-seed0.log"
    project.wait_for_log(log, "of 400 steps")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (job,) = project.jobs("rule_train_lora_wildcards_killed")
    number = job["JobIDRaw"]
    check_submission(project, job, minutes=2880, gpus=2)

    project.run("--unlock")
    # by the profile's own interval: a Snakemake that ends just when its executor asks for states, here every 8 seconds,
    # prints the executor's error too ("cannot schedule new futures after shutdown")
    code, said = finish(start(adapter_of("killed"), polling=()), 60)
    left = f"{adapter_of('killed')}: SLURM job {number}, running, of an earlier snakemake makes it."
    assert said.splitlines()[-1] == f"{left} Wait for its end, or end it (scancel {number}), then run again."
    assert code == 1

    words = output_of("ps", "-ww", "-o", "args=", "-p", str(training_processes()[0])).strip()
    words = re.sub(r"^\S+ -u (\S+)", rf"{LAB}/env/bin/torchrun --standalone --nproc-per-node 2 \1", words)
    settings = re.search(r"--settings (\{.*?\}) --seed", words)[1]
    words = shlex.split(words.replace(settings, shlex.quote(settings)))
    by_hand = subprocess.run(
        ["runuser", "-u", USER, "--", *words], cwd=project.directory, capture_output=True, text=True
    )
    assert by_hand.returncode != 0
    assert f"seed0/training: SLURM job {number} on " in by_hand.stderr and f"scancel {number}" in by_hand.stderr

    wait_until(lambda: not in_queue(), 180, "the end of the training that goes on")
    assert "of 400 steps" in project.read(log)
    assert "Nothing to be done" in project.run(adapter_of("killed"))
    assert attempts(project, "killed") == [0] and len(project.jobs("rule_train_lora_wildcards_killed")) == 1

    adapter = (project.directory / adapter_of("killed")).read_bytes()
    (project.directory / adapter_of("killed")).unlink()
    project.run(adapter_of("killed"))
    assert "takes over the finished training in" in project.read(log) and "of 400 steps" not in project.read(log)
    assert (project.directory / adapter_of("killed")).read_bytes() == adapter and attempts(project, "killed") == [0]


def test_interrupt_cancels_all_jobs(project, chain, start):
    """By a terminal's Ctrl-C, and by SIGTERM to Snakemake alone: the training has written a checkpoint each time."""
    log, steps = "logs/train_lora/killed/fold0-seed0.log", 0
    for number, send, more in (signal.SIGINT, os.killpg, ["--forcerun", "train_lora"]), (signal.SIGTERM, os.kill, []):
        last = project.last_job()
        process = start(adapter_of("killed"), *more)
        wait_until(lambda last=last: project.jobs(after=last) and training_processes(), 60, "a training")
        project.wait_for_log(log, "of 400 steps")
        send(process.pid, number)
        code, said = finish(process, 60)
        assert code == 1 and said.count("Interrupted: ") == 1, said
        wait_until(lambda: not in_queue(), 60, "the end of the cancelled job")
        (job,) = project.jobs(after=last)
        assert job["State"].startswith("CANCELLED") and not training_processes()
        before, steps = steps, int(re.search(r"Stopped after (\d+) of 400 steps, as requested\.", project.read(log))[1])
        assert steps > before and ("starts" if more else f"continues after step {before}") in project.read(log)
    kept = list((project.directory / adapter_of("killed")).parent.glob("training/*-before-*"))
    assert len(kept) == 1 and (kept[0] / "adapter.nemo").exists()  # forced, it had begun anew; the former is kept


def test_failure_is_told_in_one_sentence(project, chain, start):
    """Here of a job that was cancelled, after its last attempt."""
    last = project.last_job()
    process = start(adapter_of("killed"), "--forcerun", "train_lora", "--retries", "0")
    # SLURM's records may come after the ranks: without the wait, the last job of the records is another test's
    wait_until(lambda: project.jobs(after=last) and training_processes(), 60, "a training")
    number = str(project.last_job())
    subprocess.run(["runuser", "-u", USER, "--", "scancel", number], check=True)
    code, said = finish(process, 120)
    assert [job["JobIDRaw"] for job in project.jobs(after=last)] == [number]
    slurm_log = f"{project.directory}/logs/slurm/rule_train_lora/killed_0_0/{number}.log"
    name, log = "train_lora (run=killed, fold=0, seed=0)", "logs/train_lora/killed/fold0-seed0.log"
    ended = rf"SLURM job {number} ended as CANCELLED[^.]*\. See {slurm_log} and then {log}\."
    assert re.search(rf"^{re.escape(name)}: {ended}$", said, re.MULTILINE), said
    assert code == 1


def test_missing_image_is_said_before_any_job(project, chain, start):
    (project.directory / "gone.yaml").write_text("image: gone_25.02.sif")
    last = project.last_job()
    files = ("cluster.yaml", "gone.yaml")
    code, said = finish(start(adapter_of("killed"), "--forcerun", "convert_model", config=files, polling=()), 60)
    pull = "apptainer pull gone_25.02.sif docker://nvcr.io/nvidia/nemo:25.02"
    assert said.splitlines()[-1] == f"gone.yaml: image: there is no gone_25.02.sif; get it: {pull}"
    assert code == 1 and not project.jobs(after=last)


def test_calls_that_would_get_other_gpus(project, chain, start):
    """Are refused before any job."""
    last = project.last_job()
    for arguments, words in {
        (
            "--slurm-array-jobs",
            "all",
        ): "--slurm-array-jobs, or slurm-array-jobs: in the profile: all jobs of an array get",
        ("--cores", "2"): "train_lora of killed: would get gpu:0 for 2 devices; write gres: as profiles/slurm-generic",
    }.items():
        code, said = finish(start(adapter_of("killed"), "--forcerun", "train_lora", *arguments, polling=()), 60)
        assert code == 1 and said.splitlines()[-1].startswith(words), said
    assert not project.jobs(after=last)


def test_job_that_slurm_does_not_take(project, chain, start, changed_profile):
    profile = changed_profile(
        "  slurm_partition: l40s\n  slurm_account: l40s #", "  slurm_partition: l40\n  slurm_account: l40s #"
    )
    code, said = finish(start("results/base/tiny.nemo", profile=profile), 120)
    assert code == 1 and "invalid partition specified: l40" in said
    told = "pack_model (model=tiny): SLURM did not take the job. See sbatch's error message above, or in "
    assert re.search(rf"^{re.escape(told)}\S+/\.snakemake/log/\S+\.log\.$", said, re.MULTILINE), said

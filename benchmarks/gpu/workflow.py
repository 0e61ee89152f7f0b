"""The workflow on several GPUs: config/config.yaml's `tutorial` on random weights of Mistral-7B's shapes, in stages:

python benchmarks/gpu/workflow.py prepare --pubmedqa …/data --directory /tmp/workflow

prepare        snapshot, converted model, JSON Lines
undisturbed    all steps of training, prediction and report
kill           the same training again; one of its ranks is killed after the first checkpoint, and it goes on

Exits with an error where anything is not as it should be.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml
from measure import ROOT, GpuMemory, gpus, read_json, read_jsonl, row

RUNS, ADAPTER = "results/runs", "fold0/seed0/adapter.nemo"
AT_ONCE = 10  # seconds within which a killed rank has ended all others
ALIKE = {"gpu": 0.01, "cpu": 1e-6}  # how much losses may differ; two starts on GPUs differ in bf16
problems = []


def expect(true, otherwise):
    if not true:
        problems.append(otherwise)
        print(f"NOT AS IT SHOULD BE: {otherwise}", flush=True)


def configure(args):
    """Writes config/config.yaml of the directory; returns the settings of the tutorial's training."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    base, tutorial = (config["runs"][run] | {"devices": args.devices} for run in ("base", "tutorial"))
    tutorial["tensor_model_parallel_size"] = args.devices
    data = {"directory": str(args.pubmedqa.resolve())}
    if args.accelerator == "cpu":
        for run in (base, tutorial):
            run |= {"precision": 32, "megatron_amp_O2": False}
        tutorial["train"] |= {"global_batch_size": 4, "max_steps": 6, "val_check_interval": 2, "warmup_steps": 6}
        data["sample"] = 24
    config |= {"targets": ["base", "tutorial"], "image": None, "accelerator": args.accelerator}
    config["models"] = {"mistral-7b": {"snapshot": str(args.snapshot.resolve())}}
    config |= {"datasets": {"pubmedqa": data}, "runs": {"base": base, "tutorial": tutorial, "killed": tutorial}}
    (args.directory / "config").mkdir(parents=True, exist_ok=True)
    (args.directory / "config/config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return tutorial["train"]


def snakemake(args, *targets):
    """Starts Snakemake in a session of its own; its output is in the directory's snakemake.log."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", args.directory]
    command += ["--cores", "all", "--nolock", "--quiet", "rules", "--", *targets]
    with open(args.directory / "snakemake.log", "a") as log:
        return subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, start_new_session=True)


def finish(args, *targets):
    """Runs Snakemake to its end; exits where it fails."""
    start = time.monotonic()
    with GpuMemory() as memory:
        if snakemake(args, *targets).wait():
            sys.exit(f"snakemake failed: see {args.directory / 'snakemake.log'}")
        used = f"by the driver, MiB of each GPU at most: {memory.take(args.devices)}"
    print(f"snakemake: {time.monotonic() - start:.0f} s; {used}", flush=True)


def prepare(args, train):
    if not args.snapshot.exists():
        command = [sys.executable, ROOT / "benchmarks/random_snapshot.py", "--device", "cuda", args.snapshot]
        subprocess.run([*command, "--texts", args.pubmedqa / "ori_pqal.json"], check=True)
    data = "results/data/pubmedqa/reasoning_required_pred"
    finish(args, "results/base/mistral-7b/model_config.yaml", f"{data}/fold0/train.jsonl", f"{data}/test.jsonl")


def training(args, run):
    """The provenance of a run's training, {step: its loss}, and {step: validation loss after it}."""
    made = read_json((args.directory / RUNS / run / ADAPTER).with_suffix(".provenance.json"))
    found = ({row["step"]: row[key] for row in made["curve"] if key in row} for key in ("loss", "validation_loss"))
    return made, *found


def undisturbed(args, train):
    finish(args)
    for file in sorted((args.directory / "benchmarks").rglob("*.tsv")):
        seconds = file.read_text().splitlines()[1].split()[0]
        print(f"{float(seconds):7.1f} s  {file.relative_to(args.directory / 'benchmarks').with_suffix('')}")
    made, losses, validations = training(args, "tutorial")
    seconds, memory = made["seconds_per_step"], made["peak_gpu_memory_mb"]
    print(f"tutorial: {len(losses)} steps of {seconds} s, {memory} MB by torch, loss {losses[1]:.4f} to", end=" ")
    print(f"{losses[max(losses)]:.4f}; validation", {step: round(loss, 5) for step, loss in validations.items()})
    expect(list(losses) == list(range(1, train["max_steps"] + 1)), f"losses of the steps {list(losses)}")
    for run, label in (("base", "final_decision"), ("tutorial", "reasoning_required_pred")):
        test = read_jsonl(args.directory / f"results/data/pubmedqa/{label}/test.jsonl")
        predictions = read_jsonl(args.directory / RUNS / run / "fold0/seed0/predictions.jsonl")
        ordered = [item["pmid"] for item in predictions] == [item["pmid"] for item in test]
        expect(ordered, f"{run}: the predictions are not those of the test items in their order")
    table = (args.directory / "results/accuracy.tsv").read_text()
    runs = [line.split("\t")[0] for line in table.splitlines()[1:]]
    expect(runs == ["majority", "human", "base", "tutorial"], f"results/accuracy.tsv: the lines {runs}")
    expect("tutorial" in (args.directory / "results/report.html").read_text(), "the report lacks the run")


def ranks_of(snakemake):
    """{rank: its process}; torchrun is their parent."""
    processes = psutil.Process(snakemake.pid).children(recursive=True)
    ranks = [process for process in processes if "RANK" in process.environ()]
    return {int(process.environ()["RANK"]): process for process in ranks if process.parent() not in ranks}


def wait_for_checkpoint(args, step, first):
    """Until the killed run's checkpoint of a step is whole."""
    checkpoints = args.directory / RUNS / "killed/fold0/seed0/training"
    while not list(checkpoints.rglob(f"*-step={step}-*.ckpt")) or list(checkpoints.rglob("*-unfinished")):
        if first.poll() is not None:
            sys.exit(f"ended before the checkpoint of step {step}: see {args.directory / 'snakemake.log'}")
        time.sleep(0.2)


def ends(processes, start):
    """{process: seconds from the start to its end}"""
    found = {}
    while len(found) < len(processes) and time.monotonic() < start + 120:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    continue
            found.setdefault(process, time.monotonic() - start)
        time.sleep(0.05)
    return found


def kill(args, train):
    shutil.rmtree(args.directory / RUNS / "killed", ignore_errors=True)
    step, target = train["val_check_interval"], f"{RUNS}/killed/{ADAPTER}"
    first = snakemake(args, target)
    try:
        wait_for_checkpoint(args, step, first)
        ranks = ranks_of(first)
        victim = ranks.pop(args.devices // 2)
        watched = {**{f"rank {rank}": ranks[rank] for rank in sorted(ranks)}, "torchrun": victim.parent()}
        victim.kill()
        gone = ends(watched.values(), time.monotonic())
        code = first.wait(120)
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
    print(f"rank {args.devices // 2} of {args.devices} was killed; until the others were gone, in s:", end=" ")
    print({name: round(gone[process], 1) if process in gone else None for name, process in watched.items()})
    ended = len(gone) == len(watched) and max(gone.values()) < AT_ONCE
    expect(ended, f"a process lived for {AT_ONCE} s and more")
    expect(code, "snakemake did not fail though a rank was killed")
    finish(args, target)
    made, losses, validations = training(args, "killed")
    _, expected, theirs = training(args, "tutorial")
    attempts = [attempt["after_step"] for attempt in made["attempts"]]
    expect(attempts == [0, step], f"the training went on after the steps {attempts}, not after 0 and {step}")
    row("step", "undisturbed", "killed", "difference")
    row(*["---"] * 4)
    differences = {n: abs(losses[n] / expected[n] - 1) for n in expected if n in losses}
    for n in differences:
        if n in (1, step + 1, max(expected)) or n % 5 == 0:
            row(n, f"{expected[n]:.4f}", f"{losses[n]:.4f}", f"{differences[n]:.2%}")
    for n, loss in validations.items():
        row(f"validation, {n}", f"{theirs[n]:.5f}", f"{loss:.5f}", f"{abs(loss / theirs[n] - 1):.2%}")
    before, after = (max(d for n, d in differences.items() if (n > step) == late) for late in (False, True))
    print(f"losses differ by {before:.2%} at most up to step {step}, and by {after:.2%} after it")
    expect(list(losses) == list(expected), f"losses of the steps {list(losses)}")
    expect(max(before, after) <= ALIKE[args.accelerator], f"losses differ by more than {ALIKE[args.accelerator]:.4%}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = {function.__name__: function for function in (prepare, undisturbed, kill)}
    parser.add_argument("stages", choices=list(stages), nargs="+", metavar="STAGE")
    parser.add_argument("--pubmedqa", required=True, type=Path, help="directory with PubMedQA's two files")
    parser.add_argument("--directory", required=True, type=Path, help="where the workflow runs, with room for 30 GB")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--snapshot", type=Path, help="instead of one with random weights, in the directory")
    help = "cpu: to try it, in six small steps, on a tiny model"
    parser.add_argument("--accelerator", choices=["gpu", "cpu"], default="gpu", help=help)
    args = parser.parse_args()

    args.snapshot = args.snapshot or args.directory / "snapshot"
    train = configure(args)
    for stage in args.stages:
        print(f"{stage}: {gpus()}, devices: {args.devices}", flush=True)
        stages[stage](args, train)
    sys.exit("\n".join(problems) or 0)


if __name__ == "__main__":
    main()

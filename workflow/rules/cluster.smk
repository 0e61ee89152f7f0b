"""What the Snakemake process does for its jobs on a cluster: the token stays with it, nothing is submitted twice, and a
failed job is told of in one sentence."""


def keep_token_to_this_process():
    """Takes the Hub's token out of the environment, which SLURM stores and hands to every job.

    huggingface_hub reads it from the file that HF_TOKEN_PATH names: one in memory, which only this user can open, and
    only while this process runs.
    """
    tokens = [os.environ.pop(name, None) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    if token := next(filter(None, tokens), None):
        file = os.memfd_create("token")
        os.write(file, token.encode())
        os.environ.update(HF_TOKEN_PATH=os.path.join(os.sep, "proc", str(os.getpid()), "fd", str(file)))


def check_queue(jobs):
    """Ends where SLURM still has one of these jobs, left there by a Snakemake that was killed."""
    made_by = {}  # by the comment that the executor gives to its SLURM job
    for job in jobs:
        wildcards = "_".join(job.wildcards).replace(os.sep, "_")
        made_by[f"rule_{job.rule.name}_wildcards_{wildcards}" if wildcards else f"rule_{job.rule.name}"] = job
    command = ["squeue", "--me", "--noheader", "--format=%i|%T|%Z|%k"]  # id, state, directory, comment
    for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
        number, state, directory, comment = line.split("|", 3)
        if comment in made_by and os.path.realpath(directory) == os.path.realpath(os.getcwd()):
            left = f"SLURM job {number}, {state.lower()}, of an earlier snakemake makes it"
            then = f"Wait for its end, or end it (scancel {number}), then run again."
            sys.exit(f"{made_by[comment].output[0]}: {left}. {then}")


def state_of(number):
    """What SLURM says of a failed job; where it ran out of memory, only one of its steps tells."""
    command = ["sacct", "--noheader", "--parsable2", "--format=State", "--jobs", number]
    states = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return next((state for state in states if state not in ("COMPLETED", "FAILED")), "FAILED")


def explain_failures(logs):
    """One sentence for each failed job: its rule, run, SLURM job and the log to open."""
    pattern = r"Job (\d+) has been submitted with SLURM jobid (\d+) \(log: (.*)\)\."
    submitted = {job: rest for job, *rest in re.findall(pattern, "".join(Path(log).read_text() for log in logs))}
    for job in workflow.scheduler.failed:
        name = f"{job.rule.name} ({', '.join(f'{key}={value}' for key, value in job.wildcards.items())})"
        if found := submitted.get(str(workflow.dag.jobid(job))):
            number, slurm_log = found
            happened = f"SLURM job {number} ended as {state_of(number)}. See {slurm_log} and then {', '.join(job.log)}."
        elif workflow.local_exec or job.is_local:
            happened = f"failed. See {', '.join(job.log)}."
        else:
            happened = f"SLURM did not take the job. See sbatch's error message above, or in {logs[0]}."
        print(f"{name}: {happened}", file=sys.stderr)


if sys.platform == "linux":
    keep_token_to_this_process()


onstart:
    jobs = list(workflow.dag.needrun_jobs())
    if nemo_jobs := [job for job in jobs if job.rule.name in ("train_lora", "predict", "verify_model")]:
        check_machine(nemo_jobs)
    if not workflow.local_exec and shutil.which("squeue"):
        check_queue(jobs)
    # a training that is forced starts anew: by its checkpoints it would only go on where it ended
    for job in filter(lambda job: job.rule.name == "train_lora" and workflow.dag.reason(job).forced, jobs):
        Path(job.params.work_dir, "training/state/fingerprint").unlink(missing_ok=True)


onerror:
    explain_failures(log)

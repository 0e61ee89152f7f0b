"""Checks what the configuration alone does not tell: files named on the command line, the models' heads, and, where
training or prediction are to run, the image and the GPUs."""

from snakemake.settings.types import DeploymentMethod


def check_target(target):
    """Ends where a file under results/runs/ is of a run, fold or seed that there can't be."""
    runs = Path(workflow.pathvars.apply("<results>/runs"))
    if runs not in Path(target).parents:
        return
    run, fold, seed = (*Path(target).relative_to(runs).parts, "", "")[:3]
    if run not in config["runs"]:
        sys.exit(f"{target}: {run} is not among runs: {', '.join(config['runs'])}")
    choice = next((name for name, entry in config["runs"].items() if run in entry.get("choose", [])), None)
    if choice and not Path(target).name.startswith("adapter."):
        sys.exit(f"{target}: {run} is a candidate of {choice}: only what is chosen gets answers to the test items")
    if not re.fullmatch(r"fold\d", fold) or not re.fullmatch(r"seed\d+", seed):
        sys.exit(f"{target}: {fold}/{seed} is none of fold0/seed0, fold0/seed1, …, fold9/…")


def check_heads(name, run):
    """Ends where the model's heads can't be shared out; a model that is not there yet is checked by the job itself."""
    model, tp = config["models"][run["model"]], run["tensor_model_parallel_size"]
    fetched = Path(workflow.pathvars.apply("<resources>/hf"), run["model"])
    manifest = fetched / "manifest.json"
    if "repo" in model and not (manifest.exists() and json.loads(manifest.read_text())["source"] == model["repo"]):
        return
    file = Path(model.get("snapshot", fetched), "config.json")
    heads = json.loads(file.read_text()) if file.is_file() else {}
    for key in ("num_attention_heads", "num_key_value_heads"):
        if heads.get(key, tp) % tp:
            problem = f"{tp} does not divide the {heads[key]} {key} of {run['model']} ({file})"
            refuse(["runs", name, "tensor_model_parallel_size"], problem)


def gpus_here():
    """How many GPUs a job on this machine would see."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len(visible.replace(",", " ").split())
    if not shutil.which("nvidia-smi"):
        return 0
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.count("GPU ")


def checksum(image):
    """The image's sha256, kept in a file, as an image has some 20 GB."""
    kept = Path(workflow.pathvars.apply("<resources>/images"), f"{Path(image).name}.sha256")
    if not kept.exists() or kept.stat().st_mtime < Path(image).stat().st_mtime:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with open(image, "rb") as file:
            kept.write_text(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {image}\n")
    return kept.read_text().split()[0]


def check_machine(jobs):
    """Ends where the image or the GPUs for these jobs are not there."""
    if image := config["image"]:
        if DeploymentMethod.APPTAINER not in workflow.deployment_settings.deployment_method:
            refuse(["image"], f"{image} is only used with --sdm apptainer; add that, or set image: null to do without")
        if "://" not in image and not Path(image).is_file():
            refuse(["image"], f"there is no {image}; get it: apptainer pull {image} docker://nvcr.io/nvidia/nemo:24.03")
        if "://" not in image:
            os.environ.update(IMAGE_SHA256=checksum(image))  # for the jobs' provenance.json
    if config["accelerator"] == "gpu" and workflow.local_exec:
        runs = [job.wildcards.run for job in jobs if job.rule.name != "verify_model"]
        run = max(runs, key=lambda run: config["runs"][run]["devices"], default=None)
        if run and (devices := config["runs"][run]["devices"]) > (gpus := gpus_here()):
            problem = f"{devices}, but this machine has {gpus} GPUs; run on a cluster (--profile) or set fewer"
            refuse(["runs", run, "devices"], problem)


for argument in sys.argv[1:]:  # Snakemake knows its targets only later
    check_target(argument)
for name, run in config["runs"].items():
    check_heads(name, run)

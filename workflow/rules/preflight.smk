"""Checks what no schema can say of files named on the command line, of the models' heads, and of a choice among runs."""


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


def check_choice(name, run):
    """Validation losses compare only where model, items and answers are the same."""
    if "train" in run:
        refuse(["runs", name, "choose"], "stands beside train:; a run has one of them")
    for candidate in run["choose"]:
        if candidate not in config["runs"] or "train" not in config["runs"][candidate]:
            refuse(["runs", name, "choose"], f"{candidate} is not among the runs that have train:")
        if candidate in config["targets"]:
            problem = f"{candidate} is under targets: that would be choosing on test; take it out of one of them"
            refuse(["runs", name, "choose"], problem)
        for key in run.keys() - {"choose", "predict"}:
            if run[key] != config["runs"][candidate].get(key):
                refuse(["runs", name, "choose"], f"{candidate} and {name} differ in {key}, in which they must agree")


for run in config["runs"].values():
    run["folds"] = list(range(10)) if run["folds"] == "all" else run["folds"]
for argument in sys.argv[1:]:  # Snakemake knows its targets only later
    check_target(argument)
for name, run in config["runs"].items():
    check_heads(name, run)
    if "choose" in run:
        check_choice(name, run)

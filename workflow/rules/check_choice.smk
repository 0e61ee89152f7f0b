"""Checks what the runs under `choose:` have in common, and that none of them is tested, too."""


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


for name, run in config["runs"].items():
    if "choose" in run:
        check_choice(name, run)

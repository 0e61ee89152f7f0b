"""What is asked for on the command line: checked before Snakemake looks for a rule that makes it, and explained where
there is none."""

import io
import os
import re
from contextlib import redirect_stderr
from difflib import get_close_matches
from pathlib import Path

from snakemake.cli import get_argument_parser
from snakemake.io import regex_from_filepattern, strip_wildcard_constraints
from snakemake.logging import logger

from . import Problem
from .datasets import folds_of
from .sweeps import runs_of, unknown

WORKFLOW = Path(__file__).parent.parent
LARGEST_SEED = 4294966061  # as the schema has it
LAST_COUNTS = (  # options of several values, by their names
    *(("--configfile", "--configfiles"), ("--config", "-C"), ("--forcerun", "-R"), ("--until", "-U")),
    *(("--omit-from", "-O"), ("--prioritize", "-P"), ("--resources", "--res"), ("--set-threads",)),
    *(("--set-resources",), ("--default-resources", "--default-res"), ("--rerun-triggers",)),
)


def check_options(arguments):
    """Raises Problem where an option stands twice of which Snakemake takes the last only, and without a word."""
    options = [argument.partition("=")[0] for argument in arguments]
    for names in LAST_COUNTS:
        if sum(option in names for option in options) > 1:
            raise Problem(f"{names[0]} stands twice, and only the last would count: write all its values after one")


def asked_for(arguments):
    """The targets on a command line, and the steps and files that options name. Snakemake itself knows them only when
    it has read the workflow."""
    try:
        with redirect_stderr(io.StringIO()):
            found, _ = get_argument_parser().parse_known_args(arguments)
    except SystemExit:  # they are those of another program, which calls Snakemake
        return []
    options = {*found.forcerun, *found.until, *found.omit_from, *found.prioritize}
    return [*found.targets, *sorted(options - {*found.targets})]


def below(target, directory):
    """The parts of a target's path below a directory; none where it is elsewhere."""
    results, file = Path.cwd() / Path(directory).parent, Path(os.path.normpath(target))
    if not os.path.isabs(directory) and results != Path.cwd() and results in file.parents:
        raise Problem(f"{target}: a target is a path from here: {os.path.relpath(target)}")
    return file.relative_to(directory).parts if Path(directory) in file.parents else ()


def of_what(target, results, resources):
    """("run", its name) of a file of a run, ("model", …) and ("dataset", …) of theirs; None of others."""
    kinds = {"runs": "run", "answers": "run", "base": "model", "data": "dataset"}
    places = {f"{results}/{name}": kind for name, kind in kinds.items()}
    places |= {f"{resources}/hf": "model", f"{resources}/data": "dataset"}
    for directory, kind in places.items():
        if parts := below(target, directory):
            return kind, re.sub(r"\.(nemo|verification\.tsv)$", "", parts[0])


def check_model(target, runs, results):
    """A file of one model is of a seed that there can be. What a run chooses is there for its own folds and seeds."""
    if not (model := re.fullmatch(r"(?:runs|answers)/([^/]+)/fold(\d)/seed(\d+)/.*", "/".join(below(target, results)))):
        return
    name, fold, seed = model[1], int(model[2]), float(model[3])
    if seed > LARGEST_SEED:
        raise Problem(f"{target}: seeds are at most {LARGEST_SEED}")
    while entry := runs.get(name):
        if "choose" in entry and not (fold in entry["folds"] and seed in entry["seeds"]):
            there = f"folds {entry['folds']} and seeds {entry['seeds']}"
            raise Problem(f"{target}: {name} chooses for its {there} alone: add what you need to them")
        name = entry.get("train", {}).get("start_from")


def check(target, runs, datasets, directory):
    """A file under `directory`, results/runs, is of one of the runs, and of a fold and seed that there can be."""
    if not target:
        raise Problem("'' on the command line is no target: a variable of the shell may be empty")
    check_model(target, runs, Path(directory).parent)
    if not (parts := below(target, directory)):
        return
    run, fold, seed = (*parts, "", "")[:3]
    if run not in runs:
        raise Problem(f"{target}: {unknown(run, runs)}")
    choice = next((name for name, entry in runs.items() if run in entry.get("choose", [])), None)
    if choice and not re.fullmatch(r"(adapter\.|(peft|merged)[/.])[^/]+", "/".join(parts[3:])):
        why = "only what is chosen gets answers to the test items"
        raise Problem(f"{target}: {run} is a candidate of {choice}: {why}")
    if not seed:
        raise Problem(
            f"{target}: is no file that a step makes. Ask for one: {directory}/{run}/fold0/seed0/metrics.json"
        )
    if not re.fullmatch(r"fold\d", fold) or not re.fullmatch(r"seed(0|[1-9]\d*)", seed):
        raise Problem(f"{target}: {fold}/{seed} is none of fold0/seed0, fold0/seed1, …, fold9/…")
    if int(fold[4:]) not in folds_of(datasets.get(runs[run]["dataset"], {})):
        raise Problem(f"{target}: {runs[run]['dataset']} has fold 0 only")


def made(rules):
    """The paths that rules make, their wildcards as {run}."""
    return [strip_wildcard_constraints(str(file)) for rule in rules for file in rule.output]


def wildcards_of(path, pattern):
    """{wildcard: value} where the path is of the pattern, with any values; else None."""
    found = re.match(regex_from_filepattern(re.sub(r"\{(\w+)\}", r"{\1,[^/]+}", pattern)), path)
    return found and found.groupdict()


def nearest(word, names, likeness=0.6):
    found = get_close_matches(word, names, 1, likeness)
    return f"; is it {found[0]}?" if found else ""


class Explanation:
    """A filter of Snakemake's log: where it can't make a target, it says what there is. Snakemake alone knows which
    words of the command line are targets, and which rules a Snakefile has beside the workflow's."""

    def __init__(self, workflow, config, results):
        self.workflow, self.runs, self.results = workflow, config["runs"], results
        self.names = {kind: list(config[kind]) for kind in ("runs", "models", "datasets")}

    def filter(self, record):
        said, failed = str(record.msg), getattr(record, "exception", None)
        asked = self.workflow.dag_settings.targets if failed and self.workflow.dag_settings else ()
        rules = [rule for rule in self.workflow.rules if rule.name in asked and rule.has_wildcards()]
        if misnamed := next(filter(None, map(self.of_names, asked)), None):
            record.msg = misnamed
        elif missing := re.match(r"MissingRuleException:\nNo rule to produce (.*) \(if you use", said, re.DOTALL):
            record.msg = self.of_file(missing[1]) if os.sep in missing[1] else self.of_word(missing[1])
        elif rules and said.startswith("WorkflowError:\nTarget rules may not contain wildcards"):
            record.msg = "\n".join(map(self.of_step, rules))
        return True

    def of_names(self, target):
        """None where runs, models and data sets in its path are those that there are."""
        ours = [rule for rule in self.workflow.rules if Path(rule.snakefile).is_relative_to(WORKFLOW)]
        for values in filter(None, (wildcards_of(target, pattern) for pattern in made(ours))):
            for kind, names in self.names.items():
                if (value := values.get(kind[:-1], names[0])) not in names:
                    return f"{target}: {value} is not among {kind}: {', '.join(names)}{nearest(value, names)}"

    def of_step(self, rule):
        return f"{rule.name}: is a step of several jobs and no target. Ask for a file that it makes: {made([rule])[-1]}"

    def of_word(self, word):
        if own := [word] if word in self.runs else runs_of(word, self.runs):
            kind, one = (
                "run" if word in self.runs else "sweep",
                f"{self.results}/runs/{own[0]}/fold0/seed0/metrics.json",
            )
            return f"{word}: is a {kind} and no target. Put it under targets:, or ask for a file of it: {one}"
        rules, runs = [rule.name for rule in self.workflow.rules], self.names["runs"]
        whole = [rule.name for rule in self.workflow.rules if not rule.has_wildcards()]
        there = f"Targets are {', '.join(whole)} and files; runs, which go under targets:, {', '.join(runs)}"
        file = next((f"; is it {file}?" for file in made(self.workflow.rules) if os.path.basename(file) == word), "")
        return f"{word}: is no target{file or nearest(word, [*runs, *rules]) or '.'} {there}"

    def of_file(self, file):
        patterns, directory = made(self.workflow.rules), os.path.dirname(file)
        beside = [pattern for pattern in patterns if wildcards_of(directory, os.path.dirname(pattern)) is not None]
        names = sorted({os.path.basename(pattern) for pattern in beside})
        names = [name for name in names if "{" in name or self.is_made(f"{directory}/{name}")]
        if not names:
            return f"{file}: no step makes such a file{nearest(file, patterns, 0)}"
        near = nearest(os.path.basename(file), names) or "."
        return f"{file}: no step makes it{near} In {directory} there will be {', '.join(names)}"

    def is_made(self, file):
        return any(rule.is_producer(file) for rule in self.workflow.rules)


def explain(workflow, config, results):
    logger.addFilter(Explanation(workflow, config, results))

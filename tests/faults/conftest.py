"""Bad inputs, kills and full disks. At the end a table: of each kind how many were tried, and how many held."""

import collections
import copy
import shutil
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, write_snapshot
from snakemake.common.configfile import load_configfile
from snakemake.utils import update_config, validate

from workflow.planning import Problem
from workflow.planning.config import Checks
from workflow.planning.own_files import check_rows
from workflow.planning.targets import check as check_target
from workflow.planning.targets import of_what
from workflow.planning.yaml_files import check as check_yaml

SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"
FORM = yaml.safe_load(SCHEMA.read_text())
DEFAULT = load_configfile(ROOT / "config/config.yaml")
TRAIN = yaml.safe_load((ROOT / "workflow/scripts/train_lora.yaml").read_text())
RESULTS = collections.defaultdict(collections.Counter)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if (kind := item.get_closest_marker("kind")) and (call.when == "call" or report.failed):
        RESULTS[kind.args[0]][report.outcome] += 1


def pytest_terminal_summary(terminalreporter):
    if RESULTS:
        terminalreporter.section("what was tried, and what held")
        for kind, outcomes in RESULTS.items():
            tried = outcomes["passed"] + outcomes["failed"]
            terminalreporter.line(f"{kind:<58} {tried:>4} tried  {outcomes['passed']:>4} held")
        tried, held = (sum(outcomes[one] for outcomes in RESULTS.values()) for one in ("failed", "passed"))
        terminalreporter.line(f"{'all':<58} {tried + held:>4} tried  {held:>4} held")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a snapshot's config.json and the user's files."""
    monkeypatch.chdir(tmp_path)
    write_snapshot(tmp_path / "tiny")
    (tmp_path / "d.csv").write_text("input,output,other\n")
    shutil.copyfile(ROOT / "tests/chain.yaml", "chain.yaml")
    return tmp_path


def plan(*files, targets=("all", "results/accuracy.tsv")):
    """What is said of a configuration, chain.yaml with these files over it, or None where it is planned: what where.smk
    and checks.smk do, in this process. Anything else than a sentence is an error."""
    try:
        config = copy.deepcopy(DEFAULT)
        for file in map(Path, ("chain.yaml", *files)):
            check_yaml(file)
            update_config(config, load_configfile(file))
        checks = Checks(config, [ROOT / "config/config.yaml", Path("chain.yaml"), *map(Path, files)])
        checks.check_schema(FORM)
        validate(config, str(SCHEMA))  # with the defaults
        asked = filter(None, (of_what(target, "results", "resources") for target in targets))
        checks.check_runs(TRAIN, "resources/hf", asked)
        for target in targets:
            check_target(target, config["runs"], config["datasets"], "results/runs")
        check_rows(checks)
    except Problem as problem:
        return str(problem)
    return None


def is_sentence(text):
    """A line or two that a person can read, not what a program prints of itself."""
    return text is not None and text.count("\n") < 3 and len(text) < 1500 and "Traceback" not in text

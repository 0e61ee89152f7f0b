"""Each command of README.md and README.ja.md is planned here, or listed with the reason why it is not run."""

import re
import shlex
import textwrap

import pytest
from helpers import ROOT, copy_workflow, snakemake

NOT_RUN = {  # how a command begins: why
    "git clone REPOSITORY_URL": "this file does not know its own address",
    "cd peft-mistral-7b": "of the clone",
    "make demo": "takes minutes; .test runs the demonstration, on GitHub",
    "make install": "fetches 1.2 GB; test_docs.py runs what comes before",
    "make test": "this test is one of them",
    "make site": ".ci/run calls it",
    ". .venv/bin/activate": "tests run in that environment",
    "apptainer pull": "fetches 20 GB; test_docs.py compares it with the configuration",
    "tail -f": "does not end",
    "python workflow/tools/ask.py": "needs an adapter; test_export.py runs it",
}
PROGRAMS = "snakemake|make|python|apptainer|tail|sbatch|git|cd"


def blocks(text, language):
    """The code blocks of a language, also those within a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


def commands(name):
    text = (ROOT / name).read_text()
    lines = [line.partition("#")[0].strip() for block in blocks(text, "bash") for line in block.splitlines()]
    return sorted({*lines, *re.findall(rf"`((?:{PROGRAMS}) [^`]+)`", text)} - {""})


COMMANDS = commands("README.md")


@pytest.fixture(scope="module")
def project(tmp_path_factory, apptainer):
    """A directory with the files that README.md has one save."""
    directory = tmp_path_factory.mktemp("readme")
    copy_workflow(directory)
    text = (ROOT / "README.md").read_text()
    one_gpu, mine = blocks(text, "yaml")
    (directory / "one-gpu.yaml").write_text(one_gpu)
    (directory / "mine.yaml").write_text(mine)
    more = "".join(f"Report {number}.,none\n" for number in range(10))
    (directory / "notes.csv").write_text("".join(blocks(text, "csv")) + more)
    return directory


def test_both_languages_have_the_same_commands():
    english, japanese = ((ROOT / name).read_text() for name in ("README.md", "README.ja.md"))
    assert commands("README.ja.md") == COMMANDS
    for language in "yaml", "text", "csv":
        assert blocks(japanese, language) == blocks(english, language) != []


def test_reasons_are_of_commands_that_are_there():
    assert all(any(command.startswith(start) for command in COMMANDS) for start in NOT_RUN)


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith(tuple(NOT_RUN))])
def test_command_plans_jobs(project, command):
    program, *arguments = shlex.split(command)
    assert program == "snakemake", f"{command}: run it here, or give the reason in NOT_RUN"
    done = snakemake(project, *arguments, "--dry-run", cores=None)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^train_lora +\d", done.stdout, re.MULTILINE) or "--unlock" in arguments
    there_is_none = "Without -n this call would stop: config/config.yaml: image: there is no nemo_25.02.sif; get it: "
    assert (there_is_none in done.stdout) == (not {"config/demo.yaml", "--unlock"} & {*arguments})

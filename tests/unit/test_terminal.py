"""A line for each job that starts, goes on, ends or fails: of two jobs, whose logs are as the steps' own."""

import re
import subprocess

import pytest
from helpers import ROOT

from workflow.planning import terminal

SNAKEFILE = """
import sys
sys.path.insert(0, ROOT)
from workflow.planning import terminal
terminal.SECONDS = 0.2
onstart: terminal.show_lines(workflow)
rule all:
    input: "lora.nemo", FAILS
rule train:
    '''Trains an adapter, with `train:`. Only then.'''
    output: "{run}.nemo"
    log: "logs/{run}.log"
    params: settings='{"lr": 0.1}'
    shell:
        "(echo 12:00:00 train: continues after step 0; echo 12:00:00 train: python 3.11, torch 2) > {log}; sleep 1.5;"
        " for step in 1 2 3; do echo 12:00:0$step train: $step of 3 steps, loss 0.$step; echo x; sleep 1.5;"
        " done >> {log} 2>&1; echo 12:00:09 train: validation loss 0.25 after 3 steps >> {log};"
        " echo 12:00:09 train: 4 of 3 steps >> {log}; touch {output};"
        " echo {output}: validation loss 0.25, {params.settings:q} >> {log}"
rule fail:
    output: "{run}.failed"
    log: "logs/{run}.failed.log"
    params: settings='{"lr": 0.2}'
    shell:
        "(for line in $(seq 20); do echo line $line; done; echo precision: bf16, but a GPU has none;"
        " echo 'E1127 00:48:35.1 15220 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1)';"
        " echo Traceback of torchrun) > {log}; exit 1 # {params.settings}"
"""


def call(directory, fails="[]", *arguments):
    """What Snakemake shows, and its exit code; before it, the log of an earlier attempt lies there."""
    (directory / "Snakefile").write_text(f"ROOT, FAILS = {str(ROOT)!r}, {fails}\n{SNAKEFILE}")
    (directory / "logs").mkdir()
    (directory / "logs/lora.log").write_text("11:00:00 train: 3 of 3 steps, loss 9\n")
    command = ["snakemake", "--cores", "2", "--keep-going", *arguments]
    done = subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.partition("total ")[2], done.returncode


def test_lines_of_jobs(tmp_path):
    said, code = call(tmp_path, "'base.failed'")
    train = [re.sub(r"\d:\d\d:\d\d", "T", line) for line in said.splitlines() if "train (run=lora)" in line]
    train = [line for line in train if "4 of 3" not in line]  # comes at the job's end: is shown, or no longer
    assert code == 1 and [line.partition(" ")[2] for line in train] == [
        "train (run=lora): Trains an adapter, with `train:`; log: logs/lora.log",
        "train (run=lora): continues after step 0",
        *(f"train (run=lora): {step} of 3 steps, loss 0.{step}" for step in (1, 2, 3)),
        "train (run=lora): validation loss 0.25 after 3 steps",
        'train (run=lora): done after T: lora.nemo: validation loss 0.25, {"lr": 0.1} [1 of 3 jobs]',
    ]
    failed = said[said.index("fail (run=base): failed after ") :]
    assert "The end of its log, logs/base.failed.log:\n    line 12\n" in failed and "    line 11\n" not in failed
    assert "    line 20\n    precision: bf16, but a GPU has none\n" in failed and "Traceback" not in said
    assert '"lr": 0.2' not in said and "Execute" not in said and "Select jobs" not in said


@pytest.mark.parametrize("option", ["--printshellcmds", "--show-failed-logs", "--quiet"])
def test_more_or_less_when_asked_for(tmp_path, option):
    said, code = call(tmp_path, "'base.failed'", option, "--until", "fail")
    assert code == 1
    assert ('"lr": 0.2' in said) == (option == "--printshellcmds")
    assert ("\nTraceback of torchrun" in said) == (option == "--show-failed-logs")
    assert ("failed after" in said) == (option != "--quiet")


def test_a_dry_run_lists_files_as_snakemake_does(tmp_path):
    said, code = call(tmp_path, "[]", "--dry-run")
    assert code == 0 and "rule train:\n    output: lora.nemo\n" in said and "settings" not in said


def test_end_of_a_log_of_an_older_torchrun(tmp_path):
    of_torchrun = "[2024-04-01 00:00:00] torch.distributed.elastic.multiprocessing.api: [ERROR] failed (exitcode: 1)"
    (tmp_path / "log").write_text(f"one\ntwo\n{of_torchrun}\n")
    assert terminal.end_of(tmp_path / "log") == ["one", "two"]


def test_the_last_line_counts_all_jobs(tmp_path):
    said, code = call(tmp_path)
    assert code == 0 and re.search(r"^\S+ all: done \[2 of 2 jobs\]$", said, re.MULTILINE), said


RESULTS = """
import sys
sys.path.insert(0, ROOT)
from workflow.planning import terminal
runs = {"notes": {"dataset": "mine", "add_bos": True}, "trials": {"dataset": "trials"}}
mine = {"items": "notes.csv", "prompt": "Report: {text} It's {{so}}: ", "answer": "finding"}
config = {"runs": runs, "datasets": {"mine": mine, "trials": {"simulate": 0}}}
onsuccess: terminal.show_results(workflow, config, ["compare_runs", "write_report", "write_model_card"], "tools/ask.py")
rule compare_runs:
    output: "accuracy.tsv"
    log: "compare_runs.log"
    shell: "touch {output}; printf ' run accuracy\\n base 37.5\\n\\naccuracy.tsv: 1 runs\\n' > {log}"
rule write_report:
    input: "accuracy.tsv"
    output: "report.html"
    shell: "touch {output}"
rule write_model_card:
    output: "{run}/peft/README.md"
    shell: "touch {output}"
"""


def test_results_at_the_end(tmp_path):
    """Of a call that made the table: the table once, the report, the adapters, and how to ask the first of them."""
    (tmp_path / "Snakefile").write_text(f"ROOT = {str(ROOT)!r}\n{RESULTS}")

    def end(*targets):
        command = ["snakemake", "--cores", "1", *targets]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    notes, trials = "notes/peft/README.md", "trials/peft/README.md"
    assert end(notes) == ""
    ask = "python tools/ask.py --add-bos notes/peft 'Report: … It'\"'\"'s {so}:'\n"
    assert end("report.html", notes, trials) == (
        "\n run accuracy\n base 37.5\n\nReport: report.html\nAdapter: notes/peft\nAdapter: trials/peft\n"
        f"To ask it a question, put your own text in place of each …:\n{ask}"
    )
    (tmp_path / "report.html").unlink()
    asked = "How to use it: trials/peft/README.md\n"
    assert end("report.html", trials).endswith(f"Report: report.html\nAdapter: trials/peft\n{asked}")

"""What the terminal shows of a call: a line for each job that starts, goes on, ends or fails, in place of Snakemake's
listing of files and resources, which stands in .snakemake/log, and at the end the table. `-n` lists files as before."""

import datetime
import os
import re
import shlex
import threading
import time
from pathlib import Path

from snakemake.logging import DefaultFormatter, get_event, logger, show_logs
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

from ..scripts.common.template import parts

SECONDS = 15  # between two lines of a job, later a tenth of the time that it has taken
SAID = re.compile(r"\d\d:\d\d:\d\d \w+: (.+)")  # a line of common/progress.py
NEWS = re.compile(r"validation loss|continues after|takes over")  # of it, what is shown at once
VERSIONS = re.compile(r"python \d")  # and what is not shown
OF_TORCHRUN = re.compile(r"^\S+ .*torch[./]distributed[./]elastic")  # its report on ranks, after what they said


def name_of(rule, wildcards):
    """train_lora (run=lora, fold=0, seed=0)"""
    told = ", ".join(f"{key}={value}" for key, value in wildcards.items() if value)
    return f"{rule} ({told})" if told else rule


def end_of(file, lines=10):
    """The last lines of a failed job's log, without torchrun's own report after them."""
    with open(file, encoding="utf-8", errors="replace") as log:
        said = log.read().splitlines()
    end = next((number for number, line in enumerate(said) if OF_TORCHRUN.match(line)), len(said))
    return said[max(0, end - lines) : end]


class Job:
    """A job that has started, or was submitted. Its progress is what it wrote to its log."""

    def __init__(self, name, logs):
        self.name, self.log = name, next(iter(logs), "")
        self.before, self.started, self.read, self.said = self.state(), time.monotonic(), 0, ""
        self.due = self.started + SECONDS

    def state(self):
        """Another once the job writes: until then an earlier attempt's log may lie there."""
        if os.path.exists(self.log):
            stat = os.stat(self.log)
            return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def lines(self):
        """The last lines of its log; none where it has written none."""
        if self.state() in (None, self.before):
            return []
        with open(self.log, "rb") as log:
            log.seek(max(0, os.path.getsize(self.log) - 2**16))
            return log.read().decode(errors="replace").splitlines()

    def news(self):
        """What the step has said since the last call that is shown at once; `said` is what it said last, after that."""
        found = []
        if self.state() not in (None, self.before):
            with open(self.log, "rb") as log:
                log.seek(self.read)
                whole = b"".join(log.read().rpartition(b"\n")[:2])  # without a line that is still being written
            self.read += len(whole)
            for said in filter(None, map(SAID.match, whole.decode(errors="replace").splitlines())):
                if NEWS.search(said[1]):
                    self.said = ""
                    found.append(said[1])
                elif not VERSIONS.match(said[1]):
                    self.said = said[1]
        return found

    def result(self):
        """The last line of its log, which says what it made."""
        last = next((line for line in reversed(self.lines()) if line.strip()), "")
        said = SAID.match(last)
        return said[1] if said else last

    def took(self):
        return datetime.timedelta(seconds=round(time.monotonic() - self.started))


class Lines(DefaultFormatter):
    """Formats Snakemake's events. workflow: of which it reads the rules' docstrings."""

    def __init__(self, workflow):
        settings = workflow.output_settings
        super().__init__(settings.quiet, settings.show_failed_logs)
        self.workflow, self.jobs, self.ended = workflow, {}, []
        self.left_out = ("Select jobs to execute...",)
        if not settings.printshellcmds:
            self.left_out += ("RuleException:\nCalledProcessError in file",)  # which has the command

    def format(self, record):
        if get_event(record) == LogEvent.JOB_STARTED or str(record.msg).startswith(self.left_out):
            return ""
        return super().format(record)

    def line(self, text):
        return f"{datetime.datetime.now():%H:%M:%S} {text}"

    def format_job_info(self, msg):
        job = self.jobs[msg["jobid"]] = Job(name_of(msg["rule_name"], msg["wildcards"]), msg["log"])
        if not job.log:  # a target, which does nothing
            return ""
        what = " ".join(
            (self.workflow.get_rule(msg["rule_name"]).docstring or "").partition(". ")[0].rstrip(".").split()
        )
        return self.line(f"{job.name}: {'; '.join(filter(None, [what, f'log: {job.log}']))}")

    def format_job_finished(self, msg):
        job = self.jobs.pop(msg["job_id"], None)
        if job is None:  # with --quiet rules it was not seen
            self.ended.append(msg["msg"])
        elif job.log:
            self.ended.append(": ".join(filter(None, [job.name, f"done after {job.took()}", job.result()])))
        else:  # a target: the last line counts all jobs
            self.ended.append(f"{job.name}: done")
        # the line of its end only once the number of jobs that are done is known
        return "\n".join(self.line(f"{job.name}: {said}") for said in (job.news() if job else ()))

    def format_progress(self, msg):
        ended, self.ended = self.ended, []
        return "\n".join(self.line(f"{text} [{msg['done']} of {msg['total']} jobs]") for text in ended)

    def format_job_error(self, msg):
        job = self.jobs.pop(msg["jobid"], None) or Job(msg["rule_name"], msg["log"])
        lines = [self.line(f"{job.name}: failed after {job.took()}"), *filter(None, [msg["rule_msg"]])]
        if self.show_failed_logs:
            lines += show_logs(msg["log"])
        elif os.path.exists(job.log):
            lines += [f"The end of its log, {job.log}:", *(f"    {line}" for line in end_of(job.log))]
        return "\n".join(lines)

    def watch(self):
        """Tells now and then how far each job is, for ever: a thread of its own."""
        while True:
            time.sleep(min(1, SECONDS))
            for job in list(self.jobs.values()):
                said = job.news()
                if (now := time.monotonic()) >= job.due:
                    job.due = now + max(SECONDS, (now - job.started) / 10)
                    said, job.said = [*said, *filter(None, [job.said])], ""
                for text in said:
                    logger.info(self.line(f"{job.name}: {text}"), extra={"quietness": Quietness.PROGRESS})


def show_lines(workflow):
    """Has Snakemake's own handler of the terminal write such lines. With --logger there is none."""
    lines = Lines(workflow)
    for handler in logger.handlers:
        if handler.name == "DefaultStreamHandler":
            handler.setFormatter(lines)
            threading.Thread(target=lines.watch, daemon=True).start()


def ask(directory, run, dataset, tool):
    """A line that asks the adapter a question, with … for an item's own text; of PubMedQA's prompts the model card has
    an example."""
    if "answer" not in dataset:
        return f"To ask it a question: {directory}/README.md"
    prompt = "".join(text + "…" * (name is not None) for text, name in parts(dataset["prompt"]))
    words = ["python", os.path.relpath(tool), *["--add-bos"] * bool(run.get("add_bos")), directory, prompt.strip(" ")]
    return f"To ask it a question, put your own text in place of each …:\n{shlex.join(words)}"


def show_results(workflow, config, rules, tool):
    """Of a call that has written the table or the report: the table, the report's path, and the exported adapters.
    rules: the names here of compare_runs, write_report and write_model_card; tool: tools/ask.py."""
    ran = {job.rule.name for job in workflow.dag.needrun_jobs(exclude_finished=False)}
    if ran.isdisjoint(rules[:2]):
        return
    table, report, cards = ([job for job in workflow.dag.jobs if job.rule.name == name] for name in rules)
    for log in (Path(job.log[0]) for job in table):
        if log.exists():  # its last line tells of the file
            print("", *log.read_text(encoding="utf-8").splitlines()[:-1], sep="\n")
    for job in report:
        print(f"Report: {job.output[0]}")
    order = [*config["runs"]]
    cards.sort(key=lambda job: (order.index(job.wildcards.run), job.output[0]))
    adapters = {os.path.dirname(job.output[0]): config["runs"][job.wildcards.run] for job in cards}
    print(*(f"Adapter: {directory}" for directory in adapters), sep="\n", end="\n" * bool(adapters))
    for directory, run in [*adapters.items()][:1]:
        print(ask(directory, run, config["datasets"][run["dataset"]], tool))

"""An ordinary user's copy of the project, run on the SLURM of this machine."""

import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

from helpers import copy_workflow
from hub import TOKEN

HERE = Path(__file__).parent
LAB = Path(os.environ.get("LAB", "/opt/cluster-lab"))
USER = "researcher"
HOME = Path("/home", USER)
POLLING = ["--slurm-init-seconds-before-status-checks", "8"]  # then 18 s later, then 28 s, anew after each success
FIELDS = ("JobIDRaw", "State", "AllocTRES", "NNodes", "ReqMem", "SubmitLine")


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def weights(adapter):
    """{name: bytes} of an adapter.nemo, whose other files have paths in them."""
    with tarfile.open(adapter) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".ckpt")}


def wait_until(condition, seconds, what):
    """The condition's first true value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain: {what}"
        time.sleep(0.2)
    return value


def heed_interrupts():
    """A program that is started in the background ignores them; one on a terminal does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process, seconds=600):
    """Waits for the end of what Project.start started; returns its exit code and what it said."""
    code = process.wait(seconds)
    process.said.seek(0)
    return code, process.said.read()


class Project:
    """The user's copy of the project in a directory, and what SLURM knows of its jobs."""

    def __init__(self, directory, endpoint):
        self.directory, self.endpoint = directory, endpoint
        copy_workflow(directory)
        shutil.copyfile(HERE / "cluster.yaml", directory / "cluster.yaml")
        self.own()
        self.before = 0
        self.before = self.last_job()

    def own(self):
        subprocess.run(["chown", "-R", f"{USER}:{USER}", self.directory], check=True)

    def start(self, *arguments, profile="profiles/nig-slurm", config=("cluster.yaml",), polling=POLLING):
        """Starts Snakemake as the user; the token is in its environment."""
        variables = {"HOME": HOME, "USER": USER, "LANG": "C.UTF-8", "HF_ENDPOINT": self.endpoint, "HF_TOKEN": TOKEN}
        variables["PATH"] = f"{LAB}/env/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        command = ["snakemake", *map(str, arguments), *(["--configfile", *config] if config else [])]
        command += ["--profile", profile, *polling] if profile else ["--cores", "all"]
        said = tempfile.TemporaryFile("w+")  # noqa: SIM115, as a pipe that nobody reads would hold Snakemake up
        options = {"user": USER, "group": USER, "extra_groups": [], "start_new_session": True}
        options |= {"stdout": said, "stderr": subprocess.STDOUT, "preexec_fn": heed_interrupts}
        process = subprocess.Popen(command, cwd=self.directory, env=variables, **options)
        process.said = said
        return process

    def run(self, *arguments, seconds=600, **options):
        """Runs Snakemake to its end; returns what it said."""
        code, said = finish(self.start(*arguments, **options), seconds)
        assert code == 0, said
        return said

    def read(self, path):
        return (self.directory / path).read_text()

    def jobs(self, comment="", after=0):
        """SLURM's records of the user's jobs, oldest first: whose comment starts so, after this job's number."""
        command = ["sacct", "-X", "-n", "-P", "--delimiter=\x1f", "-S", "now-1day", "-u", USER, "-o", ",".join(FIELDS)]
        rows = [dict(zip(FIELDS, line.split("\x1f"))) for line in output_of(*command, "-D").splitlines()]
        # not by sacct's Comment, which it has only of jobs that have ended
        found = [row for row in rows if f"--comment {comment}" in row["SubmitLine"]]
        return [row for row in found if int(row["JobIDRaw"]) > max(after, self.before)]

    def last_job(self):
        return max([int(job["JobIDRaw"]) for job in self.jobs()], default=self.before)

    def wait_for_log(self, path, words, seconds=120):
        """Waits until a log holds the words."""
        file = self.directory / path
        wait_until(lambda: file.exists() and words in file.read_text(), seconds, f"{words} in {path}")


def in_queue():
    return output_of("squeue", "-h", "-u", USER).splitlines()


def cancel_all():
    subprocess.run(["scancel", "--user", USER], check=True)
    wait_until(lambda: not in_queue(), 60, "the end of cancelled jobs")

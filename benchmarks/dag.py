"""How long Snakemake plans 10,000 jobs, and lists them, against the few of config/config.yaml in the same run.

python benchmarks/dag.py
"""

import json
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
MANY = {"targets": ["lora"], "runs": {"lora": {"folds": list(range(10)), "seeds": list(range(334))}}}
RUNS = 3


def dry_run(*arguments):
    """(what it says, seconds)"""
    command = ["snakemake", "--dry-run", "--forceall", *arguments]
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr, time.monotonic() - start


def main():
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(MANY, file)
        file.flush()
        for what, quiet in ("plan", ["--quiet"]), ("plan and list", []):
            pairs = [(dry_run(*quiet), dry_run(*quiet, "--configfile", file.name)) for _ in range(RUNS)]
            few, many = (statistics.median(seconds for _, seconds in runs) for runs in zip(*pairs))
            ratio = statistics.median(many[1] / few[1] for few, many in pairs)
            print(f"{what}: few {few:.1f} s, many {many:.1f} s, ratio {ratio:.1f} (medians of {RUNS})")
    counts = [re.findall(r"^total +(\d+)$", said, re.MULTILINE)[0] for said, _ in pairs[0]]
    print(f"few: {counts[0]} jobs, many: {counts[1]} jobs")


if __name__ == "__main__":
    main()

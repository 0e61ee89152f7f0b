"""How long Snakemake plans 10,000 jobs, against a plan of the few that config/config.yaml has, in the same run.

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


def plan(*arguments):
    """(jobs, seconds) of a dry run."""
    command = ["snakemake", "--dry-run", "--quiet", "--forceall", *arguments]
    start = time.monotonic()
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    jobs = re.findall(r"^total +(\d+)$", said.stdout + said.stderr, re.MULTILINE)[0]
    return int(jobs), time.monotonic() - start


def main():
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(MANY, file)
        file.flush()
        pairs = [(plan(), plan("--configfile", file.name)) for _ in range(3)]
    for name, runs in zip(("few", "many"), zip(*pairs)):
        print(f"{name}: {runs[0][0]} jobs, median of {len(runs)}: {statistics.median(run[1] for run in runs):.1f} s")
    print(f"ratio: {statistics.median(many[1] / few[1] for few, many in pairs):.1f}")


if __name__ == "__main__":
    main()

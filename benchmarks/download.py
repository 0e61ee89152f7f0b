"""How long download_model.py takes for random files of a local Hub server, checked, against curl in the same run.

python benchmarks/download.py
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))
from hub import serve_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def serve(files, size, pipe):
    """From memory, in a process of its own, so that it is not what is measured."""
    with serve_hub("org/model", COMMIT, {name: os.urandom(size) for name in files}) as (endpoint, _):
        pipe.send(endpoint)
        pipe.recv()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=3)
    parser.add_argument("--size", type=float, default=1, help="of each file, GB")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()

    files = [f"model-{i:05}-of-{args.files:05}.safetensors" for i in range(1, args.files + 1)]
    pipe, its = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(files, int(args.size * 1e9), its))
    server.start()
    hub = {"HF_ENDPOINT": pipe.recv()}
    urls = " ".join(f"-O {hub['HF_ENDPOINT']}/org/model/resolve/{COMMIT}/{name}" for name in files)
    curl = f"curl --no-progress-meter --fail --location --parallel {urls}"
    script = f"{sys.executable} {ROOT / 'workflow/scripts/download_model.py'} --repo org/model --revision {COMMIT}"
    commands = {
        "curl": curl,
        "curl, then sha256sum": f"{curl} && sha256sum *.safetensors",
        "download_model.py": f"{script} --output-dir .",
    }
    seconds = {what: [] for what in commands}
    for _ in range(args.runs):
        for what, command in commands.items():
            with tempfile.TemporaryDirectory() as directory:
                start = time.monotonic()
                options = {"cwd": directory, "env": os.environ | hub | {"HF_HOME": directory}, "check": True}
                subprocess.run(command, shell=True, stdout=subprocess.DEVNULL, **options)
                seconds[what].append(time.monotonic() - start)
    pipe.send("end")
    server.join()

    print(f"{args.files} files of {args.size:g} GB, {os.cpu_count()} cores; medians of {args.runs} runs, in turn\n")
    print("| | s | GB/s | ratio to curl |\n|---|---|---|---|")
    for what, times in seconds.items():
        median = statistics.median(times)
        ratio = statistics.median(a / b for a, b in zip(times, seconds["curl"], strict=True))
        print(f"| {what} | {median:.1f} | {args.files * args.size / median:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()

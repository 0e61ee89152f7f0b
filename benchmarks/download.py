"""How long download_model.py takes for random files of a local Hub server, checked, against curl in the same run.

python benchmarks/download.py [--sizes 0.1 0.3 1] [--plot docs/download.svg]
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
from hub import COMMIT, serve_hub


def serve(files, size, pipe):
    """From memory, in a process of its own, so that it is not what is measured."""
    with serve_hub("org/model", COMMIT, {name: os.urandom(size) for name in files}) as (endpoint, _):
        pipe.send(endpoint)
        pipe.recv()


def measure(files, size, runs):
    """{what: [seconds of each run]} for files of `size` bytes each; the three take turns."""
    pipe, its = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(files, size, its))
    server.start()
    hub = {"HF_ENDPOINT": pipe.recv()}
    urls = " ".join(f"-O {hub['HF_ENDPOINT']}/org/model/resolve/{COMMIT}/{name}" for name in files)
    curl = f"curl --no-progress-meter --fail --location --parallel {urls}"
    script = f"{sys.executable} {ROOT / 'workflow/scripts/download_model.py'} --repo org/model --revision {COMMIT}"
    commands = {
        "curl": curl,
        "curl, then sha256sum": f"{curl} && sha256sum *.safetensors",
        "download_model": f"{script} --output-dir .",
    }
    seconds = {what: [] for what in commands}
    for _ in range(runs):
        for what, command in commands.items():
            with tempfile.TemporaryDirectory() as directory:
                start = time.monotonic()
                options = {"cwd": directory, "env": os.environ | hub | {"HF_HOME": directory}, "check": True}
                subprocess.run(command, shell=True, stdout=subprocess.DEVNULL, **options)
                seconds[what].append(time.monotonic() - start)
    pipe.send("end")
    server.join()
    return seconds


def plot(rows, file):
    """rows: (GB, {what: seconds})"""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(4.5, 3.5), layout="constrained")
    for what in rows[0][1]:
        axis.plot([size for size, _ in rows], [found[what] for _, found in rows], "o-", label=what)
    axis.set(xlabel="snapshot, GB", ylabel="seconds", xlim=0, ylim=0)
    axis.legend()
    figure.savefig(file, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=3)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.1, 0.3, 1], help="of each file, GB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()

    files = [f"model-{i:05}-of-{args.files:05}.safetensors" for i in range(1, args.files + 1)]
    rows = []
    print("| | GB | s | GB/s | ratio to curl |\n|---|---|---|---|---|")
    for size in args.sizes:
        seconds = measure(files, int(size * 1e9), args.runs)
        rows.append((args.files * size, {what: statistics.median(times) for what, times in seconds.items()}))
        for what, median in rows[-1][1].items():
            ratio = statistics.median(a / b for a, b in zip(seconds[what], seconds["curl"], strict=True))
            print(
                f"| {what} | {rows[-1][0]:.1f} | {median:.1f} | {rows[-1][0] / median:.2f} | {ratio:.2f} |", flush=True
            )
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()

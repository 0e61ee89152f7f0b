"""convert_model.py's time and peak memory against cp with fsync of the same bytes, and against the usual way.

python benchmarks/convert.py [--layers 1 2 4] [--skip usual] [--plot docs/conversion.svg]

Layers of Mistral-7B's shapes, random weights; the whole model has 32. The three take turns; medians.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RANDOM_SNAPSHOT = ROOT / "benchmarks/random_snapshot.py"
COMMANDS = {
    "cp": ["sh", "-c", 'mkdir "$2" && cp "$1"/*.safetensors "$2" && sync "$2"/*', "cp"],
    "convert_model": [sys.executable, ROOT / "workflow/scripts/convert_model.py", "--snapshot", "{}", "--output-dir"],
    "usual": [
        "sh",
        "-c",
        f'"{sys.executable}" "{ROOT}/benchmarks/usual_conversion.py" "$1" "$2" && sync "$2"',
        "usual",
    ],
}


def command_of(way, snapshot, output):
    command = [snapshot if word == "{}" else word for word in COMMANDS[way]]
    return command + ([output] if "{}" in COMMANDS[way] else [snapshot, output])


def measure(command, output):
    """(seconds, peak memory of the largest process in GB) of a command that writes the directory `output`"""
    start = time.monotonic()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    assert status == 0, f"{command} failed"
    subprocess.run(["rm", "-r", output], check=True)
    return seconds, usage.ru_maxrss * 1024 / 1e9


def plot(rows, file):
    """rows: (GB, {way: (seconds, GB of memory)})"""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis, number, label in zip(axes, (0, 1), ("seconds", "peak memory, GB")):
        for way in rows[0][1]:
            axis.plot([size for size, _ in rows], [found[way][number] for _, found in rows], "o-", label=way)
        axis.set(xlabel="snapshot, GB", ylabel=label, xlim=0, ylim=0)
    axes[0].legend()
    figure.savefig(file, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--skip", nargs="*", default=[], choices=COMMANDS)
    parser.add_argument("--directory", help="on the disk to measure; default: the system's for temporary files")
    parser.add_argument("--device", default="cpu", help="that makes the random weights")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    ways = [way for way in COMMANDS if way not in args.skip]
    rows = []
    print(f"| snapshot | {' | '.join(ways)} | ratio to cp | peak memory, in the same order |")
    print("|" + "---|" * (len(ways) + 3))
    for layers in args.layers:
        directory = Path(tempfile.mkdtemp(dir=args.directory))
        try:
            # by another process: a child's peak memory counts what its parent had when it was born
            command = [sys.executable, RANDOM_SNAPSHOT, "--layers", str(layers), "--device", args.device]
            subprocess.run([*command, directory / "hf"], check=True)
            size = sum(file.stat().st_size for file in (directory / "hf").iterdir()) / 1e9
            commands = {directory / way: command_of(way, directory / "hf", directory / way) for way in ways}
            runs = [[measure(commands[output], output) for output in commands] for _ in range(args.runs)]
        finally:
            shutil.rmtree(directory)
        found = [[statistics.median(values) for values in zip(*of_way)] for of_way in zip(*runs)]
        ratio = statistics.median(run[ways.index("convert_model")][0] / run[0][0] for run in runs)
        seconds, memory = (" | ".join(f"{way[0]:.1f} s" for way in found), ", ".join(f"{w[1]:.2f} GB" for w in found))
        print(f"| {size:.2f} GB | {seconds} | {ratio:.2f} | {memory} |", flush=True)
        rows.append((size, dict(zip(ways, found))))
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()

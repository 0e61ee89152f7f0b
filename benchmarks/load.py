"""How fast a node reads a converted base, as train_lora.py and predict.py do ahead of NeMo, and as `cat` does. Prints
rows of a table of docs/nodes.md; on several nodes at once, those of each:

srun --nodes 2 --ntasks-per-node 1 python benchmarks/load.py results/base/mistral-7b

On one machine that stands for nodes, each has to have a base of its own, as they share the page cache.
"""

import argparse
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow/scripts"))
from nemo_image import checkpoint


def forget(files):
    """Takes files out of this machine's page cache; a file system's servers have caches of their own."""
    for path in files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_ahead(base):
    before = threading.enumerate()
    checkpoint.read_ahead(base)
    for thread in set(threading.enumerate()) - set(before):
        thread.join()


def seconds(work, *arguments):
    start = time.monotonic()
    work(*arguments)
    return time.monotonic() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="unpacked .nemo directory, of convert_model.py")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()

    files = [file for file in args.base.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files) / 1e9
    ways = {
        "`cat`": lambda: subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True),
        "read ahead": lambda: read_ahead(args.base),
    }
    for _ in range(args.rounds):
        for name, read in ways.items():
            forget(files)
            cold, warm = seconds(read), seconds(read)
            rates = [f"{taken:.1f} s, {size / taken:.2f} GB/s" for taken in (cold, warm)]
            print("|", " | ".join([socket.gethostname(), name, f"{size:.2f} GB", *rates]), "|", flush=True)


if __name__ == "__main__":
    main()

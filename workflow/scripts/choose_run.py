"""Chooses the run with the lowest validation loss, the mean over folds and seeds. It sees nothing of the test set."""

import argparse
import statistics
import sys
from pathlib import Path

from files import read_json, write_json


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    help = "files written by train_lora.py: …/{run}/fold{fold}/seed{seed}/adapter.provenance.json"
    parser.add_argument("--provenance", required=True, nargs="+", type=Path, help=help)
    parser.add_argument("--output", required=True, type=Path, help="JSON: the run, and every candidate's mean loss")
    args = parser.parse_args()

    losses = {}
    for file in args.provenance:
        loss = read_json(file).get("validation_loss")
        if loss is None:
            sys.exit(f"{file}: has no validation_loss, as of an older version: train again (--forcerun train_lora).")
        losses.setdefault(file.parts[-4], []).append(loss)
    means = {run: statistics.mean(of_run) for run, of_run in losses.items()}
    run = min(means, key=means.get)
    write_json(args.output, {"run": run, "validation_loss": means}, indent=1)
    print(f"{args.output}: {run}, of {len(means)} runs: {', '.join(f'{run} {means[run]:.5f}' for run in means)}")


if __name__ == "__main__":
    main()

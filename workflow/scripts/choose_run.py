"""Copies one fold's and seed's adapter of the run with the lowest validation loss, the mean over all folds and seeds.

Nothing of the test set is read. The copy's provenance is the adapter's, and tells what was chosen from what.
"""

import argparse
import math
import shutil
import statistics
import sys
from pathlib import Path

from common.ending import run
from common.files import read_json, refuse_unlike, replacing, write_json


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    help = "written by train_lora.py: …/{run}/fold{fold}/seed{seed}/adapter.provenance.json, of all candidates"
    parser.add_argument("--provenance", required=True, nargs="+", type=Path, help=help)
    parser.add_argument("--fold", required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--output", required=True, type=Path, help="adapter.nemo; beside it its .provenance.json")
    args = parser.parse_args()

    losses, kinds = {}, {}
    for file in args.provenance:
        provenance = read_json(file, "sha256")
        loss = provenance.get("validation_loss")
        if loss is None:
            sys.exit(f"{file}: has no validation_loss, as of an older version: train again (--forcerun train_lora).")
        if not math.isfinite(loss):  # of an older version: today such a training ends with an error
            sys.exit(f"{file}: the validation loss is {loss}, the training has diverged: lower the run's lr.")
        losses.setdefault(file.parts[-4], []).append(loss)
        kinds.setdefault(provenance.get("loss"), file)
    if len(kinds) > 1:
        other = next(file for kind, file in kinds.items() if kind)
        problem = f"{kinds[None]}: its loss is an older version's, a mean over tokens, and does not compare with"
        sys.exit(f"{problem} that of {other}, a mean over items: train all candidates again (--forcerun train_lora).")
    means = {run: statistics.mean(of_run) for run, of_run in losses.items()}
    run = min(means, key=means.get)
    model = (run, f"fold{args.fold}", f"seed{args.seed}")
    provenance = next(file for file in args.provenance if file.parts[-4:-1] == model)
    adapter, recorded = provenance.with_name("adapter.nemo"), read_json(provenance)
    known = recorded["sha256"].get("result")
    refuse_unlike(adapter, known, f"the adapter that {provenance.name} tells of")  # else the copy would be blamed
    with replacing(args.output) as partial:
        shutil.copyfile(adapter, partial)
    chosen = {"run": run, "validation_losses": means}
    write_json(args.output.with_suffix(".provenance.json"), recorded | {"chosen": chosen}, indent=1)
    print(f"{args.output}: of {', '.join(f'{run} ({mean:.5f})' for run, mean in means.items())} chose {run}")


if __name__ == "__main__":
    run(main)

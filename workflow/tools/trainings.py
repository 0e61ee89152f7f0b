"""Lists the trainings that are kept below a directory of results, with the disk that they take, and removes some:

    python workflow/tools/trainings.py results
    python workflow/tools/trainings.py results --remove unused      those that no adapter is from
    python workflow/tools/trainings.py results/runs/lora/fold0/seed0/training/0123456789ab --remove all

Whoever removes a training trains again where its settings return. Adapters beside them stay.
"""

import argparse
import glob
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from common.files import read_json, size_of
from common.lock import gone, read, wait_for_heartbeat


def find(directory):
    """The trainings' directories below a directory, itself among them: those with a fingerprint, in training/."""
    marks = glob.iglob(
        f"{glob.escape(str(directory.absolute()))}/**/state/fingerprint", recursive=True
    )  # through links
    return sorted(mark.parents[1] for mark in map(Path, marks) if mark.parents[2].name == "training")


def describe(training):
    """(size in bytes, state, validation loss, is it what the adapter beside it is from?)"""
    size = size_of(training)
    provenance = training / "adapter.provenance.json"
    if not provenance.exists():
        return size, "unfinished", None, False
    facts, adapter = read_json(provenance), training.parents[1] / "adapter.provenance.json"
    used = adapter.exists() and read_json(adapter)["sha256"]["result"] == facts["sha256"]["result"]
    repeated = training.with_name(training.name.partition("-before-")[0])  # by force, perhaps to the same bytes
    used = used and (repeated == training or not (repeated / provenance.name).exists())
    return size, "finished", facts["validation_loss"], used


def is_at_work(training):
    """Is there a process that trains beside it, as far as its lock's heartbeat tells?"""
    lock = training.parent.with_name("training.lock")
    if (content := read(lock)) is None or gone(json.loads(content or "{}")):
        return False
    return wait_for_heartbeat(lock, content) != content


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="of results, or of one training")
    help = "the trainings that no adapter is from, those that were cut off among them; or all that are listed"
    parser.add_argument("--remove", choices=["unused", "all"], help=help)
    args = parser.parse_args()
    if not args.directory.is_dir():
        sys.exit(f"{args.directory}: no such directory")
    total = 0
    for training in find(args.directory):
        size, state, loss, used = describe(training)
        total += size
        done = ""
        if args.remove == "all" or (args.remove == "unused" and not used):
            done = "(at work: not removed)" if is_at_work(training) else "(removed)"
        loss = "" if loss is None else f"validation loss {loss:.5f}"
        words = [f"{size / 1e9:8.2f} GB", f"{state:10}", f"{'used' if used else 'unused':6}", f"{loss:23}"]
        print(*words, training, done)
        if done == "(removed)":
            shutil.rmtree(training)
    print(f"{total / 1e9:8.2f} GB in all")


if __name__ == "__main__":
    main()

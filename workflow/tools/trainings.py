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

from common.files import sha256, size_of
from common.lock import gone, holder_of, read, wait_for_heartbeat


def find(directory):
    """The trainings' directories below a directory, itself among them: those with a fingerprint, in training/."""
    marks = glob.iglob(
        f"{glob.escape(str(directory.absolute()))}/**/state/fingerprint", recursive=True
    )  # through links
    return sorted(mark.parents[1] for mark in map(Path, marks) if mark.parents[2].name == "training")


def read_record(adapter):
    """What adapter.nemo's provenance says, or None where it is missing or damaged."""
    try:
        facts = json.loads(adapter.with_suffix(".provenance.json").read_text())
        return facts if facts["sha256"]["result"] else None
    except (FileNotFoundError, ValueError, TypeError, LookupError):
        return None


def describe(training):
    """(size in bytes, state, validation loss, is it what the adapter beside it is from?). One whose provenance or whose
    adapter's is lost counts as such."""
    size, kept, adapter = size_of(training), training / "adapter.nemo", training.parents[1] / "adapter.nemo"
    if (facts := read_record(kept)) is None:
        damaged = kept.exists() or kept.with_suffix(".provenance.json").exists()
        return size, "damaged" if damaged else "unfinished", None, damaged
    if beside := read_record(adapter):
        used = beside["sha256"]["result"] == facts["sha256"]["result"]
    else:
        used = adapter.exists() and sha256(adapter) == facts["sha256"]["result"]
    repeated = training.with_name(training.name.partition("-before-")[0])  # by force, perhaps to the same bytes
    used = used and (repeated == training or not read_record(repeated / "adapter.nemo"))
    return size, "finished", facts.get("validation_loss"), used


def is_at_work(training):
    """Is there a process that trains beside it, as far as its lock's heartbeat tells?"""
    lock = training.parent.with_name("training.lock")
    if (content := read(lock)) is None or gone(holder_of(content)):
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
        elif state == "damaged":
            done = "(adapter.provenance.json is missing or damaged: counts as used)"
        loss = "" if loss is None else f"validation loss {loss:.5f}"
        words = [f"{size / 1e9:8.2f} GB", f"{state:10}", f"{'used' if used else 'unused':6}", f"{loss:23}"]
        print(*words, training, done)
        if done == "(removed)":
            shutil.rmtree(training)
    print(f"{total / 1e9:8.2f} GB in all")


if __name__ == "__main__":
    main()

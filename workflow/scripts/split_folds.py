"""Splits PubMedQA's 1,000 labelled items into its official 500 test items and 10 folds of 450 + 50.

Writes test.json and fold{0..9}/{train,val}.json into --output-dir, byte for byte what PubMedQA's own
preprocess/split_dataset.py writes (its dev_set.json is called val.json here).
"""

import argparse
import math
import random
import sys
from pathlib import Path

from common.ending import run
from common.files import read_json, write_json
from common.pubmedqa import LABELS

FOLDS = 10


def split(items, parts, rng):
    """Splits {pmid: item} into `parts` dicts of equal size and like proportions of labels.

    The order of every draw from `rng` is that of PubMedQA's split_dataset.py: with random.Random(0) the result is
    the official split.
    """
    pmids = {label: [pmid for pmid, item in items.items() if item["final_decision"] == label] for label in LABELS}
    for of_label in pmids.values():
        rng.shuffle(of_label)
    sizes = {label: math.ceil(len(of_label) / parts) for label, of_label in pmids.items()}
    result = []
    for part in range(parts):
        chosen = []
        for label, of_label in pmids.items():
            last = None if part == parts - 1 else (part + 1) * sizes[label]
            chosen += of_label[part * sizes[label] : last]
        result.append({pmid: items[pmid] for pmid in chosen})
    if len(result[-1]) != len(result[0]):  # rounding up left the last part short: one of each other part moves there
        for part in result[:-1]:
            picked = rng.choice(list(part))
            result[-1][picked] = part.pop(picked)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ori-pqal", required=True, type=Path, help="ori_pqal.json")
    parser.add_argument("--ground-truth", required=True, type=Path, help="test_ground_truth.json: {pmid: label}")
    parser.add_argument("--output-dir", required=True, type=Path)
    args = parser.parse_args()

    rng = random.Random(0)
    development, test = split(read_json(args.ori_pqal), 2, rng)
    folds = split(development, FOLDS, rng)
    if {pmid: item["final_decision"] for pmid, item in test.items()} != read_json(args.ground_truth):
        sys.exit(f"{args.ground_truth}: not the test items of {args.ori_pqal}'s split. Are both of one release?")

    for number, val in enumerate(folds):
        train = {pmid: item for other in folds if other is not val for pmid, item in other.items()}
        write_json(args.output_dir / f"fold{number}/train.json", train, indent=4)
        write_json(args.output_dir / f"fold{number}/val.json", val, indent=4)
    write_json(args.output_dir / "test.json", test, indent=4)
    sizes = f"{len(test)} test items, {FOLDS} folds of {len(development) - len(folds[0])} + {len(folds[0])}"
    print(f"{args.ori_pqal}: {sizes}")


if __name__ == "__main__":
    run(main)

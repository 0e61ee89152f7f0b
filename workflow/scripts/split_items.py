"""Draws a test set, a fifth, and ten folds of the rest from one of a user's files, by a seed.

Writes test.json and fold{0..9}/{train,val}.json, {id: {column: value}} in the file's order, into --output-dir. Each
part has the labels in like proportions; without labels it is drawn plainly. The same file and seed give the same parts,
whatever the prompt.
"""

import argparse
import json
import random
import sys
from pathlib import Path

from common.ending import run
from common.files import write_json
from common.user_files.items import FOLDS, TEST, Items


def deal(items, parts, rng, group):
    """Deals {id: item} out to `parts` lists of ids, in turn, one group after the other: sizes differ by one at most, in
    all and of each group. group: a function of an item."""
    groups = {}
    for name, item in items.items():
        groups.setdefault(group(item), []).append(name)
    for names in groups.values():
        rng.shuffle(names)
    order = [name for key in sorted(groups) for name in groups[key]]
    return [order[part::parts] for part in range(parts)]


def without(items, names):
    names = set(names)
    return {name: item for name, item in items.items() if name not in names}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", required=True, type=Path)
    help = 'JSON: {"prompt": template, "answer": column, "id": column, "labels": […]}, the last two where there are any'
    parser.add_argument("--columns", required=True, type=json.loads, help=help)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", required=True, type=Path)
    args = parser.parse_args()
    try:
        read = Items(args.items, args.columns, answers_needed=True)
        read.refuse_to_split()
    except (ValueError, OSError) as error:
        sys.exit(f"{error}.")

    rng, items = random.Random(args.seed), read.by_id

    def group(item):
        return item[args.columns["answer"]] if "labels" in args.columns else ""

    test = deal(items, TEST, rng, group)[0]
    rest = without(items, test)
    folds = deal(rest, FOLDS, rng, group)
    for number, val in enumerate(folds):
        train = without(rest, val)
        write_json(args.output_dir / f"fold{number}/train.json", train, indent=1)
        write_json(args.output_dir / f"fold{number}/val.json", without(rest, train), indent=1)
    write_json(args.output_dir / "test.json", without(items, rest), indent=1)
    sizes = f"{len(test)} test items, {FOLDS} folds of {len(rest) - len(folds[0])} + {len(folds[0])}"
    print(f"{args.items}: {sizes}")


if __name__ == "__main__":
    run(main)

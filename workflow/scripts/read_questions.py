"""Reads a user's file of questions (.jsonl, .csv, .tsv, .parquet, .json) as JSON Lines, {"input": prompt, "id": …}.

Line by line: the file may be larger than memory, but for .json. What is wrong is said with file and line. Answers
in it are left out. Where a column may be shortened, "truncate" says from where to where in the input its text goes.
The checksum of what is written is put beside it: a line that is lost later would be a question that nobody answers.
"""

import argparse
import json
import random
import sys
from pathlib import Path

from common.ending import run
from common.files import sha256, write_json, write_jsonl
from common.template import place_of
from common.user_files.items import CheckedRows, OnDisk
from common.user_files.reading import rows


def draw(read, size, seed):
    """The places in the file, from 0, of `size` of its rows."""
    there = sum(1 for _ in rows(read.file, read.wanted))
    if size > there:
        raise ValueError(f"{read.file} has {there} items, fewer than sample: {size}")
    return set(random.Random(seed).sample(range(there), size))


def columns_of(text):
    """--columns, checked."""
    try:
        columns = json.loads(text)
    except ValueError:
        columns = None
    if not isinstance(columns, dict) or not columns.keys() >= {"prompt", "answer"}:
        wanted = '{"prompt": template, "answer": column}'
        raise argparse.ArgumentTypeError(f"{text} is not of the form {wanted}, of which both keys are needed")
    return columns


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", required=True, type=Path, help="the file")
    help = 'JSON: {"prompt": template, "answer": column, "id": column, "labels": […]}, the last two where there are any'
    parser.add_argument("--columns", required=True, type=columns_of, help=help)
    parser.add_argument("--truncate", help="the column that may be shortened")
    parser.add_argument("--sample", type=int, help="so many of the questions; all without it")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--output", required=True, type=Path, help="JSON Lines; beside them their .provenance.json")
    args = parser.parse_args()
    read = CheckedRows(args.test, args.columns, answers_needed=False, mapping=OnDisk)

    def questions(drawn):
        for number, (_, name, prompt, item) in enumerate(read):
            if drawn is None or number in drawn:
                place = {"truncate": place_of(args.truncate, args.columns["prompt"], item)} if args.truncate else {}
                yield {"input": prompt, "id": name, **place}

    try:
        write_jsonl(args.output, questions(draw(read, args.sample, args.seed) if args.sample else None))
    except (ValueError, OSError) as error:
        sys.exit(f"{error}.")
    write_json(args.output.with_suffix(".provenance.json"), {"sha256": {"result": sha256(args.output)}}, indent=1)
    print(f"{args.output}: questions of {args.test}")


if __name__ == "__main__":
    run(main)

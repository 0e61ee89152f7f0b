"""Reads a user's file (.jsonl, .csv, .tsv, .parquet, .json) as items, {id: {column: value}}, in the file's order.

Says in a line, with file and line, what is wrong with it: an answer that is empty or none of the labels, an id that
repeats, a prompt that another of the data set's files has, too, fewer than three items to test with.
"""

import argparse
import json
import sys
from pathlib import Path

from common.ending import run
from common.files import write_json
from common.user_files.items import Items


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", required=True, type=Path)
    parser.add_argument("--unlike", nargs="*", default=[], type=Path, help="files that may have none of its prompts")
    help = 'JSON: {"prompt": template, "answer": column, "id": column, "labels": […]}, the last two where there are any'
    parser.add_argument("--columns", required=True, type=json.loads, help=help)
    parser.add_argument("--test", action="store_true", help="the items may be without answers, then all of them")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    try:
        items = Items(args.file, args.columns, answers_needed=not args.test)
        for file in args.unlike:
            items.refuse_shared(Items(file, args.columns, answers_needed=False))
        if args.test:
            items.refuse_few()
    except (ValueError, OSError) as error:
        sys.exit(f"{error}.")
    write_json(args.output, items.by_id, indent=1)
    print(f"{args.output}: {len(items.by_id)} items of {args.file}{'' if items.answered else ', without answers'}")


if __name__ == "__main__":
    run(main)

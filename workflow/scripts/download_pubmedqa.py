"""Gets PubMedQA's labelled items and test answers from its GitHub repository or a local directory, checked.

Both files must have the sha256 that the official split, and so every published figure, rests on. In their place the
directory may hold the Hub's pqa_labeled (qiaojin/PubMedQA), a *.parquet: then the test answers of its split must have
it. That file lacks the items' years.
"""

import argparse
import hashlib
import json
import random
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path

from common.ending import run
from common.files import replacing, sha256, write_json
from common.user_files.parquet import read_parquet
from split_folds import split

SHA256 = {
    "ori_pqal.json": "8b3276be8942ebbd77f3ddcda12c1749bf0e490045a736fd8438ee40cf37a41d",
    "test_ground_truth.json": "939fe566f09017d13b1ca64d2ddfee0bc2374b366048152997669cccedc44d51",
}
ANNOTATORS = ("reasoning_required_pred", "reasoning_free_pred")


def items_of_hub(file):
    """{pmid: item} as ori_pqal.json has them. An annotator's answer is a list of letters there."""
    for place, _, row in read_parquet(file):
        try:
            context = row["context"]
            yield (
                row["pubid"],
                {
                    "QUESTION": row["question"],
                    "CONTEXTS": context["contexts"],
                    "LABELS": context["labels"],
                    "MESHES": context["meshes"],
                    "YEAR": None,
                    **{annotator: "".join(context[annotator]) for annotator in ANNOTATORS},
                    "final_decision": row["final_decision"],
                    "LONG_ANSWER": row["long_answer"],
                },
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file}, {place}: has no {error}: is it not the Hub's pqa_labeled?") from error


def convert(file, directory):
    """Writes both files from the Hub's."""
    try:
        items = dict(items_of_hub(file))
    except ValueError as error:
        sys.exit(f"{error}.")
    test = {pmid: item["final_decision"] for pmid, item in split(items, 2, random.Random(0))[1].items()}
    answers = json.dumps(test, indent=4).encode()
    if (found := hashlib.sha256(answers).hexdigest()) != (expected := SHA256["test_ground_truth.json"]):
        sys.exit(f"{file}: the test answers of its split have the sha256 {found}, not {expected}.")
    write_json(directory / "ori_pqal.json", items, indent=4)
    with replacing(directory / "test_ground_truth.json") as partial:
        partial.write_bytes(answers)
    print(f"{directory}: {len(items)} items of {file}, the test answers' sha256 as expected")


def get(name, args, partial):
    """Copies or downloads one of the files to `partial`; returns its source."""
    if args.directory:
        source = args.directory / name
        if not source.is_file():
            sys.exit(f"{source}: no such file. `directory:` of the dataset must hold {' and '.join(SHA256)}.")
        shutil.copyfile(source, partial)
        return source
    source = f"https://raw.githubusercontent.com/pubmedqa/pubmedqa/{args.revision}/data/{name}"
    try:
        with urllib.request.urlopen(source, timeout=60) as response, open(partial, "wb") as file:
            shutil.copyfileobj(response, file)
    except (urllib.error.URLError, TimeoutError) as error:
        sys.exit(f"{source}: {error}.\nWithout network, give the dataset a `directory:` with the files.")
    return source


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--revision", help="commit of https://github.com/pubmedqa/pubmedqa")
    source.add_argument("--directory", type=Path, help="holds both files, or the Hub's *.parquet")
    parser.add_argument("--output-dir", required=True, type=Path)
    args = parser.parse_args()

    of_hub = sorted(args.directory.glob("*.parquet")) if args.directory else []
    if len(of_hub) == 1 and not (args.directory / "ori_pqal.json").exists():
        return convert(of_hub[0], args.output_dir)
    for name, expected in SHA256.items():
        with replacing(args.output_dir / name) as partial:
            source = get(name, args, partial)
            if (found := sha256(partial)) != expected:
                sys.exit(f"{source}: its sha256 is {found}, not {expected}: not the file of the official split.")
        print(f"{args.output_dir / name}: {source}, sha256 as expected")


if __name__ == "__main__":
    run(main)

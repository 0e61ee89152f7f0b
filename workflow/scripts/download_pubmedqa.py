"""Gets PubMedQA's labelled items and test answers from its GitHub repository or a local directory, checked.

Both files must have the sha256 that the official split, and so every published figure, rests on.
"""

import argparse
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path

from common.files import replacing, sha256

SHA256 = {
    "ori_pqal.json": "8b3276be8942ebbd77f3ddcda12c1749bf0e490045a736fd8438ee40cf37a41d",
    "test_ground_truth.json": "939fe566f09017d13b1ca64d2ddfee0bc2374b366048152997669cccedc44d51",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--revision", help="commit of https://github.com/pubmedqa/pubmedqa")
    source.add_argument("--directory", type=Path, help="holds both files")
    parser.add_argument("--output-dir", required=True, type=Path)
    args = parser.parse_args()

    for name, expected in SHA256.items():
        with replacing(args.output_dir / name) as partial:
            if args.directory:
                source = args.directory / name
                if not source.is_file():
                    sys.exit(f"{source}: no such file. `directory:` of the dataset must hold {' and '.join(SHA256)}.")
                shutil.copyfile(source, partial)
            else:
                source = f"https://raw.githubusercontent.com/pubmedqa/pubmedqa/{args.revision}/data/{name}"
                try:
                    with urllib.request.urlopen(source, timeout=60) as response, open(partial, "wb") as file:
                        shutil.copyfileobj(response, file)
                except (urllib.error.URLError, TimeoutError) as error:
                    sys.exit(f"{source}: {error}.\nWithout network, give the dataset a `directory:` with the files.")
            if (found := sha256(partial)) != expected:
                sys.exit(f"{source}: its sha256 is {found}, not {expected}: not the file of the official split.")
        print(f"{args.output_dir / name}: {source}, sha256 as expected")


if __name__ == "__main__":
    main()

"""Packs an unpacked .nemo directory into one .nemo file, a tar that NeMo restores like one of NVIDIA's."""

import argparse
import tarfile
from pathlib import Path

from common.base_files import refuse_damaged
from common.ending import run
from common.files import replacing


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-dir", required=True, type=Path, help="directory written by convert_model.py")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    refuse_damaged(args.base_dir)
    with replacing(args.output) as partial, tarfile.open(partial, "w") as tar:
        tar.add(args.base_dir, arcname=".")
    print(f"{args.output}: {args.output.stat().st_size / 1e9:.2f} GB")
    if (args.base_dir / "tokenizer").is_dir():
        print("NeMo restores no Hugging Face tokenizer from a .nemo file: give it model.tokenizer.type=DIRECTORY,")
        print(f"a copy of {args.base_dir / 'tokenizer'}.")


if __name__ == "__main__":
    run(main)

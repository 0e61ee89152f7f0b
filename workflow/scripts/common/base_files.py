"""Is a converted base as it was written? Zarr reads a chunk that is missing as zeros, and scratch disks are purged.

manifest.json in the base, {"files": {name: {"size", "sha256"}}}, is written after all but model_config.yaml. A .nemo
file and a base of an older version have none: there it is seen whether all is there that NeMo opens by its name, and
checkpoint.py tells of chunks. Standard library only.
"""

import re
import sys

from common.files import read_json, sha256, write_json


def write_manifest(base, known_sha256):
    """Describes all files of a base. known_sha256: {path: sha256} of those that need not be read for it."""
    files = {}
    for file in sorted(path for path in base.rglob("*") if path.is_file()):
        digest = known_sha256.get(file) or sha256(file)
        files[file.relative_to(base).as_posix()] = {"size": file.stat().st_size, "sha256": digest}
    write_json(base / "manifest.json", {"files": files}, indent=1)


def opened(base):
    """The names of the files that NeMo opens in any directory that it reads a model from."""
    if not (config := base / "model_config.yaml").is_file():
        return []
    text = config.read_text(encoding="utf-8")
    names = re.findall(r"^ +\w+: nemo:(.+)$", text, re.MULTILINE)
    names += ["tokenizer/tokenizer.json"] if re.search("^ +library: huggingface$", text, re.MULTILINE) else []
    return [*names, "model_weights/common.pt", "model_weights/metadata.json"]


def damage(base, contents):
    """What is not as it was written, in words, or None. contents: are the files' bytes read, too?"""
    manifest = base / "manifest.json"
    files = read_json(manifest, "files")["files"] if manifest.is_file() else dict.fromkeys(opened(base))
    for name, file in files.items():
        path = base / name
        if not path.is_file():
            return f"{path} is missing"
        if file is None:
            continue
        if (size := path.stat().st_size) != file["size"]:
            return f"{path} has {size} bytes instead of {file['size']}"
        if contents and sha256(path) != file["sha256"]:
            return f"{path} has other bytes than convert_model wrote"
    return None


def convert_again(problem, base):
    """The sentence on a problem of a converted base."""
    remedy = f"remove {base / 'model_config.yaml'} and run Snakemake again; finished trainings are kept"
    return f"{problem}. Convert the model again: {remedy}."


def refuse_damaged(base, contents=False):
    if problem := damage(base, contents):
        sys.exit(convert_again(problem, base))

"""A model's Hugging Face snapshot in one directory, or an adapter's files: which belong to it, and the manifest.

manifest.json is written last, {"source", "revision", "files": {name: {"size", "sha256"}}}; where it stands, every file
of it is whole.
"""

import json
import sys
from fnmatch import fnmatch

# Not "*.safetensors": some repositories hold the same weights a second time as consolidated.safetensors.
PATTERNS = ["config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"]
PATTERNS += ["tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt"]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]  # all of an adapter in PEFT's format


def belongs(name, patterns=PATTERNS):
    """Is this file of a repository fetched?"""
    return "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)


def counts(name, weights):
    """Does a snapshot's file count beside these files with weights? weights: as weight_files returns them."""
    if name == INDEX:
        return weights != {SINGLE}
    return weights is None or not name.endswith(".safetensors") or name in weights


def snapshot_files(directory, patterns=PATTERNS):
    """The files of a directory that belong to a snapshot, or an adapter, sorted; of a snapshot's weights those that
    count. Exits where the index names none."""
    try:
        weights = weight_files(directory) if patterns is PATTERNS else None
    except ValueError as error:
        sys.exit(f"{error}.")
    files = sorted(file for file in directory.iterdir() if belongs(file.name, patterns) and file.is_file())
    return [file for file in files if counts(file.name, weights)]


def weight_files(directory):
    """The names of the files with weights, as transformers takes them: model.safetensors where it is there, whatever an
    index says, else those that the index names; None where a snapshot has neither. ValueError where it names none."""
    if (directory / SINGLE).is_file():
        return {SINGLE}
    if not (directory / INDEX).exists():
        return None
    try:
        named = set(json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        if not all(belongs(name) for name in named) or not named:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{directory / INDEX}: no index of weights. Fetch it again") from None
    return named


def shapes_of_weights(file):
    """{name: shape} of the tensors in a safetensors file. ValueError where it is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as weights:  # checks the header, and that the file has all bytes
            return {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"not a whole safetensors file ({error}). Fetch it again") from None


def problem_of_weights(file):
    """Why a safetensors file is not whole, or None."""
    try:
        shapes_of_weights(file)
    except ValueError as error:
        return str(error)
    return None


def other_weights(names):
    """What a model's files, by their names, hold instead of weights in safetensors; None where they hold such."""
    if any(name.endswith(".safetensors") and belongs(name) for name in names):
        return None
    others = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".gguf", ".safetensors")))
    found = f", only {', '.join(others[:3])}{', …' if others[3:] else ''}" if others else ""
    return f"has no weights as model*.safetensors{found}. Take a repository or revision that has"


def refuse_other_weights(source, names):
    if problem := other_weights(names):
        sys.exit(f"{source}: {problem}.")


def refuse_other_adapters(source, names):
    """Exits where files, by their names, are no adapter in PEFT's format with its weights in safetensors."""
    config, weights = ADAPTER
    if config not in names:
        sys.exit(f"{source}: holds no {config}, it is no adapter in PEFT's format.")
    if weights not in names:
        found = "only adapter_model.bin, which may run any code" if "adapter_model.bin" in names else "none"
        sys.exit(f"{source}: has no weights as {weights}, {found}. Take a repository or revision that has.")


def remove_snapshot(directory):
    """Removes another model's files under the same name; of a local snapshot they are links, never written through."""
    for file in directory.iterdir():
        if belongs(file.name):
            file.unlink()


def write_manifest(directory, source, revision, known_sha256=None, patterns=PATTERNS):
    """Describes the files in directory/manifest.json, which says that they are all there."""
    from common.files import sha256, write_json  # here, as planning/changes.py imports this module without common

    files = {}
    for file in snapshot_files(directory, patterns):
        digest = (known_sha256 or {}).get(file.name) or sha256(file)
        files[file.name] = {"size": file.stat().st_size, "sha256": digest}
    write_json(directory / "manifest.json", {"source": source, "revision": revision, "files": files}, indent=2)
    size = sum(file["size"] for file in files.values())
    print(f"{directory}: {len(files)} files, {size / 1e9:.2f} GB, from {source}")

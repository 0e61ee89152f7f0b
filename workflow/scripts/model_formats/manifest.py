"""A model's Hugging Face snapshot in one directory: which files belong to it, and its manifest.

manifest.json is written last, {"source", "revision", "files": {name: {"size", "sha256"}}}; where it stands, every file
of it is whole.
"""

from fnmatch import fnmatch

# Not "*.safetensors": some repositories hold the same weights a second time as consolidated.safetensors.
PATTERNS = ["config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"]
PATTERNS += ["tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt"]


def belongs(name):
    """Is this file of a repository fetched?"""
    return "/" not in name and any(fnmatch(name, pattern) for pattern in PATTERNS)


def snapshot_files(directory):
    """The files of a directory that belong to a snapshot, sorted."""
    return sorted(file for file in directory.iterdir() if belongs(file.name))


def remove_snapshot(directory):
    """Removes another model's files under the same name; of a local snapshot they are links, never written through."""
    for file in snapshot_files(directory):
        file.unlink()


def write_manifest(directory, source, revision, known_sha256=None):
    """Describes the snapshot's files in directory/manifest.json, which says that they are all there."""
    from common.files import sha256, write_json  # here, as planning/changes.py imports this module without common

    files = {}
    for file in snapshot_files(directory):
        digest = (known_sha256 or {}).get(file.name) or sha256(file)
        files[file.name] = {"size": file.stat().st_size, "sha256": digest}
    write_json(directory / "manifest.json", {"source": source, "revision": revision, "files": files}, indent=2)
    size = sum(file["size"] for file in files.values())
    print(f"{directory}: {len(files)} files, {size / 1e9:.2f} GB, from {source}")

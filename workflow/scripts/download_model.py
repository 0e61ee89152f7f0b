"""Brings a Hugging Face snapshot to one directory: from the Hub at a pinned revision, or linked from a local one.

Only what the conversion reads is fetched: safetensors, tokenizer, configuration. manifest.json is written last:
{"source", "revision", "files": {name: {"size", "sha256"}}}; where it stands, every file of it is whole.
HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean to huggingface_hub.
"""

import argparse
import sys
from fnmatch import fnmatch
from pathlib import Path

from files import sha256, write_json

# Not "*.safetensors": some repositories hold the same weights a second time as consolidated.safetensors.
PATTERNS = ["config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"]
PATTERNS += ["tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt"]


def write_manifest(directory, source, revision):
    """Describes the snapshot's files in directory/manifest.json, which says that they are all there."""
    names = sorted(path.name for path in directory.iterdir() if any(fnmatch(path.name, p) for p in PATTERNS))
    files = {name: {"size": (directory / name).stat().st_size, "sha256": sha256(directory / name)} for name in names}
    write_json(directory / "manifest.json", {"source": source, "revision": revision, "files": files}, indent=2)
    size = sum(file["size"] for file in files.values())
    print(f"{directory}: {len(files)} files, {size / 1e9:.2f} GB, from {source}")
    return files


def from_hub(repo, revision, directory):
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
    from requests.exceptions import ConnectionError, Timeout

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        snapshot_download(repo, revision=info.sha, local_dir=directory, allow_patterns=PATTERNS)
    except GatedRepoError:
        sys.exit(f"{repo} is gated: accept its terms on its page on the Hub, then set HF_TOKEN or log in with hf auth.")
    except RevisionNotFoundError:
        sys.exit(f"{repo} has no revision {revision}: see the commits on its page on the Hub.")
    except RepositoryNotFoundError:
        sys.exit(f"{repo}: no such model on the Hub, or a private one: check the name, or set HF_TOKEN.")
    except (ConnectionError, Timeout, HfHubHTTPError) as error:
        sys.exit(f"{repo}: the Hub did not answer: {type(error).__name__}. Run again; what has arrived is kept.")
    files = write_manifest(directory, repo, info.sha)
    for sibling in info.siblings:
        name = sibling.rfilename
        if name in files and sibling.lfs and files[name]["sha256"] != sibling.lfs.sha256:
            (directory / "manifest.json").unlink()
            (directory / name).unlink()
            sys.exit(f"{repo}: {name} arrived with a wrong sha256 and was removed. Run again.")


def from_directory(snapshot, directory):
    if not (snapshot / "config.json").is_file():
        sys.exit(f"{snapshot} holds no config.json: `snapshot:` of the model must be a Hugging Face snapshot.")
    for source in snapshot.iterdir():
        if any(fnmatch(source.name, pattern) for pattern in PATTERNS):
            (directory / source.name).unlink(missing_ok=True)
            (directory / source.name).symlink_to(source.resolve())
    write_manifest(directory, str(snapshot), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--repo", help="model on the Hub, as mistralai/Mistral-7B-v0.1")
    source.add_argument("--snapshot", type=Path, help="local directory with config.json and *.safetensors")
    parser.add_argument("--revision", help="commit, tag or branch of --repo; the commit is what stays the same")
    parser.add_argument("--output-dir", required=True, type=Path)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.repo:
        from_hub(args.repo, args.revision, args.output_dir)
    else:
        from_directory(args.snapshot, args.output_dir)


if __name__ == "__main__":
    main()

"""Brings a Hugging Face snapshot to one directory: from the Hub at a pinned revision, or linked from a local one.

Only what the conversion reads is fetched: safetensors, tokenizer, configuration. manifest.json is written last:
{"source", "revision", "files": {name: {"size", "sha256"}}}; where it stands, every file of it is whole.
HF_TOKEN, HF_HOME and HF_ENDPOINT mean what they mean to huggingface_hub.
"""

import argparse
import contextlib
import sys
import threading
from fnmatch import fnmatch
from pathlib import Path

from files import refuse_full_disk, sha256, write_json
from progress import Progress

# Not "*.safetensors": some repositories hold the same weights a second time as consolidated.safetensors.
PATTERNS = ["config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"]
PATTERNS += ["tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt"]


def belongs(name):
    """Is this file of a repository fetched?"""
    return any(fnmatch(name, pattern) for pattern in PATTERNS)


def snapshot_files(directory):
    """The files of a directory that belong to a snapshot, sorted."""
    return sorted(file for file in directory.iterdir() if belongs(file.name))


def remove_snapshot(directory):
    """Removes another model's files under the same name; of a local snapshot they are links, never written through."""
    for file in snapshot_files(directory):
        file.unlink()


def write_manifest(directory, source, revision, known_sha256=None):
    """Describes the snapshot's files in directory/manifest.json, which says that they are all there.

    Exits where a file's sha256 is not the known one, and removes the file, so that it is fetched again.
    """
    files = {}
    for file in snapshot_files(directory):
        files[file.name] = {"size": file.stat().st_size, "sha256": sha256(file)}
        if files[file.name]["sha256"] != (known_sha256 or {}).get(file.name, files[file.name]["sha256"]):
            file.unlink()
            sys.exit(f"{source}: {file.name} arrived with a wrong sha256 and was removed. Run again.")
    write_json(directory / "manifest.json", {"source": source, "revision": revision, "files": files}, indent=2)
    size = sum(file["size"] for file in files.values())
    print(f"{directory}: {len(files)} files, {size / 1e9:.2f} GB, from {source}")


def size_of(directory):
    """Bytes of what has arrived, half files in huggingface_hub's folder among them."""
    total = 0
    for file in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # renamed in this moment
            total += file.stat().st_size if file.is_file() else 0
    return total


@contextlib.contextmanager
def showing_progress(directory, size):
    """Shows each second how many of `size` bytes have arrived."""
    progress, end = Progress("download_model", size, "B", size_of(directory)), threading.Event()

    def show():
        while not end.wait(1):
            progress.to(min(size_of(directory), size - 1))

    thread = threading.Thread(target=show)
    thread.start()
    try:
        yield
        progress.to(size)
    finally:
        end.set()
        thread.join()
        progress.close()


def from_hub(repo, revision, directory):
    for file in snapshot_files(directory):
        if file.is_symlink():  # of a local snapshot under the same name: nothing is written through it
            file.unlink()
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import disable_progress_bars
    from requests.exceptions import RequestException

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        size = sum(file.size for file in info.siblings if belongs(file.rfilename))
        refuse_full_disk(directory, size - size_of(directory))
        disable_progress_bars()  # one for each file; ours is of the whole
        with showing_progress(directory, size):
            snapshot_download(repo, revision=info.sha, local_dir=directory, allow_patterns=PATTERNS)
    except GatedRepoError:
        sys.exit(f"{repo} is gated: accept its terms on its page on the Hub, then set HF_TOKEN or log in with hf auth.")
    except RevisionNotFoundError:
        sys.exit(f"{repo} has no revision {revision}: see the commits on its page on the Hub.")
    except RepositoryNotFoundError:
        sys.exit(f"{repo}: no such model on the Hub, or a private one: check the name, or set HF_TOKEN.")
    except (RequestException, ConnectionError, HfHubHTTPError) as error:
        sys.exit(f"{repo}: the Hub did not answer: {type(error).__name__}. Run again; what has arrived is kept.")
    siblings = {sibling.rfilename: sibling for sibling in info.siblings}
    for file in snapshot_files(directory):
        if file.name not in siblings:  # another revision's, or another model's under the same name
            file.unlink()
    lfs = {name: sibling.lfs.sha256 for name, sibling in siblings.items() if sibling.lfs}
    write_manifest(directory, repo, info.sha, lfs)


def from_directory(snapshot, directory):
    if not (snapshot / "config.json").is_file():
        sys.exit(f"{snapshot} holds no config.json: `snapshot:` of the model must be a Hugging Face snapshot.")
    if snapshot.resolve() == directory.resolve():
        sys.exit(f"{snapshot} is where the workflow keeps its own files: move the snapshot to another directory.")
    remove_snapshot(directory)
    for file in snapshot_files(snapshot):
        (directory / file.name).symlink_to(file.resolve())
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

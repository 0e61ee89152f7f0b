"""Brings a Hugging Face snapshot to one directory: from the Hub at a pinned revision, or linked from a local one. Or an
adapter from the Hub.

hub.json keeps what the Hub first said, {"repo", "asked", "commit", "files": {name: [size, ETag]}}, for the check.
HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean to huggingface_hub.
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # hf_xet begins a cut-off file anew, plain HTTP continues it
os.environ.pop("HF_HUB_ENABLE_HF_TRANSFER", None)  # so does hf_transfer, and where it is missing nothing arrives

import requests
from common.ending import run
from common.files import read_json, refuse_full_disk, sha256, write_json
from common.progress import Progress
from huggingface_hub import configure_http_backend, errors, hf_hub_download
from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
from huggingface_hub.utils import disable_progress_bars, logging
from model_formats.hub import ask_cache, ask_hub, patient_session
from model_formats.manifest import (
    ADAPTER,
    PATTERNS,
    SINGLE,
    belongs,
    counts,
    refuse_other_weights,
    remove_snapshot,
    snapshot_files,
    write_manifest,
)


def halves(directory, etag):
    """Where huggingface_hub keeps what has arrived of a file."""
    return directory.glob(f".cache/huggingface/download/*.{etag}.incomplete")


def arrived(directory, files):
    """Bytes of the files that have arrived, halves among them."""
    total = 0
    for name, (_, etag) in files.items():
        for file in directory / name, *halves(directory, etag):
            with contextlib.suppress(FileNotFoundError):  # not there yet, or renamed in this moment
                total += file.stat().st_size
    return total


def is_whole(file, size, etag):
    if not file.is_file() or file.stat().st_size != size:
        return False
    if len(etag) == 64:
        return sha256(file) == etag
    return hashlib.sha1(b"blob %d\0" % size + file.read_bytes()).hexdigest() == etag


def download(repo, commit, directory, name):
    """Where a body ends early, huggingface_hub gives up; called again, it goes on from there."""
    if HF_HUB_OFFLINE:
        return shutil.copyfile(hf_hub_download(repo, name, revision=commit, local_files_only=True), directory / name)
    for _ in range(5):
        with contextlib.suppress(requests.exceptions.ChunkedEncodingError):
            return hf_hub_download(repo, name, revision=commit, local_dir=directory)
    sys.exit(f"{repo}: {name} broke off five times. Run again; what has arrived is kept.")


def fetch(repo, commit, directory, name, size, etag):
    """Brings one file, if it is not there whole; exits where it arrives otherwise than the Hub describes it."""
    file = directory / name
    if is_whole(file, size, etag):
        return
    file.unlink(missing_ok=True)
    for half in halves(directory, etag):
        if half.stat().st_size > size:
            half.unlink()
    download(repo, commit, directory, name)
    if not is_whole(file, size, etag):
        file.unlink()
        sys.exit(f"{repo}: {name} arrived with wrong bytes and was removed. Run again.")


def fetch_all(repo, revision, directory, patterns):
    """Brings the files and describes them. A revision stays what it was at first, until another one is asked for."""
    kept = directory / "hub.json"
    hub = read_json(kept) if kept.exists() else {}
    if (hub.get("repo"), hub.get("asked")) != (repo, revision):
        commit, files = (ask_cache if HF_HUB_OFFLINE else ask_hub)(repo, revision, patterns)
        hub = {"repo": repo, "asked": revision, "commit": commit, "files": files}
        if not HF_HUB_OFFLINE:  # a cache may lack a file
            write_json(kept, hub, indent=2)
    commit, weights = hub["commit"], {SINGLE} & hub["files"].keys() or None
    files = {name: known for name, known in hub["files"].items() if counts(name, weights)}
    for file in directory.iterdir():  # of another model or revision; a link is never written through
        if belongs(file.name, patterns) and (file.name not in files or file.is_symlink()):
            file.unlink()
    size, here = sum(size for size, _ in files.values()), arrived(directory, files)
    refuse_full_disk(directory, size - here)
    progress = Progress("download_model", size, "B", here)
    with contextlib.closing(progress), ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(fetch, repo, commit, directory, name, *files[name]) for name in files]
        while wait(jobs, timeout=1).not_done:
            progress.to(min(arrived(directory, files), size - 1))
        for job in jobs:
            job.result()  # or its error
        progress.to(size)
    known = {name: etag for name, (_, etag) in files.items() if len(etag) == 64}
    write_manifest(directory, repo, commit, known, patterns)


@contextlib.contextmanager
def explain_errors(repo, revision, directory):
    """What goes wrong with the Hub in the block ends the call in a sentence."""
    logging.set_verbosity_error()
    disable_progress_bars()  # one for each file; ours is of the whole
    configure_http_backend(patient_session)
    log_in = "set HF_TOKEN or log in with hf auth"
    try:
        yield
    except errors.GatedRepoError:
        sys.exit(f"{repo} is gated: accept its terms on {ENDPOINT}/{repo}, then {log_in}, as the user who did.")
    except errors.RevisionNotFoundError:
        sys.exit(f"{repo} has no revision {revision}: see the commits on its page on the Hub.")
    except errors.RepositoryNotFoundError:
        sys.exit(f"{repo}: no such model on the Hub, or a private one: check the name, or {log_in}.")
    except errors.HFValidationError:
        sys.exit(f"{repo}: no model on the Hub has such a name; one is mistralai/Mistral-7B-v0.1.")
    except UnicodeEncodeError:
        sys.exit("The token holds a character that no token has: set HF_TOKEN without quotation marks.")
    except requests.RequestException as error:
        if HF_HUB_OFFLINE:
            sys.exit(f"{repo} is not whole on this machine: unset HF_HUB_OFFLINE, or give a local directory.")
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
        status = cause.response.status_code if getattr(cause, "response", None) is not None else ""
        if status in (401, 403):
            sys.exit(f"{repo}: the Hub refuses the token ({status}): {log_in}, with a valid token that may read it.")
        why = (
            cause.args[0].reason
            if isinstance(cause, requests.exceptions.RetryError)
            else f"{type(cause).__name__} {status}".strip()
        )
        sys.exit(f"{repo}: the Hub did not deliver: {why}. Run again; what has arrived is kept.")
    except OSError as error:
        sys.exit(f"{directory}: {error.strerror or str(error).splitlines()[0]} What has arrived is kept.")


def from_directory(snapshot, directory):
    if not (snapshot / "config.json").is_file():
        sys.exit(f"{snapshot} holds no config.json: `snapshot:` of the model must be a Hugging Face snapshot.")
    if snapshot.resolve() == directory.resolve():
        sys.exit(f"{snapshot} is where the workflow keeps its own files: move the snapshot to another directory.")
    refuse_other_weights(snapshot, [file.name for file in snapshot.iterdir()])
    remove_snapshot(directory)
    for file in snapshot_files(snapshot):
        target = file.resolve()
        if Path.cwd() in {*target.parents} & {*directory.resolve().parents}:  # in the project: they move together
            target = os.path.relpath(target, directory.resolve())
        (directory / file.name).symlink_to(target)
    write_manifest(directory, str(snapshot), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--repo", help="model on the Hub, as mistralai/Mistral-7B-v0.1")
    source.add_argument("--snapshot", type=Path, help="local directory with config.json and *.safetensors")
    source.add_argument("--adapter", help="adapter on the Hub in PEFT's format, with safetensors")
    parser.add_argument("--revision", help="commit, tag or branch; the commit is what stays the same")
    parser.add_argument("--output-dir", required=True, type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # else Ctrl-C waits until the files under way are there
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if repo := args.repo or args.adapter:
        with explain_errors(repo, args.revision, args.output_dir):
            fetch_all(repo, args.revision, args.output_dir, PATTERNS if args.repo else ADAPTER)
    else:
        from_directory(args.snapshot, args.output_dir)


if __name__ == "__main__":
    run(main)

"""What the Hub, or its cache on this machine, says of a repository: the commit and the files that are wanted of it."""

from pathlib import Path

import requests
from huggingface_hub import HfApi, errors, snapshot_download
from model_formats.manifest import (
    ADAPTER,
    SINGLE,
    belongs,
    refuse_other_adapters,
    refuse_other_weights,
    snapshot_files,
    weight_files,
)
from urllib3.util import Retry


def patient_session():
    """Waits where the server is busy, for up to 5 minutes if it says so, the time that the Hub's rate limits take."""
    busy = {"status_forcelist": (429, 500, 502, 503, 504), "backoff_factor": 1, "retry_after_max": 300}
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=Retry(5, connect=0, read=0, **busy)))
    return session


def ask_hub(repo, revision, patterns):
    """The commit, and {name: (size, ETag)}: the sha256 of an LFS file, git's blob id of another."""
    info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=60)  # by itself it waits for ever
    refuse = refuse_other_adapters if patterns is ADAPTER else refuse_other_weights
    refuse(repo, [file.rfilename for file in info.siblings])
    files = [file for file in info.siblings if belongs(file.rfilename, patterns)]
    return info.sha, {file.rfilename: (file.size, file.lfs.sha256 if file.lfs else file.blob_id) for file in files}


def ask_cache(repo, revision, patterns):
    """The same of a snapshot in HF_HOME, where each file is a link to one that is named by its ETag."""
    snapshot = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    files = {file.name: (file.stat().st_size, file.resolve().name) for file in snapshot_files(snapshot, patterns)}
    needed = ADAPTER if patterns is ADAPTER else ["config.json", *(weight_files(snapshot) or [SINGLE])]
    if not files.keys() >= {*needed}:
        raise errors.LocalEntryNotFoundError("Only a part of the snapshot is in the cache.")
    return snapshot.name, files

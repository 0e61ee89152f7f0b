"""A model's directory that is written whole or not at all, by several threads."""

import contextlib
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from common.ending import full_disk, is_full
from common.files import refuse_full_disk, size_of
from common.lock import hold
from common.progress import Progress, say

THREADS = 4  # a single one leaves a parallel file system idle, and the disk while it reads


@contextlib.contextmanager
def replacing_directory(output, size, step):
    """Yields a new directory beside `output`, and puts it in its place when the block ends without an error.

    Exits where fewer than `size` bytes are free, where another process is at work there, or where the disk fails. step:
    by which name it speaks.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    hold(output.with_name(f".{output.name}.lock"), partial(say, step))
    new, old = (output.with_name(f".{output.name}.{state}") for state in ("partial", "old"))
    for left in (new, old):  # of a call that was killed
        shutil.rmtree(left, ignore_errors=True)
    refuse_full_disk(output.parent, size)
    try:
        new.mkdir()
        yield new
        if output.exists():
            output.rename(old)
        new.rename(output)
    except Exception as error:
        if is_full(error):
            sys.exit(full_disk(output, size, size_of(new)))
        if isinstance(error, OSError):
            sys.exit(f"{error.filename or output}: {error.strerror}.")
        raise
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def write_in_threads(write, jobs, size, step):
    """[write(*job, advance) for each job], several at a time; shows how much of `size` bytes is written.

    advance(bytes) is to be called as they are.
    """
    done, lock = 0, threading.Lock()
    progress = Progress(step, size, "B")

    def advance(written):
        nonlocal done
        with lock:
            done += written
            progress.to(done)

    threads = ThreadPoolExecutor(THREADS)
    try:
        return list(threads.map(lambda job: write(*job, advance), jobs))
    finally:
        threads.shutdown(cancel_futures=True)
        progress.close()

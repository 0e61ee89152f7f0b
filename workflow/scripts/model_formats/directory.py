"""A model's directory that is written whole or not at all."""

import contextlib
import shutil
import sys
from functools import partial

from common.files import refuse_full_disk
from common.lock import hold
from common.progress import say


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
    except OSError as error:
        sys.exit(f"{error.filename or output}: {error.strerror}.")
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)

"""How a script ends that fails: in one sentence where the file system is the cause, as on a full disk; at once where it
is one of several ranks. Standard library only."""

import errno
import os
import shutil
import sys
import traceback
from pathlib import Path

at_end = []  # what must be called where a process leaves: atexit's functions are not, which wait, too
FULL = (errno.ENOSPC, errno.EDQUOT)
# What a user can mend. Other errors are the program's own, and keep their traceback.
OF_DISK = (*FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG, errno.EMFILE)
# Of libraries that keep the error's number to themselves: safetensors and tokenizers, then torch
WORDS = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122")
WORDS += ("file write failed", "iostream error", "inline_container.cc")
REMEDY = "Make room, or let `pathvars` in the configuration point elsewhere"


def run(main):
    """Runs a script's main()."""
    try:
        main()
    except BaseException as error:
        problem = of_disk(error) if isinstance(error, Exception) else None
        if is_a_rank():
            leave(SystemExit(problem) if problem else error)
        if problem:
            sys.exit(problem)
        raise


def is_a_rank():
    """Is this process connected with others, by torch.distributed?"""
    distributed = sys.modules.get("torch.distributed")
    return bool(distributed) and distributed.is_available() and distributed.is_initialized()


def leave(error):
    """Ends this process for an error as Python does, but at once: Python's own end waits for the GPU, on which NCCL
    waits for the other ranks, and these for this one; torchrun would never learn of the error."""
    if isinstance(error, SystemExit):
        code = error.code
    else:
        traceback.print_exception(error)
        code = 1
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    for function in at_end:
        function()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def is_full(error):
    """Does it say that the disk is full?"""
    return (isinstance(error, OSError) and error.errno in FULL) or any(words in str(error) for words in WORDS)


def chain(error):
    while error:
        yield error
        error = error.__cause__ or error.__context__


def of_disk(error):
    """The sentence, or None where it was something else."""
    for one in chain(error):
        if is_full(one):
            return full_disk(getattr(one, "filename2", None) or getattr(one, "filename", None))  # a copy's has both
        if isinstance(one, OSError) and one.errno in OF_DISK:
            return f"{one.filename or 'A file'}: {one.strerror}."
    return None


def full_disk(file=None, needed=None, written=0):
    """The sentence on a full disk. file: what was written; else the fullest disk is told of that the command names.
    needed: bytes of it, where they are known; written: those that were, and that are free again."""
    places = [file] if file else [part for argument in sys.argv[1:] for part in argument.split() if os.sep in part]
    there = min(map(nearest, places or ["."]), key=lambda place: shutil.disk_usage(place).free)
    free = shutil.disk_usage(there).free
    needs = f"needs {size(needed)}" if needed else f"needs more than {size(free + written)}"
    disk = f"the file system {mount(there)} is full, or a quota on it: {size(free + written)} are free"
    return f"{file or there}: {needs}; {disk}. {REMEDY}."


def nearest(path):
    """The lowest directory of a path that is there."""
    return next(place for place in (Path(path).absolute(), *Path(path).absolute().parents) if place.is_dir())


def mount(directory):
    """Where its file system begins."""
    return next(place for place in (directory.resolve(), *directory.resolve().parents) if os.path.ismount(place))


def size(number):
    unit = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if number >= unit), (1e3, "kB"))
    return f"{number / unit[0]:.1f} {unit[1]}"

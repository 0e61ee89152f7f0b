"""How a script ends where the file system fails it: in one sentence, as on a full disk. Standard library only."""

import errno
import os
import shutil
import sys
from pathlib import Path

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
    except Exception as error:
        if problem := of_disk(error):
            sys.exit(problem)
        raise


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

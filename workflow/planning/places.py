"""Where files lie, `pathvars:`: what is refused of it; directories that can't be written to; full disks."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from ..scripts.common.ending import REMEDY, mount, size
from . import Problem
from .schema import hint

CLONE = Path(__file__).parents[2]
USED = ("results", "resources", "logs", "benchmarks")
REFERENCE = re.compile(r"<([a-z][a-z0-9_]*)>")  # of one path variable to another


def check(checks):
    """Raises Problem where a path variable is none, or none for a directory. checks: of the configuration."""
    given = checks.config.get("pathvars", {})
    referred = {name for value in given.values() for name in REFERENCE.findall(value)}
    for name, value in given.items():
        path = ["pathvars", name]
        if name not in USED and name not in referred:
            checks.refuse(path, f"no such key; {hint(name, USED)}")
        if not value.strip():
            checks.refuse(path, "is empty: name a directory")
        if problem := unexpanded(value):
            checks.refuse(path, problem)
        if tidy(value).startswith("-"):
            checks.refuse(path, f"{value}: begins with a dash, as an option does: name another directory")
        if name in USED and tidy(value) == os.curdir:
            checks.refuse(path, f"{value}: is this directory itself: name one in it")
        if ".snakemake" in Path(value).parts:
            checks.refuse(path, f"{value}: .snakemake is Snakemake's own, and may be deleted: name another directory")
        if undefined := set(REFERENCE.findall(value)) - given.keys() - {*USED}:
            checks.refuse(path, f"{value}: there is no path variable {min(undefined)}")
        if found := sorted({letter for letter in value if letter in "{}" or not letter.isprintable()}):
            checks.refuse(path, f"{value!r} holds {' and '.join(map(repr, found))}: name another directory")
        if any(len(part.encode()) > 255 for part in Path(value).parts):
            checks.refuse(path, f"{value[:40]}…: a directory's name has 255 bytes at most")
        if not REFERENCE.search(value) and (problem := no_directory(nearest(value))):
            checks.refuse(path, f"{value}: {problem}")
    for name in USED if not checks.module else ():
        if name not in given and os.path.lexists(name) and (problem := no_directory(Path(name))):
            raise Problem(f"{problem}. Remove it, or let pathvars in the configuration point elsewhere")


def no_directory(place):
    """What is said of a path at which there is something else; None of a directory."""
    if place.is_symlink() and not os.path.isdir(place):
        return f"{place} is a link to {os.readlink(place)}, where there is no directory"
    return None if os.path.isdir(place) else f"{place} is no directory"


def check_here():
    """Raises Problem where Snakemake, which would end with a traceback, can't write its records."""
    for place in [".snakemake", ".snakemake/metadata"] if os.path.isdir(".snakemake") else ["."]:
        if os.path.isdir(place) and not os.access(place, os.W_OK):
            problem = f"{os.path.abspath(place)}: can't be written, and Snakemake keeps its records there"
            raise Problem(f"{problem}. Run it in a directory of yours: snakemake -s {CLONE / 'Snakefile'}")


def unexpanded(path):
    """What is said of ~ or $HOME in a path, or None."""
    if (whole := os.path.expanduser(os.path.expandvars(path))) == path and not path.startswith("~"):
        return None
    word = re.search(r"^~[^/]*|\$\{?\w+\}?", path)[0]
    return f"`{word}` stays as it is in a path: write {'the whole path' if whole.startswith('~') else whole}"


def unreadable(path):
    """Why nothing can be read at a path that the configuration names, where that is not just missing; or None."""
    if not path.strip():
        return "is empty: write a path"
    if path.startswith("-"):
        return f"{path} begins with a dash, as an option does: write ./{path}"
    if re.match(r"[a-z][a-z0-9+.-]+://", path, re.IGNORECASE):
        return f"{path} is an address: download it first, and write its path here"
    if path != path.strip() and not os.path.lexists(path):
        return f"{path!r} has blanks at an end: write it without"
    try:
        os.stat(path)
    except FileNotFoundError:
        link = f"{path} is a link to {os.readlink(path)}, which is not there" if os.path.islink(path) else None
        return link or unexpanded(path)
    except OSError as error:
        return f"{path[:40]}{'…' * (len(path) > 40)}: {error.strerror}"
    except ValueError:
        return f"{path!r} is no path"
    return None if os.access(path, os.R_OK) else f"{path} can't be read: you have no permission"


def tidy(path):
    """The path as Snakemake wants it: it matches names of files, and x//y is another than x/y."""
    return os.path.normpath(path).replace("//", "/")


def tidy_up(pathvars):
    """Of Snakemake's path variables those that rules use, without references, as no path can be tidy with one."""
    pathvars.items.update({name: tidy(pathvars.apply(f"<{name}>")) for name in USED})


def nearest(path):
    """The path, or the lowest directory above it that is there, or what is there in its place."""
    return next(place for place in (Path(path), *Path(path).absolute().parents) if os.path.lexists(place))


def check_writable(jobs):
    """Raises Problem where the files of a job can't be written."""
    files = [file for job in jobs for file in (*job.output, *job.log, *filter(None, [job.benchmark]))]
    places = {}  # {what is there: the first directory that is wanted in it}; before the first call it is one for all
    for directory in sorted({os.path.dirname(file) for file in files}):
        places.setdefault(nearest(directory), directory)
    for there, directory in places.items():
        try:
            tempfile.TemporaryFile(dir=there).close()
        except OSError as error:
            problem = f"{directory}: can't be written: {there}: {error.strerror}"
            raise Problem(f"{problem}. Let pathvars in the configuration point elsewhere") from None


def check_room(jobs, models):
    """Raises Problem where a disk has less room than the models that jobs convert and merge. Counted are those whose
    snapshots are on this machine. models: of the configuration."""
    needed = {}  # {disk: [bytes, a directory there]}
    for job in jobs:
        if re.search("convert_model|merge_model", job.rule.name):  # also as a module's, peft_convert_model
            snapshot = Path(job.params.snapshot)
            if not (snapshot / "manifest.json").exists():
                snapshot = Path(models[snapshot.name].get("snapshot", os.devnull))
            there = nearest(os.path.dirname(job.output[0]))
            needed.setdefault(os.stat(there).st_dev, [0, there])[0] += weights_of(snapshot)
    for number, there in needed.values():
        if number > (free := shutil.disk_usage(there).free):
            problem = f"{there}: the models to convert and merge take {size(number)}"
            disk = f"{size(free)} are free on the file system {mount(Path(there))}"
            raise Problem(f"{problem}, but {disk}. {REMEDY}")


def weights_of(snapshot):
    """The bytes of its weights, which conversion and merging keep."""
    return sum(file.stat().st_size for file in snapshot.glob("*.safetensors") if file.is_file())

"""The image, and what the workflow makes visible in it."""

import hashlib
import itertools
import os
import re
from pathlib import Path

from snakemake.settings.types import DeploymentMethod

from . import Problem, places


def check_image(checks, deployment_methods):
    """Raises Problem where the image would not be used, or is not there."""
    if DeploymentMethod.APPTAINER not in deployment_methods:
        problem = "is only used with --sdm apptainer, as by a --profile; or set image: null to do without"
        checks.refuse(["image"], f"{checks.config['image']} {problem}")
    check_file(checks)


def check_file(checks):
    """Raises Problem where the image is not there."""
    image = checks.config["image"]
    if "://" not in image and (problem := places.unreadable(image)):
        checks.refuse(["image"], problem)
    if "://" not in image and not Path(image).exists():  # a directory is a sandbox of Apptainer's
        version = (re.findall(r"\d\d\.\d\d", image) or ["25.02"])[-1]
        source = f"docker://nvcr.io/nvidia/nemo:{version}"
        checks.refuse(["image"], f"there is no {image}; get it: apptainer pull {image} {source}")


def kept_checksum(image, directory):
    """The file in `directory` that keeps an image's sha256, as an image has some 20 GB."""
    return Path(directory, f"{Path(image).name}.sha256")


def keep_checksum(image, directory):
    kept = kept_checksum(image, directory)
    if Path(image).is_file() and (not kept.exists() or kept.stat().st_mtime < Path(image).stat().st_mtime):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with open(image, "rb") as file:
            kept.write_text(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {image}\n")


def bind(settings, config, clone, place):
    """Binds what jobs read and write, whatever path variables and links say, by Snakemake's deployment_settings.

    place: puts path variables in. A job on a cluster has the options of its Snakemake, and adds none twice. TMPDIR is
    not bound: where the image has no such directory, Python takes its /tmp.
    """
    if DeploymentMethod.APPTAINER not in settings.deployment_method:
        return
    here = os.getcwd()
    check_path(here, here, ":'\"\\\n")
    if re.search(r"[\s\"'$&;|<>()*?`\\]", config["image"]):
        raise Problem(f"{config['image']}: the image's path contains a space or a shell character: rename it")
    directories = [place(f"<{name}>") for name in ("results", "resources", "logs")]
    paths = [clone, *directories, *files_of_snapshots(config["models"].values())]
    paths += itertools.chain.from_iterable(links_below(directory) for directory in directories[:2])
    for option in binds(paths, here):
        if option not in settings.apptainer_args:
            settings.apptainer_args = f"{settings.apptainer_args} {option}".strip()


def files_of_snapshots(models):
    """The files of each `snapshot:`, to which download_model makes links; in a cache of the Hub they are links, too."""
    for directory in (Path(model["snapshot"]) for model in models if "snapshot" in model):
        if directory.is_dir():
            yield from (file.resolve() for file in directory.iterdir())


def links_below(directory, depth=4):
    """Links in a directory and `depth` levels of directories below it, as results/runs/lora/fold0/seed0/training."""
    try:
        entries = list(os.scandir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_symlink():
            if os.path.exists(entry.path):  # else a job that needs it says so
                yield entry.path
        elif depth and entry.is_dir():
            yield from links_below(entry.path, depth - 1)


def binds(paths, here):
    """Apptainer's --bind options by which each path is in the container what it is on this machine.

    Snakemake binds `here`, the working directory. Raises Problem where a path can't be bound.
    """
    bound = [Path(here)]
    for path in paths:
        while not is_in(there := seen(Path(here, path), bound), bound):
            directory = next(place for place in (there, *there.parents) if place.is_dir())
            if not there.exists() and directory.parent == Path(directory.root):  # would hide all of the image's /opt
                raise Problem(f"{path}: can't be shown to the container, as it does not exist: create the directory")
            check_path(path, directory)
            bound.append(directory)
    return [f"--bind '{place.resolve()}:{place}'" for place in sorted(bound[1:])]


def check_path(path, directory, separators=",:'\"\\\n"):
    if found := set(separators) & set(f"{directory}{Path(directory).resolve()}"):
        why = f"{directory} contains {' and '.join(map(repr, sorted(found)))}"
        raise Problem(f"{path}: can't be shown to the container, as {why}: rename the directory")


def is_in(path, directories):
    return any(path.is_relative_to(directory) for directory in directories)


def seen(path, bound):
    """Where a path leads to in the container: there, links below the bound directories are what they are here; other
    links are not, but a directory can be bound in their place."""
    path = Path(os.path.abspath(path))
    for place in (*reversed(path.parents), path):
        if place.is_symlink() and place not in bound and is_in(place, bound):
            target = Path(os.path.abspath(place.parent / os.readlink(place)))
            if not place.exists():
                raise Problem(f"{place}: is a link to {os.readlink(place)}, which is not there")
            if target.resolve() != place.resolve():  # a link above it counts here, but not there
                raise Problem(f"{place}: can't be shown to the container: let the link begin with /, not with ..")
            return seen(target / path.relative_to(place), bound)
    return path

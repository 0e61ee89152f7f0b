"""The image, and what the workflow makes visible in it."""

import hashlib
import os
import re
from pathlib import Path

from snakemake.settings.types import DeploymentMethod

from . import Problem


def check_image(checks, deployment_methods):
    """Raises Problem where the image is not there, or would not be used."""
    image = checks.config["image"]
    if DeploymentMethod.APPTAINER not in deployment_methods:
        problem = "is only used with --sdm apptainer, as by a --profile; or set image: null to do without"
        checks.refuse(["image"], f"{image} {problem}")
    if "://" not in image and not Path(image).is_file():
        version = (re.findall(r"\d\d\.\d\d", image) or ["24.03"])[-1]
        source = f"docker://nvcr.io/nvidia/nemo:{version}"
        checks.refuse(["image"], f"there is no {image}; get it: apptainer pull {image} {source}")


def kept_checksum(image, directory):
    """The file in `directory` that keeps an image's sha256, as an image has some 20 GB."""
    return Path(directory, f"{Path(image).name}.sha256")


def keep_checksum(image, directory):
    kept = kept_checksum(image, directory)
    if "://" not in image and (not kept.exists() or kept.stat().st_mtime < Path(image).stat().st_mtime):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with open(image, "rb") as file:
            kept.write_text(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {image}\n")


def bind(settings, config, clone, place):
    """Binds what the jobs must see, whatever path variables and links say, by Snakemake's deployment_settings.

    place: puts path variables in. A job on a cluster has the options of its Snakemake, and adds none twice.
    """
    if DeploymentMethod.APPTAINER not in settings.deployment_method:
        return
    results, resources, logs = (place(f"<{name}>") for name in ("results", "resources", "logs"))
    paths = [clone, results, resources, logs, *links_below(results), *links_below(resources)]
    paths += [model["snapshot"] for model in config["models"].values() if "snapshot" in model]
    if "://" not in config["image"]:
        paths.append(config["image"])
    for option in binds(paths, os.getcwd()):
        if option not in settings.apptainer_args:
            settings.apptainer_args = f"{settings.apptainer_args} {option}".strip()


def existing(path):
    """The path, or the directory above it that is there already: only that can be bound."""
    return next(place for place in (path, *path.parents) if place.exists())


def binds(paths, here):
    """Apptainer's --bind options by which each path is in the container what it is on this machine, links and all.

    A path that is not there yet is seen by the directory above it. Snakemake binds `here`, the working directory.
    Raises Problem where a path can't be bound.
    """
    found = {}
    for path in map(Path, paths):
        written = Path(os.path.abspath(Path(here, path)))
        if written.is_symlink() and not written.exists():
            raise Problem(f"{path}: is a link to {os.readlink(written)}, which is not there")
        for place in (existing(written), existing(written).resolve()):
            if place == Path(place.root):
                raise Problem(f"{path}: can't be shown to the container, as nothing of it is there: make the directory")
            if set(":,'\"") & set(str(place)):
                raise Problem(f"{path}: can't be shown to the container: no comma, colon or quotation mark in a path")
            if place != Path(here).resolve() and Path(here).resolve() not in place.parents:
                found[str(place)] = str(place.resolve())
    outer = {place: real for place, real in found.items() if not any(covers(o, found[o], place, real) for o in found)}
    return [f"--bind '{real}:{place}'" for place, real in sorted(outer.items())]


def covers(outer, outer_real, place, real):
    """Is a place in the container already seen through another bind?"""
    if outer == place or not place.startswith(outer + os.sep):
        return False
    return real == outer_real + place.removeprefix(outer)


def links_below(directory, depth=2):
    """Links in a directory and `depth` levels of directories below it."""
    try:
        entries = list(os.scandir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_symlink():
            yield entry.path
        elif depth and entry.is_dir():
            yield from links_below(entry.path, depth - 1)

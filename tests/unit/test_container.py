"""What the container is made to see: by --bind options, wherever directories and links lead."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.settings.types import DeploymentMethod

from workflow.planning import Problem, container


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, beside which there are others."""
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


def bound(*paths, here):
    """{place in the container: directory of this machine}."""
    options = container.binds(paths, here)
    return {
        Path(place): Path(real) for real, place in (re.fullmatch("--bind '(.*):(.*)'", o).groups() for o in options)
    }


def inside(path, binds, here, steps=40):
    """The file of this machine that a path in a container leads to, as the kernel there would find it; None if to none.

    A model of the container: what is bound, and nothing else.
    """
    place, rest = Path("/"), list(Path(os.path.abspath(Path(here, path))).parts[1:])
    while rest and steps:
        part = rest.pop(0)
        place = place.parent if part == ".." else place / part
        real = real_of(place, binds, here)
        if real and real.is_symlink() and place not in {*binds, here}:
            target = Path(os.readlink(real))
            rest, steps = [*target.parts[target.is_absolute() :], *rest], steps - 1
            place = Path("/") if target.is_absolute() else place.parent
    real = real_of(place, binds, here)
    return real.resolve() if real and real.exists() else None


def real_of(place, binds, here):
    mounts = [mount for mount in {*binds, here} if place.is_relative_to(mount)]
    if not mounts:
        return None
    mount = max(mounts, key=lambda mount: len(mount.parts))
    return binds.get(mount, mount) / place.relative_to(mount)


def touch(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("")
    return file


def link(place, target):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
    return place


def plain(here):
    touch(here / "results/x")
    return ["results", "logs"], "results/x"


def absolute(here):
    touch(here.parent / "scratch/me/results/x")
    return [here.parent / "scratch/me/results"], here.parent / "scratch/me/results/x"


def relative_upwards(here):
    touch(here.parent / "other/x")
    return ["../other"], "../other/x"


def a_link_here(here):
    touch(here.parent / "scratch/results/x")
    link(here / "results", here.parent / "scratch/results")
    return ["results"], "results/x"


def a_relative_link_here(here):
    touch(here.parent / "scratch/results/x")
    link(here / "results", "../scratch/results")
    return ["results"], "results/x"


def a_link_in_an_absolute_path(here):
    touch(here.parent / "disk7/results/x")
    link(here.parent / "scratch", here.parent / "disk7")
    return [here.parent / "scratch/results"], here.parent / "scratch/results/x"


def links_that_lead_to_links(here):
    touch(here.parent / "disk7/deep/results/x")
    link(here.parent / "two", "disk7/deep")
    link(here.parent / "one", here.parent / "two")
    link(here / "results", "../one/results")
    return ["results"], "results/x"


def a_link_to_a_file_in_an_absolute_path(here):
    touch(here.parent / "blobs/x")
    link(here.parent / "middle/x", "../blobs/x")
    link(here.parent / "scratch/results/x", here.parent / "middle/x")
    return [here.parent / "scratch/results", here.parent / "scratch/results/x"], here.parent / "scratch/results/x"


def spaces(here):
    touch(here.parent / "my scratch/results/x")
    link(here / "results", here.parent / "my scratch/results")
    return ["results"], "results/x"


def a_link_that_comes_back(here):
    touch(here / "elsewhere/x")
    link(here / "results", here / "elsewhere")
    return ["results"], "results/x"


CASES = [
    plain,
    absolute,
    relative_upwards,
    a_link_here,
    a_relative_link_here,
    a_link_in_an_absolute_path,
    links_that_lead_to_links,
    a_link_to_a_file_in_an_absolute_path,
    spaces,
    a_link_that_comes_back,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_same_file_in_the_container(here, case):
    paths, file = case(here)
    assert inside(file, {}, here) != Path(here, file).resolve() or case in (plain, a_link_that_comes_back)
    assert inside(file, bound(*paths, here=here), here) == Path(here, file).resolve()
    if case in (plain, a_link_that_comes_back):
        assert not bound(*paths, here=here)


def test_relative_link_that_would_lead_elsewhere(here):
    """Its `..` is of its directory's place in the container, not of that on this machine."""
    touch(here.parent / "disk7/hf/blobs/x")
    link(here.parent / "disk7/hf/results/x", "../blobs/x")
    results = link(here.parent / "scratch/results", here.parent / "disk7/hf/results")
    with pytest.raises(Problem, match="results/x: can't be shown to the container: let the link begin with /"):
        container.binds([results, results / "x"], here)


def test_what_is_not_there_yet_is_seen_by_the_directory_above(here):
    (here.parent / "scratch").mkdir()
    binds = bound(here.parent / "scratch/me/results", here=here)
    touch(here.parent / "scratch/me/results/x")
    assert inside(here.parent / "scratch/me/results/x", binds, here) == here.parent / "scratch/me/results/x"


def test_what_cannot_be_bound(here):
    nowhere = "/peft-that-is-nowhere/results"
    for path, words in {
        nowhere: f"{nowhere}: can't be shown to the container, as it does not exist: create the directory",
        f"/opt{nowhere}": "as it does not exist: create the directory",  # all of /opt would hide the image's
        link(here / "results", "/peft-gone"): "results: is a link to /peft-gone, which is not there",
        link(here / "loop", "loop"): "loop: is a link to loop, which is not there",
        touch(here.parent / "a,b/x").parent: "a,b: can't be shown to the container, as",
        touch(here.parent / "a:b/x").parent: "contains ':': rename the directory",
        touch(here.parent / "it's/x").parent: 'contains "\'": rename the directory',
        link(here.parent / "innocent", here.parent / "a,b"): "contains ',': rename the directory",
    }.items():
        with pytest.raises(Problem) as problem:
            container.binds([path], here)
        assert words in str(problem.value)


def settings_with(arguments="--nv"):
    return SimpleNamespace(deployment_method={DeploymentMethod.APPTAINER}, apptainer_args=arguments)


def place(pattern):
    return pattern.strip("<>")


def test_snapshots_of_the_hubs_cache_and_no_option_twice(here):
    touch(here.parent / "hub/blobs/abc")
    link(here.parent / "hub/snapshots/1/model.safetensors", "../../blobs/abc")
    link(here / "resources/hf/local/model.safetensors", here.parent / "hub/blobs/abc")
    models = {"local": {"snapshot": str(here.parent / "hub/snapshots/1")}, "other": {"snapshot": "/nowhere"}}
    config, settings = {"image": "nemo_25.02.sif", "models": models}, settings_with()
    (here.parent / "clone").mkdir()
    container.bind(settings, config, here.parent / "clone", place)
    first = settings.apptainer_args
    assert first.startswith("--nv --bind ") and f"'{here.parent}/hub/blobs:{here.parent}/hub/blobs'" in first
    container.bind(settings, config, here.parent / "clone", place)  # as in a job, which has its Snakemake's options
    assert settings.apptainer_args == first


def test_links_deep_in_results(here):
    """As of a seed's trainings that were moved to another disk."""
    touch(here.parent / "disk7/training/abc/state")
    link(here / "results/runs/lora/fold0/seed0/training", here.parent / "disk7/training")
    link(here / "results/runs/old", "/peft-gone")  # nothing that a job of now must have
    settings = settings_with("")
    container.bind(settings, {"image": "nemo_25.02.sif", "models": {}}, here, place)
    assert settings.apptainer_args == f"--bind '{here.parent}/disk7/training:{here.parent}/disk7/training'"


def test_image_whose_name_the_shell_would_take_apart(here):
    with pytest.raises(Problem, match=r"my image\.sif: the image's path contains a space"):
        container.bind(settings_with(), {"image": "my image.sif", "models": {}}, here, place)


def test_nothing_is_bound_without_apptainer(here):
    settings = SimpleNamespace(deployment_method=set(), apptainer_args="")
    container.bind(settings, {"image": "my image.sif", "models": {}}, "/a:b", place)
    assert settings.apptainer_args == ""

"""The profiles fit together."""

from pathlib import Path

import yaml

PROFILES = Path(__file__).parents[2] / "profiles"


def profile(name):
    return yaml.safe_load((PROFILES / name / "config.yaml").read_text())


def test_default_profile_leaves_the_others_alone():
    """Its keys would win over theirs."""
    for name in "nig-slurm", "slurm-generic":
        assert not profile("default").keys() & profile(name).keys()


def test_only_names_of_the_site_differ():
    text = (PROFILES / "slurm-generic/config.yaml").read_text()
    for name in "YOUR_CPU_PARTITION", "YOUR_GPU_PARTITION", "YOUR_ACCOUNT":
        assert text.count(name) == 1
        text = text.replace(name, "l40s")
    assert yaml.safe_load(text) == profile("nig-slurm")

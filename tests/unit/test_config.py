"""Our own configurations pass the schema, and the schema's keys are documented."""

from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config, validate

ROOT = Path(__file__).parents[2]
SCHEMA = str(ROOT / "workflow/schemas/config.schema.yaml")


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


def test_the_tutorials_run_is_the_tutorial(config):
    validate(config, SCHEMA)
    run = config["runs"]["tutorial"]
    assert run["devices"] == run["tensor_model_parallel_size"] == 4
    assert run["precision"] == "bf16" and run["megatron_amp_O2"] is True and run["folds"] == run["seeds"] == [0]
    assert run["train"] == {
        "micro_batch_size": 1,
        "global_batch_size": 32,
        "max_steps": 50,
        "val_check_interval": 20,
        "lr": 1e-4,
        "warmup_steps": 50,
        "target_modules": ["attention_qkv"],
        "adapter_dim": 32,
        "adapter_dropout": 0.0,
        "nemo": [],
    }
    assert "train" not in config["runs"]["base"]
    assert config["runs"]["base"]["predict"] == {"batch_size": 64, "tokens_to_generate": 20}


def test_demo_passes(config):
    update_config(config, yaml.safe_load((ROOT / "config/demo.yaml").read_text()))
    validate(config, SCHEMA)
    assert config["targets"] == ["base", "lora"]


def documented(schema):
    for key, value in schema.get("properties", {}).items():
        yield key
        yield from documented(value)
    for definition in schema.get("$defs", {}).values():
        yield from documented(definition)


def test_readme_names_every_key():
    readme = (ROOT / "config/README.md").read_text()
    for key in documented(yaml.safe_load(Path(SCHEMA).read_text())):
        assert f"`{key}`" in readme, f"config/README.md does not describe `{key}`"


def test_conda_environment_has_the_same_versions():
    pinned = (ROOT / "envs/requirements.txt").read_text().splitlines()
    dependencies = yaml.safe_load((ROOT / "envs/host.yaml").read_text())["dependencies"]
    assert set(dependencies[-1]["pip"]) <= set(pinned)

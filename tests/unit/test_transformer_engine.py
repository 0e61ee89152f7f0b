"""TransformerEngine and apex where they are installed: left out unless asked for."""

import subprocess
import sys

import pytest
import yaml
from helpers import SCRIPTS, environment
from nemo_image.loading import load_config, needs_te

INSTALLED = "raise SystemExit(f'{__name__} is imported')\n"
SETTINGS = dict.fromkeys(yaml.safe_load((SCRIPTS / "train_lora.yaml").read_text())["settings"], 1)


@pytest.fixture
def python(tmp_path):
    """Runs code that finds both, and further packages, before the environment's own."""

    def run(code, *packages):
        for package in ("transformer_engine", "apex", *packages):
            file = tmp_path.joinpath(*package.split("."), "__init__.py")
            file.parent.mkdir(parents=True)
            file.write_text("" if package in packages else INSTALLED)
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom nemo_image import setup\n{code}"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())

    return run


def test_nothing_imports_them(python):
    done = python("setup.prepare_nemo('cpu')\nimport importlib.util as u\nassert u.find_spec('apex') is None")
    assert done.returncode == 0, done.stderr


def test_asked_for(python):
    both = "{'transformer_engine', 'apex'}"
    done = python(f"assert setup.parts_to_supply(False) == {both} and setup.parts_to_supply(True) == set()")
    assert done.returncode == 0, done.stderr


def test_megatron_core_that_needs_them(python):
    done = python("assert setup.parts_to_supply(False) == set()", "megatron", "megatron.core")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "override, key",
    [
        ("transformer_engine=true", "transformer_engine"),
        ("+model.fp8=true", "model.fp8"),
        ("+model.apply_rope_fusion=true", "model.apply_rope_fusion"),
    ],
)
def test_asked_for_where_there_is_none(override, key, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    for accelerator in "gpu", "cpu":
        settings = SETTINGS | {"accelerator": accelerator, "nemo": [override]}
        with pytest.raises(SystemExit) as ended:
            needs_te(load_config("train_lora.yaml", settings))
        assert ended.value.code.startswith(f"nemo: {key} needs a GPU and TransformerEngine")


def test_by_default():
    assert not needs_te(load_config("train_lora.yaml", SETTINGS))

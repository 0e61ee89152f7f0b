"""Of what a step's code consists, worked out from its imports, and its checksum."""

import hashlib
import os
import re
import subprocess
import sys

import pytest
from common import code
from helpers import ROOT, SCRIPTS, environment

STEPS = sorted(file.stem for file in SCRIPTS.glob("*.py"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A step with every form of import, a YAML file and a template."""
    monkeypatch.setattr(code, "SCRIPTS", tmp_path / "scripts")
    for file, text in {
        "scripts/step.py": 'import package.plain\nfrom package import member\nfrom other import name\nX = "a.yaml"\n',
        "scripts/package/plain.py": "def function():\n    from package import late\n",
        "scripts/package/member.py": 'X = "../../report/b.j2"\nY = "missing.yaml"\nZ = "see c.yaml"\n',
        "scripts/package/late.py": "import step\nfrom .beside import name\nfrom . import too\n",  # round and round
        "scripts/package/beside.py": "name = 1\n",
        "scripts/package/too.py": "from ..up import name\n",
        "scripts/package/__init__.py": "",
        "scripts/up.py": "name = 1\n",
        "scripts/package/unused.py": "",
        "scripts/other.py": "name = 1\n",
        "scripts/a.yaml": "a: 1\n",
        "scripts/c.yaml": "c: 1\n",
        "report/b.j2": "{{ b }}\n",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    return tmp_path


def test_sources(project):
    found = {file.relative_to(project).as_posix() for file in code.sources(project / "scripts/step.py")}
    modules = {"step.py", "other.py", "up.py"}
    modules |= {f"package/{name}.py" for name in ("__init__", "plain", "member", "late", "beside", "too")}
    assert found == {f"scripts/{module}" for module in modules} | {"scripts/a.yaml", "report/b.j2"}


def test_digest_is_of_contents(project, tmp_path, monkeypatch):
    def digest():
        code.digest.cache_clear()  # it is worked out once a call
        return code.digest(code.SCRIPTS / "step.py")

    one = digest()
    for file in project.rglob("*.*"):
        os.utime(file, (1, 1))
    assert digest() == one
    for file in code.sources(project / "scripts/step.py"):
        before = file.read_text()
        file.write_text(f"{before}\n")
        assert digest() != one, file
        file.write_text(before)
    (project / "scripts/package/unused.py").write_text("edited = True\n")
    assert digest() == one
    (project / "scripts").rename(project / "moved")
    (project / "scripts").mkdir()
    (project / "moved").rename(project / "scripts/moved")
    (project / "report").rename(project / "scripts/report")
    monkeypatch.setattr(code, "SCRIPTS", project / "scripts/moved")
    assert digest() == one


def test_packages_of_others_are_not_taken(tmp_path):
    """Of a package's name that stands on PYTHONPATH, too, Python takes one with __init__.py, wherever that is."""
    names = {package.name for package in SCRIPTS.iterdir() if package.is_dir()} - {"__pycache__"}
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('of others')")
    code = f"import sys; sys.path[0] = sys.argv[1]; import {', '.join(sorted(names))}"
    done = subprocess.run([sys.executable, "-c", code, SCRIPTS], env=environment(PYTHONPATH=str(tmp_path)))
    assert done.returncode == 0 and {"common", "nemo_image"} <= names


# Says of each step, imported in a process of its own, which files are loaded then. What many import is imported once.
LOADED = """
import importlib, os, sys
import pandas, torch
for step in sys.argv[1:]:
    if not (child := os.fork()):
        importlib.import_module(step)
        files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
        os.write(1, "\\0".join([step, *files]).encode() + b"\\n")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, step
"""


def test_no_module_is_missed():
    """What Python really loads of the project when it imports a step."""
    command = [sys.executable, "-c", LOADED, *STEPS]
    said = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True).stdout
    found = {step: files for step, *files in (line.split("\0") for line in said.splitlines())}
    assert list(found) == STEPS
    for step, files in found.items():
        loaded = {file for file in files if file.startswith(str(SCRIPTS))}
        assert loaded and loaded <= set(map(str, code.sources(SCRIPTS / f"{step}.py"))), step


def test_each_rule_has_its_own_script_and_code():
    rules = {}
    for file in (ROOT / "workflow/rules").glob("*.smk"):
        for name, body in re.findall(r"^rule (\w+):\n((?:(?:    .*)?\n)*)", file.read_text(), re.MULTILINE):
            rules[name] = body
    assert "shell:" not in rules.pop("export")  # it only asks for others
    assert sorted(rules) == [step for step in STEPS if step != "deal_gpus"]
    for name, body in rules.items():
        assert f'script=script("{name}"),\n        code=code("{name}"),\n' in body, name


def test_command_of_training_stays():
    """Snakemake plans all trainings again where a rule's command has changed, even by a flag that few jobs have: those
    go through planning.forced.flags_of_training."""
    command = (ROOT / "workflow/rules/train.smk").read_text().split("    shell:\n")[1]
    assert hashlib.sha256(command.encode()).hexdigest()[:16] == "7d2aad7f8f5bf8c7"

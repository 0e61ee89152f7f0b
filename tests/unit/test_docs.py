"""What the documentation says of files, messages, keys and set-up is true."""

import os
import re
import subprocess

import yaml
from helpers import ROOT, run_script

from docs import pages

TEXTS = [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]
MAP = re.search(r"^```\n(workflow/\n.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE)[1]


def test_pictures_in_the_documentation_are_current():
    """docs/rulegraph.svg and docs/dag.svg; `make docs` draws them."""
    done = run_script("../../docs/draw.py", "--check", check=False)
    assert done.returncode == 0, done.stderr


def paths_of_map():
    """Its paths, which are indented below their directories; of these the last character is a slash."""
    above = []
    for indent, name in re.findall(r"^( *)(\S+)", MAP, re.MULTILINE):
        above = [*above[: len(indent) // 2], name]
        yield "".join(above)


def test_map_names_each_room_and_module():
    found = [path for path in (ROOT / "workflow").rglob("*") if "__pycache__" not in path.parts]
    names = {f"{path.relative_to(ROOT)}{'/' * (path.is_dir() and not path.is_symlink())}" for path in found}
    assert names == {path for path in paths_of_map() if path.startswith("workflow/")} - {"workflow/"}


def test_what_the_map_names_is_there():
    for path in paths_of_map():
        assert (ROOT / path).exists(), f"CONTRIBUTING.md's map names {path}, which is not there"


def test_map_names_the_rules_of_each_stage():
    for file in (ROOT / "workflow/rules").glob("*.smk"):
        if rules := re.findall(r"^rule (\w+):", file.read_text(), re.MULTILINE):
            assert re.search(rf"^ +{file.name} +{', '.join(rules)}$", MAP, re.MULTILINE), file


def test_each_rule_has_a_script_of_its_name_and_a_docstring():
    rules = {}
    for file in (ROOT / "workflow/rules").glob("*.smk"):
        rules |= dict(re.findall(r'^rule (\w+):\n(    """.+"""\n)?', file.read_text(), re.MULTILINE))
    scripts = {file.stem for file in (ROOT / "workflow/scripts").glob("*.py")}
    assert rules.keys() == scripts | {"export"} and all(rules.values())  # which only asks for others


def test_files_that_are_named_are_there():
    files = r"(?<![\w/{}.])((?:workflow|tests|config|docs|benchmarks|profiles|envs)/[\w/.-]*\w)"
    for text in TEXTS:
        for path in re.findall(files, text.read_text()):
            assert (ROOT / path).exists(), f"{text.relative_to(ROOT)} names {path}, which is not there"
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", text.read_text()):
            assert (text.parent / link).exists(), f"{text.relative_to(ROOT)} links to {link}, which is not there"


def test_pull_commands_fetch_the_image_of_the_configuration():
    image = yaml.safe_load((ROOT / "config/config.yaml").read_text())["image"]
    pull = f"apptainer pull {image} docker://nvcr.io/nvidia/nemo:{re.search(r'[0-9.]+(?=.sif)', image)[0]}\n"
    for text in ("README.md", "README.ja.md", "docs/clusters.md", "docs/nig.md", "docs/nig.ja.md"):
        assert pull in (ROOT / text).read_text(), text


def test_page_of_all_keys_has_the_schemas():
    schema = yaml.safe_load(pages.SCHEMA.read_text())
    page = pages.all_keys(schema)
    sections = [schema, *(part for part in schema["$defs"].values() if "properties" in part)]
    assert page.count("\n## ") == len(sections)
    for section in sections:
        assert all(f"| `{key}` | " in page for key in section["properties"])
    assert "| `lr` | `number`, > 0, ≤ 1 | required | " in page
    assert "| `folds` | list of `integer`, ≥ 0, ≤ 9 or `string` | `[0]` | " in page


def test_examples_are_those_that_are_tested():
    """test_own_data.py plans that of config/README.md, test_readme.py that of README.md."""
    for page, tested, words in (
        ("docs/own-data.md", "config/README.md", "items: notes.csv"),
        ("docs/workstation.md", "README.md", "devices: 1}}"),
    ):
        found = re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        (example,) = (text for text in found if words in text)
        assert (
            example in re.sub("^  ", "", (ROOT / tested).read_text(), flags=re.MULTILINE) + (ROOT / tested).read_text()
        )


def test_messages_in_troubleshooting_are_the_workflows():
    """Each message there, in its parts around …, is in the code; others are Snakemake's and torch's."""
    others = {"Directory cannot be locked", "CUDA out of memory", "Config file is not valid JSON or YAML"}
    others |= {"Config entries have to be defined as name=value pairs"}
    others |= {f"No such file or directory: '{target}'" for target in ("all", "export")}
    code = [ROOT / "Makefile", *(ROOT / "workflow").rglob("*.py"), *(ROOT / "workflow").rglob("*.smk")]
    words = " ".join(file.read_text() for file in code)
    for row in re.findall(r"^\| (`.*?) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE):
        for message in set(re.findall("`(.*?)`", row)) - others - {"malformed"}:
            assert all(part in words for part in message.split("…")), message


def make(directory, *arguments):
    command = ["make", "-f", ROOT / "Makefile", *arguments]
    of_make = "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "TORCH"
    env = {name: value for name, value in os.environ.items() if name not in of_make}
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, env=env)


def test_set_up_looks_at_python_first(tmp_path):
    """Another Python is named in a sentence, and nothing is made or fetched; once set up, nothing is done."""
    (tmp_path / "envs").mkdir()
    for name in "requirements.txt", "nemo.txt":
        (tmp_path / "envs" / name).touch()
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\ncase $1 in --version) echo Python 3.13.0;; *) exit 1;; esac\n")
    python.chmod(0o755)
    done = make(tmp_path, "install", f"PYTHON={python}")
    told = f"Python 3.11 is needed, and {python} is Python 3.13.0. Install it, or name it: "
    assert done.returncode == 2 and done.stdout == f"{told}make install PYTHON=/path/to/python3.11\n"
    done = make(tmp_path, "install", "TORCH=rocm")
    assert done.returncode == 2 and done.stdout == "TORCH=rocm is neither cpu nor cuda\n"
    assert not (tmp_path / ".venv").exists()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/installed").write_text("cpu\n")
    for choice in [], ["TORCH=cpu"]:
        done = make(tmp_path, "install", f"PYTHON={python}", *choice)
        assert done.stdout == "make: Nothing to be done for 'install'.\n"
    done = make(tmp_path, "install", f"PYTHON={python}", "TORCH=cuda")
    assert done.returncode == 2 and done.stdout == f"{told}make install PYTHON=/path/to/python3.11\n"
    (tmp_path / ".venv/installed").write_text("cuda\n")
    os.utime(tmp_path / ".venv/installed", (1, 1))  # new pins: set up anew, with the same torch
    plan = make(tmp_path, "--dry-run", "install").stdout
    assert "\necho cuda > .venv/installed\n" in plan and "with PyTorch for cuda: " in plan

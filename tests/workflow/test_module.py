"""The workflow as a module of another one: what the caller gets, and what is left alone."""

import ast
import contextlib
import functools
import http.server
import json
import re
import shutil
import subprocess
import textwrap
import threading

import pytest
import yaml
from helpers import ROOT, copy_workflow, environment

SNAKEFILE = ROOT / "workflow/Snakefile"
RUN = {"model": "tiny", "dataset": "trials", "devices": 1, "tensor_model_parallel_size": 1, "precision": 32}
RUN |= {"megatron_amp_O2": False, "predict": {"batch_size": 8, "tokens_to_generate": 3}}
TRAIN = {"micro_batch_size": 2, "global_batch_size": 2, "max_steps": 2, "val_check_interval": 2, "warmup_steps": 1}
CONFIG = {
    "targets": ["lora"],
    "accelerator": "cpu",
    "models": {"tiny": {"snapshot": "tiny"}},
    "datasets": {"trials": {"simulate": 0, "sample": 24}},
    "runs": {"lora": RUN | {"train": TRAIN | {"lr": 0.001, "target_modules": ["attention_qkv"]}}},
}
RULES = {"download_model", "convert_model", "simulate_trials", "split_folds", "write_jsonl", "train_lora", "predict"}
RULES |= {"evaluate", "compare_runs", "write_report", "all"}
TEST = "results/data/trials/final_decision/test.jsonl"


def module(name="peft", config="CONFIG", snakefile=SNAKEFILE, rest=""):
    """The statement of a module; rest: its further lines."""
    snakefile = repr(str(snakefile)) if isinstance(snakefile, type(ROOT)) else snakefile
    lines = [f"module {name}:", f"    snakefile: {snakefile}", *([f"    config: {config}"] if config else [])]
    return "\n".join([*lines, *([f"    {rest}"] if rest else [])]) + "\n\n"


@pytest.fixture
def call(tmp_path):
    """call(Snakefile's text, *arguments) runs Snakemake on it, in which CONFIG is given."""

    def run(text, *arguments, rc=0, **variables):
        (tmp_path / "Snakefile").write_text(f"CONFIG = {CONFIG!r}\n\n{text}")
        command = ["snakemake", *map(str, arguments)]
        options = {"cwd": tmp_path, "capture_output": True, "text": True, "env": environment(**variables)}
        done = subprocess.run(command, **options)
        assert done.returncode == rc, done.stdout + done.stderr
        return done

    return run


def planned(done):
    return set(re.findall(r"^(\w+) +\d+$", done.stdout, re.M)) - {"total"}


def refusal(done):
    """What the user sees after Snakemake's own heading: one sentence of ours."""
    _, *said = (done.stderr + done.stdout).partition("Refusal:\n")[1:]
    assert len(said[0].splitlines()) == 1, done.stdout + done.stderr
    return said[0].strip()


@pytest.mark.parametrize(
    ("rest", "names", "rule", "path"),
    [
        ("", "", "{}", "results"),
        ('prefix: "deep/er"', " as peft_*", "peft_{}", "deep/er/results"),
        ('pathvars: results="elsewhere"', " as peft_*", "peft_{}", "elsewhere"),
    ],
)
def test_with_and_without_prefix(call, rest, names, rule, path):
    done = call(module(rest=rest) + f"use rule * from peft{names}", "--dry-run")
    assert planned(done) == {rule.format(name) for name in RULES}
    assert f"input: {path}/accuracy.tsv, {path}/report.html" in done.stdout
    assert f"output: {path}/runs/lora/fold0/seed0/adapter.nemo" in done.stdout


@pytest.mark.parametrize("snakefile", [SNAKEFILE, ROOT / "Snakefile"])
def test_callers_default_target_stays(call, snakefile):
    mine = 'rule mine:\n    output: "mine.txt"\n    shell: "touch {output}"\n\n'
    assert planned(call(f"{mine}{module(snakefile=snakefile)}use rule * from peft as peft_*", "-n")) == {"mine"}


def test_table_is_the_target_of_a_caller_that_has_none(call):
    done = call(module(snakefile=ROOT / "Snakefile") + "use rule * from peft as peft_*", "--dry-run")
    assert planned(done) == {f"peft_{name}" for name in RULES}


def test_one_rule_alone(call, tmp_path):
    """With a profile for SLURM that knows nothing of the other rules, too."""
    caller = module(config="CONFIG | {'accelerator': 'gpu'}") + "use rule split_folds from peft"
    inputs = "resources/data/trials/ori_pqal.json", "resources/data/trials/test_ground_truth.json"
    for file in inputs:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    slurm = "--executor", "slurm", "--default-resources", "slurm_partition=cpu", "--jobs", 1
    done = call(caller, "results/data/trials/items/test.json", "--dry-run", *slurm)
    assert planned(done) == {"split_folds"} and "train_lora" not in done.stdout


def test_rule_used_with_settings_of_the_caller(call):
    caller = module() + "use rule * from peft as peft_*\n\nuse rule train_lora from peft as peft_train_lora with:\n"
    done = call(f"{caller}    threads: 3", "--dry-run", "--cores", 4, "peft_all")
    assert re.search(r"rule peft_train_lora:\n(?:    .*\n)*    threads: 3\n", done.stdout)
    assert planned(done) == {f"peft_{name}" for name in RULES}


def test_two_clones(call, tmp_path):
    """Each with its own scripts and its own Python."""
    for name in ("first", "second"):
        copy_workflow(tmp_path / name)
    parameters = tmp_path / "second/workflow/planning/parameters.py"
    parameters.write_text(parameters.read_text().replace("WORKFLOW_COMMIT=", "CLONE=second WORKFLOW_COMMIT="))
    use = "use rule * from {0} as {0}_*\n\n"
    clones = [
        module(name, snakefile=tmp_path / name / "workflow/Snakefile", rest=f'prefix: "{name}-results"')
        + use.format(name)
        for name in ("first", "second")
    ]
    done = call("".join(clones), "first_all", "second_all", "--dry-run", "--printshellcmds")
    assert planned(done) == {f"{name}_{rule}" for name in ("first", "second") for rule in RULES}
    for name, other in ("first", "second"), ("second", "first"):
        commands = [line for line in done.stdout.splitlines() if f"{tmp_path}/{name}/workflow/scripts" in line]
        assert len(commands) == len(RULES) + 2 - 1 and not any(f"{other}-results" in line for line in commands)
        assert any("CLONE=second" in line for line in commands) == (name == "second")


def test_run_beside_another_configuration(call, tmp_path, tiny_mistral):
    """A real chain of the one, the data of the other, which differ in their sample; without onstart."""
    shutil.copytree(tiny_mistral, tmp_path / "tiny")
    caller = """
    import copy, json
    OTHER = copy.deepcopy(CONFIG)
    OTHER["datasets"]["trials"] = {"simulate": 1, "sample": 30}
    BEFORE = copy.deepcopy([CONFIG, OTHER])
    """
    caller = textwrap.dedent(caller)
    for name, config in ("one", "CONFIG"), ("two", "OTHER"):
        caller += module(name, config, rest=f'prefix: "{name}"') + f"use rule * from {name} as {name}_*\n\n"
    caller += 'assert BEFORE == [CONFIG, OTHER], "the module changes what it is given"\n'
    targets = "one_all", f"two/{TEST}"
    call(caller, *targets, "--cores", 2)
    assert len((tmp_path / "one" / TEST).read_text().splitlines()) == 24
    assert len((tmp_path / "two" / TEST).read_text().splitlines()) == 30
    assert (tmp_path / "one/results/accuracy.tsv").read_text().splitlines()[-1].startswith("lora\t")
    assert (tmp_path / "one/results/report.html").stat().st_size > 10_000
    (step,) = {"train_lora"} & json.loads(
        (tmp_path / "one/results/runs/lora/fold0/seed0/provenance.json").read_text()
    ).keys()
    assert step and {file.name for file in tmp_path.iterdir()} == {"Snakefile", ".snakemake", "one", "two", "tiny"}
    again = call(caller, *targets, "--dry-run")
    assert "Nothing to be done" in again.stdout + again.stderr
    forced = call(caller, *targets, "two_all", "--dry-run", "-p", "--forcerun", "one_train_lora").stdout
    commands = re.findall(r".*train_lora.py.*", forced)
    assert len(commands) == 2
    for command in commands:  # the other trains, too, but nobody forces it
        assert ("--anew" in command) == ("--output one/" in command)


def parts_in_braces(text):
    """{what} of a shell command, with only the name before a dot, an index or a colon."""
    return set(re.findall(r"(?<!\{)\{(\w+)[^{}]*\}(?!\})", text))


def test_no_global_name_in_a_shell_command():
    """They would be looked up in the caller's Snakefile."""
    known = {"input", "output", "log", "params", "wildcards", "threads", "resources"}
    commands = {}
    for file in (ROOT / "workflow/rules").glob("*.smk"):
        rules = re.findall(r"^rule (\w+):\n(.*?)(?=^(?:use )?rule|\Z)", file.read_text(), re.M | re.S)
        for rule, text in rules:
            if shell := text.partition("\n    shell:\n")[2]:
                commands[rule] = ast.literal_eval(f"({shell})")
    assert commands.keys() == RULES - {"all"} | {
        "download_pubmedqa",
        "read_items",
        "read_questions",
        "write_answers",
        "split_items",
        "dequantize_gguf",
        "extract_chat_template",
        "pack_model",
        "verify_model",
        "export_adapter",
        "choose_run",
        "import_adapter",
        "merge_model",
        "write_model_card",
        "verify_export",
    }
    assert {part for command in commands.values() for part in parts_in_braces(command)} <= known


def test_no_state_that_two_modules_would_share():
    """Python below workflow/ is imported once a clone: at the top of it stand no values that can change."""
    constant = (ast.Constant, ast.Tuple, ast.Attribute, ast.Subscript, ast.Call)
    for file in [*(ROOT / "workflow/planning").glob("*.py"), ROOT / "workflow/scripts/common/code.py"]:
        tree = ast.parse(file.read_text())
        assert not any(isinstance(node, ast.Global | ast.Nonlocal) for node in ast.walk(tree)), file
        for node in tree.body:
            assert not isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For | ast.While | ast.With), file
            assert not isinstance(node, ast.Assign) or isinstance(node.value, constant), (file, ast.unparse(node))


def test_nothing_of_the_process_is_touched(call):
    """Environment, garbage collection, exit functions, signals, arguments, working directory, configuration."""
    state = """
    import atexit, copy, gc, json, os, signal, sys

    def state():
        signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
        standard = sys.stdout, sys.stderr, sys.excepthook, os.getcwd()
        garbage = gc.get_threshold(), gc.isenabled(), gc.get_freeze_count()
        return dict(os.environ), garbage, atexit._ncallbacks(), signals, list(sys.argv), standard, copy.deepcopy(CONFIG)

    before = state()

    """
    text = textwrap.dedent(state) + module() + "use rule * from peft as peft_*\n\n"
    text += "for one, other in zip(before, state(), strict=True):\n    assert one == other, (one, other)\n\n"
    text += 'assert os.environ["HF_TOKEN"] == "secret"\n\n'
    mine = "results/runs/nobodys/fold77/mine.txt"  # a target that the workflow itself would refuse
    text += f'rule mine:\n    output: "{mine}"\n    shell: "touch {{output}}"\n'
    assert planned(call(text, mine, "--dry-run", HF_TOKEN="secret")) == {"mine"}


def test_onstart_and_onerror_of_the_caller(call, tmp_path):
    text = module(config='CONFIG | {"image": "gone_1.0.sif"}') + "use rule * from peft as peft_*\n\n"
    onstart, onerror = "onstart:\n    peft.onstart()\n\n", "onerror:\n    peft.onerror()\n\n"
    said = refusal(call(text + onstart, "--cores", 1, rc=1))
    assert said.startswith("config of module peft: image: gone_1.0.sif is only used with --sdm apptainer")
    assert not (tmp_path / "results").exists()
    target = "resources/hf/tiny/manifest.json"
    told = "peft_download_model (model=tiny): failed. See logs/download_model/tiny.log."
    assert told in call(text + onerror, target, "--cores", 1, rc=1).stderr
    assert told not in call(text, target, "--cores", 1, rc=1).stderr


def test_image_without_apptainer_is_refused_in_the_job_too(call, tmp_path):
    """Without onstart."""
    files = "resources/hf/tiny/manifest.json", "results/base/tiny/model_config.yaml", TEST
    for file in (*files, "results/runs/lora/fold0/seed0/adapter.nemo"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    text = module(config='CONFIG | {"image": "gone_1.0.sif"}') + "use rule predict from peft as peft_*\n"
    done = call(text, "results/runs/lora/fold0/seed0/predictions.jsonl", "--cores", 1, rc=1)
    assert "image: gone_1.0.sif is only used with --sdm apptainer" in done.stderr.splitlines()


REFUSED = {
    None: "module peft: has no `config:`, without which it would read yours. Give it one: `config: config`",
    "config": "config of module peft: targets is missing: The runs to build and compare.",
    'CONFIG | {"target": 1}': "config of module peft: target: no such key; is it targets?",
    'CONFIG | {"targets": ["lra"]}': "config of module peft: targets: lra is not among runs: lora",
}


@pytest.mark.parametrize("config", REFUSED)
def test_refusal(call, tmp_path, config):
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(CONFIG))  # the caller's, and not asked for
    done = call(module(config=config) + "use rule * from peft as peft_*", "--dry-run", rc=1)
    assert refusal(done) == REFUSED[config]


def test_refusal_names_the_callers_file(call, tmp_path):
    (tmp_path / "mine.yaml").write_text("runs: {lora: {train: {lr: 1e-4}}}")
    (tmp_path / "other.yaml").write_text(
        yaml.safe_dump({key: CONFIG[key] for key in ("targets", "models", "datasets")})
    )
    text = module(config="config") + "use rule * from peft as peft_*"
    done = call(text, "--dry-run", "--configfile", "mine.yaml", "other.yaml", rc=1)
    assert refusal(done) == "mine.yaml: runs.lora: model is missing: A name under models."


def test_profile_that_names_other_rules(call):
    text = module(config='CONFIG | {"accelerator": "gpu"}') + "use rule * from peft as peft_*"
    done = call(text, "--dry-run", "--profile", ROOT / "profiles/nig-slurm", rc=1)
    assert refusal(done).startswith("the profile: peft_train_lora would get no GPU")
    assert refusal(done).endswith("set-resources has train_lora: it needs peft_train_lora")


AFAR = "a Snakefile from afar comes without the workflow's scripts. Clone the repository, and name workflow/Snakefile"


@contextlib.contextmanager
def server(directory):
    """The address of a server of the directory's files."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("localhost", 0), functools.partial(Handler, directory=directory)) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://localhost:{serving.server_port}"
        serving.shutdown()


def test_hosted_declaration(call, tmp_path):
    """github(…) is fetched from here by git's own means; a URL from a server on this machine."""
    clone = tmp_path / "peft-mistral-7b"
    clone.mkdir()
    copy_workflow(clone)
    commit = "git init -q -b main && git add . && git -c user.name=me -c user.email=me@localhost commit -q -m all"
    subprocess.run(commit, shell=True, check=True, cwd=clone)
    git = {
        f"GIT_CONFIG_{key}_{n}": value
        for n, host in enumerate(("github", "gitlab"))
        for key, value in (("KEY", f"url.{tmp_path}/.insteadOf"), ("VALUE", f"https://{host}.com/owner/"))
    }
    git |= {"GIT_CONFIG_COUNT": "2", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with server(clone) as address:
        for snakefile in (
            'github("owner/peft-mistral-7b", path="workflow/Snakefile", branch="main")',
            'gitlab("owner/peft-mistral-7b", path="workflow/Snakefile", branch="main")',
            f'"{address}/workflow/Snakefile"',
        ):
            done = call(module(snakefile=snakefile) + "use rule * from peft", "--dry-run", rc=1, **git)
            assert AFAR in refusal(done)
        done = call("", "--dry-run", "--snakefile", f"{address}/Snakefile", rc=1)
        assert AFAR in done.stderr.splitlines()[-1]


def test_snakedeploys_declaration(call, tmp_path, apptainer):
    """As snakedeploy 0.17.1 writes it, with the clone's path for the file named at `snakefile:`."""
    declaration = f"""
from snakemake.utils import min_version


min_version("6.10.0")


configfile: "config/config.yaml"


# declare https://github.com/owner/peft-mistral-7b as a module
module peft_mistral_7b:
    snakefile:
        "{SNAKEFILE}"
    config:
        config


# use all rules from https://github.com/owner/peft-mistral-7b
use rule * from peft_mistral_7b
"""
    for name in ("config", "profiles"):  # which it copies, as they are
        shutil.copytree(ROOT / name, tmp_path / name)
    done = call(declaration, "--dry-run")
    assert planned(done) == RULES - {"simulate_trials"} | {"download_pubmedqa"}
    assert planned(call(declaration, "--dry-run", "--profile", "profiles/nig-slurm")) == planned(done)


def test_example_in_the_documentation(call, tmp_path):
    text = (ROOT / "docs/module.md").read_text()
    (example,) = re.findall(r"```snakemake\n(.*?)```", text, re.S)
    path = "/home/me/peft-mistral-7b/workflow/Snakefile"
    assert path in example
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump({"mine": 1, "peft": CONFIG}))
    example = example.replace(path, str(SNAKEFILE))
    assert planned(call(example, "peft_all", "--dry-run")) == {f"peft_{rule}" for rule in RULES}
    told = "peft_download_model (model=tiny): failed. See peft/logs/download_model/tiny.log."
    assert told in call(example, "peft/resources/hf/tiny/manifest.json", "--cores", 1, rc=1).stderr

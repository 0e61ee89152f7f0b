"""A configuration that is wrong ends in one sentence that names file and key: mistakes that were seen, by kind."""

import pytest

from .conftest import is_sentence, plan

RUN = "{model: tiny, dataset: trials, devices: 1, tensor_model_parallel_size: 1"
OWN = "{model: tiny, dataset: own, devices: 1, tensor_model_parallel_size: 1}"
LONG = 300 * "x"
LOOP = 20 * "ab"  # Snakemake takes a name that repeats itself 20 times for a rule that calls itself

PATHVARS = {
    "pathvars: {result: x}": "pathvars.result: no such key; is it results?",
    "pathvars: {temp: x}": "pathvars.temp: no such key; there are results, resources, logs, benchmarks",
    "pathvars: {results: ''}": "pathvars.results: is empty: name a directory",
    "pathvars: {results: ./-x}": "pathvars.results: ./-x: begins with a dash, as an option does: name another",
    "pathvars: {logs: '  '}": "pathvars.logs: is empty: name a directory",
    "pathvars: {results: [a]}": ", line 1: pathvars: has no directory's name here, as in {results: mine}",
    "pathvars:\n  results: 5": ", line 2: pathvars: has no directory's name here",
    "pathvars: {results: null}": ", line 1: pathvars: has no directory's name here",
    "pathvars: [results]": ", line 1: pathvars: has no directory's name here",
    "pathvars: results": ", line 1: pathvars: has no directory's name here",
    "pathvars:": ", line 1: pathvars: has no directory's name here",
    "pathvars: {results: d.csv}": "pathvars.results: d.csv: d.csv is no directory",
    "pathvars: {resources: d.csv/x}": "pathvars.resources: d.csv/x: ",
    "pathvars: {logs: tiny/config.json/x/y}": "pathvars.logs: tiny/config.json/x/y: ",
    "pathvars: {results: 'a{b}c'}": "pathvars.results: 'a{b}c' holds '{' and '}'",
    "pathvars: {results: '{'}": "pathvars.results: '{' holds '{'",
    'pathvars: {results: "a\\nb"}': "pathvars.results: 'a\\nb' holds '\\n'",
    'pathvars: {results: "a\\0b"}': "pathvars.results: 'a\\x00b' holds '\\x00'",
    "pathvars: {results: 'a<b>c'}": "pathvars.results: a<b>c: there is no path variable b",
    "pathvars: {results: ~/x}": "pathvars.results: `~` stays as it is in a path: write /",
    "pathvars: {results: ~nobody-here/x}": "pathvars.results: `~nobody-here` stays as it is in a path: write the whole",
    "pathvars: {logs: $HOME/x}": "pathvars.logs: `$HOME` stays as it is in a path: write /",
    "pathvars: {logs: '${HOME}'}": "pathvars.logs: `${HOME}` stays as it is in a path: write /",
    "pathvars: {results: .}": "pathvars.results: .: is this directory itself: name one in it",
    "pathvars: {results: x/..}": "pathvars.results: x/..: is this directory itself: name one in it",
    "pathvars: {results: .snakemake/x}": "pathvars.results: .snakemake/x: .snakemake is Snakemake's own",
    f"pathvars: {{benchmarks: {LONG}}}": "pathvars.benchmarks: xxxx",
}
NAMES = {
    f"{section}: {{{name}: {entry}}}": f"{section}: "
    for section, entry in (("runs", RUN + "}"), ("models", "{snapshot: tiny}"), ("datasets", "{simulate: 1}"))
    for name in (
        "'.'",
        "'..'",
        "''",
        "' '",
        "a b",
        "a/b",
        "../a",
        "é",
        '"a\\n"',
        '"a\\nb"',
        "'{x}'",
        "'<x>'",
        "a;b",
        LONG,
        LOOP,
    )
}
VALUES = {
    "runs: {lora: {devices: 1.0}}": "runs.lora.devices: 1.0 is not of type 'integer'",
    "runs: {lora: {folds: [0.0]}}": "runs.lora.folds: 0.0 is not of type 'integer'",
    "datasets: {trials: {sample: 24.0}}": "datasets.trials.sample: 24.0 is not of type 'integer'",
    "runs: {lora: {train: {lr: .nan}}}": "runs.lora.train.lr: nan is not of type 'number'",
    "runs: {lora: {train: {lr: .inf}}}": "runs.lora.train.lr: inf is not of type 'number'",
    "runs: {lora: {train: {adapter_dropout: .nan}}}": "runs.lora.train.adapter_dropout: nan is not of type 'number'",
    "runs: {lora: {train: {adapter_dropout: -.inf}}}": "runs.lora.train.adapter_dropout: -inf is not of type 'number'",
    "runs: {lora: {seeds: [4294967296]}}": "runs.lora.seeds: 4294967296 is greater than the maximum",
    "runs: {lora: {seeds: [-1]}}": "runs.lora.seeds: -1 is less than the minimum",
    **{
        f"runs: {{lora: {{{key}: {number}}}}}": f"runs.lora.{key}: {number} is greater than the maximum of "
        for key, number in (("nodes", 10**6), ("devices", 10**6), ("tensor_model_parallel_size", 10**9))
    },
    **{
        f"runs: {{lora: {{{group}: {{{key}: {number}}}}}}}": f"runs.lora.{group}.{key}: {number} is greater than"
        for group, key, number in (
            ("train", "lr", 2),
            ("train", "max_steps", 10**20),
            ("train", "adapter_dim", 10**7),
            ("train", "adapter_alpha", 10**9),
            ("train", "global_batch_size", 10**23),
            ("train", "micro_batch_tokens", 10**23),
            ("predict", "batch_size", 10**23),
        )
    },
    "runs: {lora: {train: {lr: 1.0e+300}}}": "runs.lora.train.lr: 1e+300 is greater than the maximum of 1",
    "runs: {lora: {max_seq_length: 100000000000000000000}}": "runs.lora.max_seq_length: 100000000000000000000 is",
    "datasets: {trials: {sample: 10000000000}}": "datasets.trials.sample: 10000000000 is greater than the maximum",
    "runs: {lora: {train: {nemo: [transformer_engine=true]}}}": (
        "runs.lora.train.nemo: transformer_engine=true needs GPUs, but accelerator is cpu: remove it"
    ),
    "runs: {lora: {train: {nemo: [+model.fp8=True]}}}": "runs.lora.train.nemo: +model.fp8=True needs GPUs",
    "models: {tiny: {snapshot: null, gguf: yaml}}": (
        "models.tiny.gguf: yaml: an installed Python package without a *.gguf in it"
    ),
    "runs: {tutorial: {train: {adapter_dim: 3}}}": "runs.tutorial.train.adapter_dim: 3 is no multiple",
    "runs: {lora: {predict: {tokens_to_generate: 2047}}}": "runs.lora.predict.tokens_to_generate: 2047 leaves no room",
    "runs: {lora: {max_seq_length: 16, predict: {tokens_to_generate: 15}}}": "runs.lora.predict.tokens_to_generate: 15",
    "runs: {lora: {train: {nemo: [+=5]}}}": "runs.lora.train.nemo: +=5: write key=value",
    "runs: {lora: {train: {nemo: [settings.lr=1]}}}": "runs.lora.train.nemo: settings.lr stays as it is",
    "models: {tiny: {snapshot: nowhere}}": "models.tiny.snapshot: nowhere: no Hugging Face snapshot is there",
    "models: {tiny: {snapshot: '{tiny}'}}": "models.tiny.snapshot: {tiny}: no Hugging Face snapshot is there",
    "models: {tiny: {snapshot: d.csv}}": "models.tiny.snapshot: d.csv: no Hugging Face snapshot is there",
    **{
        f"models: {{tiny: {{snapshot: {snapshot}, gguf: {gguf}}}}}": f"models.tiny.{key}: {words}"
        for snapshot, gguf, key, words in (
            ("''", "null", "snapshot", "is empty: write a path"),
            ("~/tiny", "null", "snapshot", "`~` stays as it is in a path: write /"),
            ("$HOME/tiny", "null", "snapshot", "`$HOME` stays as it is in a path: write /"),
            (
                "https://huggingface.co/org/x",
                "null",
                "snapshot",
                "https://huggingface.co/org/x is an address: download",
            ),
            (LONG, "null", "snapshot", "xxxx"),
            ("null", "~/x.gguf", "gguf", "`~` stays as it is in a path: write /"),
            ("null", LONG, "gguf", "xxxx"),
        )
    },
    **{
        f"runs: {{base: {{adapter: {{{key}: {path}}}}}}}": f"runs.base.adapter.{key}: {words}"
        for key in ("directory", "nemo")
        for path, words in (("~/x", "`~` stays as it is"), ("hf://org/x", "hf://org/x is an address"), (LONG, "xxxx"))
    },
    "models: {tiny: {snapshot: null, gguf: nowhere.gguf}}": "models.tiny.gguf: nowhere.gguf: no such file",
    "models: {tiny: {snapshot: null, gguf: no_such_package}}": "models.tiny.gguf: no_such_package: no such file",
    "models: {tiny: {snapshot: null, gguf: d.csv}}": "models.tiny.gguf: d.csv: its name does not end in .gguf",
    "datasets: {trials: {simulate: null, directory: nowhere}}": "datasets.trials.directory: nowhere: holds neither",
    "datasets: {trials: {simulate: null, directory: d.csv}}": "datasets.trials.directory: d.csv: holds neither",
    f"datasets: {{own: {{test: nowhere.csv}}}}\ntargets: [x]\nruns: {{x: {OWN}}}": "datasets.own.test: there is no",
    "models: {tiny: {snapshot: null, repo: ../.., revision: " + 40 * "a" + "}}": None,  # the Hub's own to refuse
    "runs: null": "runs: None is not of type 'object'",
    "runs: {lora: null}": "runs.lora: None is not a run; are these lines indented under the name of one?",
    "targets: null": "targets: None is not of type 'array'",
    "targets: []": "targets: [] should be non-empty",
    "targets: [lora, lora]": "targets: ['lora', 'lora'] has non-unique elements",
    "targets: [[lora]]": "targets: ['lora'] is not of type 'string'",
    "image: []": "image: [] is not of type 'string', 'null'",
    "accelerator: null": "accelerator: None is not one of",
}
YAML = {
    b"a: 1\n\tb: 2\n": ", line 2: found a tab",
    b"a: 1\n  b: 2\n": ", line 2: mapping values are not allowed here",
    b"a: [1\n": ", line 2: expected ',' or ']'",
    b"a: *b\n": ", line 1: found undefined alias 'b'",
    b"a: &b [1, *b]\n": ", line 1: holds itself, by an alias",
    b"a: &b {c: *b}\n": ", line 1: holds itself, by an alias",
    b"a: " + b"[" * 3000 + b"]" * 3000: ": is nested too deeply",
    "a: 1\n".encode("utf-16"): ", line 1: is no text in UTF-8",
    "a: 1\nb: é\n".encode("latin-1"): ", line 2: is no text in UTF-8",
    b"a: 1\nb: \x01\n": ", line 2: holds the character 0x1",
    b"\x7fELF\x02\x01\x01\x00": ", line 1: holds the character",
    b"": ": has no keys at its top",
    b"# nothing\n": ": has no keys at its top",
    b"---\n...\n": ": has no keys at its top",
    b"- targets\n": ": has no keys at its top",
    b"targets\n": ": has no keys at its top",
    b"targets: [base]\ntargets: [lora]\n": ", line 2: targets stands here and in line 1",
    b"runs: {lora: {devices: 1, devices: 2}}\n": ", line 1: devices stands here and in line 1",
    b"1: a\n": ", line 1: the key 1 is no text",
    b"yes: a\n": ", line 1: the key yes is no text",
    b"2026-01-01: a\n": ", line 1: the key 2026-01-01 is no text",
    b"null: a\n": ", line 1: the key null is no text",
    b"? [a]\n: b\n": ", line 1: a key is no text",
    b"a: !!python/object/apply:os.system ['touch injected']\n": ", line 1: has the tag !!python/object/apply:os.system",
    b"a: !unknown b\n": ", line 1: has the tag !unknown",
    b"a: !!set {b, c}\n": ", line 1: has the tag !!set",
    b"a: !!int x\n": ", line 1: x is no int",
    b"a:\n- 2026-13-45\n": ", line 2: 2026-13-45 is no timestamp",
    b"a: !!bool x\n": ", line 1: x is no bool",
    b"a: {<<: 5}\n": ", line 1: expected a mapping or list of mappings for merging",
    b"--- {a: 1}\n--- {b: 2}\n": ", line 2: ",
    b"%YAML 9.9\n---\na: 1\n": ", line 1: ",
    b"datasets:\n  trials: {simulate: 0, sample: 0100}\n": ", line 2: 0100 is 64 to YAML",
    b"a: -0_17\n": ", line 1: -0_17 is -15 to YAML",
    b"a: 1:30\n": ", line 1: 1:30 is 90 to YAML",
    b"a: 4:00:00\n": ", line 1: 4:00:00 is 14400 to YAML",
}


def check(content, words):
    with open("mine.yaml", "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    said = plan("mine.yaml")
    if words is None:
        assert said is None
    else:
        assert is_sentence(said) and said.startswith(f"mine.yaml{words if words[0] in ':,' else f': {words}'}"), said


MISTAKES = {
    "path variables": PATHVARS,
    "names of runs, models and data sets": NAMES,
    "values": VALUES,
    "files that are no YAML, or other YAML than was meant": YAML,
}


@pytest.mark.parametrize(
    ("content", "words"),
    [pytest.param(*pair, marks=pytest.mark.kind(kind)) for kind, pairs in MISTAKES.items() for pair in pairs.items()],
)
def test_mistake(here, content, words):
    check(content, words)
    assert not (here / "injected").exists()


@pytest.mark.kind("path variables")
def test_what_lies_in_the_place_of_a_directory(here):
    """Where no path variable says otherwise."""
    then = "Remove it, or let pathvars in the configuration point elsewhere"
    (here / "mine.yaml").write_text("targets: [base]")
    (here / "logs").write_text("")
    assert plan("mine.yaml") == f"logs is no directory. {then}"
    (here / "results").symlink_to("/nowhere/x")
    assert plan("mine.yaml") == f"results is a link to /nowhere/x, where there is no directory. {then}"
    check("pathvars: {results: tiny, logs: tiny}", None)
    check("pathvars: {results: results/x, logs: tiny}", "pathvars.results: results/x: ")


ELSEWHERE = """
targets: [base]
models: {gone: {snapshot: nowhere}, none: {gguf: nowhere.gguf}}
datasets: {own: {train: no.csv, val: no.csv, test: no.csv}, dir: {directory: nowhere}, asked: {test: no.csv}}
runs:
  defaults: {model: tiny, dataset: trials, devices: 1, tensor_model_parallel_size: 1}
  other: {model: gone}
  own: {dataset: own}
  theirs: {precision: 32, megatron_amp_O2: false, adapter: {directory: nowhere}}
  lora: {train: {start_from: theirs}}
  second: {precision: 32, megatron_amp_O2: false, train: {max_steps: 4, val_check_interval: 2, lr: 1, warmup_steps: 1}}
  chosen: {precision: 32, megatron_amp_O2: false, choose: [lora, second]}
"""
ASKED = {
    "results/runs/other/fold0/seed0/metrics.json": "models.gone.snapshot: nowhere: no Hugging Face snapshot is there",
    "results/answers/other/asked.tsv": "models.gone.snapshot: nowhere: no Hugging Face snapshot is there",
    "results/base/gone/model_config.yaml": "models.gone.snapshot: nowhere: no Hugging Face snapshot is there",
    "results/base/none.nemo": "models.none.gguf: nowhere.gguf: no such file",
    "results/base/none.verification.tsv": "models.none.gguf: nowhere.gguf: no such file",
    "resources/hf/gone/manifest.json": "models.gone.snapshot: nowhere: no Hugging Face snapshot is there",
    "results/runs/own/fold0/seed0/metrics.json": "datasets.own.train: there is no file no.csv",
    "results/data/own/items/test.json": "datasets.own.train: there is no file no.csv",
    "resources/data/dir/ori_pqal.json": "datasets.dir.directory: nowhere: holds neither",
    "results/runs/theirs/fold0/seed0/metrics.json": "runs.theirs.adapter: there is no nowhere/adapter_config.json",
    "results/runs/lora/fold0/seed0/peft/README.md": "runs.theirs.adapter: there is no nowhere/adapter_config.json",
    "results/runs/chosen/fold0/seed0/metrics.json": "runs.theirs.adapter: there is no nowhere/adapter_config.json",
    "results/runs/base/fold0/seed0/metrics.json": None,
}


@pytest.mark.kind("files of models and data that a target needs, and `targets:` does not")
@pytest.mark.parametrize(("target", "words"), ASKED.items())
def test_what_a_target_needs_is_there(here, target, words):
    (here / "mine.yaml").write_text(ELSEWHERE)
    said = plan("mine.yaml", targets=[target])
    assert said is None if words is None else is_sentence(said) and said.startswith(f"mine.yaml: {words}"), said


def test_what_is_right_is_planned(here):
    check("datasets: {trials: {simulate: 0, sample: 24, seed: 007}}", None)
    run = "model: tiny, dataset: trials, tensor_model_parallel_size: 1"
    check(f"runs:\n  x: &x {{{run}}}\n  y: &y {{{run}}}\n  z: {{<<: *x, <<: *y}}", None)
    check('{\n\t"targets": ["base"]\n}', None)  # JSON
    (here / "real").mkdir()
    check("pathvars: {results: <root>/results, root: real, logs: real}", None)
    check("pathvars: {results: real/, resources: ./real//, benchmarks: ../there, logs: x~/$/a}", None)
    check(f"runs: {{-x.Y_1: {RUN}}}, {19 * 'x'}: {RUN}}}, {20 * 'xyz'}a: {RUN}}}}}", None)

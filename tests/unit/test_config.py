"""Our own configurations pass, the schema's keys are documented, and a mistake is told in one sentence that names file,
key, value and remedy."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from common.files import write_json
from helpers import MODEL, ROOT, write_snapshot
from helpers import weights as tensors
from snakemake.common.configfile import load_configfile
from snakemake.utils import update_config, validate

from workflow.planning import Problem
from workflow.planning.config import Checks
from workflow.planning.parameters import Parameters
from workflow.planning.questions import check_target as check_answers
from workflow.planning.targets import LARGEST_SEED, asked_for, check_options
from workflow.planning.targets import check as check_target
from workflow.planning.yaml_files import check as check_yaml

SCHEMA = str(ROOT / "workflow/schemas/config.schema.yaml")
NEMO_KEYS = yaml.safe_load((ROOT / "workflow/scripts/train_lora.yaml").read_text())

THEIRS = "theirs: {model: mistral-7b, dataset: pubmedqa, adapter: {"
OWN = "datasets: {own: {train: d.csv, val: d.csv, test: d.csv, labels: [a, b]}}"
NEW = "model: mistral-7b, dataset: pubmedqa"
CHOSEN = "chosen: {model: mistral-7b, dataset: pubmedqa, choose:"
MISTAKES = {  # laid over config/config.yaml: what is said, before what the schema says of the key
    "target: [lora]": "target: no such key; is it targets?",
    "targets: [bse]": "targets: bse is not among runs: base, tutorial, lora, best",
    "accelerator: tpu": "accelerator: 'tpu' is not one of ['gpu', 'cpu']",
    "runs: {lora: {train: {max_step: 5}}}": "runs.lora.train.max_step: no such key; is it max_steps?",
    "runs: {lora: {train: {lr: 1e-4}}}": (
        "runs.lora.train.lr: '1e-4' is text to YAML; write a plain number, as 1.0e-4 for 1e-4"
    ),
    "runs: {lora: {train: {lr: -0.1}}}": "runs.lora.train.lr: -0.1 is less than or equal to the minimum of 0",
    "runs: {lora: {train: {max_steps: 0}}}": "runs.lora.train.max_steps: 0 is less than the minimum of 1",
    "runs: {lora: {train: {repeat_maybe: 1}}}": "runs.lora.train.repeat_maybe: 1 is less than the minimum of 2",
    "runs: {base: {repeat_maybe: 2}}": (
        "runs.base.repeat_maybe: no such key; there are model, dataset, label, folds, seeds, nodes, "
        "devices, tensor_model_parallel_size, precision, megatron_amp_O2, max_seq_length, add_bos, chat_template, "
        "train, choose, adapter, predict"
    ),
    "runs: {lora: {folds: [0, 10]}}": "runs.lora.folds: 10 is greater than the maximum of 9",
    "runs: {lora: {label: gold}}": (
        "runs.lora.label: 'gold' is not one of ['final_decision', 'reasoning_required_pred', 'reasoning_free_pred']"
    ),
    "runs: {lora: {megatron_amp_O2: 1}}": "runs.lora.megatron_amp_O2: 1 is not of type 'boolean'",
    "runs: {majority: {model: mistral-7b, dataset: pubmedqa}}": (
        "runs.majority: is a line of the table that needs no model: give the run another name"
    ),
    "runs: {lora: []}": "runs.lora: [] is not a run; are these lines indented under the name of one?",
    "runs: {new: {dataset: pubmedqa}}": "runs.new: model is missing: A name under models.",
    "runs: {lora: {model: mistrl}}": "runs.lora.model: mistrl is not among models: mistral-7b",
    "runs: {lora: {dataset: medqa}}": "runs.lora.dataset: medqa is not among datasets: pubmedqa",
    "runs: {lora: {tensor_model_parallel_size: 3}}": (
        "runs.lora.tensor_model_parallel_size: 3 does not divide the 4 devices"
    ),
    "runs: {lora: {nodes: 0}}": "runs.lora.nodes: 0 is less than the minimum of 1",
    "runs: {lora: {nodes: 2, tensor_model_parallel_size: 3}}": (
        "runs.lora.tensor_model_parallel_size: 3 does not divide the 8 devices"
    ),
    "runs: {lora: {nodes: 3, devices: 4, tensor_model_parallel_size: 6}}": (
        "runs.lora.tensor_model_parallel_size: 6 is neither a divisor nor a multiple of the 4 devices of a node"
    ),
    "runs: {lora: {predict: {nodes: 3, devices: 4, tensor_model_parallel_size: 6}}}": (
        "runs.lora.predict.tensor_model_parallel_size: 6 is neither a divisor nor a multiple of the 4 devices of a node"
    ),
    "runs: {lora: {nodes: 3, train: {global_batch_size: 32}}}": (
        "runs.lora.train.global_batch_size: 32 is no multiple of micro_batch_size 4 on 12 copies of the model"
    ),
    "{image: 'docker://nvcr.io/nvidia/nemo:25.02', runs: {lora: {nodes: 2}}}": (
        "image: docker://nvcr.io/nvidia/nemo:25.02 is no file, which 2 nodes need; get one: apptainer pull nemo.sif"
        " docker://nvcr.io/nvidia/nemo:25.02"
    ),
    "runs: {lora: {tensor_model_parallel_size: 2, train: {global_batch_size: 33}}}": (
        "runs.lora.train.global_batch_size: 33 is no multiple of micro_batch_size 4 on 2 copies of the model"
    ),
    "runs: {lora: {precision: 16}}": (
        "runs.lora.precision: with 16, NeMo trains without megatron_amp_O2 only: set that to false"
    ),
    "runs: {lora: {train: {val_check_interval: 61}}}": (
        "runs.lora.train.val_check_interval: 61 steps, but training ends after max_steps 60"
    ),
    "runs: {lora: {train: {warmup_steps: 61}}}": (
        "runs.lora.train.warmup_steps: 61 steps, but training ends after max_steps 60"
    ),
    "models: {x: {repo: org/x}}": "models.x: has repo; it needs repo and revision or snapshot or gguf",
    "models: {x: {repo: org/x, revision: main}}": "models.x.revision: 'main' does not match '^[0-9a-f]{40}$'",
    "runs: {lora: {train: {nemo: [model.optim.lrr=1]}}}": (
        "runs.lora.train.nemo: train_lora.yaml has no model.optim.lrr; to add it, write +model.optim.lrr=1"
    ),
    **{
        f"runs: {{lora: {{train: {{nemo: ['{override}']}}}}}}": f"runs.lora.train.nemo: {words}"
        for override, words in {
            "model.optim.lr=1": "model.optim.lr is set by the run's lr: write lr: instead",
            "+trainer.max_steps=5": "trainer.max_steps is set by the run's max_steps: write max_steps: instead",
            "settings.lr=1": "settings.lr stays as it is: these are the run's own keys; set them there",
            "exp_manager.create_checkpoint_callback=false": (
                "exp_manager.create_checkpoint_callback stays as it is: the adapter comes from its checkpoints"
            ),
            "model.data.validation_ds.micro_batch_size=2": (
                "model.data.validation_ds.micro_batch_size is set by the run's micro_batch_size:"
                " write micro_batch_size: instead"
            ),
            "model.seed=1": "model.seed stays as it is: the workflow sets it",
            "model.data.train_ds.file_names=[x]": "model.data.train_ds.file_names stays as it is: the workflow sets it",
            "model.data.train_ds.add_bos=true": (
                "model.data.train_ds.add_bos stays as it is: prediction would go on without it; "
                "write add_bos: true in the run"
            ),
            "+model.data.chat=true": (
                "model.data.chat stays as it is: prediction would go on without it; "
                "write chat_template: true in the run"
            ),
            "model.data.validation_ds.prompt_template=x": (
                "model.data.validation_ds.prompt_template stays as it is: prediction would go on without it; "
                "write prompt: in the data set, or chat_template: true in the run"
            ),
            "model.data.train_ds.truncation_field=input": (
                "model.data.train_ds.truncation_field stays as it is: prediction would go on without it; "
                "write truncate: in the data set"
            ),
            "model.data.train_ds.add_eos=false": (
                "model.data.train_ds.add_eos stays as it is: prediction would go on without it"
            ),
            "trainer.num_nodes=2": "trainer.num_nodes stays as it is: write nodes: in the run",
            "++model.optim.weight_decay=0": (
                "++model.optim.weight_decay=0: write key=value, as model.optim.weight_decay=0.1"
            ),
            "+=5": "+=5: write key=value, as model.optim.weight_decay=0.1",
            "+model.seed.x=5": "model.seed.x: train_lora.yaml has a value, no section, above it",
            "model.optim.betas=[1": "model.optim.betas=[1: the value is no YAML; quote it",
        }.items()
    },
    "runs: {lora: {train: {adapter_alpha: 16, nemo: [model.peft.lora_tuning.alpha=64]}}}": (
        "runs.lora.train.nemo: model.peft.lora_tuning.alpha is set by the run's adapter_alpha: remove one of them"
    ),
    "runs: {lora: {train: {nemo: [model.optim.weight_decay=0, +model.optim.weight_decay=1]}}}": (
        "runs.lora.train.nemo: model.optim.weight_decay=0 and +model.optim.weight_decay=1 set the same key: "
        "remove one of them"
    ),
    "runs: {lora: {devices: 1.0}}": "runs.lora.devices: 1.0 is not of type 'integer'",
    "runs: {lora: {folds: [0.0]}}": "runs.lora.folds: 0.0 is not of type 'integer'",
    "datasets: {x: {simulate: 1, sample: 24.0}}": "datasets.x.sample: 24.0 is not of type 'integer'",
    "runs: {lora: {train: {lr: .nan}}}": "runs.lora.train.lr: nan is not of type 'number'",
    "runs: {lora: {train: {adapter_dropout: .inf}}}": "runs.lora.train.adapter_dropout: inf is not of type 'number'",
    "runs: {lora: {seeds: [4294967296]}}": "runs.lora.seeds: 4294967296 is greater than the maximum of 4294966061",
    "runs: {lora: {tensor_model_parallel_size: 4, train: {adapter_dim: 6}}}": (
        "runs.lora.train.adapter_dim: 6 is no multiple of tensor_model_parallel_size 4, which share it out"
    ),
    "runs: {lora: {max_seq_length: 64, predict: {tokens_to_generate: 63}}}": (
        "runs.lora.predict.tokens_to_generate: 63 leaves no room for a prompt in max_seq_length 64"
    ),
    "{models: {x: {snapshot: nowhere}}, runs: {lora: {model: x}}}": (
        "models.x.snapshot: nowhere: no Hugging Face snapshot is there, as it has no config.json"
    ),
    "{models: {x: {gguf: no.gguf}}, runs: {lora: {model: x}}}": (
        "models.x.gguf: no.gguf: no such file, and no installed Python package"
    ),
    "runs: {lora: {train: {lr: {sweep: 0.1}}}}": (
        'runs.lora.train.lr: {"sweep": 0.1}: write it as {sweep: [1.0e-4, 2.0e-4]}, with the values to try'
    ),
    "runs: {lora: {train: {lr: {sweep: []}}}}": (
        'runs.lora.train.lr: {"sweep": []}: write it as {sweep: [1.0e-4, 2.0e-4]}, with the values to try'
    ),
    "runs: {lora: {train: {lr: {sweep: [0.1, 0.1]}}}}": (
        'runs.lora.train.lr: {"sweep": [0.1, 0.1]}: a value stands there twice'
    ),
    "runs: {lora: {train: {lr: {sweep: [0.1, 1e-4]}}}}": (
        "runs.lora-lr-1e-4.train.lr: '1e-4' is text to YAML; write a plain number, as 1.0e-4 for 1e-4"
    ),
    "runs: {lora: {train: {lrr: {sweep: [0.1]}}}}": "runs.lora-lrr-0.1.train.lrr: no such key; is it lr?",
    "runs: {lora: {devices: {sweep: [1, 2]}}}": "runs.lora.devices: {'sweep': [1, 2]} is not of type 'integer'",
    "runs: {lora: {train: {nemo: [+model.peft.restore_from_path=x]}}}": (
        "runs.lora.train.nemo: model.peft.restore_from_path stays as it is: "
        "to begin with another run's adapter, set start_from: RUN under train"
    ),
    "runs: {lora: {predict: {tensor_model_parallel_size: 3}}}": (
        "runs.lora.predict.tensor_model_parallel_size: 3 does not divide the 4 devices"
    ),
    "runs: {tutorial: {predict: {devices: 2}}}": (
        "runs.tutorial.predict.tensor_model_parallel_size: 4 does not divide the 2 devices"
    ),
    "runs: {lora: {train: {adapter_dim: 6}, predict: {tensor_model_parallel_size: 4}}}": (
        "runs.lora.train.adapter_dim: 6 is no multiple of tensor_model_parallel_size 4, which share it out"
    ),
    "runs: {lora: {train: {start_from: base}}}": (
        "runs.lora.train.start_from: base is not among the runs that have train: or choose: or adapter:"
    ),
    "runs: {lora: {train: {start_from: lora}}}": (
        "runs.lora.train.start_from: lora itself needs the adapter of lora; a training can't start from its own"
    ),
    "{targets: [base], runs: {best: {train: {start_from: chosen}}, "
    "chosen: {model: mistral-7b, dataset: pubmedqa, folds: all, tensor_model_parallel_size: 1, choose: [best, more]}, "
    "more: {model: mistral-7b, dataset: pubmedqa, folds: all, tensor_model_parallel_size: 1, "
    "train: {lr: 0.1, max_steps: 9, val_check_interval: 9}}}}": (
        "runs.best.train.start_from: chosen itself needs the adapter of best; a training can't start from its own"
    ),
    "runs: {lora: {folds: [0, 3], seeds: [0, 1], train: {start_from: tutorial}}}": (
        "runs.lora.train.start_from: tutorial has no 3 among its folds, but lora has"
    ),
    "runs: {lora: {seeds: [0, 1], train: {start_from: tutorial}}}": (
        "runs.lora.train.start_from: tutorial has no 1 among its seeds, but lora has"
    ),
    "runs: {best: {folds: [0]}, lora: {train: {start_from: best, adapter_dim: 8}}}": (
        "runs.lora.train.start_from: best and lora differ in target_modules, in which they must agree"
    ),
    "runs: {lora: {train: {start_from: tutorial, adapter_dim: 8}}}": (
        "runs.lora.train.start_from: tutorial and lora differ in adapter_dim, in which they must agree"
    ),
    "{targets: [base], models: {new: {snapshot: here}}, runs: {lora: {model: new, train: {start_from: tutorial}}}}": (
        "runs.lora.train.start_from: tutorial and lora differ in model, in which they must agree"
    ),
    "models: {x: org/x}": "models.x: 'org/x' is not a model; are these lines indented under the name of one?",
    "datasets: {x: {items: d.csv}, labels: [a, b]}": (
        "datasets.labels: ['a', 'b'] is not a data set; are these lines indented under the name of one?"
    ),
    "models: []": "models: [] is not of type 'object'",
    "runs: {lora: {folds: al}}": "runs.lora.folds: 'al' does not match '^all$'",
    f"runs: {{{CHOSEN} [base, lora]}}}}": "runs.chosen.choose: base is not among the runs that have train:",
    f"runs: {{{CHOSEN} [lora, tutorial]}}}}": (
        "runs.chosen.choose: lora is under targets: that would be choosing on test; take it out of one of them"
    ),
    f"{{targets: [base], runs: {{{CHOSEN} [lora, tutorial]}}}}}}": (
        "runs.chosen.choose: lora and chosen differ in tensor_model_parallel_size, in which they must agree"
    ),
    f"{{targets: [base], runs: {{lora: {{tensor_model_parallel_size: 4, nodes: 2}}, {CHOSEN} [lora, tutorial]}}}}}}": (
        "runs.chosen.choose: lora and chosen differ in nodes, in which they must agree"
    ),
    f"{{targets: [base], runs: {{lora: {{tensor_model_parallel_size: 4, nodes: 1}}, {CHOSEN} [lora, tutorial]}}}}}}": (
        "runs.chosen.choose: tutorial and chosen differ in label, in which they must agree"
    ),
    "{targets: [base], runs: {lora: {choose: [lora, tutorial]}}}": (
        "runs.lora.choose: stands beside train:; a run has one of them"
    ),
    f"runs: {{{THEIRS}}}}}}}": "runs.theirs.adapter: has nothing; it needs repo and revision or directory or nemo",
    f"runs: {{{THEIRS} repo: org/x}}}}}}": (
        "runs.theirs.adapter: has repo; it needs repo and revision or directory or nemo"
    ),
    f"runs: {{{THEIRS} nemo: a, directory: b}}}}}}": (
        "runs.theirs.adapter: has nemo, directory; it needs repo and revision or directory or nemo"
    ),
    f"runs: {{{THEIRS} repo: org/x, revision: main}}}}}}": (
        "runs.theirs.adapter.revision: 'main' does not match '^[0-9a-f]{40}$'"
    ),
    f"targets: [theirs]\nruns: {{{THEIRS} directory: no/such}}}}}}": (
        "runs.theirs.adapter: there is no no/such/adapter_config.json"
    ),
    f"targets: [theirs]\nruns: {{{THEIRS} nemo: no/such.nemo}}}}}}": "runs.theirs.adapter: there is no no/such.nemo",
    "runs: {lora: {adapter: {nemo: x.nemo}}}": "runs.lora.adapter: stands beside train:; a run has one of them",
    "datasets: {x: {simulate: 1, directory: d}}": (
        "datasets.x: has simulate, directory; it needs revision or directory or simulate or items or test"
    ),
    "datasets: {x: {train: d.csv}}": (
        "datasets.x: has train; it needs revision or directory or simulate or items or test"
    ),
    "datasets: {x: {train: d.csv, test: d.csv}}": "datasets.x: has train, and so needs val and test, too",
    "datasets: {x: {val: d.csv, test: d.csv}}": "datasets.x: has val, and so needs train and test, too",
    "{datasets: {x: {test: d.xlsx}}, runs: {base: {dataset: x}}}": (
        "datasets.x.test: d.xlsx is none of .jsonl, .csv, .tsv, .parquet, .json: save it as one of them"
    ),
    "{datasets: {x: {test: gone.csv}}, runs: {base: {dataset: x}}}": "datasets.x.test: there is no file gone.csv",
    "datasets: {x: {test: d.csv, id: name}}": (
        "datasets.x.test: d.csv has no column name: there are input, output, other"
    ),
    "datasets: {x: {items: d.csv, answer: label}}": (
        "datasets.x.items: d.csv has no column label: there are input, output, other"
    ),
    'datasets: {x: {items: d.csv, prompt: "{text}"}}': (
        "datasets.x.items: d.csv has no column text: there are input, output, other"
    ),
    'datasets: {x: {items: d.csv, prompt: "{input"}}': (
        "datasets.x.prompt: expected '}' before end of string; "
        "a column's name has no : and no ! here, and a brace that stands for itself is written twice, {{ or }}"
    ),
    "datasets: {x: {items: d.csv, prompt: input}}": (
        "datasets.x.prompt: has no column, as {input}: it would ask the same of each item"
    ),
    'datasets: {x: {items: d.csv, prompt: "{input} {output}"}}': "datasets.x.prompt: has {output}, which is the answer",
    "datasets: {x: {items: d.csv, labels: [yes, no]}}": (
        'datasets.x.labels: YAML reads yes as True; put it in quotes: "yes"'
    ),
    "datasets: {x: {items: d.csv, labels: [a, 2024-01-01]}}": (
        'datasets.x.labels: YAML reads 2024-01-01 as a date; put it in quotes: "2024-01-01"'
    ),
    "datasets: {x: {items: d.csv, labels: [1, 2]}}": (
        'datasets.x.labels: YAML reads 1 as a number; put it in quotes: "1"'
    ),
    "datasets: {x: {items: d.csv, labels: [a, [b]]}}": "datasets.x.labels: ['b'] is no text; put it in quotes",
    "datasets: {x: {items: d.csv, labels: [a, malformed]}}": (
        "datasets.x.labels: no label can be called malformed: the tables say so of texts that are none"
    ),
    "datasets: {x: {items: d.csv, labels: [a, a]}}": "datasets.x.labels: ['a', 'a'] has non-unique elements",
    "datasets: {pubmedqa: {labels: [a, b]}}": (
        "datasets.pubmedqa.labels: PubMedQA has its own; the key is for files of yours"
    ),
    'datasets: {pubmedqa: {prompt: "{question}"}}': (
        "datasets.pubmedqa.prompt: no column question: there are QUESTION, CONTEXTS, LABELS, MESHES, YEAR, LONG_ANSWER"
    ),
    "datasets: {pubmedqa: {sample: 501}}": "datasets.pubmedqa.sample: 501 of 500 test items",
    "datasets: {x: {items: d.csv, truncate: other}}": (
        "datasets.x.truncate: other must be once in the prompt, of input"
    ),
    "datasets: {pubmedqa: {truncate: contexts}}": (
        "datasets.pubmedqa.truncate: contexts must be once in the prompt, of QUESTION, CONTEXTS"
    ),
    f"{{{OWN}, runs: {{lora: {{dataset: own, label: final_decision}}}}}}": (
        "runs.lora.label: is for PubMedQA; own names its column of answers by answer:"
    ),
    f"{{{OWN}, runs: {{lora: {{dataset: own, folds: [0, 3]}}}}}}": (
        "runs.lora.folds: 3: own has fold 0 only; of one file, as items:, ten are drawn"
    ),
    f"{{{OWN}, runs: {{lora: {{dataset: own, train: {{repeat_maybe: 2}}}}}}}}": (
        "runs.lora.train.repeat_maybe: own has no label maybe"
    ),
    "{datasets: {x: {test: d.csv}}, runs: {lora: {dataset: x}}}": (
        "runs.lora.dataset: x has no train: and val:, and the run has train:"
    ),
    "runs: {lora: {add_bos: yes please}}": "runs.lora.add_bos: 'yes please' is not of type 'boolean'",
    f"{{targets: [base], runs: {{{CHOSEN} [lora, best], tensor_model_parallel_size: 1}}, lora: {{add_bos: true}}}}}}": (
        "runs.chosen.choose: lora and chosen differ in add_bos, in which they must agree"
    ),
    "runs: {defaults: {devics: 1}}": "runs.defaults.devics: no such key; is it devices?",
    f"runs: {{defaults: {{train: {{max_steps: 9, val_check_interval: 9, lr: 1e-4}}}}, new: {{{NEW}, train: {{}}}}}}": (
        "runs.defaults.train.lr: '1e-4' is text to YAML; write a plain number, as 1.0e-4 for 1e-4"
    ),
    f"runs: {{defaults: {{tensor_model_parallel_size: 3}}, new: {{{NEW}}}}}": (
        "runs.defaults.tensor_model_parallel_size: 3 does not divide the 4 devices"
    ),
    "runs: {defaults: [lora]}": ("runs.defaults: is not of the form of a run, as {devices: 1, train: {lr: 1.0e-4}}"),
    "runs: {defaults: {adapter: {nemo: a.nemo}}}": (
        "runs.defaults.adapter: stands in a run, which it makes another kind of run"
    ),
    "runs: {defaults: {choose: [lora, tutorial]}}": (
        "runs.defaults.choose: stands in a run, which it makes another kind of run"
    ),
}


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
        "micro_batch_tokens": 4096,  # not the tutorial's: how items are grouped changes rounding only
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


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """checked(text, …): the checks, as checks.smk makes them, of config/config.yaml with mine.yaml, mine2.yaml, … over
    it; they have passed."""
    monkeypatch.chdir(tmp_path)
    Path("d.csv").write_text("input,output,other\n")

    def checked(*texts, fetched="resources/hf"):
        files = [Path("mine.yaml"), *(Path(f"mine{number}.yaml") for number in range(2, len(texts) + 1))][: len(texts)]
        config = load_configfile(ROOT / "config/config.yaml")
        for file, text in zip(files, texts):
            file.write_text(text)
            update_config(config, load_configfile(file))
        checks = Checks(config, [ROOT / "config/config.yaml", *files])
        checks.check_schema(yaml.safe_load(Path(SCHEMA).read_text()))
        validate(config, SCHEMA)
        checks.check_runs(NEMO_KEYS, fetched)
        return checks

    return checked


def said(checked, *arguments, **options):
    with pytest.raises(Problem) as problem:
        checked(*arguments, **options)
    return str(problem.value)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_explained(checked, mistake):
    assert said(checked, mistake).split(". ")[0] == f"mine.yaml: {MISTAKES[mistake]}"


def test_a_model_of_the_demonstration_is_hinted_at(checked):
    said_of_it = said(checked, "runs: {defaults: {model: smollm2-135m, dataset: pubmedqa}, mine: {}}")
    assert said_of_it.startswith("mine.yaml: runs.defaults.model: smollm2-135m is not among models: mistral-7b; ")
    assert said_of_it.endswith("config/demo.yaml defines it: write that file after --configfile, too")


def test_a_label_of_no_file(config):
    """Of --config or a module."""
    config["datasets"]["x"] = {"items": "d.csv", "labels": [True, "no"]}
    with pytest.raises(Problem, match=r"datasets.x.labels: True is no text; put it in quotes$"):
        Checks(config, [], "peft").check_schema(yaml.safe_load(Path(SCHEMA).read_text()))


def test_what_the_key_is_for_is_said(checked):
    assert said(checked, "accelerator: tpu").endswith("['gpu', 'cpu']. Hardware for training and prediction.")


def test_what_is_right_passes(checked, tmp_path):
    write_snapshot(tmp_path)
    train = "{start_from: lora, lr: 0.1, max_steps: 9, val_check_interval: 9"
    train += ", nemo: [+a.b=1, model.peft.lora_tuning.alpha=9]}"
    more = "tutorial: {predict: {devices: 1, tensor_model_parallel_size: 1}}, best: {tensor_model_parallel_size: 4}"
    more += f", new: {{model: mistral-7b, dataset: pubmedqa, train: {train}}}"
    checks = checked(
        f"{{runs: {{{more}}}, models: {{mistral-7b: {{repo: null, revision: null, snapshot: {tmp_path}}}}}}}"
    )
    assert checks.config["models"]["mistral-7b"] == {"snapshot": str(tmp_path)}


def test_data_of_ones_own(checked):
    """Complete with what no default of the schema can say; folds that there are, and their label, is no choice."""
    checks = checked(f"{{{OWN}, runs: {{lora: {{dataset: own, label: null, folds: all}}}}}}")
    target = "results/runs/lora/fold{}/seed0/metrics.json"
    where = checks.config["runs"], checks.config["datasets"], "results/runs"
    check_target(target.format(0), *where)
    said_of_other = said(check_target, target.format(3), *where)
    assert said_of_other == f"{target.format(3)}: own has fold 0 only"
    assert {"prompt": "{input}", "answer": "output"}.items() <= checks.config["datasets"]["own"].items()
    assert checks.config["runs"]["lora"]["label"] == "answer" and checks.config["runs"]["lora"]["folds"] == [0]
    items = "datasets: {x: {items: d.csv, labels: [maybe, b]}}"
    run = checked(f"{{{items}, runs: {{best: {{dataset: x}}}}}}").config["runs"]["best"]
    assert run["label"] == "answer" and run["folds"] == list(range(10)) and run["train"]["repeat_maybe"] == 2
    checked('datasets: {pubmedqa: {prompt: "{LONG_ANSWER}{CONTEXTS}{QUESTION}{CONTEXTS}{{", truncate: LONG_ANSWER}}')


def test_defaults_of_runs(checked):
    """Key by key; a run without train: stays without; null takes a default away."""
    defaults = f"{NEW}, devices: 2, tensor_model_parallel_size: 1, seeds: [1, 2], predict: {{batch_size: 8}}"
    defaults += ", train: {lr: 0.1, max_steps: 9, val_check_interval: 9, repeat_maybe: 2}"
    new = "a: null, b: {devices: 8, train: {lr: 0.2, repeat_maybe: null}, predict: {tokens_to_generate: 3}}"
    new += ", c: {train: {}}"
    train = "runs: {defaults: {tensor_model_parallel_size: 1, train: {max_steps: 9, val_check_interval: 9}}}"
    runs = checked(f"runs: {{defaults: {{{defaults}}}, {new}}}").config["runs"]
    assert "defaults" not in runs and "train" not in runs["a"] and runs["a"]["seeds"] == [1, 2]
    assert runs["a"]["devices"] == 2 and runs["b"]["devices"] == 8 and runs["a"]["predict"]["batch_size"] == 8
    assert runs["b"]["predict"] == {"batch_size": 8, "tokens_to_generate": 3}
    assert runs["b"]["train"]["lr"] == 0.2 and runs["b"]["train"]["max_steps"] == 9
    assert "repeat_maybe" not in runs["b"]["train"] and runs["c"]["train"]["repeat_maybe"] == 2
    assert runs["c"]["train"]["lr"] == 0.1 and runs["base"]["devices"] == 2 and "train" not in runs["base"]
    swept = f"runs: {{defaults: {{{NEW}, train: {{lr: {{sweep: [0.1, 0.2]}}}}}}, {new.replace('lr: 0.2, ', '')}}}"
    assert {"b-lr-0.1", "b-lr-0.2", "c-lr-0.2", "a", "lora"} <= checked(swept, train).config["runs"].keys()
    assert runs["tutorial"]["devices"] == 4 and runs["tutorial"]["train"]["lr"] == 1e-4  # which they say themselves


def test_the_file_with_the_last_word_is_named(checked):
    three = "runs: {lora: {train: {lr: 1e-4}}}", "runs: {lora: {train: {lr: 1e-5}}}", "targets: [lora]"
    assert said(checked, *three).startswith("mine2.yaml: runs.lora.train.lr: '1e-5' is text")
    run = "runs: {new: {model: mistral-7b, dataset: pubmedqa}}"  # whose 4 devices are the default
    checks = checked("targets: [lora]", run, "targets: [base]")
    for key, file in ("devices", "mine2.yaml"), ("model", "mine2.yaml"):
        assert said(checks.refuse, ["runs", "new", key], "so") == f"{file}: runs.new.{key}: so"
    assert said(checks.refuse, ["targets"], "so") == "mine3.yaml: targets: so"
    theirs = Path(ROOT / "config/config.yaml")
    assert Path(said(checks.refuse, ["accelerator"], "so").split(": ")[0]).resolve() == theirs
    assert Path(said(checks.refuse, ["nowhere"], "so").split(": ")[0]).resolve() == theirs


def test_a_module_has_no_file(checked):
    checks = Checks({}, [], module="peft")
    assert said(checks.refuse, ["runs", "x"], "so") == "config of module peft: runs.x: so"


HUB = f"repo: org/x, revision: {40 * 'a'}"


@pytest.mark.parametrize(
    ("more", "key", "words"),
    [
        ("folds: [0, 1]", "folds", "2 of them, but an adapter from elsewhere is one model"),
        ("seeds: [0, 3]", "seeds", "2 of them, but an adapter from elsewhere is one model"),
        ("choose: [lora, tutorial]", "adapter", "stands beside choose:; a run has one of them"),
    ],
)
def test_adapter_from_elsewhere_is_one(checked, more, key, words):
    run = f"model: mistral-7b, dataset: pubmedqa, adapter: {{{HUB}}}"
    checked(f"runs: {{theirs: {{{run}, folds: [3], seeds: [5]}}}}")
    assert said(checked, f"{{targets: [base], runs: {{theirs: {{{run}, {more}}}}}}}").startswith(
        f"mine.yaml: runs.theirs.{key}: {words}"
    )


def test_adapter_is_no_candidate(checked):
    theirs = f"theirs: {{model: mistral-7b, dataset: pubmedqa, adapter: {{{HUB}}}}}"
    config = f"{{targets: [base], runs: {{{theirs}, {CHOSEN} [theirs, lora]}}}}}}"
    assert said(checked, config) == "mine.yaml: runs.chosen.choose: theirs is not among the runs that have train:"


def test_adapter_nemo_that_is_no_tar(checked, tmp_path):
    (tmp_path / "x.nemo").write_bytes(b"PK\x03\x04zip")
    words = "mine.yaml: runs.theirs.adapter: x.nemo: is no adapter.nemo, which is a tar file"
    assert said(checked, f"targets: [theirs]\nruns: {{{THEIRS} nemo: x.nemo}}}}}}") == words


def test_adapter_of_ones_own(checked, tmp_path):
    """What adapter_config.json says is refused before any job."""
    config, run = tmp_path / "peft/adapter_config.json", f"targets: [theirs]\nruns: {{{THEIRS} directory: peft}}}}}}"
    place = "mine.yaml: runs.theirs.adapter:"
    write_json(config, {})
    (tmp_path / "peft/adapter_model.bin").touch()
    assert said(checked, run).startswith(f"{place} peft has its weights as adapter_model.bin, which may run any code")
    (tmp_path / "peft/adapter_model.safetensors").touch()
    peft = {"peft_type": "LORA", "base_model_name_or_path": "mistralai/Mistral-7B-v0.1", "use_dora": False}
    peft["target_modules"] = ["q_proj"]
    there = "which names no supported module: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    for change, words in (
        ({"use_dora": True}, "use_dora is True, which is not supported"),
        (
            {"base_model_name_or_path": "org/x"},
            "the adapter is one of org/x, the snapshot is mistralai/Mistral-7B-v0.1",
        ),
        ({"peft_type": None}, "peft_type is None; only LORA is supported"),
        ({"target_modules": None}, f"target_modules is None, {there}"),
        ({"target_modules": ["lm_head"]}, f"target_modules is ['lm_head'], {there}"),
        ({"target_modules": "query_key_value"}, f"target_modules is query_key_value, {there}"),
        ({"exclude_modules": ["q_proj"]}, f"target_modules is ['q_proj'], exclude_modules ['q_proj'], {there}"),
        ({"layers_to_transform": [0.5]}, f"target_modules is ['q_proj'], layers_to_transform [0.5], {there}"),
        ({"exclude_modules": 5}, "exclude_modules is 5: no names"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is olora, which is not supported"),
        ({"layers_pattern": "blocks"}, "layers_pattern is blocks, which is not supported"),
    ):
        write_json(config, peft | change)
        assert said(checked, run).startswith(f"{place} peft/adapter_config.json: {words}")
    config.write_text("[")
    assert said(checked, run).startswith(f"{place} peft/adapter_config.json: no object in JSON")
    write_json(config, peft)
    words = f"{place} peft/adapter_model.safetensors: not a whole safetensors file ("
    assert said(checked, run).startswith(words)
    whole = tensors({"a": [1]})
    (tmp_path / "peft/adapter_model.safetensors").write_bytes(whole[:-1])
    assert said(checked, run).startswith(words)
    q, k = (f"model.layers.0.self_attn.{name}_proj" for name in "qk")
    weights = {f"base_model.model.{q}.lora_A.weight": [8, 4], f"base_model.model.{q}.lora_B.weight": [4, 8]}
    more = {name.replace("q_proj", "k_proj"): shape for name, shape in weights.items()}
    for shapes, change, words in (
        ({}, {}, "holds no tensor"),
        ({"a": [1]}, {}, "holds a, which is no lora_A or lora_B of a linear layer"),
        ({"base_model.model.lm_head.lora_A.weight": [8, 4]}, {}, "holds lm_head, which is none of a layer's self_attn"),
        (weights | more, {}, f"holds {k}, which target_modules in adapter_config.json does not name"),
        (weights, {"rank_pattern": {"q_proj": 4}}, f"lora_A of {q} has the shape [8, 4], but rank 4 by adapter_config"),
        (
            weights | more,
            {"target_modules": ["q_proj", "k_proj"], "alpha_pattern": {"k_proj": 24}},
            f"alpha / rank is 1 in {q} and 3 in most others; NeMo has one for all",
        ),
    ):
        write_json(config, peft | change)
        (tmp_path / "peft/adapter_model.safetensors").write_bytes(tensors(shapes))
        assert said(checked, run).startswith(f"{place} peft/adapter_model.safetensors: {words}")
    for change in (
        {},
        {"exclude_modules": ["lm_head", "k_proj"], "init_lora_weights": "orthogonal"},
        {"layers_to_transform": [0, 1], "layers_pattern": "layers", "exclude_modules": r".*\.k_proj"},
        {"layers_to_transform": [0, 1], "layers_pattern": ["layers"]},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
    ):
        write_json(config, peft | change)
        (tmp_path / "peft/adapter_model.safetensors").write_bytes(tensors(weights))
        checked(run)
    write_json(config, {})
    checked(run.replace("[theirs]", "[base]"))  # nobody asks for it; it may be on another machine


def test_prompts_for_which_a_tokenizer_lacks_something(checked, tmp_path):
    """Where it is on this machine; false is as no key."""
    write_snapshot(tmp_path)
    model = f"models: {{x: {{snapshot: {tmp_path}}}}}"
    chat, bos = (f"{{{model}, runs: {{base: {{model: x, {key}: true}}}}}}" for key in ("chat_template", "add_bos"))
    file, template = tmp_path / "tokenizer_config.json", tmp_path / "chat_template.jinja"
    for config in ({}, {"chat_template": None}, {"bos_token": "<s>"}):
        write_json(file, config)
        has_none = f"x has none, neither in chat_template.jinja nor in tokenizer_config.json ({tmp_path})"
        assert said(checked, chat) == f"mine.yaml: runs.base.chat_template: {has_none}; take an Instruct model"
        assert "chat_template" not in checked(chat.replace("true", "false")).config["runs"]["base"]
    write_json(file, {"chat_template": [{"name": "rag", "template": "{{ messages }}"}]})
    several = f"x has several in tokenizer_config.json, none of them named default ({tmp_path}); take an Instruct model"
    assert said(checked, chat) == f"mine.yaml: runs.base.chat_template: {several}"
    write_json(file, {"chat_template": [{"name": "default", "template": "{{ messages }}"}]})
    checked(chat)
    write_json(file, {"chat_template": "{{ messages }}"})
    assert checked(chat).config["runs"]["base"]["chat_template"] is True
    write_json(file, {})
    template.write_text("{{ messages }}")
    checked(chat)
    for config in (
        {"bos_token": None, "tokenizer_class": "LlamaTokenizer"},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
    ):
        write_json(file, config)
        assert said(checked, bos) == f"mine.yaml: runs.base.add_bos: the tokenizer of x has no BOS ({tmp_path})"
    write_json(tmp_path / "special_tokens_map.json", {"bos_token": {"content": "<s>"}})
    assert checked(bos).config["runs"]["base"]["add_bos"] is True
    file.write_text('["<s>"]')
    broken = "tokenizer_config.json is empty or broken (no object in JSON). Fetch it again"
    assert said(checked, bos) == f"mine.yaml: models.x.snapshot: {tmp_path}: {broken}"


@pytest.mark.parametrize("kind", ["control_symbols", "user_defined_symbols", None])
@pytest.mark.parametrize("place", ["own", "hf/x"])
def test_prompt_with_a_token_that_only_transformers_finds(checked, tmp_path, kind, place):
    """[INST] of Mistral v0.3 is a control symbol of sentencepiece's; v0.1 has none, and a user-defined one is found."""
    import sentencepiece

    snapshot, text = tmp_path / place, "".join(f"Is it so {n}? Yes or no.\n" for n in range(99))
    snapshot.mkdir(parents=True)
    write_snapshot(snapshot)
    (tmp_path / "text").write_text(text)
    marks = {kind: ["[INST]", "[/INST]"]} if kind else {}
    sentencepiece.SentencePieceTrainer.train(
        input=tmp_path / "text", model_prefix=snapshot / "tokenizer", vocab_size=40, hard_vocab_limit=False, **marks
    )
    special = {"<s>": 1, **({"[INST]": 3, "[/INST]": 4} if kind else {})}
    tokens = {str(number): {"content": token, "special": True} for token, number in special.items()}
    write_json(snapshot / "tokenizer_config.json", {"added_tokens_decoder": tokens, "chat_template": "{{ messages }}"})
    write_json(snapshot / "manifest.json", {"source": "org/x"})
    keys = f"snapshot: {snapshot}" if place == "own" else f"repo: org/x, revision: {'a' * 40}"
    run = "runs: {base: {model: x, dataset: own, label: null%s}}, datasets: {own: {test: d.csv, prompt: '%s'}}"
    config = f"{{targets: [base], models: {{x: {{{keys}}}}}, {run}}}"

    def words(token):
        return (
            f"mine.yaml: datasets.own.prompt: {token} is one token to transformers and vLLM, but text to NeMo, by x's"
        )

    marked = config % ("", "[INST] {input} [/INST]")
    if kind == "control_symbols":
        assert said(checked, marked, fetched=tmp_path / "hf").startswith(words("[INST]"))
    else:
        checked(marked, fetched=tmp_path / "hf")
    assert said(checked, config % ("", "<s>{input}"), fetched=tmp_path / "hf").startswith(words("<s>"))
    checked(config % (", chat_template: true", "[INST] {input}"), fetched=tmp_path / "hf")
    Path("results/runs/base").mkdir(parents=True)  # what is made stays
    checked(marked, fetched=tmp_path / "hf")
    Path("results/runs/base").rmdir()
    (snapshot / "tokenizer.model").unlink()  # both take tokenizer.json then
    checked(marked, fetched=tmp_path / "hf")


@pytest.mark.parametrize("model", ["snapshot", "fetched"])
def test_tensor_parallelism_that_divides_no_heads(checked, tmp_path, model):
    fetched, snapshot = tmp_path / "hf", tmp_path / "hf" / ("local" if model == "fetched" else "own")
    fetched.mkdir()
    write_snapshot(snapshot, MODEL | {"num_attention_heads": 32, "num_key_value_heads": 8})
    write_json(snapshot / "manifest.json", {"source": "org/x"})
    keys = f"snapshot: {snapshot}" if model == "snapshot" else f"repo: org/x, revision: {'a' * 40}"
    runs = "{lora: {model: local, devices: 16, tensor_model_parallel_size: 16}}"
    config = f"{{models: {{local: {{{keys}}}}}, runs: {runs}}}"
    words = "runs.lora.tensor_model_parallel_size: 16 does not divide the 8 num_key_value_heads of local"
    assert said(checked, config, fetched=fetched) == f"mine.yaml: {words} ({snapshot}/config.json)"
    write_snapshot(snapshot, MODEL | {"num_attention_heads": 32, "num_key_value_heads": 16})
    checked(config, fetched=fetched)
    if model == "fetched":  # what is there is of another model
        write_json(snapshot / "config.json", {"num_attention_heads": 1})
        write_json(snapshot / "manifest.json", {"source": "org/y"})
        checked(config, fetched=fetched)
        for damaged in "", "[]", "{}", "null":
            (snapshot / "manifest.json").write_text(damaged)
            again = "is damaged. Remove it and run Snakemake again, which makes it anew"
            assert said(checked, config, fetched=fetched) == f"{snapshot}/manifest.json: {again}"


CHOOSES = "chosen chooses for its"
CANDIDATE = "other is a candidate of chosen: only what is chosen gets answers to the test items"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("lra/fold0/seed0/metrics.json", "lra is not among runs: base, tutorial, lora, best, other, warm, chosen"),
        ("lora/fold12/seed0/metrics.json", "fold12/seed0 is none of fold0/seed0, fold0/seed1, …, fold9/…"),
        ("lora/fold0/metrics.json", "fold0/metrics.json is none of fold0/seed0, fold0/seed1, …, fold9/…"),
        ("lora/fold0/seed00/metrics.json", "fold0/seed00 is none of fold0/seed0, fold0/seed1, …, fold9/…"),
        ("lora/fold0/seed4294966062/metrics.json", "seeds are at most 4294966061"),
        (f"lora/fold0/seed{5000 * '9'}/metrics.json", "seeds are at most 4294966061"),  # too long for int()
        ("../answers/lora/fold0/seed4294966062/x.tsv", "seeds are at most 4294966061"),
        ("chosen/fold1/seed0/metrics.json", f"{CHOOSES} folds [0] and seeds [0] alone: add what you need to them"),
        ("chosen/fold0/seed1/peft/README.md", f"{CHOOSES} folds [0] and seeds [0] alone: add what you need to them"),
        ("../answers/warm/fold0/seed1/x.tsv", f"{CHOOSES} folds [0] and seeds [0] alone: add what you need to them"),
        ("other/fold0/seed0/metrics.json", CANDIDATE),
        ("other/fold0/seed0/peft/../metrics.json", CANDIDATE),
    ],
)
def test_target_that_there_cannot_be(checked, target, words):
    run = "model: mistral-7b, dataset: pubmedqa, label: reasoning_required_pred"
    train, directory = "max_steps: 5, val_check_interval: 5, lr: 0.1", "results/runs"
    others = f"other: {{{run}, train: {{{train}}}}}, warm: {{{run}, train: {{{train}, start_from: chosen}}}}"
    runs = f"{{{others}, chosen: {{{run}, choose: [tutorial, other]}}}}"
    runs = checked(f"{{targets: [base], runs: {runs}}}").config["runs"]
    assert said(check_target, f"{directory}/{target}", runs, {}, directory) == f"{directory}/{target}: {words}"
    for right in (
        *("other/fold3/seed7/adapter.nemo", "chosen/fold0/seed0/metrics.json", "lora/fold0/seed12/metrics.json"),
        *("other/fold0/seed0/peft/README.md", "other/fold0/seed0/merged/config.json"),
        f"lora/fold0/seed{LARGEST_SEED}/metrics.json",
        "other/fold0/seed0/merged.verification.tsv",  # of validation items
    ):
        check_target(f"{directory}/{right}", runs, {}, directory)
    check_target("results/accuracy.tsv", runs, {}, directory)
    assert said(check_target, "", runs, {}, directory).startswith("'' on the command line is no target")
    assert load_configfile(SCHEMA)["$defs"]["run"]["properties"]["seeds"]["items"]["maximum"] == LARGEST_SEED


QUESTIONS = """
targets: [base]
datasets: {own: {test: d.csv}, labelled: {test: d.csv, labels: [a, b]}, gone: {test: gone.csv}, whole: {items: d.csv}}
runs:
  all: {model: mistral-7b, dataset: pubmedqa, seeds: [0, 1], train: {max_steps: 5, val_check_interval: 5, lr: 0.1}}
  free: {model: mistral-7b, dataset: whole, folds: all, train: {max_steps: 5, val_check_interval: 5, lr: 0.1}}
  asked: {model: mistral-7b, dataset: own}
"""
ONLY = "is not among the datasets with test: alone, which can be asked: own, labelled, gone"
ANSWERS = {
    "lra/own.tsv": "lra is not among runs: base, tutorial, lora, best, all, free, asked",
    "lora/owm.tsv": f"owm {ONLY}",
    "lora/pubmedqa.tsv": f"pubmedqa {ONLY}",
    "lora/fold0/seed0/whole.tsv": f"whole {ONLY}",
    "lora/fold0/own.tsv": "answers are in {0}/RUN/DATASET.tsv, and of one model {0}/RUN/fold0/seed0/DATASET.tsv",
    "asked/fold1/seed0/own.tsv": "own has fold 0 only",
    "free/own.tsv": "without labels: 10 models have no answer together. Ask one: {0}/free/fold0/seed0/own.tsv",
}


@pytest.mark.parametrize("target", ANSWERS)
def test_answers_that_there_cannot_be(checked, target):
    directory = "results/answers"
    words = ANSWERS[target].format(directory)
    checks = checked(QUESTIONS)
    assert said(check_answers, f"{directory}/{target}", checks, directory) == f"{directory}/{target}: {words}"


def test_answers_that_there_can_be(checked):
    checks, directory = checked(QUESTIONS), "results/answers"
    Path("d.csv").write_text("input\nWhat?\n")
    for target in "all/own.tsv", "free/labelled.tsv", "free/fold3/seed0/own.tsv", "asked/own.tsv", "base/labelled.tsv":
        check_answers(f"{directory}/{target}", checks, directory)
    check_answers("results/data/own/questions.jsonl", checks, directory)
    path = "mine.yaml: datasets.gone.test: there is no file gone.csv"
    assert said(check_answers, f"{directory}/all/gone.tsv", checks, directory) == path
    there = str(Path.cwd() / directory / "all/own.tsv")
    words = f"{there}: a target is a path from here: {directory}/all/own.tsv"
    assert said(check_answers, there, checks, directory) == words


def test_run_on_questions_in_the_table(checked):
    """A data set with `test` alone can be scored where it has answers; what is wrong in its first row is told."""
    config = "{targets: [asked], datasets: {x: {test: d.jsonl}}, runs: {asked: {model: mistral-7b, dataset: x}}}"
    place, ask = "mine.yaml: runs.asked.dataset", "snakemake results/answers/asked/x.tsv"
    for row in '{"input": "a", "output": " "}', '{"input": "a", "output": null}', '{"input": "a", "outputs": "b"}':
        Path("d.jsonl").write_text(row)
        columns = ", ".join(json.loads(row))
        none = f"{place}: x has no answers, as d.jsonl has none under output; its columns are {columns}"
        none += ": nothing can be scored"
        assert said(checked, config) == f"{none}. Take asked out of targets: and ask it: {ask}"
        assert said(checked, config.replace("test: d", "train: d.csv, val: d.csv, test: d")) == none
    Path("d.jsonl").write_text('{"input": "a", "output": "b"}')
    checked(config)
    Path("d.json").write_text('{"a": 1}')
    words = "mine.yaml: datasets.x.test: d.json, id a: is no record"
    assert said(checked, config.replace("d.jsonl", "d.json")).startswith(words)


def test_target_that_is_no_file_from_here(checked):
    runs, directory = checked("targets: [base]").config["runs"], "results/runs"
    one = "results/runs/lora/fold0/seed0/metrics.json"
    there = str(Path.cwd() / one)
    assert said(check_target, there, runs, {}, directory) == f"{there}: a target is a path from here: {one}"
    table = str(Path.cwd() / "results/accuracy.tsv")
    assert said(check_target, table, runs, {}, directory).endswith("a target is a path from here: results/accuracy.tsv")
    for target in there, table:
        check_target(target, runs, {}, str(Path.cwd() / directory))  # where pathvars say so


def test_what_is_asked_for_on_the_command_line():
    """Not the values of other options, which may be a run's name or a file of the results, too."""
    words = "-F a -R b results/c --until d -O e --prioritize f --apptainer-args= -n"
    assert asked_for(words.split()) == ["a", "b", "d", "e", "f", "results/c"]
    of_a_job = "results/a --configfiles /here/results/m.yaml --report results/r.html --rerun-triggers mtime input code"
    assert asked_for(of_a_job.split()) == ["results/a"]
    assert asked_for(["--shadow-prefix", "results/x", "--cleanup-metadata", "results/runs/gone", "-n", "a"]) == ["a"]
    assert asked_for(["--cores"]) == asked_for(["-s"]) == []  # of pytest, as an example


def test_the_command_line_has_the_last_word(checked):
    checks = Checks({}, [], given={"targets": ["bse"]})
    assert said(checks.refuse, ["targets"], "so") == "--config: targets: so"


def test_numbers_in_braces_after_config():
    """`--config 'runs={lora: {seeds: [1]}}'`: Snakemake reads it so that all values are text."""
    checks = Checks({}, [], given={"runs": {"lora": {"seeds": ["1"]}}})
    words = "--config: runs.lora.seeds: '1' is text to YAML; within braces --config has nothing but text: write it to a"
    refused = said(checks.refuse, ["runs", "lora", "seeds"], "'1' is text to YAML; write a plain number")
    assert refused == f"{words} file for --configfile"


@pytest.mark.parametrize(
    "content", ["{", "null", "[]", json.dumps(MODEL | {"num_attention_heads": "many"}), "\ufeff{}"]
)
def test_model_whose_configuration_is_none(checked, tmp_path, content):
    file = tmp_path / "config.json"
    file.write_text(content)
    config = f"{{models: {{local: {{snapshot: {tmp_path}}}}}, runs: {{lora: {{model: local}}}}}}"
    assert said(checked, config).startswith(f"mine.yaml: models.local.snapshot: {file}: ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: 1\n\tb: 2\n", ", line 2: found a tab, which cannot start any token"),
        (b"a: 1\n  b: 2\n", ", line 2: mapping values are not allowed here"),
        (b"a: [1\n", ", line 2: expected ',' or ']', but got '<stream end>'"),
        (b"a: *b\n", ", line 1: found undefined alias 'b'"),
        (b"a: &b [1, *b]\n", ", line 1: holds itself, by an alias"),
        (b"a: &b {c: *b}\n", ", line 1: holds itself, by an alias"),
        ("a: 1\n".encode("utf-16"), ", line 1: is no text in UTF-8. Save the file in UTF-8"),
        ("a: 1\nb: é\n".encode("latin-1"), ", line 2: is no text in UTF-8. Save the file in UTF-8"),
        (b"a: 1\nb: \x01\n", ", line 2: holds the character 0x1, which YAML does not allow"),
        (b"", ": has no keys at its top, such as `targets:`"),
        (b"- a\n", ": has no keys at its top, such as `targets:`"),
        (b"a\n", ": has no keys at its top, such as `targets:`"),
        (b"a: 1\nb: 2\na: 3\n", ", line 3: a stands here and in line 1; only one would count. Remove one"),
        (b"a:\n  b: {c: 1, c: 2}\n", ", line 2: c stands here and in line 2; only one would count. Remove one"),
        (
            b"a:\n- {b: 1}\n- {c: 1,\n   c: 2}\n",
            ", line 4: c stands here and in line 3; only one would count. Remove one",
        ),
        (b"1: a\n", ", line 1: the key 1 is no text to YAML. Put it in quotes"),
        (b"a: 1\nyes: a\n", ", line 2: the key yes is no text to YAML. Put it in quotes"),
        (b"2026-01-01: a\n", ", line 1: the key 2026-01-01 is no text to YAML. Put it in quotes"),
        (b"? [a, b]\n: c\n", ", line 1: a key is no text to YAML. Put it in quotes"),
    ],
)
def test_file_that_is_read_otherwise_than_it_was_meant(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_bytes(content)
    assert said(check_yaml, "mine.yaml") == f"mine.yaml{words}"


def test_file_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").mkdir()
    assert said(check_yaml, "mine.yaml") == "mine.yaml: can't be read: Is a directory"
    os.mkfifo("pipe")  # as of --configfile <(…), which Snakemake has read to its end before
    assert said(check_yaml, "pipe") == "pipe: is a pipe, which can be read only once. Save it as a file"


def test_option_that_stands_twice():
    """Of these Snakemake takes the last alone."""
    check_options(
        ["snakemake", "all", "-n", "--configfile", "a.yaml", "b.yaml", "-C", "targets=[base]", "--set-threads"]
    )
    for words in (
        *("--configfile a.yaml --configfile b.yaml", "--configfile=a.yaml --configfiles b.yaml"),
        *("-C a=1 --config b=2", "-R predict --forcerun=evaluate", "--set-resources a:b=1 --set-resources c:d=2"),
    ):
        assert "stands twice, and only the last would count" in said(check_options, ["snakemake", *words.split()])


def test_file_that_says_what_it_means(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("\ufeffa: &a {b: [1, 2]}\nc: {<<: *a, d: [*a, *a]}\n'1': é\n", encoding="utf-8")
    check_yaml(file)
    bomb = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
    file.write_text(f"a0: &a0 [x]\n{bomb}")
    check_yaml(file)  # an alias is not followed twice


def test_sweep(checked):
    """One run for each combination of its values, wherever its name stood."""
    lr, modules = "lr: {sweep: [1.0e-4, 0.001]}", "target_modules: {sweep: [[attention_qkv], [mlp_fc1, mlp_fc2]]}"
    run = "model: mistral-7b, dataset: pubmedqa, tensor_model_parallel_size: 1"
    swept = f"swept: {{{run}, train: {{max_steps: 60, val_check_interval: 15, {lr}, {modules}}}}}"
    best = f"best-of: {{{run}, choose: [lora, swept]}}"
    checks = checked(f"{{targets: [base, best-of], runs: {{{swept}, {best}}}}}")
    names = [f"swept-lr-{lr}-target_modules-{number}" for lr in ("0.0001", "0.001") for number in (1, 2)]
    runs = checks.config["runs"]
    assert "swept" not in runs and [name for name in runs if name.startswith("swept")] == names
    assert runs["best-of"]["choose"] == ["lora", *names] and checks.config["targets"] == ["base", "best-of"]
    assert runs[names[3]]["train"]["lr"] == 0.001 and runs[names[3]]["train"]["max_steps"] == 60
    assert runs[names[3]]["train"]["target_modules"] == ["mlp_fc1", "mlp_fc2"]
    assert checked(f"{{targets: [swept], runs: {{{swept}}}}}").config["targets"] == names
    twice = f"{{targets: [swept], runs: {{{swept}, {names[0]}: {{{run}}}}}}}"
    words = f"mine.yaml: runs.{names[0]}: is also the name of a run of the sweep swept: name it otherwise"
    assert said(checked, twice) == words


def test_sweep_is_no_run(checked):
    """Its runs have names of their own."""
    run = "model: mistral-7b, dataset: pubmedqa, tensor_model_parallel_size: 1"
    swept = f"swept: {{{run}, train: {{max_steps: 60, val_check_interval: 15, lr: {{sweep: [0.1, 0.2]}}}}}}"
    checks = checked(f"{{targets: [base], runs: {{{swept}}}}}")
    runs, directory = checks.config["runs"], "results/runs"
    one = "is a sweep: name one of its runs, as swept-lr-0.1"
    file = "results/runs/swept/fold0/seed0/metrics.json"
    assert said(check_target, file, runs, {}, directory) == f"{file}: swept {one}"
    assert said(check_answers, "results/answers/swept/own.tsv", checks, "results/answers").endswith(f": swept {one}")
    warm = f"{{targets: [base], runs: {{{swept}, lora: {{train: {{start_from: swept}}}}}}}}"
    assert said(checked, warm) == f"mine.yaml: runs.lora.train.start_from: swept {one}"


def test_sweep_of_too_many_runs(checked):
    """Ten keys of ten values each would be made for ever."""
    keys = ("lr", "adapter_dropout", "adapter_dim", "max_steps", "warmup_steps", "global_batch_size", "nemo")
    values = ", ".join(f"{key}: {{sweep: [{', '.join(map(str, range(1, 20)))}]}}" for key in keys)
    swept = f"swept: {{model: mistral-7b, dataset: pubmedqa, train: {{val_check_interval: 1, {values}}}}}"
    words = "mine.yaml: runs.swept.train: its sweeps make 893,871,739 runs; 5,000 at most: name fewer values"
    assert said(checked, f"{{targets: [swept], runs: {{{swept}}}}}") == words


def test_many_runs_are_told_by_the_few_others(checked):
    """Snakemake goes through the expression once for each job."""
    train = f"lr: 0.1, max_steps: 200, val_check_interval: 15, warmup_steps: {{sweep: {[*range(1, 200)]}}}"
    swept = f"{{model: mistral-7b, dataset: pubmedqa, train: {{{train}}}}}"
    config = checked(f"{{targets: [base], runs: {{swept: {swept}}}}}").config
    parameters = Parameters.__new__(Parameters)
    parameters.config = config
    expression = parameters.having("runs", "train")
    assert len(expression) < 100
    for name, run in config["runs"].items():
        assert bool(re.fullmatch(f"results/runs/(?P<run>{expression})/x", f"results/runs/{name}/x")) == ("train" in run)
    assert parameters.having("runs", "choose") == "(?!)" and parameters.having("datasets", "revision") == "pubmedqa"

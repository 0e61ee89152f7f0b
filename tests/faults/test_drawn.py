"""Configurations drawn at random from the schema, each by its seed: it ends in a sentence, or is planned."""

import copy
import datetime
import os
import random

import pytest
import yaml
from helpers import ROOT

from .conftest import FORM, is_sentence, plan

DRAWS = int(os.environ.get("DRAWS", 100))
SAID = []
NAMES = ("base", "tutorial", "lora", "half-dp2", "half", "best", "tiny", "trials", "mistral-7b", "pubmedqa", "d.csv")
WORDS = (
    "",
    " ",
    "\n",
    "a\nb",
    "..",
    ".",
    "/",
    "é",
    "日本語",
    300 * "x",
    "{x}",
    "{input}",
    "<results>",
    "$(touch injected)",
    "all",
)
WORDS += (
    "--help",
    "null",
    "1e-4",
    "a=b",
    "+a.b=1",
    "model.optim.lr=1",
    "`",
    '"',
    "'",
    "%",
    "\\",
    40 * "a",
    "org/x",
    "\x7f",
    "~",
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    4,
    7,
    16,
    32,
    64,
    2**31,
    2**32,
    2**64,
    10**30,
    0.5,
    1.0,
    1e-4,
    1e300,
    float("nan"),
    float("inf"),
)
ODD = (None, True, False, [], {}, [[]], {"a": {}}, [None], datetime.date(2026, 1, 1), {"sweep": [1, 2]}, {"sweep": []})


class Draw:
    def __init__(self, seed):
        self.rng, self.schema = random.Random(seed), FORM

    def any(self):
        return copy.deepcopy(self.rng.choice(self.rng.choice((NAMES, WORDS, NUMBERS, ODD))))

    def value(self, schema):
        """One of the schema's form, more often than not."""
        rng = self.rng
        if "$ref" in schema:
            schema = self.schema["$defs"][schema["$ref"].split("/")[-1]]
        if rng.random() < 0.06:
            return self.any()
        if "enum" in schema:
            return rng.choice(schema["enum"])
        kind = schema.get("type")
        kind = rng.choice(kind) if isinstance(kind, list) else kind
        if kind == "boolean":
            return rng.random() < 0.5
        if kind in ("integer", "number"):
            edges = [schema.get(key, 1) + more for key in ("minimum", "maximum") for more in (0, 0, 1, -1)]
            return rng.choice([*edges, *range(1, 9), *NUMBERS[:8], *([1e-4, 0.5] if kind == "number" else [])])
        if kind == "string":
            return rng.choice((*NAMES, *NAMES, *WORDS))
        if kind == "array":
            return [self.value(schema["items"]) for _ in range(rng.randint(0, 3))]
        return self.section(schema) if kind == "object" else None

    def section(self, schema):
        rng, known = self.rng, schema.get("properties", {})
        chosen = rng.sample(sorted(known), min(len(known), rng.choice((0, 1, 1, 2, 3))))
        found = {key: self.value(known[key]) for key in chosen}
        more = schema.get("additionalProperties")
        if isinstance(more, dict):
            names = rng.sample((*NAMES, *NAMES, *WORDS), rng.randint(0, 2))
            found |= {name: self.value(more) for name in names}
        elif rng.random() < 0.05:
            found[rng.choice(WORDS)] = self.any()
        return found

    def config(self):
        """What is laid over chain.yaml: drawn as a whole, or chain.yaml's own with a value or two changed."""
        if self.rng.random() < 0.5:
            return self.section(self.schema) or {"targets": ["base"]}
        config = yaml.safe_load((ROOT / "tests/chain.yaml").read_text())
        config = copy.deepcopy({key: value for key, value in config.items() if key not in ("accelerator", "image")})
        for _ in range(self.rng.choice((1, 1, 2))):
            self.change(config, self.schema)
        return config

    def change(self, tree, schema):
        """Gives one of the keys in the tree another value, or takes it away, or adds one."""
        rng, schema = self.rng, self.schema["$defs"].get(schema.get("$ref", "").split("/")[-1], schema)
        known, more = schema.get("properties", {}), schema.get("additionalProperties")
        key = rng.choice(sorted(tree) or [""]) if rng.random() < 0.8 else rng.choice(sorted({*known, "x"}))
        below = known.get(key, more if isinstance(more, dict) else {})
        if isinstance(tree.get(key), dict) and rng.random() < 0.85:
            tree[key] = copy.deepcopy(tree[key])  # an alias
            return self.change(tree[key], below)
        tree[key] = self.any() if rng.random() < 0.3 else self.value(below)
        return None


@pytest.mark.kind("configurations drawn from the schema, each by its seed")
@pytest.mark.parametrize("seed", range(DRAWS))
def test_drawn(here, seed):
    draw = Draw(seed)
    (here / "mine.yaml").write_text(yaml.safe_dump(draw.config()))
    before = {path.name for path in here.iterdir()}
    said = plan("mine.yaml")
    assert said is None or is_sentence(said), said
    assert {path.name for path in here.iterdir()} == before  # nor is anything made
    SAID.append(said)


def test_both_ends_are_drawn():
    """Some are planned, others are refused for many a reason: else the draws would show little."""
    if len(SAID) == DRAWS:
        assert None in SAID and len(set(SAID)) > DRAWS / 5

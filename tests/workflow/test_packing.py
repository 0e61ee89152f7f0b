"""Each item counts once: the loss and its gradient are NeMo's at a micro batch of 1, however items are packed."""

import math

import pytest
from common.files import read_json, read_jsonl, write_jsonl
from helpers import ROOT, torchrun

ANSWERS = ["yes", "no, as it is not", "maybe", "it is " * 120, "yes", "no", "the effect was seen " * 12, "yes"]


def distance(found, expected):
    """The gradients' relative to the expected's length."""
    pairs = [(a, b) for name in expected for a, b in zip(found[name], expected[name], strict=True)]
    return math.sqrt(sum((a - b) ** 2 for a, b in pairs) / sum(b * b for _, b in pairs))


@pytest.fixture(scope="module")
def items(inputs):
    """Items of many lengths, with answers of 1 to some hundred tokens."""
    rows = read_jsonl(inputs / "val.jsonl")[: len(ANSWERS)]
    rows = [row | {"output": answer.strip()} for row, answer in zip(rows, ANSWERS)]
    rows[2]["input"] = rows[2]["input"][:40]
    write_jsonl(inputs / "items.jsonl", rows)
    return inputs / "items.jsonl"


@pytest.fixture(scope="module")
def steps(inputs, items):
    """{(devices, tensor parallel): {way: loss and gradients}}"""
    found = {}
    for devices, tensor_parallel in ((1, 1), (2, 1), (2, 2)):
        output = inputs / f"steps-{devices}-{tensor_parallel}.json"
        script = ROOT / "tests/packed_steps.py"
        torchrun(script, inputs / "base", items, tensor_parallel, output, processes=devices)
        found[devices, tensor_parallel] = read_json(output)
    return found


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (2, 2)])
def test_same_as_nemo_at_a_micro_batch_of_1(steps, shape):
    found = dict(steps[shape])
    expected = found.pop("NeMo, micro batch 1")
    del found["wrong"], found["likeliest"]
    validation = [found.pop("validation"), found.pop("validation, one item after the other")]
    assert validation == pytest.approx([expected["loss"]] * 2, rel=1e-6)
    at_4 = found.pop("NeMo, micro batch 4")  # what is asked for is not true of everything
    assert at_4["loss"] != pytest.approx(expected["loss"], rel=1e-3)
    assert distance(at_4["gradients"], expected["gradients"]) > 0.1
    assert len(found) == 5
    for way, step in found.items():
        assert step["loss"] == pytest.approx(expected["loss"], rel=1e-6), way
        assert distance(step["gradients"], expected["gradients"]) < 1e-6, way


def test_same_on_one_device_and_two_copies(steps):
    one, two = steps[1, 1]["one row"], steps[2, 1]["one row"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert distance(two["gradients"], one["gradients"]) < 1e-6


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (2, 2)])
def test_accuracy_counts_items_that_greedy_decoding_gives(steps, shape):
    """NeMo's own decoding, token by token. Each item once, whichever of its tokens differs, however it is packed."""
    for case, (of_eight, of_seven) in steps[shape]["wrong"].items():
        assert (of_eight, of_seven) == ((0, 0) if case.startswith("None") else (3, 2)), case
    assert len(steps[shape]["wrong"]) == 4 * 4
    assert steps[shape]["likeliest"] == {"12": True, "7": True, "5": True}

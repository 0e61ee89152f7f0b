import pytest
from common.pubmedqa import LABELS, prompt
from evaluation.answers import read_answer


def test_prompt_is_the_tutorials():
    item = {"QUESTION": "Is it?", "CONTEXTS": ["We looked.", "It was."], "LABELS": ["METHODS", "RESULTS"]}
    assert prompt(item) == (
        "QUESTION:Is it?\nCONTEXT: We looked.\nIt was.\n"
        "TARGET: the answer to the question given the context is (yes|no|maybe): "
    )


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("yes", "yes"),
        (" Yes.\n", "yes"),
        ("NO", "no"),
        ("maybe.", "maybe"),
        ("", None),
        (".", None),
        ("yes..", None),
        ("not sure", None),
        ("unknown", None),
        ("no, because", None),
        ("yes no", None),
    ],
)
def test_read_answer(text, answer):
    assert read_answer(text, LABELS) == answer

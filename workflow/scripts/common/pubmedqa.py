"""PubMedQA's vocabulary: the labels, the prompt, which data set it is. Standard library only.

An item is one entry of PubMedQA's JSON: QUESTION, CONTEXTS (a list of paragraphs), LABELS (their headings),
final_decision (the gold answer), reasoning_required_pred and reasoning_free_pred (one annotator's answers).
https://github.com/pubmedqa/pubmedqa
"""

from .template import fill  # relative, as the planning imports this module, too

LABELS = ("yes", "no", "maybe")
COLUMNS = ("QUESTION", "CONTEXTS", "LABELS", "MESHES", "YEAR", "LONG_ANSWER")  # that a prompt may have
# The tutorial's, to the character, its trailing space included.
PROMPT = (
    "QUESTION:{QUESTION}\nCONTEXT: {CONTEXTS}TARGET: the answer to the question given the context is (yes|no|maybe): "
)


def prompt(item):
    """The tutorial's prompt for one item."""
    return fill(PROMPT, item)


def is_official(dataset):
    """Whether an entry under datasets: is PubMedQA itself: no made-up items in its format, and no other data."""
    return not dataset.keys().isdisjoint(("revision", "directory"))

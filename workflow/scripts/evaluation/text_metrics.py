"""The figures of answers in free text, item by item: exact match and token F1 as of SQuAD, and ROUGE-L.

By torchmetrics, whose normalisation is that of SQuAD's evaluate-v1.1.py (lower case; no punctuation, a, an, the) and of
Google's rouge_score (lower case; letters and digits). Both are made for English, and to both a Japanese answer would be
one word or none. So texts are prepared here in a way that leaves ASCII as it is: Unicode's compatibility forms (NFKC),
punctuation of all scripts, as in MLQA's evaluation (https://github.com/facebookresearch/MLQA), and each character of a
script that is written without spaces as a token of its own.
"""

import unicodedata

import numpy as np
from evaluation.metrics import Metric
from evaluation.significance import bootstrap_interval

MAIN = "token_f1"  # what runs are compared by


def apart(text):
    """Characters of scripts without spaces between words, each with spaces around it."""
    import regex  # not with the module: who reads figures needs none of this

    without_spaces = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*"
    return regex.sub(f"({without_spaces})", r" \1 ", unicodedata.normalize("NFKC", text))


def squad(gold, answer):
    import regex
    from torchmetrics.functional.text import squad  # takes seconds

    # SQuAD knows ASCII's punctuation only, which it takes out itself
    gold, answer = (regex.sub(r"[\p{P}--\p{ASCII}]", "", apart(text), flags=regex.V1) for text in (gold, answer))
    found = squad({"prediction_text": answer, "id": "0"}, {"answers": {"text": [gold]}, "id": "0"})
    return {name: round(float(percent) / 100, 6) for name, percent in found.items()}  # of float32


def rouge(gold, answer):
    import regex
    from torchmetrics.functional.text import rouge_score

    def letters_and_digits(text):
        return regex.sub(r"[\W_]+", " ", apart(text).lower())

    found = rouge_score(answer, gold, normalizer=letters_and_digits, rouge_keys="rougeL")
    return round(float(found["rougeL_fmeasure"]), 6)


# A metric is one entry here, a function of an item's gold answer and the generated text: accuracy.tsv, accuracy.json,
# the printed table and the report have it then. A run has the mean over items and models, with a bootstrap interval.
FREE_TEXT_METRICS = {
    "exact_match": Metric(lambda gold, answer: squad(gold, answer)["exact_match"], {"": "exact match"}),
    "token_f1": Metric(lambda gold, answer: squad(gold, answer)["f1"], {"": "token F1", "_sd": "sd"}),
    "rouge_l": Metric(rouge, {"": "ROUGE-L"}),
}


def text_figures(values):
    """values: {metric: [models, items]}."""
    found = {}
    for name, of_models in values.items():
        of_items = np.mean(of_models, axis=0)
        found |= {name: float(of_items.mean()), f"{name}_interval": bootstrap_interval(np.mean, of_items)}
    return found

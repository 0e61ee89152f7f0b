"""What is asked of the items of a test set, and how predictions answer it."""

import math
from collections import Counter
from typing import NamedTuple

from common.items import id_of
from evaluation.metrics import MALFORMED
from scipy.special import softmax


class Task(NamedTuple):
    """What is asked of the items: their keys with the gold and a human's answer, and the labels; None: free text."""

    gold: str
    labels: list | None = None
    human: str | None = None


def read_answer(text, labels):
    """The label that a generated text states, or None where it is malformed.

    Stripped and without one final full stop, the text must equal a label, in whatever case if no two labels do then:
    "Yes." is yes, "not sure" and "no, because …" are malformed.
    """
    text = text.strip()
    answers = text, text[:-1] if text.endswith((".", "。")) else text
    for read in (str, str.casefold):
        for answer in answers:  # the text as it is first: a label may end in a full stop
            found = [label for label in labels if read(label) == read(answer)]
            if len(found) == 1:
                return found[0]
    return None


def has_answer(item, task):
    return bool((item.get(task.gold) or "").strip())


def refuse_what_does_not_fit(predictions, ids, items, task):
    """ValueError unless predictions are of ids, each once, and all answers are among the labels."""
    times = Counter(map(id_of, predictions))
    if unknown := next((id for id in times if id not in ids), None):
        raise ValueError(f"{unknown} is none of the {len(ids)} test items")
    if missing := next((id for id in ids if id not in times), None):
        raise ValueError(f"has no prediction of {missing}, one of the {len(ids)} test items")
    if doubled := next((id for id in times if times[id] > 1), None):
        raise ValueError(f"has {times[doubled]} predictions of {doubled}")
    if not any(has_answer(items[id], task) for id in ids):
        raise ValueError(f"none of the {len(ids)} test items has an answer under {task.gold}: nothing can be scored")
    if task.labels is None:
        return
    if MALFORMED in task.labels:
        raise ValueError(f"no label can be called {MALFORMED}: the tables say so of texts that are no label")
    for id in ids:
        for key in filter(None, (task.gold, task.human)):
            if has_answer(items[id], task) and items[id][key] not in task.labels:
                raise ValueError(f"{key} of {id} is '{items[id][key]}', none of {', '.join(task.labels)}")
    for row in predictions:
        scores = row.get("logprob", {})
        if set(scores) != set(task.labels):
            labels = f"{', '.join(scores)} instead of {', '.join(task.labels)}"
            raise ValueError(f"has log-probabilities of {labels} for {id_of(row)}")
        if not all(map(math.isfinite, scores.values())):
            raise ValueError(f"the log-probabilities of {id_of(row)} are not finite: did the model overflow?")


def read_labels(item, row, task, label_tokens):
    """The readings of one item's prediction."""
    scores = [row["logprob"][label] for label in task.labels]
    answer = {"gold": item[task.gold]} | ({"human": item[task.human]} if task.human else {})
    answer["score"] = max(task.labels, key=row["logprob"].get)
    answer["text"] = read_answer(row["pred"], task.labels)
    answer["probability"] = softmax(scores).tolist()  # among the labels
    if label_tokens:
        answer["per_token"] = max(task.labels, key=lambda label: row["logprob"][label] / label_tokens[label])
    return answer

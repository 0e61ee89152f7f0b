"""Which tokens of labels are scored. Standard library only."""

from itertools import permutations


def told_apart(labels, end):
    """{label: the token ids that are scored}; ValueError where two labels have the same.

    Where one label's tokens begin another's, the shorter could never be the less likely one. Then each is followed by
    the end, as in training, and its log-probability is that of being the whole answer.
    """
    for (label, ids), (other, others) in permutations(labels.items(), 2):
        if ids == others:
            raise ValueError(f"labels: {label} and {other} are the same tokens to this model, {ids}: rename one")
    if any(others[: len(ids)] == ids for ids, others in permutations(labels.values(), 2)):
        return {label: [*ids, *end] for label, ids in labels.items()}
    return labels

"""Items packed into rows without padding, and attention within them. Needs only torch."""

import math
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F

MULTIPLE = 16  # of tokens in a row, as NeMo pads: what tensor cores want, FP8's more than others


def share_out(lengths, shares):
    """Indices of items of these lengths in lists of like totals: the longest first, each to the list with least so far
    (Graham, Bounds on Multiprocessing Timing Anomalies, 1969)."""
    found, totals = [[] for _ in range(shares)], [0] * shares
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        least = totals.index(min(totals))
        found[least].append(index)
        totals[least] += lengths[index]
    return [sorted(share) for share in found if share]


def pack(lengths, tokens, items):
    """Indices of items of these lengths, a list a row: as few rows as keep within so many `tokens`, or within the
    longest item's; where tokens is None, so many rows that there are `items` a row in the mean."""
    if tokens is None:
        return share_out(lengths, math.ceil(len(lengths) / items))
    tokens = max([tokens, *lengths])
    for rows in range(math.ceil(sum(lengths) / tokens), len(lengths) + 1):
        packed = share_out(lengths, rows)
        if all(sum(lengths[index] for index in row) <= tokens for row in packed):
            return packed
    return []


class Row:
    """Items behind one another. tokens, positions [n]; of those that are to be predicted: where in the row they are
    looked up [m], labels and weights [1, m], each item's sum to 1; ends: where items begin and end.

    items: [(token ids, for each but the first whether it counts), …].
    """

    def __init__(self, items, all_places=False):
        padding = -sum(len(counts) for _, counts in items) % MULTIPLE
        if padding:  # one more item, of which nothing is to be learned
            items = [*items, ([0] * (padding + 1), [0.0] * padding)]
        self.lengths = [len(counts) for _, counts in items]
        self.longest = max(self.lengths)
        self.tokens = torch.tensor([token for ids, _ in items for token in ids[:-1]])
        self.positions = torch.cat([torch.arange(length) for length in self.lengths])
        labels = torch.tensor([token for ids, _ in items for token in ids[1:]])
        weights = torch.cat([torch.tensor(counts) / max(1, sum(counts)) for _, counts in items])
        self.places = (torch.ones_like(weights) if all_places else weights).nonzero()[:, 0]
        self.labels, self.weights = labels[self.places][None], weights[self.places][None]
        self.ends = torch.tensor([0, *self.lengths]).cumsum(0).int()
        numbers = torch.arange(len(items)).repeat_interleave(torch.tensor(self.lengths))
        self.side_by_side = numbers * self.longest + self.positions  # places if each were padded to the longest

    def to_device(self):
        for name, value in vars(self).items():
            if torch.is_tensor(value):
                setattr(self, name, value.cuda(non_blocking=True))
        return self


class Loader(torch.utils.data.DataLoader):
    """Prepares a step while the device computes the one before."""

    def __iter__(self):
        return self.ahead(super().__iter__())  # which draws a random number: now, and not in the first step

    def ahead(self, steps):
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(next, steps, None)
            while (step := coming.result()) is not None:
                coming = thread.submit(next, steps, None)
                yield step


class PackedAttention(torch.nn.Module):
    """In place of megatron-core's core attention, which knows rows of one item only. owner.row is the present row."""

    def __init__(self, owner, config, flash):
        super().__init__()
        self.owner, self.flash, self.dropout = owner, flash, config.attention_dropout
        self.window = config.window_size[0] if getattr(config, "window_size", None) else None  # seen before the present

    def forward(self, query, key, value, *masks, **options):
        """query [tokens, 1, heads, d], key and value [tokens, 1, groups, d] -> [tokens, 1, heads * d]"""
        row, query, key, value = self.owner.row, query.squeeze(1), key.squeeze(1), value.squeeze(1)
        window = self.window if self.window is not None and row.longest > self.window + 1 else None
        attend = self.flash_attention if self.flash else self.padded_attention
        return attend(row, query, key, value, window, self.dropout if self.training else 0.0)[:, None].flatten(2)

    def flash_attention(self, row, query, key, value, window, dropout):
        options = {} if window is None else {"window_size_left": window, "window_size_right": 0}
        extent = (row.ends, row.ends, row.longest, row.longest)  # of queries, of keys
        return torch.ops.aten._flash_attention_forward(query, key, value, *extent, dropout, True, False, **options)[0]

    def padded_attention(self, row, query, key, value, window, dropout):
        """For any device and precision: items side by side, padded behind, where nothing looks at it."""
        n, heads = len(row.lengths), query.shape[1]

        def side_by_side(tensor):
            padded = tensor.new_zeros(n * row.longest, *tensor.shape[1:]).index_copy(0, row.side_by_side, tensor)
            padded = padded.view(n, row.longest, *tensor.shape[1:]).transpose(1, 2)
            return padded.repeat_interleave(heads // tensor.shape[1], dim=1)

        own = torch.arange(row.longest, device=query.device)
        age = own[:, None] - own
        seen = None if window is None else (age >= 0) & (age <= window)
        query, key, value = map(side_by_side, (query, key, value))
        done = F.scaled_dot_product_attention(query, key, value, seen, dropout, is_causal=seen is None)
        return done.transpose(1, 2).flatten(0, 1)[row.side_by_side]

"""Items packed into rows, and attention within them."""

import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from nemo_image.rows import MULTIPLE, Loader, PackedAttention, Row, pack, share_out

LENGTHS = [random.Random(7).randint(20, 900) for _ in range(32)]


@pytest.mark.parametrize("shares", [1, 2, 3, 4, 8, 32])
def test_shares_are_all_items_and_alike(shares):
    found = share_out(LENGTHS, shares)
    assert len(found) == shares and sorted(index for share in found for index in share) == list(range(32))
    totals = [sum(LENGTHS[index] for index in share) for share in found]
    assert max(totals) <= sum(LENGTHS) / shares * 4 / 3 + max(LENGTHS)  # Graham's bound
    assert max(totals) - min(totals) <= max(LENGTHS)


def test_fewer_items_than_shares():
    assert share_out([5, 9], 4) == [[1], [0]]
    assert pack([], 100, 1) == pack([], None, 1) == []


@pytest.mark.parametrize("tokens", [900, 2048, 5000, 10**9])
def test_rows_keep_within_their_tokens(tokens):
    rows = pack(LENGTHS, tokens, 1)
    totals = [sum(LENGTHS[index] for index in row) for row in rows]
    assert sorted(index for row in rows for index in row) == list(range(32))
    assert max(totals) <= tokens and len(rows) <= 1.3 * sum(LENGTHS) / tokens + 1


def test_an_item_that_is_longer_than_a_row_makes_one_of_its_length():
    assert pack([30, 700, 40, 50], 100, 1) == [[1], [0, 2, 3]]


def test_rows_of_so_many_items():
    assert pack([10, 10, 10, 10], None, 2) == [[0, 2], [1, 3]]
    assert len(pack(LENGTHS, None, 3)) == 11
    assert sorted(pack(LENGTHS, None, 1)) == [[index] for index in range(32)]


def items(lengths, answer=3):
    """Tokens by number, so that each tells where it comes from; of each item the last `answer` count."""
    return [
        ([1000 * number + place for place in range(length + 1)], [0.0] * (length - answer) + [1.0] * answer)
        for number, length in enumerate(lengths)
    ]


def test_row():
    row = Row(items([5, 8, 7]), all_places=False)
    assert len(row.tokens) == 32 and len(row.tokens) % MULTIPLE == 0 and row.lengths == [5, 8, 7, 12]
    assert row.tokens[:6].tolist() == [0, 1, 2, 3, 4, 1000] and row.positions[3:7].tolist() == [3, 4, 0, 1]
    assert row.places.tolist() == [2, 3, 4, 10, 11, 12, 17, 18, 19]  # none of the padding
    assert row.labels.tolist() == [[3, 4, 5, 1006, 1007, 1008, 2005, 2006, 2007]]
    assert row.weights.sum() == pytest.approx(3) and row.weights[0, 0] == pytest.approx(1 / 3)
    assert row.ends.tolist() == [0, 5, 13, 20, 32]
    whole = Row(items([5, 8, 7]), all_places=True)
    assert whole.labels.shape == (1, 32) and whole.weights.sum() == pytest.approx(3)


@pytest.mark.parametrize("window", [None, 3, 50])
def test_attention_stays_within_an_item(window):
    torch.manual_seed(0)
    row = Row(items([9, 4, 11, 8], answer=2), all_places=False)  # 32 tokens: no padding
    query, key, value = (torch.randn(32, 1, heads, 8, requires_grad=True) for heads in (6, 2, 2))
    config = SimpleNamespace(attention_dropout=0.0, window_size=window and (window, 0))
    attention = PackedAttention(SimpleNamespace(row=row), config, flash=False)
    found = attention(query, key, value, None, attn_mask_type=None)
    found.square().sum().backward()
    gradients = [tensor.grad.clone() for tensor in (query, key, value)]
    query.grad = key.grad = value.grad = None
    alone = []
    for begin, end in zip(row.ends, row.ends[1:]):
        q, k, v = (tensor[begin:end, 0].transpose(0, 1) for tensor in (query, key, value))
        own = torch.arange(end - begin)
        age = own[:, None] - own
        seen = (age >= 0) & (age <= (100 if window is None else window))
        done = F.scaled_dot_product_attention(q, k.repeat_interleave(3, 0), v.repeat_interleave(3, 0), seen)
        alone.append(done.transpose(0, 1).reshape(end - begin, 1, -1))
    torch.cat(alone).square().sum().backward()
    torch.testing.assert_close(found, torch.cat(alone))
    for gradient, tensor in zip(gradients, (query, key, value)):
        torch.testing.assert_close(gradient, tensor.grad)


def test_loader_prepares_ahead_and_tells_of_what_fails():
    loader = Loader([1, 2, 3], batch_size=1, collate_fn=lambda examples: 6 / (3 - examples[0]))
    steps = iter(loader)
    assert [next(steps), next(steps)] == [3, 6]
    with pytest.raises(ZeroDivisionError):
        next(steps)
    assert list(Loader([1, 2], batch_size=1, collate_fn=sum)) == [1, 2]

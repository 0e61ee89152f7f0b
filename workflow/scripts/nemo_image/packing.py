"""A training step without padding, in which each item counts once. Needs only NeMo and what it needs.

A step's items are shared out to the copies of the model and packed, one behind the other, into rows: [1, tokens] each.
Attention stays within an item, the rotary angles start anew with each, and the output layer reads answers only. The
loss is the mean over items of each item's mean over its answer's tokens, as NeMo's at a micro batch of 1. So it is the
same, to rounding, however items are sorted, packed and shared out; NeMo's own averages the tokens of a micro batch.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from nemo.collections.nlp.data.language_modeling.megatron.megatron_batch_samplers import MegatronPretrainingBatchSampler

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
        if max(sum(lengths[index] for index in row) for row in packed) <= tokens:
            return packed
    return []


class Row:
    """Items behind one another. tokens, positions [n]; of those that are to be predicted: where in the row they are
    looked up [m], labels and weights [1, m], each item's sum to 1; ends: where items begin and end.

    items: [(token ids, for each but the first whether it counts), …].
    """

    def __init__(self, items, all_places):
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
        with ThreadPoolExecutor(1) as thread:
            steps = super().__iter__()
            coming = thread.submit(next, steps, None)
            while (step := coming.result()) is not None:
                coming = thread.submit(next, steps, None)
                yield step


class PackedAttention(torch.nn.Module):
    """In place of megatron-core's core attention, which knows rows of one item only."""

    def __init__(self, packing, config, flash):
        super().__init__()
        self.packing, self.flash, self.dropout = packing, flash, config.attention_dropout
        self.window = config.window_size[0] if getattr(config, "window_size", None) else None  # seen before the present

    def forward(self, query, key, value, *masks, **options):
        """query [tokens, 1, heads, d], key and value [tokens, 1, groups, d] -> [tokens, 1, heads * d]"""
        row, query, key, value = self.packing.row, query.squeeze(1), key.squeeze(1), value.squeeze(1)
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


class Step:
    """The items of one step on all copies of the model, and this copy's rows of them."""

    def __init__(self, packing, dataset, examples):
        rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        items = [(item["input_ids"], dataset._build_loss_mask(item)[1:]) for item in examples]
        shares = share_out([len(counts) for _, counts in items], ranks)
        # of the last items to validate with there may be too few for all
        own = [items[index] for index in shares[rank]] if rank < len(shares) else []
        rows = pack([len(counts) for _, counts in own], packing.tokens, packing.items)
        self.items = len(items)
        self.rows = [Row([own[index] for index in row], packing.all_places) for row in rows]


class Packing:
    """Makes NeMo's MegatronGPTSFTModel train and validate on rows. tokens, items: as pack() takes them."""

    def __init__(self, model, tokens, items, flash):
        self.model, self.tokens, self.items, self.row = model, tokens, items, None
        self.gpt = getattr(model.model, "module", model.model)  # without what casts to megatron_amp_O2's precision
        # then the output layer gathers the row's parts from all devices, so it has to have all of them
        self.all_places = self.gpt.config.sequence_parallel
        for layer in self.gpt.decoder.layers:
            layer.self_attention.core_attention = PackedAttention(self, self.gpt.config, flash)
        self.gpt.rotary_pos_emb.register_forward_hook(lambda module, args, angles: angles[self.row.positions])
        self.gpt.output_layer.register_forward_pre_hook(self.choose_places)

    def choose_places(self, module, args):
        hidden, *others = args
        return (hidden if self.all_places else hidden[self.row.places]), *others

    def forward_step(self, rows, model):
        """What megatron-core's schedule wants: one row's losses, and the function that makes one of them."""
        self.row = next(rows).to_device()
        losses = model(self.row.tokens[None], self.row.positions[None], None, labels=self.row.labels)
        return losses, self.sum_up

    def sum_up(self, losses):
        loss = (losses.float() * self.row.weights).sum()
        # the schedule divides by the number of rows, average_gradients by that of copies
        return loss * self.scale, {"loss": loss.detach().clone()}

    def run(self, step, forward_only):
        """Forwards and, unless forward_only, backwards. Returns the mean of all items' losses, on all devices."""
        self.scale = len(step.rows) * parallel_state.get_data_parallel_world_size() / step.items
        losses = step.rows and get_forward_backward_func()(
            forward_step_func=self.forward_step,
            data_iterator=iter(step.rows),
            model=self.model.model,
            num_microbatches=len(step.rows),
            forward_only=forward_only,
            seq_length=None,  # of all rows: these two are for pipeline parallelism
            micro_batch_size=1,
        )
        loss = sum((row["loss"] for row in losses), torch.zeros(()).cuda())
        torch.distributed.all_reduce(loss, group=parallel_state.get_data_parallel_group())
        return loss / step.items


def pack_steps(model_class):
    """Patches MegatronGPTSFTModel. Its instances need an attribute `packing`, a Packing, before they are fitted."""

    def step_of(dataloader_iter):
        step = next(dataloader_iter)
        return step[0] if isinstance(step, tuple) else step  # with its index, in newer generations

    def build_data_loader(self, dataset, data_cfg, consumed_samples=0):
        """All ranks read all items of a step, as each of them works out who takes which."""
        sampler = MegatronPretrainingBatchSampler(
            total_samples=len(dataset),
            consumed_samples=consumed_samples,
            micro_batch_size=1,
            global_batch_size=data_cfg.global_batch_size,
            data_parallel_rank=0,
            data_parallel_size=1,
            drop_last=data_cfg.drop_last,
        )
        of_items = getattr(dataset, "datasets", [dataset])[0]
        return Loader(dataset, batch_sampler=sampler, collate_fn=partial(Step, self.packing, of_items))

    def fwd_bwd_step(self, dataloader_iter, forward_only, *unused):
        return self.packing.run(step_of(dataloader_iter), forward_only)

    def validation_step(self, dataloader_iter, *unused):
        step = step_of(dataloader_iter)
        self.model.eval()
        with torch.no_grad():
            loss = self.packing.run(step, forward_only=True)
        self.model.train()
        self.validation_step_outputs.append((loss * step.items, step.items))

    def on_validation_epoch_end(self):
        if self.validation_step_outputs:  # NeMo calls it before an epoch of training, too
            losses, items = zip(*self.validation_step_outputs)
            self.log("validation_loss", sum(losses) / sum(items), batch_size=1)
            self.validation_step_outputs.clear()

    model_class.build_data_loader, model_class.fwd_bwd_step = build_data_loader, fwd_bwd_step
    model_class.validation_step, model_class.on_validation_epoch_end = validation_step, on_validation_epoch_end
    model_class.on_validation_epoch_start = lambda self: None  # NeMo's sets micro batches up

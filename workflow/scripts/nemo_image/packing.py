"""A training step without padding, in which each item counts once. Needs only NeMo and what it needs.

A step's items are shared out to the copies of the model and packed, one behind the other, into rows: [1, tokens] each.
Attention stays within an item, the rotary angles start anew with each, and the output layer reads answers only. The
loss is the mean over items of each item's mean over its answer's tokens, as NeMo's at a micro batch of 1. So it is the
same, to rounding, however items are sorted, packed and shared out; NeMo's own averages the tokens of a micro batch.

Validation has an accuracy, too, from the same pass: the share of items whose answer greedy decoding gives to the token,
its end included. That is so where each token of the answer is the likeliest after the prompt and those before it.
"""

import math
from functools import partial

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from nemo.collections.nlp.data.language_modeling.megatron.megatron_batch_samplers import MegatronPretrainingBatchSampler
from nemo_image.rows import Loader, PackedAttention, Row, pack, share_out


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


def likeliest(logits, words):
    """The likeliest of a vocabulary of `words` tokens at each place, of equals the first. logits: [places, this rank's
    share of the vocabulary, which may end in rows that only pad it]."""
    first = parallel_state.get_tensor_model_parallel_rank() * logits.shape[1]
    value, token = logits[:, : max(1, words - first)].max(dim=1, keepdim=True)
    value = value if first < words else torch.full_like(value, -math.inf)
    # of each rank its best; the whole vocabulary's logits would be many times as much to send
    values, tokens = map(gather_from_tensor_model_parallel_region, (value, token + first))
    return tokens.gather(1, values.argmax(dim=1, keepdim=True))[:, 0]


class Packing:
    """Makes NeMo's MegatronGPTSFTModel train and validate on rows. tokens, items: as pack() takes them."""

    def __init__(self, model, tokens, items, flash):
        self.model, self.tokens, self.items, self.row = model, tokens, items, None
        self.wrong = None
        self.gpt = getattr(model.model, "module", model.model)  # without what casts to megatron_amp_O2's precision
        # then the output layer gathers the row's parts from all devices, so it has to have all of them
        self.all_places = self.gpt.config.sequence_parallel
        for layer in self.gpt.decoder.layers:
            layer.self_attention.core_attention = PackedAttention(self, self.gpt.config, flash)
        self.gpt.rotary_pos_emb.register_forward_hook(lambda module, args, angles: angles[self.row.positions])
        self.gpt.output_layer.register_forward_pre_hook(self.choose_places)
        self.gpt.output_layer.register_forward_hook(self.count_wrong)

    def choose_places(self, module, args):
        hidden, *others = args
        return (hidden if self.all_places else hidden[self.row.places]), *others

    def count_wrong(self, module, args, output):
        """In validation, adds the row's items that greedy decoding would answer otherwise."""
        if self.wrong is None:
            return
        logits, row = output[0][:, 0], self.row
        others = (likeliest(logits, self.model.tokenizer.vocab_size) != row.labels[0]) & (row.weights[0] > 0)
        of_item = row.side_by_side[row.places] // row.longest
        self.wrong += torch.zeros(len(row.lengths)).cuda().index_add(0, of_item, others.float()).count_nonzero()

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
        """Forwards and, unless forward_only, backwards. Returns the mean of all items' losses, on all devices. With
        forward_only, `wrong` is how many of them greedy decoding would answer otherwise."""
        self.wrong = torch.zeros(()).cuda() if forward_only else None
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
        for total in (loss, self.wrong) if forward_only else (loss,):
            torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group())
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
        self.validation_step_outputs.append((loss * step.items, self.packing.wrong, step.items))

    def on_validation_epoch_end(self):
        if self.validation_step_outputs:  # NeMo calls it before an epoch of training, too
            losses, wrong, items = zip(*self.validation_step_outputs)
            self.log("validation_loss", sum(losses) / sum(items), batch_size=1)
            self.log("validation_accuracy", 1 - sum(wrong) / sum(items), batch_size=1)
            self.validation_step_outputs.clear()

    model_class.build_data_loader, model_class.fwd_bwd_step = build_data_loader, fwd_bwd_step
    model_class.validation_step, model_class.on_validation_epoch_end = validation_step, on_validation_epoch_end
    model_class.on_validation_epoch_start = lambda self: None  # NeMo's sets micro batches up

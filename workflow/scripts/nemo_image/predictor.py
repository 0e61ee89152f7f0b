"""Greedy text and label scores of batches of prompts with NeMo's model. Needs only NeMo and what it needs."""

from itertools import pairwise, takewhile

import torch
import torch.nn.functional as F
from common.progress import say
from nemo_image.rows import PackedAttention, Row, pack
from nemo_image.setup import exit_all

ROW = 8192  # tokens of prompts that are read at once: enough to keep a GPU busy, few beside what the cache takes


def whole_vocabulary(logits, model):
    """Logits [batch, positions, vocabulary] from each rank's share of the words, on all ranks."""
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    # rows that only pad the vocabulary for tensor parallelism are no words
    return gather_from_tensor_model_parallel_region(logits)[..., : model.tokenizer.vocab_size]


class CachedAttention(PackedAttention):
    """Keeps the keys and values of a batch; megatron-core's own cache wants rows of one length."""

    def forward(self, query, key, value, *masks, **options):
        """query [tokens, rows, heads, d], key and value [tokens, rows, groups, d] -> [tokens, rows, heads * d]: a row
        of whole prompts, one behind the other, or rows of one token each."""
        owner = self.owner
        if owner.row:
            if owner.row.first:
                shape = (len(owner.own), owner.batch, *key.shape[2:])
                self.keys, self.values = key.new_zeros(shape), value.new_zeros(shape)
            place = owner.row.places_in_cache
            self.keys[place], self.values[place] = (tensor[: len(place[0]), 0] for tensor in (key, value))
            return super().forward(query, key, value)
        _, batch, heads, size = query.shape
        groups = key.shape[2]
        place = owner.positions, torch.arange(batch, device=query.device)
        self.keys[place], self.values[place] = key[0], value[0]
        query = query.view(batch, groups, heads // groups, size)  # the heads of a group see the same keys
        key, value = (tensor.permute(1, 2, 0, 3) for tensor in (self.keys, self.values))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=owner.seen).reshape(1, batch, -1)


class Predictor:
    """Reads whole prompts packed into rows, then one token of each prompt a step.

    Megatron's model reads on from one position, the same in all rows. So its attention is exchanged, and it is told
    each token's own rotary angles; only the last token's words are computed. On a GPU the launches of a step, which
    would take longer than its arithmetic, are recorded once a batch as a CUDA graph.
    """

    def __init__(self, model, labels, tokens_to_generate, flash, end=None):
        """labels: {label: its token ids}; flash: as of PackedAttention; end: the token that ends a text as EOS does."""
        self.model, self.labels, self.tokens_to_generate = model, labels, tokens_to_generate
        self.ends = [model.tokenizer.eos_id, *([] if end in (None, model.tokenizer.eos_id) else [end])]
        self.room = max(tokens_to_generate, *map(len, labels.values()), 0) - 1  # tokens read after a prompt
        self.graphs = True  # where there is a GPU
        self.gpt = getattr(model.model, "module", model.model)  # without what casts to megatron_amp_O2's precision
        for layer in self.gpt.decoder.layers:
            layer.self_attention.core_attention = CachedAttention(self, self.gpt.config, flash)
        self.window = layer.self_attention.core_attention.window
        self.gpt.rotary_pos_emb.register_forward_hook(self.own_angles)
        self.gpt.output_layer.register_forward_pre_hook(self.last_tokens)

    def own_angles(self, module, args, angles):
        """[tokens, 1, 1, d] of a row of prompts; [1, batch, 1, d] where each row has one token at its own position."""
        return self.angles[self.row.positions] if self.row else self.angles[self.positions].transpose(0, 1)

    def last_tokens(self, module, args):
        """Of a row's hidden states [tokens, 1, hidden] those of the prompts' last tokens."""
        hidden, *others = args
        return (hidden[self.row.places] if self.row else hidden), *others

    def logprobs(self, tokens):
        """Log-probabilities [prompts, vocabulary] of what follows: tokens [1, n], a row, or [batch, 1]."""
        config = self.gpt.config
        with torch.autocast("cuda", config.autocast_dtype, config.enable_autocast):
            logits = self.gpt(tokens, None, None)
        return torch.log_softmax(whole_vocabulary(logits, self.model).flatten(0, 1).float(), dim=-1)

    def read_prompts(self, prompts):
        """prompts: lists of token ids. What follows them, in their order."""
        self.positions = self.graph = None
        lengths = [len(prompt) for prompt in prompts]
        self.own, self.batch = torch.arange(max(lengths) + self.room).cuda(), len(prompts)
        self.angles = self.gpt.rotary_pos_emb.forward(len(self.own))
        rows, found = pack(lengths, ROW, None), []
        for members in rows:
            # each prompt's last token is the one after which something is to be predicted
            self.row = Row([([*prompts[index], 0], [0] * (lengths[index] - 1) + [1]) for index in members]).to_device()
            self.row.first = not found
            numbers = torch.tensor([index for index in members for _ in prompts[index]]).cuda()
            self.row.places_in_cache = self.row.positions[: len(numbers)], numbers
            found.append(self.logprobs(self.row.tokens[None]))
        self.row = None
        order = torch.tensor([index for members in rows for index in members]).argsort().cuda()
        return torch.cat(found)[order]

    def read_tokens(self):
        """One token of each row, at its position."""
        age = self.positions[:, None] - self.own
        seen = (age >= 0) & (age <= (len(self.own) if self.window is None else self.window))
        self.seen = seen[:, None, None]
        return self.logprobs(self.tokens[:, None])

    def read_next(self, tokens, positions):
        """tokens [batch], one a row, at its position [batch]. What it returns holds until the next call."""
        if self.positions is None or not (self.graphs and tokens.is_cuda):  # the first step warms up, too
            self.tokens, self.positions = tokens.clone(), positions
            return self.read_tokens()
        self.tokens.copy_(tokens)
        self.positions.copy_(positions)
        if self.graph is None:
            self.graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            try:
                with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # NCCL's own thread goes on
                    self.following = self.read_tokens()
            except RuntimeError as error:  # a layer that waits for the GPU, in an image with other layers than ours
                torch.cuda.set_stream(stream)  # which a capture that fails does not
                why = str(error.__context__ or error).splitlines()[0]
                say("predict", f"no CUDA graph, so each token's launches take longer: {why}")
                self.graphs = False
                return self.read_tokens()
        self.graph.replay()
        return self.following

    @torch.no_grad()
    def predict(self, prompts):
        """prompts: lists of token ids. Returns for each (token ids of the greedy text, {label: log-probability}). Exits
        where these are no numbers."""
        ends = torch.tensor(self.ends).cuda()
        self.lengths = torch.tensor([len(prompt) for prompt in prompts]).cuda()
        logprobs = self.read_prompts(prompts)
        if not logprobs.isfinite().all():
            why = "weights of the adapter or the base are no numbers, or precision: 16 overflows"
            exit_all(f"The model's output is not finite: {why}. Try precision: bf16 or 32.")
        scores = logprobs[:, [ids[0] for ids in self.labels.values()]]
        for number, ids in enumerate(self.labels.values()):
            for place, (token, following) in enumerate(pairwise(ids)):
                after = self.read_next(torch.full_like(self.lengths, token), self.lengths + place)
                scores[:, number] += after[:, following]
        text = logprobs.argmax(dim=-1)[:, None]
        while text.shape[1] < self.tokens_to_generate and not bool(torch.isin(text, ends).any(dim=1).all()):
            logprobs = self.read_next(text[:, -1], self.lengths + text.shape[1] - 1)
            text = torch.cat([text, logprobs.argmax(dim=-1, keepdim=True)], dim=1)
        self.graph = None  # NCCL does not end before its graphs
        texts = [list(takewhile(lambda token: token not in self.ends, ids)) for ids in text.tolist()]
        return [(ids, dict(zip(self.labels, row))) for ids, row in zip(texts, scores.tolist())]

"""Greedy text and label scores of batches of prompts with NeMo's model. Needs only NeMo and what it needs."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from common.progress import say


def whole_vocabulary(logits, model):
    """Logits [batch, positions, vocabulary] from each rank's share of the words, on all ranks."""
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    # rows that only pad the vocabulary for tensor parallelism are no words
    return gather_from_tensor_model_parallel_region(logits)[..., : model.tokenizer.vocab_size]


class CachedAttention(torch.nn.Module):
    """In place of megatron-core's core attention, whose key-value cache wants rows of one length."""

    def __init__(self, predictor):
        super().__init__()
        self.predictor = predictor

    def forward(self, query, key, value, *masks, **options):
        """query [new tokens, batch, heads, d], key and value [new, batch, groups, d] -> [new, batch, heads * d]."""
        new, batch, heads, size = query.shape
        groups = key.shape[2]
        if self.predictor.positions is None:  # whole prompts: what pads the shorter ones stands behind them, unseen
            self.keys, self.values = (F.pad(tensor, (0,) * 7 + (self.predictor.room,)) for tensor in (key, value))
            key, value = (tensor.repeat_interleave(heads // groups, dim=2) for tensor in (key, value))
            query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
            seen = self.predictor.seen
            output = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=seen is None)
            return output.permute(2, 0, 1, 3).reshape(new, batch, -1)
        place = self.predictor.positions, torch.arange(batch, device=query.device)
        self.keys[place], self.values[place] = key[0], value[0]
        query = query.view(batch, groups, heads // groups, size)  # the heads of a group see the same keys
        key, value = (tensor.permute(1, 2, 0, 3) for tensor in (self.keys, self.values))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.predictor.seen).reshape(1, batch, -1)


class Predictor:
    """Reads whole prompts of different lengths at once, then one token of each a step.

    Megatron's model reads on from one position, the same in all rows. So its attention is exchanged, and it is told
    each row's own rotary angles; only the last token's words are computed. On a GPU the launches of a step, which would
    take longer than its arithmetic, are recorded once a batch as a CUDA graph.
    """

    def __init__(self, model, labels, tokens_to_generate):
        """labels: {label: its token ids}."""
        self.model, self.labels, self.tokens_to_generate = model, labels, tokens_to_generate
        self.room = max(tokens_to_generate, *map(len, labels.values())) - 1  # tokens read after a prompt
        self.graphs = True  # where there is a GPU
        self.gpt = getattr(model.model, "module", model.model)  # without what casts to megatron_amp_O2's precision
        window = getattr(self.gpt.config, "window_size", None)
        self.window = window[0] if window else None  # tokens seen before the present one
        for layer in self.gpt.decoder.layers:
            layer.self_attention.core_attention = CachedAttention(self)
        self.gpt.rotary_pos_emb.register_forward_hook(self.own_angles)
        self.gpt.output_layer.register_forward_pre_hook(self.last_token)

    def own_angles(self, module, args, angles):
        """[1, batch, 1, d] where each row is at its own position."""
        return angles if self.positions is None else self.angles[self.positions].transpose(0, 1)

    def last_token(self, module, args):
        """Of hidden states [tokens, batch, hidden], [1, batch, hidden] of each row's last token."""
        hidden, *others = args
        if self.positions is None:
            hidden = hidden[self.lengths - 1, torch.arange(hidden.shape[1], device=hidden.device)][None]
        return hidden, *others

    def logprobs(self, tokens, seen):
        """Log-probabilities [batch, vocabulary] of what follows tokens [batch, n]; seen: the mask, None for causal."""
        self.seen, config = seen, self.gpt.config
        with torch.autocast("cuda", config.autocast_dtype, config.enable_autocast):
            logits = self.gpt(tokens, None, None)
        return torch.log_softmax(whole_vocabulary(logits, self.model)[:, 0].float(), dim=-1)

    def read_prompts(self, tokens):
        """tokens [batch, n], the shorter prompts padded behind."""
        self.positions = self.graph = None
        self.own = torch.arange(tokens.shape[1] + self.room, device=tokens.device)
        self.angles = self.gpt.rotary_pos_emb.forward(len(self.own))
        own = self.own[: tokens.shape[1]]
        age = own[:, None] - own
        short = self.window is None or len(own) <= self.window + 1
        return self.logprobs(tokens, None if short else (age >= 0) & (age <= self.window))

    def read_tokens(self):
        """One token of each row, at its position."""
        age = self.positions[:, None] - self.own
        seen = (age >= 0) & (age <= (len(self.own) if self.window is None else self.window))
        return self.logprobs(self.tokens[:, None], seen[:, None, None])

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
        """prompts: lists of token ids. Returns for each (token ids of the greedy text, {label: log-probability})."""
        eos = self.model.tokenizer.eos_id
        self.lengths = torch.tensor([len(prompt) for prompt in prompts]).cuda()
        rows = [torch.tensor(prompt) for prompt in prompts]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=eos).cuda()
        logprobs = self.read_prompts(tokens)
        scores = logprobs[:, [ids[0] for ids in self.labels.values()]]
        for number, ids in enumerate(self.labels.values()):
            for place, (token, following) in enumerate(pairwise(ids)):
                after = self.read_next(torch.full_like(self.lengths, token), self.lengths + place)
                scores[:, number] += after[:, following]
        text = logprobs.argmax(dim=-1)[:, None]
        while text.shape[1] < self.tokens_to_generate and not bool((text == eos).any(dim=1).all()):
            logprobs = self.read_next(text[:, -1], self.lengths + text.shape[1] - 1)
            text = torch.cat([text, logprobs.argmax(dim=-1, keepdim=True)], dim=1)
        self.graph = None  # NCCL does not end before its graphs
        texts = [ids[: ids.index(eos)] if eos in ids else ids for ids in text.tolist()]
        return [(ids, dict(zip(self.labels, row))) for ids, row in zip(texts, scores.tolist())]

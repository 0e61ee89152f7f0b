"""Greedy text and label scores of batches of prompts with NeMo's model. Needs only NeMo and what it needs."""


def whole_vocabulary(logits, model):
    """Logits [batch, positions, vocabulary] from each rank's share of the words, on all ranks."""
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    # rows that only pad the vocabulary for tensor parallelism are no words
    return gather_from_tensor_model_parallel_region(logits)[..., : model.tokenizer.vocab_size]


class Predictor:
    """Greedy text and label scores of batches of prompts, on all ranks of one model-parallel group at once."""

    def __init__(self, model, labels, tokens_to_generate):
        """labels: {label: its token ids}."""
        from nemo.collections.nlp.modules.common.text_generation_strategy import GPTModelTextGenerationStrategy

        self.model, self.labels, self.tokens_to_generate = model, labels, tokens_to_generate
        self.strategy = GPTModelTextGenerationStrategy(model)

    def forward(self, tokens, end, anew):
        """Logits [batch, positions, this rank's words] of what follows the last of tokens[:, :end].

        anew: all `end` positions are read; else all but the last have been, and are in the key-value cache.
        """
        batch, shape = self.strategy.prepare_batch_at_step(tokens, tokens.shape[1], len(tokens), not anew, end, False)
        return self.strategy.forward_step(batch, shape)[0]["logits"]

    def logprobs(self, logits):
        """Log-probabilities [batch, positions, vocabulary] from all ranks' logits."""
        import torch

        return torch.log_softmax(whole_vocabulary(logits, self.model).float(), dim=-1)

    def predict(self, prompts):
        """prompts: lists of token ids. Returns for each (token ids of the greedy text, {label: log-probability})."""
        import torch

        eos = self.model.tokenizer.eos_id
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        tokens = torch.full((len(prompts), longest + self.tokens_to_generate), eos)
        for row, prompt in zip(tokens, prompts):
            row[: len(prompt)] = torch.tensor(prompt)
        tokens = tokens.cuda()
        self.strategy.init_batch(tokens, tokens.shape[1], False)
        scores = [{} for _ in prompts]
        done = torch.zeros(len(prompts), dtype=torch.bool)
        # As NeMo does: the shortest prompt's length is read at once, then one token a step. A longer prompt's own
        # tokens are kept until its end. The key-value cache holds what has been read.
        start = int(lengths.min())
        for position in range(start, tokens.shape[1]):
            logprobs = self.logprobs(self.forward(tokens, position, anew=position == start)[:, -1])
            for row in (lengths == position).nonzero().flatten().tolist():
                scores[row] = {label: float(logprobs[row, ids[0]]) for label, ids in self.labels.items()}
            chosen = logprobs.argmax(dim=-1).cpu()
            writing = (lengths <= position) & ~done
            done |= writing & ((chosen == eos) | (position - lengths + 1 >= self.tokens_to_generate))
            tokens[writing.to(tokens.device), position] = chosen[writing].to(tokens.device)
            if bool(done.all()):
                break
        texts = [row[length : length + self.tokens_to_generate].tolist() for row, length in zip(tokens, lengths)]
        texts = [text[: text.index(eos)] if eos in text else text for text in texts]
        for label, ids in self.labels.items():
            if len(ids) > 1:
                for row, score in enumerate(self.score_rest(tokens, lengths, longest, ids)):
                    scores[row][label] += score
        return list(zip(texts, scores))

    def score_rest(self, tokens, lengths, longest, ids):
        """The log-probability of a label's tokens after its first, for each prompt, read anew with the label."""
        import torch

        rest = len(ids) - 1
        tokens = torch.nn.functional.pad(tokens[:, :longest], (0, rest), value=self.model.tokenizer.eos_id)
        label = torch.tensor(ids, device=tokens.device)
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        positions = lengths.to(tokens.device)[:, None] + torch.arange(rest, device=tokens.device)
        tokens[rows, positions] = label[:-1]
        self.strategy.init_batch(tokens, tokens.shape[1], False)
        logprobs = self.logprobs(self.forward(tokens, tokens.shape[1], anew=True)[rows, positions])
        return logprobs.gather(-1, label[1:].expand(len(tokens), -1)[..., None]).sum(dim=(1, 2)).tolist()

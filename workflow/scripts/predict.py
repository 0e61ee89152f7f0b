"""Predicts the answers of a test set with a base model and, where given, an adapter. Runs under torchrun:

    torchrun --standalone --nproc-per-node 4 predict.py --accelerator gpu --base … --adapter … --test … --settings …

Writes one JSON line an item, in the test set's order: pmid, input, pred (greedy text), label (the item's answer) and
logprob, the log-probability of each of yes, no and maybe, all its tokens, after the prompt.
Needs only NeMo and what it needs. Made for NeMo from March 2024 (the 24.03 image) to 2.2.1; run with 2.0.0rc0, 2.2.1.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from files import read_jsonl, write_jsonl
from nemo_setup import (
    describe_machine,
    end_distributed,
    load_config,
    prepare_nemo,
    refuse_long_prompts,
    refuse_rope_scaling,
    refuse_tensor_parallelism,
    use_tokenizer_of,
)
from progress import Progress, say
from provenance import record
from pubmedqa import LABELS


def load_model(config):
    """NeMo's model with the base's weights and the adapter's, ready to predict."""
    import torch.multiprocessing
    from nemo.collections.nlp.models.language_modeling.megatron_gpt_sft_model import MegatronGPTSFTModel
    from nemo.collections.nlp.parts.megatron_trainer_builder import MegatronLMPPTrainerBuilder

    torch.multiprocessing.set_start_method("spawn", force=True)
    precision = config.trainer.precision
    trainer = MegatronLMPPTrainerBuilder(config).create_trainer()
    config.trainer.precision = precision  # older builders leave None there
    base, adapter = config.model.restore_from_path, config.model.peft.restore_from_path
    model_config = MegatronGPTSFTModel.merge_inference_cfg(adapter or base, config)
    use_tokenizer_of(base, model_config)
    refuse_rope_scaling(base, model_config)
    model = MegatronGPTSFTModel.restore_from(base, model_config, trainer=trainer)
    if adapter:
        model.load_adapters(adapter)
    model.freeze()
    model.model.cuda()
    return model


class Predictor:
    """Greedy text and label scores of batches of prompts, on all ranks of one model-parallel group at once."""

    def __init__(self, model, labels, tokens_to_generate):
        """labels: {label: its token ids}."""
        from nemo.collections.nlp.modules.common.text_generation_strategy import GPTModelTextGenerationStrategy

        self.model, self.labels, self.tokens_to_generate = model, labels, tokens_to_generate
        self.strategy = GPTModelTextGenerationStrategy(model)
        self.vocabulary = model.tokenizer.vocab_size

    def forward(self, tokens, end, anew):
        """Logits [batch, positions, this rank's words] of what follows the last of tokens[:, :end].

        anew: all `end` positions are read; else all but the last have been, and are in the key-value cache.
        """
        batch, shape = self.strategy.prepare_batch_at_step(tokens, tokens.shape[1], len(tokens), not anew, end, False)
        return self.strategy.forward_step(batch, shape)[0]["logits"]

    def logprobs(self, logits):
        """Log-probabilities [batch, positions, vocabulary] from all ranks' logits."""
        import torch
        from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

        # rows that only pad the vocabulary for tensor parallelism are no words
        logits = gather_from_tensor_model_parallel_region(logits)[..., : self.vocabulary]
        return torch.log_softmax(logits.float(), dim=-1)

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


def predict(config):
    """All ranks' predictions, {index of the item: (text, scores)}."""
    import torch
    from megatron.core import parallel_state

    model = load_model(config)
    if os.environ["RANK"] == "0":
        say("predict", "the model is loaded")
    longest = config.settings.max_seq_length - config.settings.tokens_to_generate - 1
    refuse_long_prompts(model.tokenizer, config.settings.test, longest)
    dataset = model._build_dataset(model.cfg.data.test_ds, is_train=False)[0]  # tokens as in training
    prompts = [dataset[index]["context_ids"] for index in range(len(dataset))]
    labels = {label: dataset._process_example({"input": "", "output": label})["answer_ids"] for label in LABELS}
    predictor = Predictor(model, labels, config.settings.tokens_to_generate)
    # Like lengths together: nothing is computed for padding. The longest first: if memory lacks, it does at once.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    batches = [order[i : i + config.settings.batch_size] for i in range(0, len(order), config.settings.batch_size)]
    rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    predictions = {}
    progress = Progress("predict", len(batches), "batches") if os.environ["RANK"] == "0" else None
    for number, batch in enumerate(batches[rank::ranks], start=1):
        for index, (text, scores) in zip(batch, predictor.predict([prompts[index] for index in batch])):
            predictions[index] = (model.tokenizer.ids_to_text(text), scores)
        if progress:
            progress.to(min(number * ranks, len(batches)))
    if progress:
        progress.close()
    everyones = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyones, predictions)
    return {index: prediction for one in everyones for index, prediction in one.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", required=True, choices=["cpu", "gpu"])
    parser.add_argument("--base", required=True, type=Path, help="unpacked .nemo directory of the base model")
    parser.add_argument("--adapter", nargs="?", type=Path, help="written by train_lora.py; none: the base alone")
    parser.add_argument("--test", required=True, type=Path, help="JSON Lines: input, output, pmid")
    parser.add_argument("--settings", required=True, type=json.loads, help="JSON: the run's `predict:` settings")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()

    # for NeMo's index of the test set, which it would take for another test set's where it finds it again
    index_dir = Path(tempfile.gettempdir(), f"predict-{os.environ['TORCHELASTIC_RUN_ID']}")
    paths = {"base": str(args.base.resolve()), "test": str(args.test.resolve()), "index_dir": str(index_dir)}
    paths["adapter"] = str(args.adapter.resolve()) if args.adapter else None
    config = load_config("predict.yaml", {**args.settings, "accelerator": args.accelerator, **paths})
    # NeMo counts batches over all copies of the model; predict() makes its own, each one micro batch to NeMo
    config.model.global_batch_size = config.settings.devices // config.settings.tensor_model_parallel_size
    describe_machine("predict", args.accelerator, args.settings)
    refuse_tensor_parallelism(args.base, config.settings.tensor_model_parallel_size)
    prepare_nemo(args.accelerator)
    predictions = predict(config)
    if os.environ["RANK"] == "0":
        items = read_jsonl(args.test)
        if sorted(predictions) != list(range(len(items))):
            sys.exit(f"{args.test}: {len(items)} items, but predictions of {len(predictions)}")
        rows = []
        for index, item in enumerate(items):
            text, scores = predictions[index]
            row = {"pmid": item["pmid"], "input": item["input"], "pred": text, "label": item["output"]}
            rows.append(row | {"logprob": scores})
        write_jsonl(args.output, rows)
        inputs = {"base": args.base / "model_config.yaml", "adapter": args.adapter, "test": args.test}
        record(args.output, args.settings, inputs)
        shutil.rmtree(index_dir)
    end_distributed()


if __name__ == "__main__":
    main()

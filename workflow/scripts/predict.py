"""Predicts the answers of a test set with a base model and, where given, an adapter. Runs under torchrun:

    torchrun --standalone --nproc-per-node 4 predict.py --accelerator gpu --base … --adapter … --test … --settings …

Writes one JSON line an item, in the test set's order: its id, input, pred (greedy text), label (the item's answer, null
where it has none) and, with --labels, logprob: each label's log-probability after the prompt, the sum over its tokens.
Where one label's tokens begin another's, the end of the text is scored with all of them. How many tokens of each label
were scored stands in the provenance as label_tokens. The test set may be larger than memory.
Needs only NeMo and what it needs. Run with NeMo of 29 March 2024 (as in the 24.03 image), 2.0.0rc0 and 2.2.1.
"""

import json
import math
import os
import shutil
import sys
import tempfile
from functools import partial
from itertools import islice
from pathlib import Path

from common.code import digest
from common.ending import run
from common.files import read_json, rows_of, write_json, write_jsonl
from common.items import ID_KEYS
from common.labels import told_apart
from common.lock import hold
from common.progress import Progress, say
from common.provenance import record
from nemo_image import setup
from nemo_image.lengths import fit, room_of
from nemo_image.loading import load_config, make_trainer, refuse_tensor_parallelism, restore, use_fused
from nemo_image.prompts import CHAT_TEMPLATE, use_prompts
from nemo_image.resume import fingerprint, prepare
from nemo_image.setup import arguments, describe_machine, exit_all, on_first_rank, prepare_nemo, wait_for_all

PART = 4096  # items that are in memory at once


def load_model(config, look=None):
    """NeMo's model with base and adapter, ready to predict; whether it uses fused.py's kernels. look: as restore's."""
    import torch.multiprocessing
    from nemo.collections.nlp.models.language_modeling.megatron_gpt_sft_model import MegatronGPTSFTModel
    from nemo.collections.nlp.parts.megatron_trainer_builder import MegatronLMPPTrainerBuilder
    from nemo_image.adapter import Adapter

    torch.multiprocessing.set_start_method("spawn", force=True)
    trainer, fused = make_trainer(MegatronLMPPTrainerBuilder, config), use_fused(config)
    base, file = config.model.restore_from_path, config.model.peft.restore_from_path
    adapter = Adapter(file) if file else None
    model_config = MegatronGPTSFTModel.merge_inference_cfg(base, config)
    if adapter:
        adapter.complete(base, model_config, config.model)
    model_config.bias_activation_fusion = fused
    model_config.megatron_amp_O2 = config.model.megatron_amp_O2  # NeMo 1.23 sets it to False
    model = restore(MegatronGPTSFTModel, base, model_config, trainer, look, fused)
    if adapter:
        adapter.add_to(model, model_config)
    model.freeze()
    model.model.cuda()
    return model, fused


def parts_of(file, batch_size):
    """(rows, the numbers of their batches) for each PART of a test set."""
    rows, numbers = rows_of(file), range(0)
    while part := list(islice(rows, max(PART, batch_size))):
        numbers = range(numbers.stop, numbers.stop + math.ceil(len(part) / batch_size))
        yield part, numbers


def predict(config, test, chat_template, labels, batch_dir, known):
    """Writes batch_dir/{batch}.json, [[place of the item in its part, text, scores], …], of each batch that is not
    known yet. Returns what to record: how many tokens of each label are scored, and how many items were shortened."""
    from megatron.core import parallel_state
    from nemo_image.predictor import Predictor

    seen = []

    def look(tokenizer):  # so that labels and items are refused in seconds
        prompts = use_prompts(tokenizer, chat_template, config.model.data.test_ds.add_bos)
        try:
            scored = told_apart({label: prompts.split("", label)[1] for label in labels}, prompts.end)
        except ValueError as error:
            exit_all(f"{test}: {error}.")
        room = room_of(config.settings), max(config.settings.tokens_to_generate, *map(len, scored.values()), 0)
        seen.extend([prompts.end, *fit(prompts, test, *room, batch_dir.with_name("shortened.jsonl"))])

    model, fused = load_model(config, look)
    if first := os.environ["RANK"] == "0":
        say("predict", "the model is loaded")
    end, file, shortened = seen
    dataset = model._build_dataset(model.cfg.data.test_ds, is_train=False)[0]
    # tokens as in training
    labels = {label: dataset._process_example({"input": "", "output": label})["answer_ids"] for label in labels}
    labels = told_apart(labels, end)
    predictor = Predictor(model, labels, config.settings.tokens_to_generate, flash=fused, end=end[-1])
    rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    size, done = config.settings.batch_size, len(known)
    if first:
        progress = Progress("predict", sum(len(numbers) for _, numbers in parts_of(file, size)), "batches", done)
    for items, numbers in parts_of(file, size):
        if not (left := [number for number in numbers if number not in known]):
            continue
        # without the answer, which NeMo would make room for
        contexts = [dataset._process_example({"input": item["input"], "output": ""})["context_ids"] for item in items]
        # Like lengths together: nothing is computed for padding. The longest first: if memory lacks, it does at once.
        order = sorted(range(len(contexts)), key=lambda index: -len(contexts[index]))
        batches = {number: order[place * size :][:size] for place, number in enumerate(numbers)}
        for turn, number in enumerate(left[rank::ranks], start=1):
            found = predictor.predict([contexts[index] for index in batches[number]])
            if parallel_state.get_tensor_model_parallel_rank() == 0:
                texts = [model.tokenizer.ids_to_text(text) for text, _ in found]
                scores = [scores for _, scores in found]
                write_json(batch_dir / f"{number}.json", list(zip(batches[number], texts, scores)))
            if first:
                progress.to(done + min(turn * ranks, len(left)))
        done += len(left)
        wait_for_all()  # rank 0 will read what all have written, and none waits for long
    if first:
        progress.close()
    facts = {"label_tokens": {label: len(ids) for label, ids in labels.items()}} if labels else {}
    return facts | ({"shortened": {"test": shortened}} if shortened else {})


def predictions(test, batch_size, batch_dir, scored):
    """A row for each item, in the test set's order. scored: whether with the labels' log-probabilities."""
    for items, numbers in parts_of(test, batch_size):
        files = [batch_dir / f"{number}.json" for number in numbers]
        found = {place: answer for file in files if file.exists() for place, *answer in read_json(file)}
        if len(found) < len(items):
            sys.exit(f"{test}: {len(items)} items, but predictions of {len(found)}")
        for place, item in enumerate(items):
            (text, scores), kept = found[place], (*ID_KEYS, "input")
            row = {key: item[key] for key in kept if key in item} | {"pred": text, "label": item.get("output")}
            yield row | ({"logprob": scores} if scored else {})


def main():
    parser = arguments(__doc__)
    parser.add_argument("--adapter", nargs="?", type=Path, help="written by train_lora.py; none: the base alone")
    parser.add_argument(
        "--test", required=True, type=Path, help="JSON Lines: input, pmid or id and, where known, output"
    )
    help = "a closed set of answers; none: free text"
    parser.add_argument("--labels", nargs="+", action="extend", default=[], metavar="LABEL", help=help)
    parser.add_argument("--chat-template", nargs="?", type=Path, help=CHAT_TEMPLATE)
    parser.add_argument("--settings", required=True, type=json.loads, help="JSON: the run's `predict:` settings")
    parser.add_argument("--work-dir", required=True, type=Path, help="batches that are done; removed at the end")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()

    if args.settings["precision"] == 32:  # else TransformerEngine takes TF32; read by CUDA's libraries, before torch
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    # For NeMo, which indexes a test set in memory, its first item alone; by that it makes tokens of all.
    first_item = args.work_dir / "first.jsonl"
    # for its index, which it would take for another test set's where it finds it again
    index_dir = Path(tempfile.gettempdir(), f"predict-{os.environ['TORCHELASTIC_RUN_ID']}")
    paths = {"base": str(args.base.resolve()), "test": str(first_item.resolve()), "index_dir": str(index_dir)}
    paths["adapter"] = str(args.adapter.resolve()) if args.adapter else None
    config = load_config("predict.yaml", {**args.settings, "accelerator": args.accelerator, **paths})
    # NeMo counts batches over all copies of the model; predict() makes its own, each one micro batch to NeMo
    ranks = config.trainer.num_nodes * config.settings.devices
    config.model.global_batch_size = ranks // config.settings.tensor_model_parallel_size
    describe_machine("predict", args.accelerator, args.settings)
    refuse_tensor_parallelism(args.base, config.settings.tensor_model_parallel_size)
    inputs = {"base": args.base / "model_config.yaml", "adapter": args.adapter, "test": args.test}
    if args.chat_template:
        inputs["chat_template"] = args.chat_template
    batch_dir = args.work_dir / "batches"

    def prepare_work_dir():
        hold(args.work_dir.with_name(f"{args.work_dir.name}.lock"), partial(say, "predict"))
        # with the code: an edit repeats the prediction, also one that was interrupted
        mark = fingerprint(
            [args.settings, args.accelerator, args.labels, digest(__file__)], filter(None, inputs.values())
        )
        prepare(args.work_dir, 1, mark)
        batch_dir.mkdir(exist_ok=True)
        write_jsonl(first_item, islice(rows_of(args.test), 1))
        return [int(file.stem) for file in batch_dir.glob("*.json")]

    known = set(on_first_rank(prepare_work_dir, args.work_dir / "state/ready"))
    if known and os.environ["RANK"] == "0":
        say("predict", f"continues after {len(known)} batch{'es' * (len(known) != 1)}")
    prepare_nemo(args.accelerator, args.base)
    facts = predict(config, args.test, args.chat_template, args.labels, batch_dir, known) | setup.describe_nodes()
    if os.environ["RANK"] == "0":
        batch_size = args.settings["batch_size"]
        write_jsonl(args.output, predictions(args.test, batch_size, batch_dir, scored=bool(args.labels)))
        record(args.output, args.settings, inputs, **facts)
        shutil.rmtree(args.work_dir)
    if os.environ["LOCAL_RANK"] == "0":
        shutil.rmtree(index_dir, ignore_errors=True)  # of each node, which may be one directory after all
    wait_for_all(end=True)


if __name__ == "__main__":
    run(main)

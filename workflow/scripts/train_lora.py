"""Trains a LoRA adapter with NeMo's MegatronGPTSFTModel. Runs under torchrun, one process a device:

    torchrun --standalone --nproc-per-node 4 train_lora.py --accelerator gpu --base … --train … --val … --settings …

Needs only NeMo and what it needs. Run with NeMo of 29 March 2024 (as in the 24.03 image), 2.0.0rc0 and 2.2.1.
"""

import io
import json
import os
import statistics
import tarfile
from functools import partial
from pathlib import Path

from common.code import digest
from common.ending import run
from common.files import read_jsonl, replacing
from common.lock import hold
from common.progress import say, show_progress
from common.provenance import START, record
from nemo_image import kept, setup
from nemo_image.lengths import fit, refuse_marks, room_of
from nemo_image.loading import load_config, make_trainer, needs_te, refuse_tensor_parallelism, restore, use_fused
from nemo_image.prompts import CHAT_TEMPLATE, use_prompts
from nemo_image.resume import make_exact, refuse_unfinished
from nemo_image.setup import arguments, describe_machine, on_first_rank, prepare_nemo, wait_for_all
from nemo_image.stop import stop_after_step
from omegaconf import OmegaConf

# Every row has another length: without it a card held up to 1.7 times what was in use. Read by torch's import.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

START_UP = 1  # minutes, at most, between the start of a job with a time limit and that of this process
NEMO_SEED = 1234  # NeMo's default, so the tutorial's; NeMo refuses 0


def average_gradients(model, optimizer):
    """On all copies of the model, before gradients are clipped: Lightning's on_before_optimizer_step.

    NeMo's asynchronous all-reduce with megatron_amp_O2 is only waited for after clipping, and not at all on a CPU; and
    without it NeMo 1.23 averages nothing. Where NeMo has, this changes nothing.
    """
    if model.megatron_amp_O2:
        model._optimizer.allreduce_main_grads()


def train(config, start, chat_template, end):
    """Fits the adapter; returns the path of NeMo's .nemo file with it and, on rank 0, what to record of the training.

    start: the adapter.nemo to begin with, chat_template: the template's file; each or None. Exits before `end`, a
    time.time(), and when asked.
    """
    import torch.multiprocessing
    from nemo.collections.nlp.models.language_modeling.megatron_gpt_sft_model import MegatronGPTSFTModel
    from nemo.collections.nlp.parts.megatron_trainer_builder import MegatronLMPPTrainerBuilder
    from nemo.collections.nlp.parts.peft_config import PEFT_CONFIG_MAP
    from nemo.utils.exp_manager import ExpManagerConfig, exp_manager
    from nemo_image.adapter import Adapter
    from nemo_image.packing import Packing, pack_steps

    first = os.environ["RANK"] == "0"
    if first:
        say("train_lora", "NeMo is imported")
    torch.multiprocessing.set_start_method("spawn", force=True)
    MegatronGPTSFTModel.on_before_optimizer_step = average_gradients
    pack_steps(MegatronGPTSFTModel)
    fused = use_fused(config)
    trainer = make_trainer(MegatronLMPPTrainerBuilder, config)
    make_exact(trainer, config.model.seed)
    shown = show_progress(trainer)
    stop_after_step(trainer, end, config.trainer.val_check_interval)
    known = ExpManagerConfig.__dataclass_fields__  # not every generation has every key
    exp_manager(trainer, OmegaConf.masked_copy(config.exp_manager, [key for key in config.exp_manager if key in known]))
    start = Adapter(start) if start else None
    base = config.model.restore_from_path
    model_config = MegatronGPTSFTModel.merge_cfg_with(base, config)
    model_config.bias_activation_fusion = fused
    directory, files, shortened = Path(config.exp_manager.explicit_log_dir), {}, {}

    def look(tokenizer):  # so that items that are too long are refused in seconds
        prompts = use_prompts(tokenizer, chat_template, model_config.data.train_ds.add_bos)
        refuse_marks(prompts, config.settings.train)
        for name, data in ("train", model_config.data.train_ds), ("val", model_config.data.validation_ds):
            room = room_of(config.settings), data.get("tokens_to_generate", 0)
            file = directory / f"shortened-{name}.jsonl"
            files[name], shortened[name] = fit(prompts, config.settings[name], *room, file)

    model = restore(MegatronGPTSFTModel, base, model_config, trainer, look, fused)
    if first:
        say("train_lora", "the model is loaded")
    for name, data in ("train", model.cfg.data.train_ds), ("val", model.cfg.data.validation_ds):
        data.file_names = [str(files[name])]
    model.add_adapter(PEFT_CONFIG_MAP[config.model.peft.peft_scheme](model_config))
    if start:  # before fit(), which puts a checkpoint's weights in their place where there is one
        start.begin(model, config.model.peft.lora_tuning)
    model.packing = Packing(model, config.settings.micro_batch_tokens, config.settings.micro_batch_size, flash=fused)
    model.cpu = lambda: model  # Lightning would move all of it there at the end, where nobody reads it
    trainer.fit(model)
    adapter = directory / f"checkpoints/{config.name}.nemo"
    trainer.strategy.barrier()
    # the last step's checkpoint had been written, but the adapter had not
    if not trainer.strategy.broadcast(adapter.exists()):
        refuse_unfinished(trainer)
        trainer.checkpoint_callback.on_train_end(trainer, model)
    nodes = setup.describe_nodes()
    return adapter, shown and {
        "validation_loss": float(trainer.checkpoint_callback.best_model_score),  # the adapter's, the lowest
        "seconds_per_step": round(statistics.median(shown.seconds), 3) if shown.seconds else None,
        "curve": [{"step": step, **values} for step, values in sorted(shown.curve.items())],
        **({"shortened": shortened} if any(shortened.values()) else {}),
        **nodes,
    }


def publish(adapter, output):
    """Packs NeMo's adapter anew, without times and owners, its tensors by name: equal adapters are equal files."""
    import torch

    with replacing(output) as partial, tarfile.open(adapter) as source, tarfile.open(partial, "w") as target:
        for member in sorted(source.getmembers(), key=lambda member: member.name):
            content = source.extractfile(member).read() if member.isfile() else b""
            if member.name.endswith(".ckpt"):
                weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                file = io.BytesIO()
                torch.save({name: weights[name].clone() for name in sorted(weights)}, file)
                content = file.getvalue()
            member.size, member.mtime, member.uid, member.gid = len(content), 0, 0, 0
            member.uname, member.gname, member.pax_headers = "", "", {}
            target.addfile(member, io.BytesIO(content))


def main():
    parser = arguments(__doc__)
    parser.add_argument("--train", required=True, type=Path, help="JSON Lines: input, output")
    parser.add_argument("--val", required=True, type=Path, help="JSON Lines; the checkpoint with its lowest loss wins")
    parser.add_argument("--start-from", type=Path, help="the adapter to begin with; none: a new one")
    parser.add_argument("--chat-template", type=Path, help=CHAT_TEMPLATE)
    parser.add_argument("--settings", required=True, type=json.loads, help="JSON: the run's `train:` settings")
    parser.add_argument("--seed", required=True, type=int, help="0, 1, …: added to NeMo's default seed")
    parser.add_argument("--time-limit", required=True, type=float, help="minutes; stops in time, to be continued")
    help = "trains anew, whatever is kept, but goes on with what the same ID has begun"
    parser.add_argument("--anew", metavar="ID", default="", help=help)
    help = "where each training is kept: checkpoints to continue from, NeMo's logs, at the end the adapter"
    parser.add_argument("--work-dir", required=True, type=Path, help=help)
    parser.add_argument("--output", required=True, type=Path, help="the adapter, a .nemo file")
    args = parser.parse_args()

    def config_for(**paths):
        return load_config(
            "train_lora.yaml",
            {**args.settings, "accelerator": args.accelerator, "seed": NEMO_SEED + args.seed, **paths},
        )

    inputs = {"base": args.base / "model_config.yaml", "train": args.train, "val": args.val}
    inputs |= {name: file for name in ("start_from", "chat_template") if (file := getattr(args, name))}
    paths = {name: str(getattr(args, name).resolve()) for name in ("base", "train", "val", "work_dir")}
    training = kept.Training(args.work_dir, args.output, config_for, paths, inputs)
    config = config_for(**paths | {"work_dir": str(training.directory.resolve())})

    tensor_parallel = args.settings["tensor_model_parallel_size"]
    describe_machine("train_lora", args.accelerator, args.settings)
    refuse_tensor_parallelism(args.base, tensor_parallel)

    def prepare_work_dir():
        hold(args.work_dir.with_name(f"{args.work_dir.name}.lock"), partial(say, "train_lora"))
        training.find(args.anew)
        if training.is_finished():
            say("train_lora", f"takes over the finished training in {training.directory}, {training.made()}")
            return True
        step = training.prepare(tensor_parallel)
        say("train_lora", f"continues after step {step}" if step else "starts")
        return False

    is_finished = on_first_rank(prepare_work_dir, training.directory / "state/ready")
    first = os.environ["RANK"] == "0"
    if not is_finished:
        prepare_nemo(args.accelerator, args.base, needs_te(config))
        end = START.timestamp() + 60 * (args.time_limit - START_UP)
        adapter, facts = train(config, args.start_from, args.chat_template, end)
        if first:
            publish(adapter, training.adapter)
            facts |= {"loss": training.loss, "code": digest(__file__)}
            settings = args.settings | {"seed": args.seed}
            record(training.adapter, settings, inputs, attempts=read_jsonl(training.attempts), **facts)
        wait_for_all(end=True)
    if first:
        made = training.take_over()
        say("train_lora", training.disk())
        if "validation_loss" in made:  # older versions kept none
            print(f"{args.output}: validation loss {made['validation_loss']:.5f}")


if __name__ == "__main__":
    run(main)

"""Trains a LoRA adapter with NeMo's MegatronGPTSFTModel. Runs under torchrun, one process a device:

    torchrun --standalone --nproc-per-node 4 train_lora.py --accelerator gpu --base … --train … --val … --settings …

Needs only NeMo and what NeMo needs. Written for NeMo from March 2024 (NVIDIA's 24.03 image) to 2.2.1; run with 2.2.1.
"""

import argparse
import ctypes
import io
import json
import os
import signal
import sys
import tarfile
import time
from pathlib import Path

from files import read_jsonl, replacing
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from resume import fingerprint, forget, make_exact, prepare

NEMO_SEED = 1234  # NeMo's default, so the tutorial's; NeMo refuses 0


def load_config(yaml, settings):
    """NeMo's configuration: the YAML beside the script, its `settings`, then the dotted overrides of settings["nemo"].

    An override of a key that the YAML has not needs a + in front, as in Hydra; without it, this exits.
    """
    config = OmegaConf.load(Path(__file__).with_name(yaml))
    OmegaConf.set_struct(config, True)
    overrides = settings.get("nemo", [])
    config = OmegaConf.merge(config, {"settings": {key: value for key, value in settings.items() if key != "nemo"}})
    for override in overrides:
        OmegaConf.set_struct(config, not override.startswith("+"))  # as Hydra: + adds a key that is not there
        try:
            config = OmegaConf.merge(config, OmegaConf.from_dotlist([override.lstrip("+")]))
        except OmegaConfBaseException as error:
            sys.exit(f"nemo override {override}: {str(error).splitlines()[0]} ({yaml} lists the keys)")
    OmegaConf.resolve(config)
    return config


def prepare_nemo(accelerator):
    """Supplies what NeMo misses on this machine. Before any other import of nemo or megatron."""
    # torchrun puts each rank into a session of its own: without this they would outlive a killed torchrun
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if accelerator == "cpu":
        import nemo_cpu

        nemo_cpu.install()
        return
    import importlib.util

    import torch

    if not torch.cuda.is_available():
        sys.exit("accelerator: gpu, but torch sees no GPU here: ask for one (SLURM --gres, apptainer --nv).")
    if importlib.util.find_spec("transformer_engine") is None:
        import nemo_torch

        nemo_torch.install()


def use_tokenizer_of(base, model_config):
    """A Hugging Face tokenizer is a directory of the base: its path stands in no file, as the base may be moved."""
    if model_config.tokenizer.library == "huggingface":
        model_config.tokenizer.type = os.path.join(base, "tokenizer")


def refuse_long_prompts(tokenizer, file, longest):
    """Exits where a prompt of a JSON Lines file has more than `longest` tokens; NeMo would cut off its end."""
    for row in read_jsonl(file):
        if (tokens := len(tokenizer.text_to_ids(row["input"].strip(" ")))) > longest:
            sys.exit(
                f"{file}: the prompt of {row['pmid']} has {tokens} tokens; max_seq_length leaves {longest} for it."
            )


def train(config):
    """Fits the adapter; returns the path of NeMo's .nemo file with it."""
    import torch.multiprocessing
    from nemo.collections.nlp.models.language_modeling.megatron_gpt_sft_model import MegatronGPTSFTModel
    from nemo.collections.nlp.parts.megatron_trainer_builder import MegatronLMPPTrainerBuilder
    from nemo.collections.nlp.parts.peft_config import PEFT_CONFIG_MAP
    from nemo.utils.exp_manager import ExpManagerConfig, exp_manager

    torch.multiprocessing.set_start_method("spawn", force=True)
    precision = config.trainer.precision
    trainer = MegatronLMPPTrainerBuilder(config).create_trainer()
    config.trainer.precision = precision  # older builders leave None there
    make_exact(trainer, config.trainer.max_steps, config.model.seed)
    known = ExpManagerConfig.__dataclass_fields__  # not every generation has every key
    exp_manager(trainer, OmegaConf.masked_copy(config.exp_manager, [key for key in config.exp_manager if key in known]))
    base = config.model.restore_from_path
    model_config = MegatronGPTSFTModel.merge_cfg_with(base, config)
    use_tokenizer_of(base, model_config)
    model = MegatronGPTSFTModel.restore_from(base, model_config, trainer=trainer)
    for file in (config.settings.train, config.settings.val):
        refuse_long_prompts(model.tokenizer, file, config.settings.max_seq_length - 16)  # answer and end
    model.add_adapter(PEFT_CONFIG_MAP[config.model.peft.peft_scheme](model_config))
    trainer.fit(model)
    if trainer.global_step < config.trainer.max_steps:
        sys.exit(f"Stopped at step {trainer.global_step} of {config.trainer.max_steps}: run again to continue.")
    adapter = Path(config.exp_manager.explicit_log_dir, "checkpoints", f"{config.name}.nemo")
    trainer.strategy.barrier()
    if not adapter.exists():  # the last step's checkpoint had been written, but the adapter had not
        trainer.checkpoint_callback.on_train_end(trainer, model)
    return adapter


def publish(adapter, output):
    """Packs NeMo's adapter anew, without times and owners, its tensors by name: equal adapters are equal files."""
    import torch

    with replacing(output) as partial, tarfile.open(adapter) as source, tarfile.open(partial, "w") as target:
        for member in sorted(source.getmembers(), key=lambda member: member.name):
            content = source.extractfile(member).read() if member.isfile() else b""
            if member.name.endswith(".ckpt"):
                weights = torch.load(io.BytesIO(content), map_location="cpu")
                file = io.BytesIO()
                torch.save({name: weights[name].clone() for name in sorted(weights)}, file)
                content = file.getvalue()
            member.size, member.mtime, member.uid, member.gid = len(content), 0, 0, 0
            member.uname, member.gname, member.pax_headers = "", "", {}
            target.addfile(member, io.BytesIO(content))


def on_first_rank(work, ready):
    """Does work() on rank 0; the others wait for this launch's id in `ready`, as torch.distributed is not there yet."""
    launch = f"{os.environ['TORCHELASTIC_RUN_ID']} {os.environ['TORCHELASTIC_RESTART_COUNT']}"
    if os.environ["RANK"] == "0":
        work()
        ready.write_text(launch)
    while not ready.exists() or ready.read_text() != launch:
        time.sleep(0.1)  # where rank 0 fails, torchrun ends the others


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", required=True, choices=["cpu", "gpu"])
    parser.add_argument("--base", required=True, type=Path, help="unpacked .nemo directory of the base model")
    parser.add_argument("--train", required=True, type=Path, help="JSON Lines: input, output")
    parser.add_argument("--val", required=True, type=Path, help="JSON Lines; the checkpoint with its lowest loss wins")
    parser.add_argument("--settings", required=True, type=json.loads, help="JSON: the run's `train:` settings")
    parser.add_argument("--seed", required=True, type=int, help="0, 1, …: added to NeMo's default seed")
    parser.add_argument("--work-dir", required=True, type=Path, help="checkpoints to continue from, NeMo's logs")
    parser.add_argument("--output", required=True, type=Path, help="the adapter, a .nemo file")
    args = parser.parse_args()

    paths = {name: str(getattr(args, name).resolve()) for name in ("base", "train", "val", "work_dir")}
    arguments = {"accelerator": args.accelerator, "seed": NEMO_SEED + args.seed, **paths}
    config = load_config("train_lora.yaml", {**args.settings, **arguments})

    def prepare_work_dir():
        files = args.base / "model_config.yaml", args.train, args.val
        fixed = fingerprint(OmegaConf.to_container(config), files)
        step = prepare(args.work_dir, args.settings["tensor_model_parallel_size"], fixed)
        print(f"train_lora: continues after step {step}" if step else "train_lora: starts", flush=True)

    on_first_rank(prepare_work_dir, args.work_dir / "state/ready")
    prepare_nemo(args.accelerator)
    adapter = train(config)
    if os.environ["RANK"] == "0":
        publish(adapter, args.output)
        forget(args.work_dir)


if __name__ == "__main__":
    main()

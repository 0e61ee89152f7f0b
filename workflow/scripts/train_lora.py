"""Trains a LoRA adapter with NeMo's MegatronGPTSFTModel. Runs under torchrun, one process a device:

    torchrun --standalone --nproc-per-node 4 train_lora.py --accelerator gpu --base … --train … --val … --settings …

Needs only NeMo and what NeMo needs; works with NeMo from March 2024 (NVIDIA's 24.03 image) to 2.2.1.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from files import replacing
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

NEMO_SEED = 1234  # NeMo's default, so the tutorial's; NeMo refuses 0


def load_config(yaml, settings):
    """NeMo's configuration: the YAML beside the script, its `settings`, then the dotted overrides of settings["nemo"].

    Exits where an override names a key that the YAML has not.
    """
    config = OmegaConf.load(Path(__file__).with_name(yaml))
    OmegaConf.set_struct(config, True)
    overrides = settings.pop("nemo", [])
    config = OmegaConf.merge(config, {"settings": settings})
    for override in overrides:
        try:
            config = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
        except OmegaConfBaseException as error:
            sys.exit(f"nemo override {override}: {str(error).splitlines()[0]} ({yaml} lists the keys)")
    OmegaConf.resolve(config)
    return config


def prepare_nemo(accelerator):
    """Supplies what NeMo misses on this machine. Before any other import of nemo or megatron."""
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


def train(config):
    """Fits the adapter; returns the path of NeMo's .nemo file with it."""
    import torch.multiprocessing
    from nemo.collections.nlp.models.language_modeling.megatron_gpt_sft_model import MegatronGPTSFTModel
    from nemo.collections.nlp.parts.megatron_trainer_builder import MegatronLMPPTrainerBuilder
    from nemo.collections.nlp.parts.peft_config import PEFT_CONFIG_MAP
    from nemo.utils.exp_manager import exp_manager

    torch.multiprocessing.set_start_method("spawn", force=True)
    precision = config.trainer.precision
    trainer = MegatronLMPPTrainerBuilder(config).create_trainer()
    config.trainer.precision = precision  # older builders leave None there
    exp_manager(trainer, config.exp_manager)
    base = config.model.restore_from_path
    model_config = MegatronGPTSFTModel.merge_cfg_with(base, config)
    if model_config.tokenizer.library == "huggingface":
        model_config.tokenizer.type = os.path.join(base, model_config.tokenizer.type)
    model = MegatronGPTSFTModel.restore_from(base, model_config, trainer=trainer)
    model.add_adapter(PEFT_CONFIG_MAP[config.model.peft.peft_scheme](model_config))
    trainer.fit(model)
    return Path(config.exp_manager.explicit_log_dir, "checkpoints", f"{config.name}.nemo")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", required=True, choices=["cpu", "gpu"])
    parser.add_argument("--base", required=True, type=Path, help="unpacked .nemo directory of the base model")
    parser.add_argument("--train", required=True, type=Path, help="JSON Lines: input, output")
    parser.add_argument("--val", required=True, type=Path, help="JSON Lines; the checkpoint with its lowest loss wins")
    parser.add_argument("--settings", required=True, type=json.loads, help="JSON: the run's `train:` settings")
    parser.add_argument("--seed", required=True, type=int, help="0, 1, …: added to NeMo's default seed")
    parser.add_argument("--work-dir", required=True, type=Path, help="for checkpoints and NeMo's logs; emptied first")
    parser.add_argument("--output", required=True, type=Path, help="the adapter, a .nemo file")
    args = parser.parse_args()

    paths = {name: str(getattr(args, name).resolve()) for name in ("base", "train", "val", "work_dir")}
    arguments = {"accelerator": args.accelerator, "seed": NEMO_SEED + args.seed, **paths}
    config = load_config("train_lora.yaml", {**args.settings, **arguments})
    first_rank = os.environ["RANK"] == "0"
    if first_rank:
        shutil.rmtree(args.work_dir, ignore_errors=True)
    prepare_nemo(args.accelerator)
    adapter = train(config)
    if first_rank:
        with replacing(args.output) as partial:
            shutil.copyfile(adapter, partial)


if __name__ == "__main__":
    main()

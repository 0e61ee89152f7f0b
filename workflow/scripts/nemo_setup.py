"""What train_lora.py and predict.py do alike before NeMo's model is there. Needs only NeMo and what NeMo needs."""

import ctypes
import os
import signal
import sys
from pathlib import Path

from files import read_jsonl
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException


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


def refuse_tensor_parallelism(base, ranks):
    """Exits where the base's heads can't be shared out evenly to `ranks` devices."""
    model = OmegaConf.load(Path(base, "model_config.yaml"))
    for key in ("num_attention_heads", "num_query_groups"):
        if model[key] % ranks:
            problem = f"{base}: tensor_model_parallel_size {ranks} does not divide its {model[key]} {key}."
            sys.exit(problem if os.environ["RANK"] == "0" else 1)


def refuse_long_prompts(tokenizer, file, longest):
    """Exits where a prompt of a JSON Lines file has more than `longest` tokens; NeMo would cut off its end."""
    for row in read_jsonl(file):
        if (tokens := len(tokenizer.text_to_ids(row["input"].strip(" ")))) > longest:
            sys.exit(
                f"{file}: the prompt of {row['pmid']} has {tokens} tokens; max_seq_length leaves {longest} for it."
            )

"""NeMo's configuration and models: how the steps load them, and what they refuse. Needs only NeMo and its needs."""

import inspect
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from nemo_image.setup import exit_all
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

SCRIPTS = Path(__file__).parents[1]
OF_TRANSFORMER_ENGINE = "fp8", "apply_rope_fusion", "ub_tp_comm_overlap"  # keys of NeMo's model


def load_config(yaml, settings):
    """NeMo's configuration: the step's YAML, its `settings`, then the dotted overrides of settings["nemo"].

    An override of a key that the YAML has not needs a + in front, as in Hydra; without it, this exits.
    """
    config = OmegaConf.load(SCRIPTS / yaml)
    OmegaConf.set_struct(config, True)
    settings = dict(settings)
    overrides = settings.pop("nemo", [])
    if alpha := settings.pop("adapter_alpha", None):  # so that the YAML, and with it each training, stays what it was
        overrides = [f"model.peft.lora_tuning.alpha={alpha}", *overrides]
    if nodes := settings.pop("nodes", None):
        overrides = [f"trainer.num_nodes={nodes}", *overrides]
    settings.pop("chat_template", None)  # its file tells more
    if settings.pop("add_bos", False):
        overrides = [f"model.data.{name}.add_bos=true" for name in config.model.data] + overrides
    config = OmegaConf.merge(config, {"settings": settings})
    for override in overrides:
        OmegaConf.set_struct(config, not override.startswith("+"))  # as Hydra: + adds a key that is not there
        try:
            config = OmegaConf.merge(config, OmegaConf.from_dotlist([override.lstrip("+")]))
        except OmegaConfBaseException as error:
            sys.exit(f"nemo override {override}: {str(error).splitlines()[0]} ({yaml} lists the keys)")
    OmegaConf.resolve(config)
    return config


def make_trainer(builder, config):
    """The trainer that one of NeMo's builder classes makes."""
    precision = config.trainer.precision
    trainer = builder(config).create_trainer()
    config.trainer.precision = precision  # older builders leave None there
    return trainer


def instantiate(config, **more):
    """An adapter of its configuration. Hydra's copies the model's configuration for each, which takes seconds."""
    from nemo.utils.model_utils import import_class_by_path

    values = {key: value for key, value in config.items() if key != "_target_"}
    return import_class_by_path(config._target_)(**values, **more)


def needs_te(config):
    """Whether a step is asked for TransformerEngine; exits where it is, and there is none."""
    asked = [f"model.{key}" for key in OF_TRANSFORMER_ENGINE if config.model.get(key)]
    asked += ["transformer_engine"] if config.transformer_engine else []
    if asked and (config.settings.accelerator == "cpu" or find_spec("transformer_engine") is None):
        exit_all(f"nemo: {asked[0]} needs a GPU and TransformerEngine, as NVIDIA's images have it: remove the key.")
    return bool(asked)


def use_fused(config):
    """Installs the kernels of fused.py where the configuration has them used; says whether it does."""
    settings = config.settings
    if used := config.fused_kernels and settings.accelerator == "gpu" and settings.precision == "bf16":
        from nemo_image import fused

        fused.install()
    return used


def restore(model_class, base, model_config, trainer, look=None, fused=False):
    """The model of an unpacked .nemo directory, as model_config has it. look: called with its tokenizer before the rest
    is made, which may take minutes. fused: as use_fused returns it."""
    from nemo.core.classes.mixins import adapter_mixins

    adapter_mixins.instantiate = instantiate
    use_tokenizer_of(base, model_config)
    refuse_rope_scaling(base, model_config)
    build_tokenizer = model_class._build_tokenizer

    def build_and_look(model):
        build_tokenizer(model)
        look(model.tokenizer)

    if look:
        model_class._build_tokenizer = build_and_look
    with ThreadPoolExecutor(1) as thread:
        if fused:
            from nemo_image.fused import warm_up

            warm = thread.submit(warm_up)
        model = model_class.restore_from(base, override_config_path=model_config, trainer=trainer)
    if fused:
        warm.result()
    return model


def use_tokenizer_of(base, model_config):
    """A Hugging Face tokenizer is a directory of the base: its path stands in no file, as the base may be moved."""
    if model_config.tokenizer.library == "huggingface":
        model_config.tokenizer.type = os.path.join(base, "tokenizer")


def refuse_rope_scaling(base, model_config):
    """Exits where the base needs Llama 3.1's rope scaling, and this NeMo has none or one with fixed factors."""
    from nemo.collections.common.parts import utils

    known = getattr(utils, "apply_rope_scaling", None)
    known = inspect.signature(known).parameters if known else ()
    if model_config.get("scale_positional_embedding") and "scale_factor" not in known:
        exit_all(f"{base}: the model needs llama3 rope scaling, which this NeMo has not: take an image with NeMo 2.2.")


def refuse_tensor_parallelism(base, ranks):
    """Exits where the base's heads can't be shared out evenly to `ranks` devices."""
    model = OmegaConf.load(Path(base, "model_config.yaml"))
    for key in ("num_attention_heads", "num_query_groups"):
        if model[key] % ranks:
            exit_all(f"{base}: tensor_model_parallel_size {ranks} does not divide its {model[key]} {key}.")

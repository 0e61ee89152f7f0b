"""adapter.nemo in NeMo's model, whatever tensor parallelism or program made it. Needs only NeMo and its needs.

NeMo's own load_adapters wants the tensor parallelism of training, and runs what a pickle tells it to.
"""

from common.adapter import NAME, PAIRS, SIDES, alpha_of, read_adapter, share
from nemo_image.setup import exit_all
from omegaconf import OmegaConf, open_dict

# An adapter whose model has these otherwise is another model's.
SHAPE = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels")
OF_THE_BASE = {"target", "tokenizer", "data", "optim", "precision", "nemo_version", *SHAPE}


class Adapter:
    """One in a file; on all ranks, with one message for all."""

    def __init__(self, file):
        self.file = file
        try:
            self.config, self.pairs = read_adapter(file)
        except SystemExit as problem:
            exit_all(problem.code)
        read = self.config["peft"]["lora_tuning"]
        self.lora = {
            "adapter_dim": read["adapter_dim"],
            "alpha": alpha_of(read),
            "target_modules": sorted({PAIRS[kind][0] for _, kind in self.pairs}),
            "layer_selection": sorted({layer + 1 for layer, _ in self.pairs}),  # NeMo counts from 1
            "adapter_dropout": 0.0,
            "weight_tying": False,
        }

    def refuse(self, problem):
        exit_all(f"{self.file}: {problem}")

    def complete(self, base, model_config, given):
        """Adds to the base's configuration what else training had changed, as by nemo: ["+model.rotary_base=…"].

        given: the part of the prediction's own, which has the last word.
        """
        for key in SHAPE:
            own, its = model_config.get(key), self.config.get(key)
            if None not in (own, its) and own != its:
                self.refuse(f"its {key} is {its}, that of {base} {own}: it is another model's adapter.")
        rank, ranks = self.lora["adapter_dim"], given.tensor_model_parallel_size
        if rank % ranks and {"attention_qkv", "mlp_fc1"} & {*self.lora["target_modules"]}:
            self.refuse(f"tensor_model_parallel_size {ranks} does not divide its adapter_dim {rank}.")
        with open_dict(model_config):
            for key, value in self.config.items():
                if key not in given and key not in OF_THE_BASE:
                    model_config[key] = value

    def add_to(self, model, model_config):
        """Gives a model that has none an adapter as this one is, with its weights."""
        from nemo.collections.nlp.parts.peft_config import LoraPEFTConfig

        own = OmegaConf.create({"peft": {"peft_scheme": "lora", "lora_tuning": self.lora}})
        model.add_adapter(LoraPEFTConfig(OmegaConf.merge(model_config, own)))
        self.fill(model)

    def fill(self, model):
        """Puts the weights into the model's adapter, each rank its own share of them; exits where not all fit."""
        import torch
        from megatron.core import parallel_state

        rank = parallel_state.get_tensor_model_parallel_rank()
        ranks = parallel_state.get_tensor_model_parallel_world_size()
        parameters = {}
        for name, parameter in model.named_parameters():
            if ".adapter_layer." in name:
                layer, kind, side = NAME.fullmatch(name).groups()
                parameters[int(layer), kind, side] = parameter
        weights = {(*place, side): whole for place, pair in self.pairs.items() for side, whole in zip(SIDES, pair)}
        for what, places in ("lacks", parameters.keys() - weights), ("has too much:", weights.keys() - parameters):
            if places:
                self.refuse(f"{what} layer {'{}, {}.{}'.format(*min(places))}, of the {len(parameters)} in the model.")
        for place, parameter in parameters.items():
            own = share(*place[1:], weights[place], rank, ranks)
            if own.shape != parameter.shape:
                found = f"{'{}, {}.{}'.format(*place)} is {list(weights[place].shape)}"
                self.refuse(f"layer {found}, for {ranks} ranks of {list(parameter.shape)}: another model's adapter.")
            with torch.no_grad():
                parameter.copy_(own)

    def begin(self, model, lora):
        """A training begins with it: `model` has another adapter of the same form, by `lora`, its lora_tuning."""
        form = {key: list(value) if key == "target_modules" else value for key, value in lora.items()}
        form |= {"alpha": alpha_of(lora), "target_modules": sorted(form["target_modules"])}
        for key in ("target_modules", "adapter_dim", "alpha"):
            if form[key] != self.lora[key]:
                self.refuse(f"its {key} is {self.lora[key]}, but {form[key]} in the training that starts from it.")
        self.fill(model)

"""adapter.nemo, a LoRA adapter as NeMo writes it, read whatever tensor parallelism it has. Needs torch and PyYAML.

It is a tar of model_config.yaml and model_weights.ckpt; with tensor parallelism each rank has its own of the latter, in
mp_rank_00/, mp_rank_01/, … A weight gets linear_out · linear_in · alpha / rank added. NeMo has one such pair for q, k
and v together, and one for gate and up.
"""

import io
import re
import sys
import tarfile
import zlib
from pathlib import Path

import torch
import yaml
from common.files import read_json, sha256

PAIRS = {  # as target_modules has it, and the dimension of linear_in that ranks share; of linear_out it is the first
    "lora_kqv_adapter": ("attention_qkv", 0),
    "lora_dense_attention_adapter": ("attention_dense", 1),
    "lora_hto4h_adapter": ("mlp_fc1", 0),
    "lora_4htoh_adapter": ("mlp_fc2", 1),
}
SIDES = ("linear_in", "linear_out")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NAME = re.compile(  # where megatron_amp_O2 wraps the model, older generations say so in the names
    r"model\.(?:module\.)?decoder\.layers\.(\d+)\.(?:self_attention|mlp)\.adapter_layer\.(\w+)\.(linear_\w+)\.weight"
)


def load_weights(file, name, content):
    """{name: tensor} of one rank. No code in it is run, as a pickle may hold."""
    try:
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # of many kinds, where it is damaged
        weights = None
    if isinstance(weights, dict) and all(
        torch.is_tensor(tensor) and tensor.dtype in DTYPES and tensor.layout == torch.strided
        for tensor in weights.values()
    ):
        if wrong := next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None):
            sys.exit(f"{file}: {wrong} holds values that are no numbers: its training has diverged. Lower lr.")
        return weights
    sys.exit(f"{file}: {name} holds more than tensors, or is damaged, and is refused. Take one that train_lora wrote.")


def refuse_altered(file):
    """Exits where it is not the adapter that its step recorded beside it; one from elsewhere has no such record."""
    recorded = Path(file).with_suffix(".provenance.json")
    if recorded.is_file() and read_json(recorded, "sha256")["sha256"].get("result") != sha256(file):
        sys.exit(f"{file}: is not the adapter that {recorded.name} tells of. Remove it and run Snakemake again.")


def read_members(file):
    """The configuration of adapter.nemo and each rank's weights. Nothing is unpacked: members are read by name."""
    refuse_altered(file)
    try:
        with tarfile.open(file) as tar:
            members = {member.name.removeprefix("./"): member for member in tar if member.isfile()}
            config = yaml.safe_load(tar.extractfile(members["model_config.yaml"]))
            ranks, stages = (config.get(f"{kind}_model_parallel_size", 1) for kind in ("tensor", "pipeline"))
            if stages > 1:
                sys.exit(f"{file}: its pipeline_model_parallel_size is {stages}; only 1 can be read.")
            names = [f"mp_rank_{rank:02d}/model_weights.ckpt" for rank in range(ranks)]
            names = names if ranks > 1 else ["model_weights.ckpt"]
            return config, [load_weights(file, name, tar.extractfile(members[name]).read()) for name in names]
    except KeyError as error:
        sys.exit(f"{file}: holds no {error.args[0]}, as NeMo's adapters do.")
    except (OSError, tarfile.TarError, EOFError, zlib.error, yaml.YAMLError, AttributeError, TypeError) as error:
        sys.exit(f"{file}: no adapter of NeMo, or damaged: {' '.join(str(error).split())}")


def joined(kind, side, shares):
    """The whole of what each rank has its share of. Of gate and up: all rows of gate, then all of up."""
    if (kind, side) == ("lora_hto4h_adapter", "linear_out"):  # each rank has its rows of gate, then its rows of up
        return torch.cat([torch.cat(halves) for halves in zip(*(share.chunk(2) for share in shares))])
    return torch.cat(shares, dim=PAIRS[kind][1] if side == "linear_in" else 0)


def share(kind, side, whole, rank, ranks):
    """One rank's share of the whole."""
    if (kind, side) == ("lora_hto4h_adapter", "linear_out"):
        return torch.cat([half.tensor_split(ranks)[rank] for half in whole.chunk(2)])
    return whole.tensor_split(ranks, dim=PAIRS[kind][1] if side == "linear_in" else 0)[rank]


def alpha_of(lora):
    """NeMo takes the rank where there is none."""
    return lora["adapter_dim"] if lora.get("alpha") is None else lora["alpha"]


def read_adapter(file):
    """The configuration of adapter.nemo, and {(layer, kind): (linear_in, linear_out)}, whole tensors.

    Exits where it holds anything else than LoRA of whole layers.
    """
    config, ranks = read_members(file)
    peft = config.get("peft") or {}
    if peft.get("peft_scheme") != "lora":
        sys.exit(f"{file}: its peft_scheme is {peft.get('peft_scheme')}; only lora can be read.")
    lora = peft.get("lora_tuning") or {}
    if not isinstance(lora.get("adapter_dim"), int) or not isinstance(lora.get("alpha"), int | float | None):
        found = f"adapter_dim {lora.get('adapter_dim')} and alpha {lora.get('alpha')}"
        sys.exit(f"{file}: has {found}; the first must be a number, the second a number or null.")
    shapes = [{name: tensor.shape for name, tensor in weights.items()} for weights in ranks]
    if any(found != shapes[0] for found in shapes) or any(len(shape) != 2 for shape in shapes[0].values()):
        sys.exit(f"{file}: the shapes of its tensor-parallel ranks do not fit together.")
    pairs = {}
    for name in ranks[0]:
        match = NAME.fullmatch(name)
        if not match or match[2] not in PAIRS or lora.get("weight_tying"):
            sys.exit(f"{file}: holds {name}; of LoRA only NeMo's `variant: nemo` without weight_tying can be read.")
        layer, kind, side = match.groups()
        whole = joined(kind, side, [weights[name] for weights in ranks])
        pairs.setdefault((int(layer), kind), {})[side] = whole
    if not pairs or any(pair.keys() != set(SIDES) for pair in pairs.values()):
        sys.exit(f"{file}: its pairs of linear_in and linear_out are not whole.")
    return config, {place: tuple(pair[side] for side in SIDES) for place, pair in sorted(pairs.items())}

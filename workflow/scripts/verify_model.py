"""Compares a converted model with its Hugging Face snapshot: both's logits, in fp32, on a few prompts. Under torchrun:

    torchrun --standalone --nproc-per-node 4 verify_model.py --accelerator gpu --snapshot … --base … --output …

--base is a directory of convert_model.py or a file of pack_model.py. Each process is a tensor-parallel rank of NeMo's
model; Hugging Face's runs on the CPU, with 4 bytes of memory a weight.
Exits where a file of the base has other bytes than convert_model.py wrote.
Writes a table of each prompt's likeliest next words with both logits, and the largest difference over all words and
positions. Exits where it is above TOLERANCE of the largest logit, or where the tokenizers differ.
Needs only NeMo and what NeMo needs.
"""

import os
import sys
from pathlib import Path

from common.base_files import refuse_damaged
from common.ending import run
from common.files import replacing
from nemo_image.loading import restore
from nemo_image.setup import arguments, describe_machine, prepare_nemo, wait_for_all
from omegaconf import OmegaConf, open_dict

# TransformerEngine multiplies fp32 in TF32, with errors above TOLERANCE. Read by CUDA's libraries, so before torch's
# import; whatever it was set to before, the comparison needs this.
os.environ["NVIDIA_TF32_OVERRIDE"] = "0"

TOLERANCE = 1e-3
WORDS = 3  # of each prompt in the table
PROMPTS = (
    "The capital of France is",
    "Does aspirin lower the risk of a second stroke? The answer (yes, no or maybe) is",
    "BACKGROUND: Blood pressure was measured at home and in the clinic in 212 patients (61.4 years, 48% women)."
    " METHODS: Patients took the drug or placebo once a day for 12 weeks; the analysis was by intention to treat."
    " RESULTS: Systolic pressure fell by 11.2 mmHg with the drug and by 3.9 mmHg with placebo (P<0.001).\n"
    "QUESTION: Does the drug lower blood pressure?\nANSWER (yes|no|maybe):",
)


def hugging_face_logits(snapshot):
    """[(token ids, logits [tokens, vocabulary])] of the prompts."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, __version__

    try:
        tokenizer = AutoTokenizer.from_pretrained(snapshot)
        model = AutoModelForCausalLM.from_pretrained(snapshot, torch_dtype=torch.float32).eval()
    except Exception as error:  # of many kinds, where the model came after this transformers
        why = " ".join(str(error).split())[:200]
        sys.exit(f"{snapshot}: transformers {__version__} does not load it, so nothing is compared: {why}")
    tokens = [tokenizer(prompt, add_special_tokens=False).input_ids for prompt in PROMPTS]
    with torch.no_grad():
        return [(ids, model(torch.tensor([ids])).logits[0]) for ids in tokens]


def load_nemo(base, accelerator, ranks):
    """NeMo's model in fp32, shared out to all ranks; base is an unpacked .nemo directory or a .nemo file."""
    from nemo.collections.nlp.models.language_modeling.megatron_gpt_model import MegatronGPTModel
    from nemo.collections.nlp.parts.megatron_trainer_builder import MegatronTrainerBuilder

    nodes, devices = int(os.environ["GROUP_WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    trainer = {"devices": devices, "accelerator": accelerator, "num_nodes": nodes, "precision": 32, "logger": False}
    config = {"trainer": {**trainer, "enable_checkpointing": False}, "model": {"gradient_as_bucket_view": False}}
    trainer = MegatronTrainerBuilder(OmegaConf.create(config)).create_trainer()
    config = MegatronGPTModel.restore_from(base, trainer=trainer, return_config=True)
    with open_dict(config):
        config.update(precision=32, megatron_amp_O2=False, tensor_model_parallel_size=ranks)
    model = restore(MegatronGPTModel, base, config, trainer).eval()
    model.model.cuda()
    return model


def nemo_logits(model):
    """As hugging_face_logits, on every rank."""
    import torch
    from nemo_image.predictor import whole_vocabulary

    found = []
    for prompt in PROMPTS:
        ids = model.tokenizer.text_to_ids(prompt)
        tokens, positions = torch.tensor([ids]).cuda(), torch.arange(len(ids))[None].cuda()
        with torch.no_grad():
            logits = whole_vocabulary(model.model(tokens, positions, None), model)
        found.append((ids, logits[0].float().cpu()))
    return found


def compare(expected, found, tokenizer):
    """(rows of the table, the largest difference, the largest logit); exits where the tokenizers differ."""
    import torch

    rows, differences = ["prompt\ttokens\tnext\thugging_face\tnemo\tlargest_difference"], []
    for number, ((ids, hf), (nemo_ids, nemo)) in enumerate(zip(expected, found), start=1):
        if ids != nemo_ids:
            sys.exit(
                f"prompt {number}: the tokenizers differ: {ids[:9]}… with Hugging Face, {nemo_ids[:9]}… with NeMo."
            )
        differences.append((hf - nemo).abs().max())
        for word in hf[-1].topk(WORDS).indices.tolist():
            token = repr(tokenizer.ids_to_tokens([word])[0])
            rows.append(
                f"{number}\t{len(ids)}\t{token}\t{hf[-1, word]:.5f}\t{nemo[-1, word]:.5f}\t{differences[-1]:.1e}"
            )
    # torch's max keeps a NaN, Python's does not
    return rows, float(torch.stack(differences).max()), max(float(hf.abs().max()) for _, hf in expected)


def main():
    parser = arguments(__doc__)
    parser.add_argument("--snapshot", required=True, type=Path, help="directory of the Hugging Face snapshot")
    parser.add_argument("--output", required=True, type=Path, help="table, tab-separated")
    args = parser.parse_args()

    ranks = int(os.environ["WORLD_SIZE"])
    devices = int(os.environ["LOCAL_WORLD_SIZE"])
    settings = {"devices": devices, "tensor_model_parallel_size": ranks, "precision": 32}
    describe_machine("verify_model", args.accelerator, settings)
    if os.environ["RANK"] == "0":
        refuse_damaged(args.base, contents=True)
    prepare_nemo(args.accelerator, args.base)
    expected = hugging_face_logits(args.snapshot) if os.environ["RANK"] == "0" else None
    model = load_nemo(str(args.base), args.accelerator, ranks)
    found = nemo_logits(model)
    if os.environ["RANK"] == "0":
        rows, difference, largest = compare(expected, found, model.tokenizer)
        print("\n".join(rows))
        said = f"{args.base}: the largest difference is {difference:.1e}, the largest logit {largest:.1f}"
        if not difference <= TOLERANCE * largest:
            sys.exit(f"{said}: this is not the model of {args.snapshot}. Convert it again.")
        with replacing(args.output) as partial:
            partial.write_text("\n".join(rows) + "\n")
        print(f"{said}: the same model")
    wait_for_all(end=True)


if __name__ == "__main__":
    run(main)

"""Steps on the same items, by NeMo's own code and packed in several ways: losses, gradients, wrong answers.

torchrun --nproc-per-node N tests/packed_steps.py BASE ITEMS.jsonl TENSOR_PARALLEL OUTPUT.json
"""

import json
import os
import sys

from nemo_image.loading import load_config, make_trainer, restore
from nemo_image.setup import prepare_nemo

base, file, tensor_parallel, output = sys.argv[1:]
ranks = int(os.environ["WORLD_SIZE"])
SETTINGS = {"accelerator": "cpu", "devices": ranks, "tensor_model_parallel_size": int(tensor_parallel)}
SETTINGS |= {"precision": 32, "megatron_amp_O2": False, "max_seq_length": 1024, "micro_batch_size": 1}
SETTINGS |= {
    "global_batch_size": 8,
    "lr": 1e-3,
    "max_steps": 1,
    "val_check_interval": 1,
    "warmup_steps": 0,
    "adapter_dim": 8,
    "adapter_dropout": 0.0,
}
SETTINGS |= {"target_modules": ["attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2"], "seed": 1234}
SETTINGS |= {"base": base, "train": file, "val": file, "work_dir": os.path.dirname(output)}
WAYS = {"one row": (10**9, 1), "rows of 300 tokens": (300, 1), "an item a row": (None, 1), "two a row": (None, 2)}


def main():
    config = load_config("train_lora.yaml", SETTINGS)
    prepare_nemo("cpu")
    import torch
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import reconfigure_num_microbatches_calculator
    from nemo.collections.nlp.models.language_modeling.megatron_gpt_sft_model import MegatronGPTSFTModel
    from nemo.collections.nlp.parts.megatron_trainer_builder import MegatronLMPPTrainerBuilder
    from nemo.collections.nlp.parts.peft_config import PEFT_CONFIG_MAP
    from nemo_image.packing import Packing, Step, likeliest
    from nemo_image.predictor import whole_vocabulary

    model_config = MegatronGPTSFTModel.merge_cfg_with(base, config)
    model = restore(MegatronGPTSFTModel, base, model_config, make_trainer(MegatronLMPPTrainerBuilder, config))
    model.add_adapter(PEFT_CONFIG_MAP["lora"](model_config))
    torch.manual_seed(1)
    for weights in model.parameters():  # the half that starts at zero would leave the other no gradient
        if weights.requires_grad:
            torch.nn.init.normal_(weights, std=0.05)
            torch.distributed.broadcast(weights.data, 0)
    dataset = model._build_dataset(model.cfg.data.validation_ds, is_train=False)[0]
    examples = [dataset[index] for index in range(len(dataset))]
    rank, copies = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    found = {}

    def note(way, step):
        model.zero_grad()
        loss = float(step())
        model.allreduce_gradients()
        gradients = {name: p.grad.flatten().tolist() for name, p in model.named_parameters() if p.requires_grad}
        found[way] = {"loss": loss, "gradients": gradients}

    @torch.no_grad()
    def decode(example):
        """The item with four tokens of NeMo's own greedy decoding, token by token, as its answer."""
        ids = example["input_ids"][: example["answer_start_idx"]]
        for _ in range(4):
            logits = model.model(torch.tensor([ids]), torch.arange(len(ids))[None], None)
            ids = [*ids, int(whole_vocabulary(logits[:, -1:], model).argmax())]
        return example | {"input_ids": ids}

    def wrong(items):
        packing.run(Step(packing, dataset, items), forward_only=True)
        return int(packing.wrong)

    model.train()
    batch = dataset.collate_fn(examples[rank::copies])
    note("NeMo, micro batch 1", lambda: model.fwd_bwd_step(iter([batch]), False))
    reconfigure_num_microbatches_calculator(0, None, len(examples), 4, copies)
    note("NeMo, micro batch 4", lambda: model.fwd_bwd_step(iter([batch]), False))
    decoded = [decode(example) for example in examples]
    packing = Packing(model, None, 1, flash=False)
    for way, (packing.tokens, packing.items) in WAYS.items():
        note(way, lambda: packing.run(Step(packing, dataset, examples), forward_only=False))
    note("backwards", lambda: packing.run(Step(packing, dataset, examples[::-1]), forward_only=False))
    with torch.no_grad():
        found["validation"] = float(packing.run(Step(packing, dataset, examples), forward_only=True))
        alone = [float(packing.run(Step(packing, dataset, [example]), forward_only=True)) for example in examples]
    found["validation, one item after the other"] = sum(alone) / len(alone)
    found["wrong"] = {}
    for place in (None, 0, 1, 3):  # of the token that greedy decoding would not give, in items 0, 3 and 6
        items = [{**item, "input_ids": [*item["input_ids"]]} for item in decoded]
        for item in items[::3] if place is not None else ():
            item["input_ids"][item["answer_start_idx"] + place] += 1
        for way, (packing.tokens, packing.items) in WAYS.items():
            found["wrong"][f"{place}, {way}"] = [wrong(items), wrong(items[1:])]
    found["likeliest"] = {}
    share, place = 12 // int(tensor_parallel), parallel_state.get_tensor_model_parallel_rank()
    for words in (12, 7, 5):  # at 5 the second of two ranks has rows only that pad the vocabulary
        logits = torch.randint(-9, -5, (500, 12)).float()  # many are alike
        logits[:, words:] = 0
        own = likeliest(logits[:, share * place : share * (place + 1)], words)
        found["likeliest"][words] = bool((own == logits[:, :words].argmax(dim=1)).all())
    if os.environ["RANK"] == "0":
        with open(output, "w") as result:
            json.dump(found, result)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

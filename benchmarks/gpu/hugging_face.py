"""The same work with Hugging Face's transformers and PEFT on one device, to measure against. Called by train.py and
predict.py, perhaps with a Python that has other versions; prints one JSON line a measurement.

python benchmarks/gpu/hugging_face.py train --snapshot … --items items.json --sizes 1 8 --tokens 4096 8192 --steps 8
python benchmarks/gpu/hugging_face.py predict --snapshot … --items items.json --sizes 64 --new-tokens 20
"""

import argparse
import importlib.util
import itertools
import json
import random
import statistics
import time
from pathlib import Path

import peft
import torch
import transformers

WARM_UP = 2  # steps that are not counted
ITEMS = 32  # of a step
ROUND = 512  # flex_attention is compiled for each length of a row


def now(model):
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def tell(model, **found):
    """One measurement, and the memory is as before it."""
    if model.device.type == "cuda":
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    print(json.dumps(found), flush=True)


def padded(rows, value, left=False):
    """Lists of token ids as one tensor."""
    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([pad + row if left else row + pad for row, pad in zip(rows, fill)])


def padded_batches(batch, size):
    """(items, the model's inputs) of micro batches of `size` items of like lengths, which no mask is needed for: what
    pads them stands behind, and attention is causal."""
    batch = sorted(batch, key=lambda item: -len(item[0]))
    for i in range(0, len(batch), size):
        part = batch[i : i + size]
        inputs = padded([prompt + answer for prompt, answer in part], 2)
        yield part, {"input_ids": inputs, "labels": padded([[-100] * len(p) + answer for p, answer in part], -100)}


def fewest_rows(lengths, tokens):
    """The items' indices in as few rows of at most `tokens` tokens as can be, alike long."""
    for count in itertools.count(-(-sum(lengths) // tokens)):
        rows = [[] for _ in range(count)]
        for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
            min(rows, key=lambda row: sum(lengths[i] for i in row)).append(index)
        if max(sum(lengths[i] for i in row) for row in rows) <= max(tokens, *lengths):
            return rows


def packed_batches(batch, tokens, attention, window):
    """The same of rows of whole items, without padding."""
    rows = fewest_rows([len(prompt) + len(answer) for prompt, answer in batch], tokens)
    for row in rows:
        part = [batch[index] for index in row]
        items = [{"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer} for prompt, answer in part]
        if attention == "flex_attention":
            fill = -sum(len(item["input_ids"]) for item in items) % ROUND
            items += [{"input_ids": [2] * fill, "labels": [-100] * fill}] if fill else []
        inputs = transformers.DataCollatorWithFlattening(return_tensors="pt")(items)
        if attention == "sdpa" and not masks_packed_rows():
            inputs["attention_mask"] = block_mask(inputs["position_ids"], window)
        yield part, inputs


def masks_packed_rows():
    """Does transformers itself keep attention within an item, by its position_ids, without flash_attention_2?"""
    return importlib.util.find_spec("transformers.masking_utils") is not None


def block_mask(positions, window):
    """What older versions take as it is."""
    item = (positions == 0).cumsum(-1)
    seen = (item[:, :, None] == item[:, None, :]).tril().triu(1 - window if window else -len(item[0]))
    return torch.where(seen, 0.0, torch.finfo(torch.bfloat16).min).to(torch.bfloat16)[:, None]


def attentions(device):
    """Those that can be had, for packed rows."""
    found = ["sdpa"]
    if importlib.util.find_spec("flash_attn"):
        found.append("flash_attention_2")
    elif device == "cuda" and masks_packed_rows():
        found.append("flex_attention")
    return found


def lora(model):
    options = {"r": 32, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return peft.get_peft_model(model, peft.LoraConfig(**options))


def train(model, items, variants, steps):
    """LoRA of rank 32 on the projections to q, k and v; steps of the same 32 items whatever the variant."""
    model = lora(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    first = [parameter.detach().clone() for parameter in trained]
    model.train()
    for attention, unit, size in variants:
        with torch.no_grad():
            [parameter.copy_(value) for parameter, value in zip(trained, first)]
        model.base_model.model.config._attn_implementation = attention
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=model.device.type == "cuda")
        rng, seconds, tokens, losses = random.Random(0), [], [], []
        found = {"attention": attention, "unit": unit, "size": size}
        try:
            for _ in range(WARM_UP + steps):
                batch, start, total = rng.sample(items, ITEMS), now(model), 0
                packed = packed_batches(batch, size, attention, model.config.sliding_window)
                for part, inputs in packed if unit == "tokens" else padded_batches(batch, size):
                    inputs = {name: value.to(model.device) for name, value in inputs.items()}
                    loss = model(**inputs, use_cache=False).loss * len(part) / len(batch)
                    loss.backward()
                    total += loss.detach()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(total))
                seconds.append(now(model) - start)
                tokens.append(sum(len(prompt) + len(answer) for prompt, answer in batch))
            found |= {"seconds": statistics.median(seconds[WARM_UP:]), "losses": [losses[0], losses[-1]]}
            found["tokens_per_second"] = statistics.mean(tokens) / found["seconds"]
        except torch.OutOfMemoryError:
            inputs = loss = None
            optimizer.zero_grad()
        tell(model, **found)


@torch.inference_mode()
def predict(model, items, firsts, sizes, new_tokens):
    """Greedy text and the scores of the labels' first tokens, in batches of like lengths."""
    prompts = sorted((prompt for prompt, _ in items), key=lambda prompt: -len(prompt))
    options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 2, "output_logits": True}
    model.eval()
    for adapter in (False, True):
        model = lora(model) if adapter else model
        for size in sizes:
            for part in (prompts[:size], prompts):  # the first to warm up
                start, answers = now(model), []
                for i in range(0, len(part), size):
                    rows = part[i : i + size]
                    inputs = padded(rows, 2, left=True).to(model.device)
                    mask = padded([[1] * len(row) for row in rows], 0, left=True).to(model.device)
                    options |= {"input_ids": inputs, "attention_mask": mask, "return_dict_in_generate": True}
                    done = model.generate(**options)
                    scores = done.logits[0].float().log_softmax(-1)[:, firsts].tolist()
                    answers += zip(scores, done.sequences[:, inputs.shape[1] :].tolist())
                seconds = now(model) - start
            assert len(answers) == len(prompts)
            tell(model, adapter=adapter, size=size, seconds=seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "predict"])
    parser.add_argument("--snapshot", required=True, type=Path)
    parser.add_argument("--items", required=True, type=Path, help="JSON: items, [prompt, answer] in tokens; labels")
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="micro batches, or batches, in items")
    parser.add_argument("--tokens", type=int, nargs="*", default=[], help="of a packed row, at most")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=20)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    args = parser.parse_args()

    torch.backends.cuda.enable_cudnn_sdp(False)  # as nemo_image.torch_parts: it makes a plan for each length
    options = {"torch_dtype": torch.bfloat16, "device_map": args.device, "attn_implementation": "sdpa"}
    model = transformers.AutoModelForCausalLM.from_pretrained(args.snapshot, **options)
    tell(model, versions=f"transformers {transformers.__version__}, PEFT {peft.__version__}")
    given = json.loads(args.items.read_text())
    if args.what == "train":
        variants = [("sdpa", "items", size) for size in args.sizes]
        variants += [(attention, "tokens", size) for attention in attentions(args.device) for size in args.tokens]
        train(model, given["items"], variants, args.steps)
    else:
        predict(model, given["items"], given["firsts"], args.sizes, args.new_tokens)


if __name__ == "__main__":
    main()

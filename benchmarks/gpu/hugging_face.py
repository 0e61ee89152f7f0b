"""The same work with Hugging Face's transformers and PEFT, in bf16 on one GPU, to measure against. Called by train.py
and predict.py; prints one JSON line a measurement.

python benchmarks/gpu/hugging_face.py train --snapshot … --jsonl train.jsonl --sizes 1 8 --steps 10
python benchmarks/gpu/hugging_face.py predict --snapshot … --jsonl test.jsonl --sizes 64 --new-tokens 20
"""

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "workflow/scripts"))
from common.files import read_jsonl
from common.pubmedqa import LABELS

WARM_UP = 2  # steps that are not counted


def now():
    torch.cuda.synchronize()
    return time.monotonic()


def padded(rows, value, left=False):
    """Lists of token ids as one tensor on the GPU."""
    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([pad + row if left else row + pad for row, pad in zip(rows, fill)]).cuda()


def train(model, items, sizes, steps):
    """LoRA of rank 32 on the projections to q, k and v; steps of 32 items in micro batches of like lengths, which no
    mask is needed for: what pads them stands behind, and attention is causal."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=32, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    model.train()
    for size in sizes:
        rng, seconds, tokens, losses = random.Random(0), [], [], []
        torch.cuda.reset_peak_memory_stats()
        for _ in range(WARM_UP + steps):
            batch = sorted(rng.sample(items, 32), key=lambda item: -len(item[0]))
            start = now()
            for i in range(0, len(batch), size):
                part = batch[i : i + size]
                inputs = padded([prompt + answer for prompt, answer in part], 2)
                labels = padded([[-100] * len(prompt) + answer for prompt, answer in part], -100)
                loss = model(input_ids=inputs, labels=labels, use_cache=False).loss * len(part) / len(batch)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            seconds.append(now() - start)
            tokens.append(sum(len(prompt) + len(answer) for prompt, answer in batch))
        peak = torch.cuda.max_memory_allocated() / 1e9
        rate = sum(tokens[WARM_UP:]) / sum(seconds[WARM_UP:])
        found = {"micro_batch_size": size, "seconds": statistics.median(seconds[WARM_UP:]), "tokens_per_second": rate}
        print(json.dumps(found | {"peak_gb": peak}), flush=True)


@torch.inference_mode()
def predict(model, tokenizer, prompts, sizes, new_tokens):
    """Greedy text and the scores of the labels' first tokens, in batches of like lengths."""
    firsts = [tokenizer(label, add_special_tokens=False).input_ids[0] for label in LABELS]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 2, "output_logits": True}
    for size in sizes:
        for part in (order[:size], order):  # the first to warm up
            start, scores = now(), {}
            for i in range(0, len(part), size):
                rows = [prompts[j] for j in part[i : i + size]]
                inputs = padded(rows, 2, left=True)
                mask = padded([[1] * len(row) for row in rows], 0, left=True)
                done = model.generate(inputs, attention_mask=mask, return_dict_in_generate=True, **options)
                first = done.logits[0].float().log_softmax(-1)[:, firsts].tolist()
                scores.update(zip(part[i : i + size], zip(first, done.sequences[:, inputs.shape[1] :].tolist())))
            seconds = now() - start
        assert len(scores) == len(prompts)
        peak = torch.cuda.max_memory_allocated() / 1e9
        print(json.dumps({"batch_size": size, "seconds": seconds, "peak_gb": peak}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "predict"])
    parser.add_argument("--snapshot", required=True, type=Path)
    parser.add_argument("--jsonl", required=True, type=Path)
    parser.add_argument("--sizes", required=True, type=int, nargs="+", help="micro batches, or batches")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=20)
    args = parser.parse_args()

    torch.backends.cuda.enable_cudnn_sdp(False)  # as nemo_image.torch_parts: it makes a plan for each length
    tokenizer = AutoTokenizer.from_pretrained(args.snapshot)
    options = {"torch_dtype": torch.bfloat16, "device_map": "cuda", "attn_implementation": "sdpa"}
    model = AutoModelForCausalLM.from_pretrained(args.snapshot, **options)
    rows = read_jsonl(args.jsonl)
    prompts = [tokenizer(row["input"].strip(" "), add_special_tokens=False).input_ids for row in rows]
    if args.what == "train":
        answers = [[*tokenizer(row["output"], add_special_tokens=False).input_ids, 2] for row in rows]
        train(model, list(zip(prompts, answers)), args.sizes, args.steps)
    else:
        predict(model.eval(), tokenizer, prompts, args.sizes, args.new_tokens)


if __name__ == "__main__":
    main()

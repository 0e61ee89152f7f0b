"""Asks an adapter in PEFT's format, one of the workflow's peft/ directories, and prints its answer:

    python workflow/tools/ask.py results/runs/lora/fold0/seed0/peft "QUESTION:…"

A prompt has the form that it had in training, as README.md in the directory shows it. Prompts of a run with
`chat_template: true` go through the directory's chat_template.jinja. For a run with `add_bos: true`, give --add-bos.
On a GPU the base model computes in its own precision, on a CPU in fp32. The answer has 20 tokens at most.
"""

import argparse
import sys
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="with adapter_config.json, which names the base model")
    parser.add_argument("prompt", nargs="?", help="or on standard input")
    parser.add_argument("--add-bos", action="store_true", help="of a run with add_bos: true")
    args = parser.parse_args()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (args.directory / file).is_file():
            sys.exit(f"{args.directory}: holds no {file}. Name a peft/ directory, as `snakemake export` makes them.")
    prompt = args.prompt or sys.stdin.read().removesuffix("\n")
    if "\\n" in prompt:
        print("The prompt holds a backslash and an n; for a line break write $'…\\n…'.", file=sys.stderr)
    print("Loading the model…", file=sys.stderr, flush=True)
    import torch
    import transformers
    from peft import AutoPeftModelForCausalLM, PeftConfig

    transformers.logging.set_verbosity_error()
    dtype = "auto" if torch.cuda.is_available() else torch.float32
    try:
        model = AutoPeftModelForCausalLM.from_pretrained(args.directory, torch_dtype=dtype, device_map="auto")
    except OSError as error:
        base = PeftConfig.from_pretrained(args.directory).base_model_name_or_path
        why = str(error).splitlines()[0]
        nowhere = f"no base model, neither there, seen from {Path.cwd()}, nor on the Hugging Face Hub"
        sys.exit(f"{base}: {nowhere}. Ask in the directory where it was trained. ({why})")
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.directory)
    text = prompt.strip(" ")  # as in training, also what follows
    if (args.directory / "chat_template.jinja").is_file():
        turns = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    if args.add_bos and tokens[:1] != [tokenizer.bos_token_id]:
        tokens.insert(0, tokenizer.bos_token_id)
    tokens = torch.tensor([tokens]).to(model.device)
    answer = model.generate(input_ids=tokens, max_new_tokens=20, do_sample=False)[0]
    said = tokenizer.decode(answer[tokens.shape[1] :], skip_special_tokens=True).strip()
    print(said)
    if not said:
        shown = args.directory / "README.md"
        print(f"The answer is empty. Has the prompt exactly the form that is shown in {shown}?", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Asks an adapter in PEFT's format, one of the workflow's peft/ directories, and prints its answer:

    python workflow/tools/ask.py results/runs/lora/fold0/seed0/peft "QUESTION:…"

A prompt has the form that it had in training, as README.md in the directory shows it. Prompts of a run with
`chat_template: true` go through the directory's chat_template.jinja. For a run with `add_bos: true`, give --add-bos.
On a GPU the base model computes in its own precision, on a CPU in fp32. The answer has 20 tokens at most.
"""

import argparse
import json
import sys
from pathlib import Path

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def in_a_line(error):
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_prompt(given):
    """The prompt, given or on standard input. Exits where it is none."""
    if not (prompt := given):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        prompt = sys.stdin.read().removesuffix("\n")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        sys.exit("The prompt is not in UTF-8. Convert it, as by iconv -f SHIFT_JIS -t UTF-8.")
    if not prompt.strip():
        sys.exit("The prompt is empty. Write it after the directory, or give it on standard input.")
    if "\\n" in prompt:
        print("The prompt holds a backslash and an n; for a line break write $'…\\n…'.", file=sys.stderr)
    return prompt


def base_of(directory):
    """The base model's name in adapter_config.json, a directory or one on the Hub. Exits where that is damaged."""
    file = directory / CONFIG
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
        if not isinstance(base, str):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        sys.exit(f"{file}: is damaged, it names no base model. Remove it and run `snakemake export` again.")
    return base


def refuse_damaged_weights(file, remedy):
    """Exits where a safetensors file is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt"):  # checks the header, and that the file has all bytes
            return
    except (SafetensorError, OSError) as error:
        sys.exit(f"{file}: no whole safetensors file ({in_a_line(error)}). {remedy}.")


def load(directory, base):
    """(tokenizer, model). Exits where one of them cannot be loaded."""
    import peft
    import torch
    import transformers

    again = "run `snakemake export` again"
    refuse_damaged_weights(directory / WEIGHTS, f"Remove it and {again}")
    manifest = Path(base, "manifest.json")  # of a snapshot of the workflow's
    fetch = f"Remove {manifest} and run Snakemake again" if manifest.is_file() else "Fetch it again"
    for file in sorted(Path(base).glob("model*.safetensors")):  # none where it is on the Hub
        refuse_damaged_weights(file, fetch)
    transformers.logging.set_verbosity_error()
    remedy = f"Remove {directory / CONFIG} and {again}"
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # of many kinds, a TypeError where tokenizer.model is not there
        sys.exit(f"{directory}: holds no whole tokenizer ({in_a_line(error)}). {remedy}.")
    options = {"torch_dtype": "auto" if torch.cuda.is_available() else torch.float32, "device_map": "auto"}
    try:
        return tokenizer, peft.AutoPeftModelForCausalLM.from_pretrained(directory, **options)
    except OSError as error:
        if Path(base).is_dir():
            sys.exit(f"{base}: the base model is not whole ({in_a_line(error)}). {fetch}.")
        nowhere = f"no base model, neither there, seen from {Path.cwd()}, nor on the Hugging Face Hub"
        sys.exit(f"{base}: {nowhere}. Ask in the directory where it was trained. ({str(error).splitlines()[0]})")
    except Exception as error:  # of many kinds
        versions = f"transformers {transformers.__version__} and PEFT {peft.__version__}"
        sys.exit(f"{directory}: {versions} do not load it with {base} ({in_a_line(error)}). {remedy}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="with adapter_config.json, which names the base model")
    parser.add_argument("prompt", nargs="?", help="or on standard input")
    parser.add_argument("--add-bos", action="store_true", help="of a run with add_bos: true")
    args = parser.parse_args()
    for file in CONFIG, WEIGHTS:
        if not (args.directory / file).is_file():
            sys.exit(f"{args.directory}: holds no {file}. Name a peft/ directory, as `snakemake export` makes them.")
    base, prompt = base_of(args.directory), read_prompt(args.prompt)
    print("Loading the model…", file=sys.stderr, flush=True)
    import torch

    tokenizer, model = load(args.directory, base)
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

"""Writes a model's chat template as a file of its own beside the tokenizer, where train_lora and predict read it.

It is taken from chat_template.jinja of the repository or the local directory, from tokenizer_config.json or from the
GGUF file. Exits where there is none, or where it can't be used to train on one prompt and one answer. A template that
asks for the date always gets the same one; else predictions would change from day to day.
"""

import argparse
import sys
from pathlib import Path

from common.chat import FILE, Chat
from common.ending import run
from common.files import read_json, replacing
from dequantize_gguf import find_in_package
from download_model import HF_HUB_OFFLINE, download, explain_errors
from gguf import GGUFReader
from huggingface_hub import errors
from transformers import AutoTokenizer

DAY = "{%- macro strftime_now(format) %}26 Jul 2024{% endmacro %}"  # as Llama 3's have it where they can't ask


def of_gguf(file):
    """The template, and the tokens that are no text but control."""
    fields = GGUFReader(file).fields
    if not (template := fields.get("tokenizer.chat_template")):
        return None, []
    names = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents() if "tokenizer.ggml.token_type" in fields else []
    return template.contents(), [name for name, kind in zip(names, kinds) if kind == 3]


def of_config(directory):
    """Of tokenizer_config.json: one template, or several by name."""
    file = directory / "tokenizer_config.json"
    template = read_json(file).get("chat_template") if file.exists() else None
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def of_hub(repo, revision, directory):
    """Of the repository's own file, or None."""
    with explain_errors(repo, revision, directory):
        try:
            return Path(download(repo, revision, directory, FILE)).read_text(encoding="utf-8")
        except errors.LocalEntryNotFoundError:
            if not HF_HUB_OFFLINE:  # the Hub could not be asked
                raise
        except errors.EntryNotFoundError:
            pass
    return None


def check(template, control, directory):
    """The Chat of it; exits where prompts can't be put through it as they should be."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for token in control:
        if token in template and len(tokenizer(token, add_special_tokens=False).input_ids) != 1:
            sys.exit(f"{directory}: made from GGUF, its tokenizer lacks {token}; take the model by repo or snapshot.")
    try:
        chat = Chat(tokenizer, template)
        chat.split("Is it so?", "yes")
    except Exception as error:  # the template's own, or one of its language
        sys.exit(f"{directory}: its chat template can't be used: {' '.join(str(error).split())[:200]}")
    return chat


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", help="where the model is from; as of the next three")
    parser.add_argument("--revision")
    parser.add_argument("--snapshot", type=Path)
    parser.add_argument("--gguf", help="a file, or the name of an installed package that holds one")
    parser.add_argument("--output", required=True, type=Path, help="beside the model's tokenizer")
    args = parser.parse_args()

    directory, control = args.output.parent, []
    if args.gguf:
        template, control = of_gguf(args.gguf if args.gguf.endswith(".gguf") else find_in_package(args.gguf))
    elif args.snapshot and (args.snapshot / FILE).is_file():
        template = (args.snapshot / FILE).read_text(encoding="utf-8")
    else:
        template = of_config(directory)
    if not template and args.repo:
        template = of_hub(args.repo, args.revision, directory)
    if not template:
        source = args.repo or args.snapshot or args.gguf
        sys.exit(f"{source}: has no chat template; take the Instruct model, or chat_template: true out of the run.")
    if "strftime_now" in template:
        template = DAY + template
    chat = check(template, control, directory)
    with replacing(args.output) as partial:
        partial.write_text(template, encoding="utf-8", newline="")
    prompt, end = map(chat.tokenizer.decode, (chat.prompt("PROMPT"), chat.end))
    print(f"{args.output}: {prompt!r}, and {end!r} after the answer")


if __name__ == "__main__":
    run(main)

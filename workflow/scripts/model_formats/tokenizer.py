"""A snapshot's tokenizer: can it be read?"""

import json


def problem(directory):
    """Why not, or None. Of a snapshot with both, tokenizer.model is taken."""
    try:
        for file in (directory / "tokenizer_config.json", directory / "special_tokens_map.json"):
            if file.exists() and not isinstance(json.loads(file.read_text(encoding="utf-8")), dict):
                raise ValueError("no object in JSON")
        if (file := directory / "tokenizer.model").exists():
            import sentencepiece

            sentencepiece.SentencePieceProcessor().Load(str(file))
        elif (file := directory / "tokenizer.json").exists():
            import tokenizers

            tokenizers.Tokenizer.from_file(str(file))
        else:
            return "holds neither tokenizer.model nor tokenizer.json"
    except Exception as error:  # of both libraries: plain ones
        return f"{file.name} is empty or broken ({' '.join(str(error).split())}). Fetch it again"
    return None

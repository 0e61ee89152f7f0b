"""A snapshot's tokenizer: can it be read?"""

import json


def problem(directory):
    """Why not, or None. Of a snapshot with both, tokenizer.model is taken."""
    model, file = directory / "tokenizer.model", directory / "tokenizer.json"
    try:
        if model.exists():
            import sentencepiece

            sentencepiece.SentencePieceProcessor().Load(str(model))
            return None
        if not file.exists():
            return "holds neither tokenizer.model nor tokenizer.json"
        import tokenizers

        tokenizers.Tokenizer.from_file(str(file))
        for file in (directory / "tokenizer_config.json", directory / "special_tokens_map.json"):
            if file.exists() and not isinstance(json.loads(file.read_text(encoding="utf-8")), dict):
                raise ValueError("no object in JSON")
    except Exception as error:  # of both libraries: plain ones
        broken = model if model.exists() else file
        return f"{broken.name} is empty or broken ({' '.join(str(error).split())}). Fetch it again"
    return None

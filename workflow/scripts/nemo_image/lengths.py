"""Items that are longer than may be: shortened in the column that their data set names, or refused. NeMo would
cut off the prompt's end, which is the question."""

import os
import time
from pathlib import Path

from common.files import rows_of, write_jsonl
from common.items import id_of
from nemo_image.prompts import Plain
from nemo_image.setup import exit_all
from omegaconf import OmegaConf


def room_of(settings):
    """(how many tokens an item may have, the key that says so) of a step's settings and its base."""
    positions = OmegaConf.load(Path(settings.base, "model_config.yaml")).max_position_embeddings
    return min((settings.max_seq_length, "max_seq_length"), (positions, "max_position_embeddings of the base"))


def shorten(row, longest, count):
    """Cuts off the end of the part `truncate` of a row's input, as little of it as is enough; whether that can do."""
    start, end = row["truncate"]
    text, kept, too_many = row["input"], 0, end - start

    def with_characters(number):
        return text[: start + number].rstrip() + text[end:]

    if count(with_characters(0)) > longest:
        return False
    while too_many - kept > 1:
        middle = (kept + too_many) // 2
        kept, too_many = (middle, too_many) if count(with_characters(middle)) <= longest else (kept, middle)
    row["input"] = with_characters(kept)
    return True


def refuse_marks(prompts, file):
    """Exits where a control token stands in each prompt, as their template has it, which Plain takes for text."""
    found = prompts.marks() if isinstance(prompts, Plain) else ()
    for row in rows_of(file) if found else ():
        found = {mark for mark in found if mark in row["input"]}
        if not found:
            break
    if found:
        problem = f"{min(found)} in the prompts is one token to transformers and vLLM, but text to NeMo"
        exit_all(f"{file}: {problem}: take it out of prompt:, and write chat_template: true in the run.")


def fit(prompts, file, room, tokens_to_generate, shortened):
    """(the JSON Lines to read in place of a file, it or `shortened`, written here; how many items are shortened there)

    NeMo counts the prompt, the answer or as many tokens as are to be generated, and an end. Exits where an item has
    more and can't be shortened. prompts: as use_prompts returns it; room: as room_of.
    """
    most, key = room

    def count(text):
        return len(prompts.prompt(text))

    def fitting():
        """(a row, whether it is shortened) of each."""
        for line, row in enumerate(rows_of(file), start=1):
            try:
                prompt, answer = map(len, prompts.split(row["input"], row.get("output", "")))
            except ValueError as error:
                exit_all(f"{file}, line {line}: {id_of(row)}: {error}.")
            longest = most - max(answer, tokens_to_generate) - len(prompts.end)
            too_long = prompt > longest
            if too_long and ("truncate" not in row or not shorten(row, longest, count)):
                long = f"has {prompt} tokens; {key} leaves {max(longest, 0)} for it"
                other = "raise that" if key == "max_seq_length" else "take another base"
                then = ", as shortening is not enough" if "truncate" in row else ", or name a column by truncate:"
                begins = " ".join(row["input"].split())[:50]  # an id may be a checksum
                exit_all(f"{file}, line {line}: the prompt of {id_of(row)} ({begins}…) {long}: {other}{then}.")
            yield row, too_long

    if not (number := sum(is_short for _, is_short in fitting())):
        return file, 0
    if os.environ["RANK"] == "0":
        write_jsonl(shortened, (row for row, _ in fitting()))
    while not shortened.exists():  # torch.distributed is not there yet; an earlier attempt's is the same
        time.sleep(0.1)
    return shortened, number

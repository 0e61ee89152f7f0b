"""Compares an exported adapter with NeMo: the answers of both, in fp32, to the same prompts. Needs neither NeMo
nor a GPU: transformers and PEFT run on the CPU, with 4 bytes of memory a weight.

Writes a table: each item's log-probabilities of the labels and greedy text, by NeMo (--predictions), by the base alone
and with the adapter. Exits, and writes none, where NeMo and the adapter differ by more than TOLERANCE, or by more than
a SHARE of what the adapter changes: of one that changes less, a wrong export would hardly differ.

With --merged also the merged model's. Rounding its weights once may change more than TOLERANCE. So it is compared with
PEFT's own merge, rounded by torch to the same dtype.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import peft
import torch
import transformers
from common.chat import Chat
from common.ending import run
from common.files import read_jsonl, replacing
from common.labels import told_apart
from common.progress import Progress
from model_formats.snapshot import Snapshot

TOLERANCE = 1e-3  # of a log-probability; what is right differs by 1e-5
SHARE = 0.1
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def load(kind, *sources):
    try:
        return kind.from_pretrained(*sources)
    except Exception as error:  # of many kinds
        versions = f"transformers {transformers.__version__} and PEFT {peft.__version__}"
        sys.exit(f"{sources[-1]}: {versions} do not load it: {' '.join(str(error).split())[:200]}")


def same(one, other):
    """Alike up to the first byte that is no UTF-8? Decoders disagree on what follows, and on the space in front."""
    one, other = one.strip(), other.strip()
    end = min((text.index("\ufffd") for text in (one, other) if "\ufffd" in text), default=None)
    return one[:end].rstrip() == other[:end].rstrip()


class Answer(NamedTuple):
    scores: dict  # {label: log-probability}
    text: str
    lead: float = 0.0  # the likeliest token was always ahead of the second by as much; of less, rounding may decide


class Plain:
    """The tokens of a prompt without the space at its end, and of an answer with a space before it; as Chat has it."""

    def __init__(self, tokenizer, add_bos):
        self.tokenizer, self.end = tokenizer, [tokenizer.eos_token_id]
        self.bos = [tokenizer.bos_token_id] if add_bos else []

    def prompt(self, text):
        return self.bos + self.tokenizer(text.strip(" "), add_special_tokens=False).input_ids

    def split(self, prompt, answer):
        before = self.prompt(prompt)
        return before, self.prompt(f"{prompt.strip(' ')} {answer}")[len(before) :]


class Asker:
    """Asks a model as predict.py asks NeMo's: prompts by `prompts`, text until EOS or the template's end of a turn."""

    def __init__(self, rows, prompts, tokens_to_generate):
        self.tokenizer, self.tokens_to_generate, self.items = prompts.tokenizer, tokens_to_generate, []
        self.ends = {prompts.tokenizer.eos_token_id, prompts.end[-1]}
        for row in rows:
            labels = {label: prompts.split(row["input"], label)[1] for label in row.get("logprob", ())}
            self.items.append((prompts.prompt(row["input"]), told_apart(labels, prompts.end)))

    def answer(self, model, prompt, labels):
        read = model(torch.tensor([prompt]), use_cache=True)
        logits, text, lead = read.logits[0, -1], [], float("inf")
        scores = {label: logits.log_softmax(-1)[ids[0]] for label, ids in labels.items()}
        for label, ids in labels.items():
            if len(ids) > 1:
                after = model(torch.tensor([prompt + ids])).logits[0, len(prompt) :].log_softmax(-1)
                scores[label] += sum(after[place, token] for place, token in enumerate(ids[1:]))
        while True:
            (first, second), (token, _) = logits.topk(2)
            lead = min(lead, float(first - second))
            if int(token) in self.ends:
                break
            text.append(int(token))
            if len(text) == self.tokens_to_generate:
                break
            read = model(token.view(1, 1), past_key_values=read.past_key_values, use_cache=True)
            logits = read.logits[0, -1]
        text = self.tokenizer.decode(text, skip_special_tokens=True)
        return Answer({label: float(score) for label, score in scores.items()}, text, lead)

    @torch.no_grad()
    def ask(self, model, name):
        model, found, progress = model.eval(), [], Progress(f"verify_export, {name}", len(self.items), "items")
        for prompt, labels in self.items:
            found.append(self.answer(model, prompt, labels))
            progress.to(len(found))
        progress.close()
        return found


def ask_all(snapshot, adapter, merged, rows, tokens_to_generate, chat_template=None, add_bos=False):
    """{name of a model: its answers}, NeMo's among them; the last one is to be verified."""
    tokenizer = load(transformers.AutoTokenizer, merged or adapter)
    prompts = Chat(tokenizer, chat_template, add_bos) if chat_template else Plain(tokenizer, add_bos)
    asker = Asker(rows, prompts, tokens_to_generate)
    base = load(transformers.AutoModelForCausalLM, snapshot.directory).float()
    model = load(peft.PeftModel, base, adapter).float()
    with model.disable_adapter():
        answers = {
            "nemo": [Answer(row.get("logprob", {}), row["pred"]) for row in rows],
            "base": asker.ask(model, "base"),
        }
    answers["peft"] = asker.ask(model, "peft")
    if merged:
        model = model.merge_and_unload()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(DTYPES[snapshot.dtype]).float()
        answers["rounded"] = asker.ask(model, "rounded")
        del base, model
        answers["merged"] = asker.ask(load(transformers.AutoModelForCausalLM, merged).float(), "merged")
    return answers


def difference(one, other):
    """The largest of two models' log-probabilities; NaN where there is one."""
    differences = [a.scores[label] - b.scores[label] for a, b in zip(one, other) for label in a.scores]
    return float(torch.tensor([0.0, *differences]).abs().max())


def compare(answers):
    """(what is to be said, whether all is as it should be)"""
    peft, base = answers["peft"], answers["base"]
    effect, changed = difference(peft, base), sum(not same(a.text, b.text) for a, b in zip(peft, base))
    said = [f"the adapter changes log-probabilities by up to {effect:.1e} and {changed} of {len(peft)} texts"]
    good = changed > 0 or any(answer.scores for answer in peft)  # free text has no log-probabilities to compare
    for name, other in ("peft", "nemo"), ("merged", "rounded"):
        if name in answers:
            one, two = answers[name], answers[other]
            found = difference(one, two)
            texts = sum(not same(a.text, b.text) and a.lead > 2 * TOLERANCE for a, b in zip(one, two))
            said.append(f"{name} and {other} differ by {found:.1e} and in {texts} of {len(one)} texts")
            good = good and found <= min(TOLERANCE, SHARE * effect) and not texts
    if "merged" in answers:
        said.append(f"merged and nemo by {difference(answers['merged'], answers['nemo']):.1e}, for the rounding")
    return "; ".join(said), good


def table(answers):
    """Its lines, tab-separated: each item's labels and text, of all models; how far the last one is from NeMo."""
    yield "\t".join(["item", "answer", *answers, "difference"])
    for number, found in enumerate(zip(*answers.values()), start=1):
        for label in found[0].scores:
            scores = [answer.scores[label] for answer in found]
            difference = f"{abs(scores[-1] - scores[0]):.1e}"
            yield "\t".join([str(number), label, *(f"{score:.6f}" for score in scores), difference])
        yield "\t".join([str(number), "text", *(repr(answer.text) for answer in found), ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshot", required=True, type=Path, help="directory of the base's Hugging Face snapshot")
    parser.add_argument("--adapter", required=True, type=Path, help="directory with the adapter in PEFT's format")
    parser.add_argument("--merged", nargs="?", type=Path, help="config.json of the merged model; none: adapter only")
    parser.add_argument("--predictions", required=True, type=Path, help="predict.py's, of precision 32")
    parser.add_argument("--tokens-to-generate", required=True, type=int, help="as predict.py had it")
    parser.add_argument(
        "--chat-template", type=Path, help="file of the template that prompts go through; none: as they are"
    )
    parser.add_argument("--add-bos", action="store_true", help="the tokenizer's BOS stands before prompts")
    parser.add_argument("--items", type=int, default=10, help="so many of the predictions, the first ones")
    parser.add_argument("--output", required=True, type=Path, help="table, tab-separated")
    args = parser.parse_args()

    rows, merged = read_jsonl(args.predictions)[: args.items], args.merged and args.merged.parent
    template = args.chat_template and args.chat_template.read_text(encoding="utf-8")
    answers = ask_all(
        Snapshot(args.snapshot), args.adapter, merged, rows, args.tokens_to_generate, template, args.add_bos
    )
    said, good = compare(answers)
    lines = "\n".join(table(answers))
    print(lines)
    said = f"{merged or args.adapter}, {len(rows)} items: {said}"
    if not good:
        sys.exit(f"{said}: this is not NeMo's adapter, or it changes too little to tell. Export it again.")
    with replacing(args.output) as partial:
        partial.write_text(lines + "\n")
    print(f"{said}: the same model")


if __name__ == "__main__":
    run(main)

"""Writes a table, tab-separated, of the answers that predictions of one model or several give, in the items' order: id,
answer and, of a closed set of labels, probability_{label}.

The probability is among the labels, of several models their mean, and the answer the label with the highest one, as in
the report's ensembles. Free text is of one model. A field with a tab, a quotation mark or a line break is in quotation
marks, as csv and pandas read it. Line by line: the files may be larger than memory.
Each question has its answer: the files are compared with the checksums that the steps before recorded beside them.
"""

import argparse
import math
import sys
from itertools import islice, zip_longest
from pathlib import Path

from common.ending import run
from common.files import read_json, refuse_broken, refuse_unlike, replacing, rows_of
from common.items import id_of
from scipy.special import softmax

PART = 4096  # items that are in memory at once


def sums_of(file):
    """What was recorded beside a file: {name: sha256}, its own as `result`. Exits where it is another one by now."""
    recorded = file.with_suffix(".provenance.json")
    sums = read_json(recorded, "sha256")["sha256"]
    refuse_unlike(file, sums.get("result"), f"the result that {recorded.name} tells of")
    return sums


def check(predictions, questions, trained):
    """Exits where predictions are not of these questions, or not by the adapters, of whose training `trained` tell; []:
    the base alone."""
    asked = sums_of(questions)["result"]
    for file, provenance in zip_longest(predictions, trained):
        sums = sums_of(file)
        if sums.get("test") != asked:
            refuse_broken(file, f"is of other questions than {questions}")
        if sums.get("adapter") != (provenance and read_json(provenance, "sha256")["sha256"].get("result")):
            refuse_broken(file, f"is of another adapter than {provenance or 'none'}, as a copy is")


def line(fields):
    quoted = (f'"{text.replace(chr(34), chr(34) * 2)}"' if set(text) & set('\t"\r\n') else text for text in fields)
    return "\t".join(quoted) + "\n"


def table(files):
    """The lines of the table. ValueError where the files don't fit together."""
    items, labels = zip_longest(*map(rows_of, files)), None
    while part := list(islice(items, PART)):
        if labels is None:
            labels = list(part[0][0].get("logprob", ()))
            yield line(["id", "answer", *(f"probability_{label}" for label in labels)])
            if not labels and len(files) > 1:
                raise ValueError("free text is of one model: two texts have no mean")
        for models in part:
            if None in models or len({id_of(row) for row in models}) > 1:
                ids = ", ".join("nothing" if row is None else id_of(row) for row in models)
                raise ValueError(f"are of different items, {ids}: predict them again")
        if not labels:
            yield from (line([id_of(row), row["pred"].strip()]) for (row,) in part)
            continue
        scores = [[[row["logprob"][label] for label in labels] for row in models] for models in part]
        for models, probabilities in zip(part, softmax(scores, axis=2).mean(axis=1).tolist()):
            name = id_of(models[0])
            if not all(map(math.isfinite, probabilities)):
                raise ValueError(f"the log-probabilities of {name} are not finite: did the model overflow?")
            answer = labels[probabilities.index(max(probabilities))]
            yield line([name, answer, *map("{:.6g}".format, probabilities)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    help = "written by predict.py, one a model, of the same items; beside each lies its .provenance.json"
    parser.add_argument("--predictions", required=True, nargs="+", type=Path, help=help)
    help = "written by read_questions.py; beside them lies their .provenance.json"
    parser.add_argument("--questions", required=True, type=Path, help=help)
    help = "beside the adapter.nemo of each model, in their order; none: the base"
    parser.add_argument("--train-provenance", nargs="*", default=[], type=Path, help=help)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    if len(args.train_provenance) not in (0, len(args.predictions)):
        parser.error("--train-provenance: give one for each of --predictions, or none")
    check(args.predictions, args.questions, args.train_provenance)
    try:
        with replacing(args.output) as partial, open(partial, "w", encoding="utf-8") as file:
            file.writelines(table(args.predictions))
    except ValueError as error:
        sys.exit(f"{', '.join(map(str, args.predictions))}: {error}.")
    print(f"{args.output}: answers of {len(args.predictions)} model{'s' * (len(args.predictions) > 1)}")


if __name__ == "__main__":
    run(main)

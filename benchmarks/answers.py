"""Time and peak memory of the steps from a file of questions to the table of answers, those that need no NeMo, at
several numbers of lines; read_items and write_jsonl, which hold all of a file, are the reference.

python benchmarks/answers.py [--lines 10000 100000 1000000]
python benchmarks/answers.py --nemo 2000 20000 100000

A question has some 100 words. Two models' predictions are put together, with random log-probabilities of three labels;
predict.py's part is to join its batches. --nemo: the whole of predict.py instead, with NeMo on one CPU core and the
tests' tiny model, at so many questions of 5 words.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from convert import ROOT, measure

SCRIPTS = ROOT / "workflow/scripts"
COLUMNS = json.dumps({"prompt": "Text: {text}\nAnswer:", "answer": "output", "labels": ["yes", "no", "maybe"]})
JOIN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import predict
from common.files import sha256, write_json, write_jsonl
test, batches, output = map(Path, sys.argv[2:])
scores = {"yes": -1.0, "no": -2.0, "maybe": -3.0}
if not batches.exists():
    batches.mkdir()
    for items, numbers in predict.parts_of(test, 64):
        for place, number in enumerate(numbers):
            indices = range(len(items))[place * 64 :][:64]
            write_json(batches / f"{number}.json", [(index, "yes", scores) for index in indices])
else:
    write_jsonl(output, predict.predictions(test, 64, batches, scored=True))
    sums = {"result": sha256(output), "test": sha256(test)}
    write_json(output.with_suffix(".provenance.json"), {"sha256": sums})
"""


def write_questions(file, lines, words):
    rng = random.Random(0)
    known = [f"word{n}" for n in range(5000)]
    with open(file, "w") as output:
        output.write("text\n")
        for _ in range(lines):
            output.write(f"{' '.join(rng.choices(known, k=words))}\n")


def steps_in(here, lines, reference):
    """(name, command) of each, in their order."""
    text, questions, answers = here / "questions.csv", here / "questions.jsonl", here / "predictions.jsonl"
    columns, join = ("--columns", COLUMNS, "--output"), ["-c", JOIN, SCRIPTS, questions, here / "batches", answers]
    write_questions(text, lines, words=100)
    if reference:
        yield "read_items", [SCRIPTS / "read_items.py", "--file", text, "--test", *columns, here / "items.json"]
        yield "write_jsonl", [SCRIPTS / "write_jsonl.py", "--json", here / "items.json", *columns, here / "test.jsonl"]
    yield "read_questions", [SCRIPTS / "read_questions.py", "--test", text, *columns, questions]
    yield None, join  # makes the batches
    yield "predict, batches to predictions.jsonl", join
    files = "--predictions", answers, answers, "--questions", questions
    yield "write_answers", [SCRIPTS / "write_answers.py", *files, "--output", here / "answers.tsv"]


def predict_in(here, lines):
    """(name, command) of predict.py, for a tiny model and questions that are made here."""
    tiny, base, text, questions = here / "tiny", here / "base", here / "questions.csv", here / "questions.jsonl"
    write_questions(text, lines, words=5)
    for command in (
        [ROOT / "tests/tiny.py", tiny],
        [SCRIPTS / "convert_model.py", "--snapshot", tiny, "--output-dir", base],
        [SCRIPTS / "read_questions.py", "--test", text, "--columns", COLUMNS, "--output", questions],
    ):
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    settings = {"devices": 1, "tensor_model_parallel_size": 1, "precision": 32, "megatron_amp_O2": False}
    settings |= {"batch_size": 64, "tokens_to_generate": 1, "max_seq_length": 512}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", SCRIPTS / "predict.py"]
    files = ["--base", base, "--test", questions, "--work-dir", here / "work", "--output", here / "predictions.jsonl"]
    options = ["--labels", "yes", "no", "maybe", "--settings", json.dumps(settings), "--accelerator", "cpu"]
    yield "predict", [*torchrun, *files, *options]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    help = "the number of lines up to which the reference is measured, too"
    parser.add_argument("--reference", type=int, default=100_000, help=help)
    parser.add_argument("--directory", help="default: the system's for temporary files")
    parser.add_argument("--nemo", type=int, nargs="+", metavar="LINES", help="predict.py with NeMo instead")
    args = parser.parse_args()
    os.environ |= {"PYTHONPATH": f"{SCRIPTS}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    print("| lines | step | s | peak memory |")
    print("|" + "---|" * 4)
    for lines in args.nemo or args.lines:
        with tempfile.TemporaryDirectory(dir=args.directory) as directory:
            here = Path(directory)
            steps = predict_in(here, lines) if args.nemo else steps_in(here, lines, lines <= args.reference)
            for name, command in steps:
                (here / "nothing").mkdir()  # which measure() removes
                seconds, memory = measure([sys.executable, *command], here / "nothing")
                if name:
                    print(f"| {lines:,} | {name} | {seconds:.1f} | {1000 * memory:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()

"""The user's own files: what is wrong in them or in their paths ends in one sentence before any job."""

import gzip
import io
import json
import os
import unicodedata

import pyarrow
import pyarrow.parquet
import pytest

from workflow.planning import own_files

from .conftest import is_sentence, plan

ASKED = "{model: tiny, dataset: own, devices: 1, tensor_model_parallel_size: 1}"
TRAINED = ASKED.replace("size: 1", "size: 1, train: {max_steps: 4, val_check_interval: 2, lr: 0.1}")
ROWS = "input,output\n" + "".join(f"question {n},{'good' if n % 2 else 'bad'}\n" for n in range(13))
PROMPT = 'prompt: "{text}", answer: mood'
HOME, LONG = os.path.expanduser("~"), 300 * "x"
NFC, NFD = "データ", unicodedata.normalize("NFD", "データ")


def parquet(**columns):
    """The bytes of a Parquet file; pairs(…) of columns with one name."""
    return written(pyarrow.table(columns))


def written(table):
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file)
    return file.getvalue()


TWICE = written(pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["input", "input"]))
GOOD = {"input": ["a", "b", "c"], "output": ["good", "bad", "bad"]}
KEY_TWICE = pyarrow.array([[("k", "v"), ("k", "w")]], pyarrow.map_(pyarrow.string(), pyarrow.string()))
NOT_UTF8 = pyarrow.Array.from_buffers(
    pyarrow.string(), 1, [None, pyarrow.py_buffer(bytes(4) + b"\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")]
)

# (the file's name, its content, more keys of the data set): what is said behind `mine.yaml: datasets.own.`
KINDS = {
    ("d.csv", b"PK\x03\x04" + bytes(99), ""): "test: d.csv: is a ZIP archive, as .xlsx is: save the table as CSV UTF-8",
    ("d.tsv", b"\xd0\xcf\x11\xe0" + bytes(99), ""): "test: d.tsv: is of old Excel, as .xls is",
    ("d.csv", gzip.compress(ROWS.encode()), ""): "test: d.csv: is compressed by gzip: unpack it",
    ("d.csv", parquet(**GOOD), ""): "test: d.csv: is Parquet: name it .parquet",
    ("d.csv", ROWS.encode("utf-16"), ""): "test: d.csv: is UTF-16: save the file as UTF-8",
    ("d.jsonl", '{"input": 1}'.encode("utf-16"), ""): "test: d.jsonl: is UTF-16: save the file as UTF-8",
    ("d.json", b"\xfe\xff" + "[]".encode("utf-16-be"), ""): "test: d.json: is UTF-16: save the file as UTF-8",
    ("d.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", ""): (
        "test: d.csv: is a pointer of Git LFS: fetch the file itself, by git lfs pull"
    ),
    ("d.csv", ROWS.replace("\n", "\r"), ""): (
        "test: d.csv, line 1: has a CR without LF: save the file with line ends of Unix or Windows"
    ),
    ("d.csv", ROWS.replace(",", ";"), ""): (
        "test: d.csv has no column input: there are input;output; the fields seem to be separated by ';': "
        ".csv needs commas, .tsv tabs"
    ),
    ("d.csv", ROWS.replace(",", "\t"), ""): "test: d.csv has no column input: there are input\toutput; the fields seem",
    (
        "d.tsv",
        ROWS,
        "",
    ): "test: d.tsv has no column input: there are input,output; the fields seem",
    ("d.csv", ROWS.replace("input,output", " input,output"), ""): (
        "test: d.csv has no column input: there are  input, output; ' input' has other blanks"
    ),
    ("d.csv", "sep=;\n" + ROWS, ""): "test: d.csv, line 1: is sep=;, a note to Excel, and no columns' names: remove",
    ("d.csv", "<!DOCTYPE html>\n<html>", ""): "test: d.csv: is a web page: download the file itself",
    (
        "d.csv",
        f"{NFD},output\na,b\n",
        f'prompt: "{{{NFC}}}"',
    ): f"test: d.csv has no column {NFC}: there are {NFD}",
    ("d.jsonl", "[\n{},\n{}\n]\n", ""): (
        "test: d.jsonl, line 1: is no JSON: Expecting value: line 2 column 1 (char 2): "
        "if records go over several lines, name the file .json"
    ),
    ("d.jsonl", '{"input": "a"}\r{"input": "b"}\r', ""): (
        "test: d.jsonl, line 1: is no JSON: Extra data: line 1 column 16 (char 15): save the file with line ends"
    ),
    ("d.json", '{"input": "a"}\n{"input": "b"}\n', ""): (
        "test: d.json: is no JSON: Extra data: line 2 column 1 (char 15): if each line is a record"
    ),
    (
        "d.json",
        '{"data": [{"input": "a", "output": "b"}]}',
        "",
    ): "test: d.json, id data: is no record: the file",
    ("d.json", "[]", ""): "test: d.json: has no items",
    ("d.jsonl", "\n \n", ""): "test: d.jsonl: has no items",
    ("d.csv", "input,output\n\n\n", ""): "test: d.csv: has no items",
    ("d.parquet", b"", ""): "test: d.parquet: can't be read as Parquet: Parquet file size is 0 bytes",
    (
        "d.parquet",
        ROWS,
        "",
    ): "test: d.parquet: can't be read as Parquet: Parquet magic bytes not found in footer",
    ("d.parquet", parquet(**GOOD)[:-60] + b"x" * 40 + parquet(**GOOD)[-20:], ""): "test: d.parquet: can't be read as",
    ("d.parquet", TWICE, ""): "test: d.parquet: has two columns input: name one anew",
}
COLUMNS = {
    ("d.parquet", parquet(**GOOD), 'prompt: "{text}"'): "test: d.parquet has no column text: there are input, output",
    ("d.parquet", parquet(input=[{"q": "a"}] * 3), 'prompt: "{input.text}"'): (
        "test: d.parquet has no column input.text: there are q"
    ),
    ("d.parquet", parquet(input=[b"\xff\0"] * 3), ""): (
        "test: d.parquet, row 1: column input holds bytes that are no UTF-8 (byte 1 is 0xff): write text there"
    ),
    (
        "d.parquet",
        parquet(input=[[b"a", b"\xc3"]]),
        "",
    ): "test: d.parquet, row 1: column input holds bytes that are no UTF-8",
    ("d.parquet", parquet(input=NOT_UTF8), ""): "test: d.parquet, row 1: column input holds bytes that are no UTF-8",
    ("d.parquet", parquet(input=KEY_TWICE), 'prompt: "{input.k}"'): (
        "test: d.parquet, row 1: column input can't be read: Converting to Python dictionary is not supported"
    ),
    ("d.csv", ",".join(f"c{n}" for n in range(999)) + "\n", ""): "test: d.csv has no column input: there are c0, c1, ",
    ("d.json", '[{"text": "a"}]', ""): "test: d.json has no column input: there are text",
    ("d.jsonl", '{"input": {"text": "a"}}', 'prompt: "{input.txt}"'): (
        "test: d.jsonl has no column input.txt: there are text"
    ),
}
CONTENTS = {
    ("d.csv", ROWS + "  ,good\n", ""): "test: d.csv, line 15: input is empty, so nothing is asked",
    ("d.csv", ROWS + ",\n", ""): "test: d.csv, line 15: all fields are empty: remove the line",
    (
        "d.jsonl",
        '{"input": ["", " "], "output": "a"}',
        "",
    ): "test: d.jsonl, line 1: input is empty",
    ("d.csv", ROWS + "a,Good\n", "labels: [good, bad]"): (
        "test: d.csv, line 15: the answer, output, is 'Good', none of good, bad"
    ),
    ("d.csv", ROWS + "a,\n", ""): "test: d.csv, line 15: the answer, output, is empty, but given of others",
    ("d.csv", ROWS + f"a,{LONG}\n", "labels: [good, bad]"): (
        f"test: d.csv, line 15: the answer, output, is '{60 * 'x'}…', none of good, bad"
    ),
    ("d.csv", ROWS + 'a,"go\nod"\n', "labels: [good, bad]"): (
        r"test: d.csv, line 15: the answer, output, is 'go\nod', none of good, bad"
    ),
    ("d.json", '{"": {"input": "a", "output": "b"}}', ""): "test: d.json, id : the id is empty",
    ("d.csv", ROWS, "id: output"): "test: d.csv, line 4: the id bad stands in line 2, too: each item needs its own",
    (
        "d.jsonl",
        '{"input": "a", "n": [1], "output": "a"}',
        "id: n",
    ): "test: d.jsonl, line 1: the id, n, is no text",
    (
        "d.jsonl",
        '{"input": "a", "n": {"m": 1}, "output": "a"}',
        "id: n",
    ): "test: d.jsonl, line 1: the id, n, is no text",
    ("d.jsonl", '{"input": "a", "n": null, "output": "a"}', "id: n"): "test: d.jsonl, line 1: the id, n, is empty",
    ("d.csv", "input,output\na,b\nc,d\n", ""): "test: d.csv: has 2 items to test with: take 3 at least",
    ("d.csv", "input,output\na,b\n", ""): "test: d.csv: has 1 item to test with: take 3 at least",
    ("d.csv", ROWS, "sample: 14"): "sample: 14 of 13 test items",
    (
        "d.csv",
        ROWS,
        f"labels: [good, {NFC}, {NFD}]",
    ): f"labels: {NFC} stands twice, in two Unicode forms",
}
ONE = {  # of items:
    ROWS + "question 3 ,good\n": "items: d.csv, line 15: has the same prompt as line 5: one could be drawn to train",
    ROWS + "question  3,good\n": "items: d.csv, line 15: has the same prompt as line 5",
    ROWS + f"{NFC},good\n{NFD},good\n": "items: d.csv, line 16: has the same prompt as line 15",
    ROWS.replace("question 3,good\n", ""): "items: d.csv: has 12 items, too few for a test set and 10 folds: share",
    ROWS: "sample: 4 of 3 test items",
}
PATHS = {  # of a file, which is not there, in place of d.csv
    "''": "is empty: write a path",
    "-d.csv": "-d.csv begins with a dash, as an option does: write ./-d.csv",
    "https://example.org/d.csv": "https://example.org/d.csv is an address: download it first, and write its path here",
    "hf://datasets/org/x/d.csv": "hf://datasets/org/x/d.csv is an address: download it first",
    "~/d.csv": f"`~` stays as it is in a path: write {HOME}/d.csv",
    "$HOME/d.csv": f"`$HOME` stays as it is in a path: write {HOME}/d.csv",
    "~nobody-here/d.csv": "`~nobody-here` stays as it is in a path: write the whole path",
    f"{LONG}.csv": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…: File name too long",
    "loop.csv": "loop.csv: Too many levels of symbolic links",
    "dangling.csv": "dangling.csv is a link to nowhere.csv, which is not there",
    "directory.csv": "directory.csv is a directory: name a file in it",
    "tiny": "tiny is a directory: name a file in it",
    "pipe.csv": "pipe.csv is no plain file: save it as one",
    "/dev/stdin": "/dev/stdin is none of .jsonl, .csv, .tsv, .parquet, .json: save it as one of them",
    "d.xlsx": "d.xlsx is none of .jsonl, .csv, .tsv, .parquet, .json: save it as one of them",
    "tiny/config.json/d.csv": "tiny/config.json/d.csv: Not a directory",
    "tiny/config.json/": "tiny/config.json/: Not a directory",
    "'d.csv\n\n  '": "'d.csv\\n' has blanks at an end: write it without",
    '"d\\0.csv"': r"'d\x00.csv' is no path",
}


def said_of(dataset, run=ASKED):
    with open("mine.yaml", "w") as file:
        file.write(f"targets: [x]\ndatasets: {{own: {{{dataset}}}}}\nruns: {{x: {run}}}\n")
    return plan("mine.yaml")


def check(said, words):
    if words is None:
        assert said is None
    else:
        assert is_sentence(said) and said.startswith(f"mine.yaml: datasets.own.{words}"), said


def write(name, content):
    with open(name, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


MISTAKES = {
    "files of another kind than their names say": KINDS,
    "columns that are not there, or hold no text": COLUMNS,
    "rows": CONTENTS,
}


@pytest.mark.parametrize(
    ("file", "words"),
    [pytest.param(*pair, marks=pytest.mark.kind(kind)) for kind, pairs in MISTAKES.items() for pair in pairs.items()],
)
def test_file(here, file, words):
    name, content, more = file
    write(name, content)
    check(said_of(", ".join(filter(None, [f"test: {name}", more]))), words)


@pytest.mark.kind("one file to draw from")
@pytest.mark.parametrize("content", ONE)
def test_one_file(here, content):
    write("d.csv", content)
    check(
        said_of("items: d.csv, sample: 4"),
        ONE[content],
    )


@pytest.mark.kind("train, val and test")
def test_what_is_trained_on_is_in_no_other_file(here):
    """Whatever the blanks and the Unicode form; which file is named by the key of the one to train on."""
    files = "train: train.csv, val: val.csv, test: d.csv"
    write("d.csv", ROWS)
    write("val.csv", f"input,output\nv,bad\n{NFC},good\n")
    for train, words in {
        "question 4\t": "train: train.csv, line 2: has the same prompt as d.csv, line 6: what is trained on must not",
        NFD: "train: train.csv, line 2: has the same prompt as val.csv, line 3",
        "question": None,
    }.items():
        write("train.csv", f"input,output\n{train},good\n")
        check(said_of(files, TRAINED), words)
    write("val.csv", "input,output\nquestion 12,good\n")
    check(said_of(files, TRAINED), "val: val.csv, line 2: has the same prompt as d.csv, line 14")
    write("val.csv", "input,output\nv,\n")
    check(said_of(files, TRAINED), "val: val.csv, line 2: the answer, output, is empty")


@pytest.mark.kind("large files")
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "json"])
def test_of_a_large_file_the_first_rows_are_read(here, kind, monkeypatch):
    """What is wrong later the job says; a .json, which has no first rows, is left to it."""
    monkeypatch.setattr(own_files, "LARGE", 1000)
    monkeypatch.setattr(own_files, "FEW", 50)
    rows = [{"input": f"question {n}", "output": "good"} for n in range(99)]
    for wrong in None, 10, 90:
        rows[wrong or 0]["output"] = "other" if wrong else "good"
        if kind == "parquet":
            write("d.parquet", written(pyarrow.Table.from_pylist(rows)))
        elif kind == "csv":
            write("d.csv", "input,output\n" + "".join(f"{row['input']},{row['output']}\n" for row in rows))
        else:
            text = json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))
            write(f"d.{kind}", text)
        assert os.path.getsize(f"d.{kind}") > 1000
        said = said_of(f"test: d.{kind}, labels: [good, bad]")
        if wrong == 10 and kind != "json":
            assert "the answer, output, is 'other', none of good, bad" in said
        else:
            assert said is None
        rows[wrong or 0]["output"] = "good"


@pytest.fixture
def odd(here):
    (here / "directory.csv").mkdir()
    (here / "loop.csv").symlink_to("loop.csv")
    (here / "dangling.csv").symlink_to("nowhere.csv")
    os.mkfifo("pipe.csv")


@pytest.mark.kind("paths of files and directories")
@pytest.mark.parametrize("path", PATHS)
def test_path(odd, path):
    for key, dataset in (("test", f"test: {path}"), ("val", f"train: d.csv, val: {path}, test: d.csv")):
        check(said_of(dataset), f"{key}: {PATHS[path]}")
    if not path.endswith((".xlsx", "stdin", "tiny")) and "directory" not in path:  # which might be PubMedQA's
        said = said_of(f"directory: {path}")
        assert is_sentence(said) and said.startswith("mine.yaml: datasets.own.directory: ")


@pytest.mark.kind("paths of files and directories")
def test_without_permission(here, monkeypatch):
    """Root has any: what the system says of others is put in its place. What nobody asks for may be unreadable."""
    write("d.csv", ROWS)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) not in ("d.csv", "tiny"))
    check(said_of("test: d.csv"), "test: d.csv can't be read: you have no permission")
    check(said_of("directory: tiny"), "directory: tiny can't be read: you have no permission")
    assert plan() == "chain.yaml: models.tiny.snapshot: tiny can't be read: you have no permission"
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "d.csv")
    with open("mine.yaml", "w") as file:
        file.write("datasets: {own: {test: d.csv}}")
    assert plan("mine.yaml") is None

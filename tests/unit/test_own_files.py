"""One's own files: how they are read, what is said of mistakes in them, how they are drawn from; and the prompt."""

import datetime
import itertools
import json
import random
import unicodedata
from collections import Counter
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest
from common import template
from common.files import read_json, read_jsonl, write_json
from common.items import id_of
from common.user_files.reading import columns, rows
from helpers import run_script
from split_items import deal

COLUMNS = {"prompt": "Text: {text}\nMood:", "answer": "mood", "labels": ["good", "bad"]}


def read(tmp_path, name, content, *others, columns=COLUMNS, test=False):
    """What read_items.py makes of a file with this content, bytes or text: items, or what it says."""
    file, output = tmp_path / name, tmp_path / "items.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    flags = ["--unlike", *others] if others else []
    flags += ["--test"] if test else []
    call = "--file", file, "--columns", json.dumps(columns), *flags, "--output", output
    done = run_script("read_items.py", *call, check=False)
    if done.returncode:
        assert not output.exists() and len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr.replace(f"{tmp_path}/", "").strip()
    return read_json(output)


def parquet(file, records):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)


AS_WRITTEN = {"text": "NA", "n": "001", "x": "1.10", "mood": "good"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,n,x,mood\nNA,001,1.10,good\n"),
        ("a.csv", "\ufefftext,n,x,mood\r\nNA,001,1.10,good\r\n\r\n"),
        ("a.tsv", "text\tn\tx\tmood\nNA\t001\t1.10\tgood\n"),
        ("a.jsonl", '{"text": "NA", "n": "001", "x": 1.10, "mood": "good"}\n\n'),
        ("a.json", '[{"text": "NA", "n": "001", "x": 1.10, "mood": "good"}]'),
        ("A.CSV", 'text,n,x,mood\n"NA",001,1.10,"good"'),
    ],
)
def test_values_are_what_is_written(tmp_path, name, content):
    assert list(read(tmp_path, name, content).values()) == [AS_WRITTEN]


def test_parquet(tmp_path):
    file = tmp_path / "a.parquet"
    parquet(file, [{"n": 1, "ok": True, "none": None, "nested": {"texts": ["a", "b"], "number": 7}}])
    nested = {"texts": ["a", "b"], "number": "7"}
    assert list(rows(file)) == [("row 1", None, {"n": "1", "ok": "true", "none": None, "nested": nested})]
    assert list(rows(file, ["nested.number", "n"])) == [("row 1", None, {"n": "1", "nested": nested})]
    file.write_text("no Parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: can't be read as Parquet: [^\n]*[^.]$"):
        list(rows(file))
    with pytest.raises(FileNotFoundError):
        list(rows(tmp_path / "b.parquet"))


VALUES = [  # of Parquet, and as text
    (pyarrow.array([b"caf\xc3\xa9"]), "café"),
    (pyarrow.array([b"ab"], pyarrow.binary(2)), "ab"),
    (pyarrow.array([[b"a", None]]), ["a", None]),
    (pyarrow.array(["a"], pyarrow.large_string()), "a"),
    (pyarrow.array(["a"]).dictionary_encode(), "a"),
    (pyarrow.array([float("nan")]), None),
    (pyarrow.array([float("nan")], pyarrow.float32()), None),
    (pyarrow.array([0.1], pyarrow.float32()), "0.1"),
    (pyarrow.array([2], pyarrow.float32()), "2.0"),
    (pyarrow.array([[0.1, None]], pyarrow.list_(pyarrow.float32())), ["0.1", None]),
    (
        pyarrow.array([{"a": 0.1, "b": "1"}], pyarrow.struct({"a": pyarrow.float32(), "b": pyarrow.string()})),
        {"a": "0.1", "b": "1"},
    ),
    (pyarrow.array([1e20]), "1e+20"),
    (pyarrow.array([Decimal("1.10")]), "1.10"),
    (pyarrow.array([0], pyarrow.decimal128(9, 7)), "0.0000000"),
    (pyarrow.array([datetime.date(2024, 1, 31)]), "2024-01-31"),
    (pyarrow.array([0], pyarrow.timestamp("s")), "1970-01-01 00:00:00"),
    (pyarrow.array([1], pyarrow.timestamp("ns")), "1970-01-01 00:00:00.000000001"),
    (pyarrow.array([61], pyarrow.time32("s")), "00:01:01"),
    (pyarrow.array([[("a", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())), {"a": "1"}),
    (pyarrow.array([[(7, b"x")]], pyarrow.map_(pyarrow.int64(), pyarrow.binary())), {"7": "x"}),
    (pyarrow.array([None]), None),
]


@pytest.mark.parametrize(("array", "text"), VALUES, ids=[str(array.type) for array, _ in VALUES])
def test_values_of_parquet_as_text(tmp_path, array, text):
    pyarrow.parquet.write_table(pyarrow.table({"x": array}), tmp_path / "a.parquet")
    assert [row["x"] for _, _, row in rows(tmp_path / "a.parquet")] == [text]


def test_what_nobody_asks_for_need_be_no_text(tmp_path):
    """As a column of pictures."""
    parquet(tmp_path / "a.parquet", [{"image": {"bytes": b"\xff\xd8"}, "text": "a", "by": {"mood": "good"}}])
    columns = COLUMNS | {"answer": "by.mood"}
    call = "--columns", json.dumps(columns), "--output", tmp_path / "items.json"
    run_script("read_items.py", "--file", tmp_path / "a.parquet", *call)
    (item,) = read_json(tmp_path / "items.json").values()
    assert item == {"text": "a", "by": {"mood": "good"}, "by.mood": "good"}


def test_record_by_id(tmp_path):
    """As PubMedQA's own files are: the key is the id."""
    items = read(tmp_path, "a.json", '{"7": {"text": "a", "mood": "bad"}, "3": {"text": "b", "mood": "bad"}}')
    assert list(items) == ["7", "3"]


def test_quoted_fields(tmp_path):
    content = 'text,mood\n"one, ""two""\nthree",good\nfour,bad\nfive,neither\n'
    assert read(tmp_path, "a.csv", content) == "a.csv, line 5: the answer, mood, is 'neither', none of good, bad."
    items = read(tmp_path, "a.csv", content.replace("neither", "bad"))
    assert [item["text"] for item in items.values()] == ['one, "two"\nthree', "four", "five"]


WRONG = {  # (name, content): what is said
    ("a.csv", "text,mood\na,good\nb\n"): (
        "a.csv, line 3: has 1 fields, but there are 2 columns: "
        "put a field that holds a delimiter or a line break into quotation marks, and write empty fields, too."
    ),
    ("a.csv", "text,mood\na, b,good\n"): (
        "a.csv, line 2: has 3 fields, but there are 2 columns: "
        "put a field that holds a delimiter or a line break into quotation marks."
    ),
    ("a.csv", 'text,mood\na,good\n"b,good\nc,bad\n'): (
        "a.csv, line 3: unexpected end of data: "
        "put a field with quotation marks in it into such marks, and write those within twice."
    ),
    ("a.csv", "text,mood\n良い,good\n".encode() + "悪い,bad\n".encode("shift_jis")): (
        "a.csv, line 3: is not UTF-8 (byte 1 of the line is 0x88): save the file as UTF-8."
    ),
    ("a.csv", "text,mood\na,good\n".encode("utf-16")): ("a.csv: is UTF-16: save the file as UTF-8."),
    ("a.csv", "text,mood\na,good\n".encode("utf-16-le")): (
        "a.csv, line 1: has a NUL, as UTF-16 has: save the file as UTF-8."
    ),
    ("a.csv", "text,mood,mood\na,good,bad\n"): "a.csv, line 1: has two columns mood: name one anew.",
    ("a.csv", ""): "a.csv, line 1: is empty: its columns' names belong there.",
    ("a.csv", "text,mood\n"): "a.csv: has no items.",
    ("a.csv", "txt,mood\na,good\n"): "a.csv, line 2: no column text: there are txt, mood.",
    ("a.csv", "text,moood\na,good\n"): "a.csv, line 2: no column mood: there are text, moood.",
    ("a.csv", "text,mood\n,good\n"): "a.csv, line 2: text is empty, so nothing is asked.",
    ("a.csv", "text,mood\na,good\nb,\n"): "a.csv, line 3: the answer, mood, is empty.",
    ("a.csv", "text,mood\na,good\nb,Good\n"): "a.csv, line 3: the answer, mood, is 'Good', none of good, bad.",
    ("a.jsonl", '{"text": "a", "mood": "good"}\n{"text": "b", mood: "bad"}\n'): (
        "a.jsonl, line 2: is no JSON: Expecting property name enclosed in double quotes: line 1 column 15 (char 14)."
    ),
    ("a.jsonl", '["a"]\n'): 'a.jsonl, line 1: is no JSON object, as {"input": …, "output": …}.',
    ("a.jsonl", '{"text": "a", "mood": null}\n'): "a.jsonl, line 1: the answer, mood, is empty.",
    ("a.jsonl", '{"text": "a", "mood": ["good"]}\n'): "a.jsonl, line 1: the answer, mood, is no text.",
    ("a.jsonl", '{"text": {"en": "a"}, "mood": "good"}\n'): (
        "a.jsonl, line 1: column text has fields: name one, as {text.en}."
    ),
    ("a.jsonl", '{"text": [["a"]], "mood": "good"}\n'): (
        "a.jsonl, line 1: column text is a list of other things than texts."
    ),
    ("a.jsonl", '{"text": "a", "mood": NaN}\n'): "a.jsonl, line 1: the answer, mood, is empty.",
    ("a.jsonl", '{"text": "\\ud83d", "mood": "bad"}\n'): (
        "a.jsonl, line 1: is no JSON: it holds half a character, \\ud83d."
    ),
    ("a.jsonl", '{"text": ' + "[" * 9000 + "]" * 9000 + "}"): "a.jsonl, line 1: is no JSON: it is nested too deeply.",
    ("a.json", '{"1": {"text": "a", "mood": "bad"}, "1": {"text": "b", "mood": "bad"}}'): (
        "a.json: is no JSON: the key 1 stands twice."
    ),
    ("a.json", '{"data": [1]}'): ("a.json, id data: is no record: the file must hold [record, …] or {id: record, …}."),
    ("a.json", '"text"'): "a.json: has no items.",
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told(tmp_path, case):
    assert read(tmp_path, *case) == WRONG[case]


def test_ids(tmp_path):
    with_id = COLUMNS | {"id": "name"}
    items = read(tmp_path, "a.csv", "name,text,mood\nx,a,good\n007,b,bad\n", columns=with_id)
    assert list(items) == ["x", "007"]
    said = read(tmp_path / "..", f"{tmp_path.name}/a.csv", "name,text,mood\nx,a,good\nx,b,bad\n", columns=with_id)
    assert said.endswith("a.csv, line 3: the id x stands in line 2, too: each item needs its own.")


def test_ids_are_checksums_that_stay_when_lines_move(tmp_path):
    lines = [f"text {n},good\n" for n in range(9)] + ["text 3,good\n", "text 3,bad\n"]
    one = read(tmp_path, "a.csv", "text,mood\n" + "".join(lines))
    random.Random(0).shuffle(lines)
    two = read(tmp_path, "a.csv", "text,mood\n" + "".join(lines))
    assert one == two and list(one) != list(two) and len(one) == 11
    (again,) = (name for name in one if name.endswith("-2"))
    assert one[again] == one[again.removesuffix("-2")] == {"text": "text 3", "mood": "good"}


def test_files_have_no_prompt_in_common(tmp_path):
    (tmp_path / "val.csv").write_text("text,mood\nb,bad\n")
    (tmp_path / "test.csv").write_text("text,mood\nc,good\na,\n")
    others = tmp_path / "val.csv", tmp_path / "test.csv"
    words = "what is trained on must not be tested on: take it out of one of them."
    said = read(tmp_path, "a.csv", "text,mood\nx,good\nb,good\n", others[0])
    assert said == f"a.csv, line 3: has the same prompt as val.csv, line 2: {words}"
    (tmp_path / "test.csv").write_text("text,mood\nc,good\na,bad\n")
    said = read(tmp_path, "a.csv", "text,mood\na,good\n", *others)
    assert said == f"a.csv, line 2: has the same prompt as test.csv, line 3: {words}"
    said = read(tmp_path, "a.csv", "text,mood\n a  ,good\n", *others)
    assert said == f"a.csv, line 2: has the same prompt as test.csv, line 3: {words}"
    assert len(read(tmp_path, "a.csv", "text,mood\nx,good\n", *others)) == 1


def test_a_label_is_the_one_that_a_person_sees(tmp_path):
    """Whatever the blanks around it and the Unicode form; what is learned is the label as the configuration has it."""
    columns = {"prompt": "{text}", "answer": "by.mood", "labels": ["データ", "so so"]}
    for written in "データ", " データ\u3000", unicodedata.normalize("NFD", "データ"):
        records = [{"text": "a ", "by": {"mood": written}}]
        items = read(tmp_path, "a.jsonl", json.dumps(records[0]), columns=columns)
        ((name, item),) = items.items()
        assert item == {**records[0], "by.mood": "データ"} and len(name) == 16
        call = "--json", tmp_path / "items.json", "--columns", json.dumps(columns), "--output", tmp_path / "a.jsonl"
        run_script("write_jsonl.py", *call)
        assert read_jsonl(tmp_path / "a.jsonl") == [{"input": "a ", "output": "データ", "id": name}]
        (tmp_path / "items.json").unlink()
    one = '{"text": "a", "by": {"mood": "soso"}}'
    assert "is 'soso', none of データ, so so" in read(tmp_path, "a.jsonl", one, columns=columns)


def test_items_to_predict_only(tmp_path):
    """All with answers, or none."""
    for content in "text,mood\na,\nb,\n", "text\na\nb\n":
        items = read(tmp_path, "a.csv", content, test=True)
        write_json(tmp_path / "test.json", items)
        call = "--json", tmp_path / "test.json", "--columns", json.dumps(COLUMNS), "--output", tmp_path / "test.jsonl"
        run_script("write_jsonl.py", *call)
        assert [list(row) for row in read_jsonl(tmp_path / "test.jsonl")] == [["input", "id"]] * 2
        (tmp_path / "items.json").unlink()
    said = read(tmp_path, "a.csv", "text,mood\na,bad\nb,bad\n", test=True)
    assert said == "a.csv: has 2 items to test with: take 3 at least."
    said = read(tmp_path, "a.csv", "text,mood\na,\nb,bad\n", test=True)
    assert said == "a.csv, line 3: the answer, mood, is given, but not of others."
    said = read(tmp_path, "a.csv", "text,mood\na,bad\nb,\n", test=True)
    assert said == "a.csv, line 3: the answer, mood, is empty, but given of others."


def test_jsonl(tmp_path):
    item = {"name": "7", "text": ["one", "two"], "mood": "good", "by": {"whom": "me"}}
    write_json(tmp_path / "items.json", {"7": item})
    columns = COLUMNS | {"prompt": "{{{by.whom}}}\n{text}Mood: "}
    call = "--json", tmp_path / "items.json", "--columns", json.dumps(columns), "--output", tmp_path / "a.jsonl"
    run_script("write_jsonl.py", *call)
    (row,) = read_jsonl(tmp_path / "a.jsonl")
    assert row == {"input": "{me}\none\ntwo\nMood: ", "output": "good", "id": "7"}
    assert id_of(row) == "7" and id_of({"pmid": "8"}) == "8"


@pytest.mark.parametrize("labels", [["a", "b", "c"], None])
def test_sample_of_ones_own(tmp_path, labels):
    items = {str(n): {"input": f"text {n}", "output": "abc"[n % 10 // 4]} for n in range(100)}  # 4, 4 and 2 of ten
    write_json(tmp_path / "items.json", items)
    columns = {"prompt": "{input}", "answer": "output"} | ({"labels": labels} if labels else {})
    call = "--json", tmp_path / "items.json", "--columns", json.dumps(columns), "--sample", 20
    run_script("write_jsonl.py", *call, "--output", tmp_path / "a.jsonl")
    drawn = read_jsonl(tmp_path / "a.jsonl")
    assert len({row["id"] for row in drawn}) == 20
    assert not labels or Counter(row["output"] for row in drawn) == {"a": 8, "b": 8, "c": 4}


def split(tmp_path, content, *flags, columns=COLUMNS, check=True):
    file, output = tmp_path / "all.csv", tmp_path / "split"
    file.write_text(content)
    call = "--items", file, "--columns", json.dumps(columns), *flags, "--output-dir", output
    return run_script("split_items.py", *call, check=check), output


def parts_of(directory):
    """{part: ids} of test, train0, val0, …"""
    folds = {f"{part}{n}": directory / f"fold{n}/{part}.json" for n in range(10) for part in ("train", "val")}
    return {name: list(read_json(file)) for name, file in (folds | {"test": directory / "test.json"}).items()}


def test_split_of_one_file(tmp_path):
    lines = [f"{n},text {n},{'good' if n % 3 else 'bad'}\n" for n in range(150)]
    with_id, content = COLUMNS | {"id": "n"}, "n,text,mood\n" + "".join(lines)
    _, output = split(tmp_path, content, columns=with_id)
    parts, everything = parts_of(output), {str(n) for n in range(150)}
    assert len(parts["test"]) == 30 and all(len(parts[f"val{n}"]) == 12 for n in range(10))
    assert set().union(parts["test"], *(parts[f"val{n}"] for n in range(10))) == everything
    for n in range(10):
        assert {*parts[f"train{n}"], *parts[f"val{n}"]} == everything - {*parts["test"]}
        assert len(parts[f"train{n}"]) == 108
    for names in parts.values():
        assert names == sorted(names, key=int)  # the file's order
        assert abs(sum(int(name) % 3 == 0 for name in names) - len(names) / 3) <= 1
    other_prompt = with_id | {"prompt": "{text} – good or bad?"}
    assert parts_of(split(tmp_path, content, columns=other_prompt)[1]) == parts
    assert parts_of(split(tmp_path, content, "--seed", 1, columns=with_id)[1]) != parts


def test_deal():
    """Sizes differ by one at most, in all and of each group, whatever they are."""
    for seed in range(20):
        rng = random.Random(seed)
        items = {n: rng.choice("aaaabbc") for n in range(rng.randint(30, 90))}
        dealt = deal(items, 10, rng, str)
        assert sorted(itertools.chain(*dealt)) == list(items)
        for group in "abc":
            sizes = [sum(items[name] == group for name in part) for part in dealt]
            assert max(sizes) - min(sizes) <= 1
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_split_refuses(tmp_path):
    done, output = split(tmp_path, "text,mood\n" + "a,good\nb,bad\na,bad\n", check=False)
    words = "one could be drawn to train with, the other to test: take one of them out."
    assert done.stderr == f"{tmp_path}/all.csv, line 4: has the same prompt as line 2: {words}\n"
    done, _ = split(tmp_path, "text,mood\n" + "".join(f"{n},good\n" for n in range(12)), check=False)
    words = "share them out yourself, to train:, val: and test:."
    assert done.stderr == f"{tmp_path}/all.csv: has 12 items, too few for a test set and 10 folds: {words}\n"
    assert not output.exists()
    assert split(tmp_path, "text,mood\n" + "".join(f"{n},good\n" for n in range(13)))[0].returncode == 0


def test_template():
    assert template.columns("a {b} {c.d} {{e}} {b}") == ["b", "c.d", "b"]
    assert template.fill("{c.d}{c.d.e}", {"c.d": "with a dot", "c": {"d": {"e": "!"}}}) == "with a dot!"
    assert template.fill("{q} {文}", {"q": None, "文": "{q}"}) == " {q}"
    for wrong in "{", "a } b", "{}", "{a:b}", "{a!r}", '{"a": {b}}':
        with pytest.raises(ValueError, match=r"a brace that stands for itself is written twice, \{\{ or \}\}$"):
            template.columns(wrong)
    with pytest.raises(ValueError, match=r"^no column b\.x: there are no fields$"):
        template.fill("{b.x}", {"b": "text"})


def test_columns_by_the_first_line_or_row(tmp_path):
    (tmp_path / "a.tsv").write_text("one\ttwo\n")
    (tmp_path / "a.jsonl").write_text('\n{"one": {"two": 1}}\n{"two": \n')
    (tmp_path / "a.json").write_text("[]")
    parquet(tmp_path / "a.parquet", [{"one": "1", "two": 2}])
    found = [columns(tmp_path / f"a.{kind}", ["one"]) for kind in ("tsv", "jsonl", "json", "parquet")]
    assert found == [{"one": None, "two": None}, {"one": {"two": "1"}}, None, {"one": "1"}]

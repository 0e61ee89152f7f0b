"""The rows of a user's file, each with its place in words. All values are texts as they are written: NA, 001, 1.10.

By the standard library's csv and json, which tell the line. pandas does not; it fills short rows up, drops a field
where all rows have one too many, and reads 1.10 as a number. Errors are ValueErrors that name file and line.
"""

import csv
import json
import re
import sys
from pathlib import Path

from .parquet import named_twice, read_parquet, text_of  # relative, as the planning imports this module, too

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half a character, as JSON writes it; two make one
NO_TEXT = {  # by their first bytes
    b"PK\x03\x04": "is a ZIP archive, as .xlsx is: save the table as CSV UTF-8",
    b"\xd0\xcf\x11\xe0": "is of old Excel, as .xls is: save the table as CSV UTF-8",
    b"\x1f\x8b": "is compressed by gzip: unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: unpack it",
    b"\xfd7zXZ": "is compressed by xz: unpack it",
    b"PAR1\x15": "is Parquet: name it .parquet",
    b"\xff\xfe": "is UTF-16: save the file as UTF-8",
    b"\xfe\xff": "is UTF-16: save the file as UTF-8",
    **dict.fromkeys((b"<!DOCTYPE html", b"<!doctype html", b"<html"), "is a web page: download the file itself"),
    b"version https://git-lfs": "is a pointer of Git LFS: fetch the file itself, by git lfs pull",
}

csv.field_size_limit(sys.maxsize)  # a document may be long


def lines(file):
    """Its lines, decoded one by one, so that the one that is not UTF-8 is known."""
    with open(file, "rb") as binary:
        for number, line in enumerate(binary, start=1):
            if number == 1 and (kind := next(filter(line.startswith, NO_TEXT), None)):
                raise ValueError(f"{file}: {NO_TEXT[kind]}")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = f"byte {error.start + 1} of the line is {error.object[error.start]:#x}"
                raise ValueError(f"{file}, line {number}: is not UTF-8 ({byte}): save the file as UTF-8") from error
            if "\0" in text:
                raise ValueError(f"{file}, line {number}: has a NUL, as UTF-16 has: save the file as UTF-8")
            yield text


def header(file, records):
    """The first of a CSV's records, its columns' names."""
    names = next(records, None)
    if not names:
        raise ValueError(f"{file}, line 1: is empty: its columns' names belong there")
    if names[0].startswith("sep="):
        raise ValueError(f"{file}, line 1: is {names[0]}, a note to Excel, and no columns' names: remove the line")
    if twice := named_twice(names):
        raise ValueError(f"{file}, line 1: has two columns {twice}: name one anew")
    return names


def csv_records(file, delimiter):
    """(its line, a record) for each, the header first."""
    reader, line = csv.reader(lines(file), delimiter=delimiter, strict=True), 1
    try:
        for record in reader:
            if record:  # else the line is empty
                yield line, record
            line = reader.line_num + 1
    except csv.Error as error:
        within = "put a field with quotation marks in it into such marks, and write those within twice"
        if "new-line character" in str(error):
            error, within = "has a CR without LF", "save the file with line ends of Unix or Windows"
        raise ValueError(f"{file}, line {line}: {error}: {within}") from None


def read_csv(file, delimiter=","):
    records = csv_records(file, delimiter)
    names = header(file, (record for _, record in records))
    for line, record in records:
        if len(record) != len(names):
            counts = f"has {len(record)} fields, but there are {len(names)} columns"
            quote = "put a field that holds a delimiter or a line break into quotation marks"
            more = "" if len(record) > len(names) else ", and write empty fields, too"
            raise ValueError(f"{file}, line {line}: {counts}: {quote}{more}")
        if not any(record):
            raise ValueError(f"{file}, line {line}: all fields are empty: remove the line")
        yield f"line {line}", None, dict(zip(names, record))


def read_tsv(file):
    return read_csv(file, "\t")


def without_repeats(pairs):
    """A JSON object; ValueError where a key stands twice, of which the first would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)} stands twice")
    return found


def constant(name):
    """Of NaN, Infinity and -Infinity: pandas and others write NaN for what is missing."""
    return None if name == "NaN" else name


def parse(text):
    """JSON with its numbers as they are written."""
    numbers = {"parse_int": str, "parse_float": str, "parse_constant": constant}
    try:
        found = json.loads(text, object_pairs_hook=without_repeats, **numbers)
        if SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds half a character, \\u{ord(error.object[error.start]):x}") from None
    return found


def read_jsonl(file):
    for number, line in enumerate(lines(file), start=1):
        if not line.strip():
            continue
        try:
            row = parse(line)
        except ValueError as error:
            remedy = ": if records go over several lines, name the file .json" if line.strip() in "[{" else ""
            remedy = ": save the file with line ends of Unix or Windows" if "\r" in line.strip() else remedy
            raise ValueError(f"{file}, line {number}: is no JSON: {error}{remedy}") from error
        if not isinstance(row, dict):
            raise ValueError(f'{file}, line {number}: is no JSON object, as {{"input": …, "output": …}}')
        yield f"line {number}", None, text_of(row)


def read_json(file):
    """Of a list of records, or of {id: record} as PubMedQA has it."""
    text = "".join(lines(file))
    try:
        records = parse(text)
    except ValueError as error:
        by_line = ": if each line is a record, name the file .jsonl" if "Extra data" in str(error) else ""
        raise ValueError(f"{file}: is no JSON: {error}{by_line}") from error
    if isinstance(records, dict):
        named = [(f"id {key}", key, record) for key, record in records.items()]
    else:
        named = [(f"record {n}", None, record) for n, record in enumerate(records, 1)] if type(records) is list else []
    for place, key, record in named:
        if not isinstance(record, dict):
            raise ValueError(f"{file}, {place}: is no record: the file must hold [record, …] or {{id: record, …}}")
        yield place, key, text_of(record)


READERS = {".jsonl": read_jsonl, ".csv": read_csv, ".tsv": read_tsv, ".parquet": read_parquet, ".json": read_json}


def rows(file, names=None):
    """(place in words, id or None, {column: value}) for each row of a file, by its name's ending. names: of the columns
    that are wanted; others may be there."""
    reader = READERS[Path(file).suffix.lower()]
    return reader(file, names) if reader is read_parquet else reader(file)


def columns(file, names):
    """The columns of a file as an item, {column: value}: its first, or a CSV's names alone; None where it has none."""
    suffix = Path(file).suffix.lower()
    if suffix in (".csv", ".tsv"):
        return dict.fromkeys(header(file, (record for _, record in csv_records(file, ",\t"[suffix == ".tsv"]))))
    return next((row for _, _, row in rows(file, names)), None)

"""The user's own files: what is refused of them before any job. Those that are not large are read to their end."""

import os
from itertools import islice
from pathlib import Path

from ..scripts.common.template import look_up
from ..scripts.common.user_files.items import CheckedRows, Items, cut, seen, tested_of
from ..scripts.common.user_files.reading import READERS, columns
from . import places
from .changes import LARGE

KEYS = ("train", "val", "test", "items")  # that name a file of the user; each is to be unlike those behind it
FEW = 1000  # rows of a file that is large: what is wrong in all of them is wrong in these


def columns_of(entry, *names):
    """A data set's own columns, as read_items and others take them."""
    names = names or ("prompt", "answer", "id", "labels")
    return {name: entry[name] for name in names if name in entry}


def is_large(*files):
    return sum(map(os.path.getsize, files)) > LARGE


def check_file(checks, path, entry, named, answered):
    """The file is there and has the columns, as far as its first line or row tells."""
    file = Path(place := entry[path[-1]])
    if problem := places.unreadable(place):
        checks.refuse(path, problem)
    if file.is_dir():
        checks.refuse(path, f"{file} is a directory: name a file in it")
    if file.suffix.lower() not in READERS:
        checks.refuse(path, f"{file} is none of {', '.join(READERS)}: save it as one of them")
    if not file.is_file():
        checks.refuse(path, f"{file} is no plain file: save it as one" if file.exists() else f"there is no file {file}")
    asked = [*named, *([entry["answer"]] if answered else []), *([entry["id"]] if "id" in entry else [])]
    try:
        there = None if file.suffix.lower() == ".json" and is_large(file) else columns(file, asked)
    except ValueError as error:
        checks.refuse(path, str(error))
    for column in asked if there is not None else ():
        try:
            look_up(there, column)
        except ValueError as error:
            checks.refuse(path, f"{file} has {cut(str(error), 300)}{hint(column, [*there])}")


def hint(column, there):
    """Why a column is missing that seems to be there."""
    if like := next((name for name in there if seen(name) == seen(column)), None):
        return f"; {like!r} has other blanks, or its letters another Unicode form: rename it"
    mark = next((mark for mark in ";\t|," if len(there) == 1 and mark in there[0]), None)
    return f"; the fields seem to be separated by {mark!r}: .csv needs commas, .tsv tabs" if mark else ""


def check_rows(checks):
    """The rows of the data sets that are needed."""
    for name in checks.config["datasets"]:
        if checks.is_needed("dataset", name):
            check_items(checks, name, scored=True)


def check_items(checks, name, scored):
    """What read_items, split_items and read_questions would refuse, or of large files what is wrong in the first rows.

    scored: whether answers to the test items are.
    """
    entry, path, read = checks.config["datasets"][name], ["datasets", name], {}
    files = {key: entry[key] for key in reversed(KEYS) if key in entry}
    large = is_large(*files.values())
    for key, file in files.items():
        try:
            if large and not file.lower().endswith(".json"):
                for _ in islice(CheckedRows(file, columns_of(entry), key != "test"), FEW):
                    pass
            elif not large:
                check_whole(read, key, Items(file, columns_of(entry), key != "test"), scored)
        except ValueError as error:
            checks.refuse([*path, key], str(error))
    tested = len(read["test"].by_id) if "test" in read else tested_of(len(read["items"].by_id)) if read else None
    if tested is not None and entry.get("sample", 0) > tested:
        checks.refuse([*path, "sample"], f"{entry['sample']} of {tested} test items")


def check_whole(read, key, items, scored):
    """read: {key: Items} of the files before, to which it is added."""
    for others in read.values():
        items.refuse_shared(others)
    if key == "items":
        items.refuse_to_split()
    if key == "test" and scored:
        items.refuse_few()
    read[key] = items

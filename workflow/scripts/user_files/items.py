"""A user's file as items, {id: {column: value}}, checked. Errors are ValueErrors that name file and line."""

import hashlib
import sqlite3

from common.template import columns as columns_of
from common.template import fill, look_up
from user_files.reading import rows


class OnDisk:
    """A dict of texts in a temporary file, which ends with the process: there may be millions."""

    def __init__(self):
        self.file = sqlite3.connect("")
        self.file.execute("CREATE TABLE pairs (key BLOB PRIMARY KEY, value) WITHOUT ROWID")

    def get(self, key, default=None):
        (value,) = self.file.execute("SELECT value FROM pairs WHERE key = ?", [as_bytes(key)]).fetchone() or [default]
        return value

    def __setitem__(self, key, value):
        self.file.execute("REPLACE INTO pairs VALUES (?, ?)", [as_bytes(key), value])


def as_bytes(text):
    return text.encode(errors="surrogatepass")  # half a character, as JSON may have


class CheckedRows:
    """(its place in words, its id, its prompt, the item) for each row of one file. columns: the data set's `prompt`,
    `answer` and, where given, `id` and `labels`; mapping: dict, or OnDisk of a file that may be larger than memory.

    Either all items have an answer, or, of a file to predict only, none has.
    """

    def __init__(self, file, columns, answers_needed, mapping=dict):
        self.file, self.columns, self.mapping = file, columns, mapping
        self.others = "" if answers_needed else ", but given of others"
        self.answered = True if answers_needed else None

    def __iter__(self):
        place, places, times = None, self.mapping(), self.mapping()
        for place, key, item in rows(self.file):
            where = f"{self.file}, {place}"
            try:
                prompt, answer = self.prompt(item), self.answer(item)
                name = self.id(item, key)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            if name is None:
                name = hashlib.sha256(as_bytes(f"{prompt}\0{answer}")).hexdigest()[:16]
                times[name] = number = times.get(name, 0) + 1
                name += f"-{number}" if number > 1 else ""  # the same item once more
            if first := places.get(name):
                raise ValueError(f"{where}: the id {name} stands in {first}, too: each item needs its own")
            places[name] = place
            yield place, name, prompt, item
        if place is None:
            raise ValueError(f"{self.file}: has no items")

    def prompt(self, item):
        prompt, names = fill(self.columns["prompt"], item), columns_of(self.columns["prompt"])
        if not any(look_up(item, name) for name in names):
            raise ValueError(f"{' and '.join(names)} is empty, so nothing is asked")
        return prompt

    def answer(self, item):
        """The answer, or an empty text where no item of the file has one."""
        column, labels = self.columns["answer"], self.columns.get("labels")
        answer = (look_up(item, column) if self.answered else item.get(column)) or ""
        if not isinstance(answer, str):
            raise ValueError(f"the answer, {column}, is no text")
        given = bool(answer.strip())
        if self.answered is None:
            self.answered = given
        if given != self.answered:
            state = "given, but not of others" if given else f"empty{self.others}"
            raise ValueError(f"the answer, {column}, is {state}")
        if given and labels and answer not in labels:
            raise ValueError(f"the answer, {column}, is '{answer}', none of {', '.join(labels)}")
        return answer if given else ""

    def id(self, item, key):
        if "id" not in self.columns:
            return key
        name = look_up(item, self.columns["id"])
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"the id, {self.columns['id']}, is empty")
        return name


class Items(CheckedRows):
    """Of one file. by_id: the items, in the file's order; prompts: {prompt: its place in words}; repeated: two places
    of one prompt, if there is one.
    """

    def __init__(self, file, columns, answers_needed):
        super().__init__(file, columns, answers_needed)
        self.by_id, self.prompts, self.repeated = {}, {}, None
        for place, name, prompt, item in self:
            self.by_id[name] = item
            if (first := self.prompts.setdefault(prompt, place)) != place:
                self.repeated = self.repeated or (first, place)

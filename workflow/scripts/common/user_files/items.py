"""A user's file as items, {id: {column: value}}, checked. Errors are ValueErrors that name file and line."""

import hashlib
import math
import sqlite3
import unicodedata

from ..template import as_text, fill, look_up
from ..template import columns as columns_of
from .reading import rows

FOLDS = 10
TEST = 5  # parts of one file, of which one is the test set
LEAST = 3  # items to test with, as of `sample:`: intervals of fewer mean nothing


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


def seen(text):
    """A text as a person sees it: without blanks at its ends, each of more blanks one, letters in one Unicode form."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def cut(text, length=60):
    """As much of a text as a message takes."""
    return text if len(text) <= length else f"{text[:length]}…"


def answer_of(item, column):
    """The answer where the item has one, else None."""
    try:
        return look_up(item, column)
    except ValueError:
        return None


class CheckedRows:
    """(its place in words, its id, its prompt, the item) for each row of one file. columns: the data set's `prompt`,
    `answer` and, where given, `id` and `labels`; mapping: dict, or OnDisk of a file that may be larger than memory.

    Either all items have an answer, or, of a file to predict only, none has. An answer that is a label but for blanks
    around it and its Unicode form is that label.
    """

    def __init__(self, file, columns, answers_needed, mapping=dict):
        self.file, self.columns, self.mapping = file, columns, mapping
        self.others = "" if answers_needed else ", but given of others"
        self.answered = True if answers_needed else None
        self.asked = columns_of(columns["prompt"])
        self.wanted = [*self.asked, columns["answer"], *filter(None, [columns.get("id")])]
        self.labels = {seen(label): label for label in columns.get("labels", ())}

    def __iter__(self):
        place, places, times = None, self.mapping(), self.mapping()
        for place, key, item in rows(self.file, self.wanted):
            where = f"{self.file}, {place}"
            try:
                prompt, answer = self.prompt(item), self.answer(item)
                name = self.id(item, key)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            if answer:
                item[self.columns["answer"]] = answer
            if name is None:
                name = hashlib.sha256(as_bytes(f"{prompt}\0{answer}")).hexdigest()[:16]
                times[name] = number = times.get(name, 0) + 1
                name += f"-{number}" if number > 1 else ""  # the same item once more
            if first := places.get(name):
                raise ValueError(f"{where}: the id {cut(name)} stands in {first}, too: each item needs its own")
            places[name] = place
            yield place, name, prompt, item
        if place is None:
            raise ValueError(f"{self.file}: has no items")

    def prompt(self, item):
        prompt = fill(self.columns["prompt"], item)
        if not any(as_text(item, name).strip() for name in self.asked):
            raise ValueError(f"{' and '.join(self.asked)} is empty, so nothing is asked")
        return prompt

    def answer(self, item):
        """The answer, or an empty text where no item of the file has one."""
        column, labels = self.columns["answer"], self.columns.get("labels")
        answer = (look_up(item, column) if self.answered else answer_of(item, column)) or ""
        if not isinstance(answer, str):
            raise ValueError(f"the answer, {column}, is no text")
        given = bool(answer.strip())
        if self.answered is None:
            self.answered = given
        if given != self.answered:
            state = "given, but not of others" if given else f"empty{self.others}"
            raise ValueError(f"the answer, {column}, is {state}")
        if not given or not labels or answer in labels:
            return answer if given else ""
        if seen(answer) not in self.labels:
            raise ValueError(f"the answer, {column}, is {cut(answer)!r}, none of {cut(', '.join(labels), 300)}")
        return self.labels[seen(answer)]

    def id(self, item, key):
        """The file's, or None where the items have none."""
        column = self.columns.get("id")
        name = look_up(item, column) if column else key
        if (column or key is not None) and (not isinstance(name, str) or not name.strip()):
            state = "empty" if isinstance(name, str | None) else "no text, but a list or record"
            raise ValueError(f"the id{f', {column},' if column else ''} is {state}")
        return name


class Items(CheckedRows):
    """Of one file. by_id: the items, in the file's order; prompts: {prompt, as seen: its place in words}; repeated: two
    places of one prompt, if there is one.
    """

    def __init__(self, file, columns, answers_needed):
        super().__init__(file, columns, answers_needed)
        self.by_id, self.prompts, self.repeated = {}, {}, None
        for place, name, _, item in self:
            self.by_id[name] = item
            prompt = fill(columns["prompt"], {column: seen(as_text(item, column)) for column in self.asked})
            if (first := self.prompts.setdefault(prompt, place)) != place:
                self.repeated = self.repeated or (first, place)

    def refuse_shared(self, others):
        """What is trained on and is in other Items, too."""
        if prompt := next(filter(others.prompts.get, self.prompts), None):
            same = f"has the same prompt as {others.file}, {others.prompts[prompt]}"
            remedy = "what is trained on must not be tested on: take it out of one of them"
            raise ValueError(f"{self.file}, {self.prompts[prompt]}: {same}: {remedy}")

    def refuse_to_split(self):
        """Where some of them are repeated, or they are too few for a test set and folds."""
        if self.repeated:
            same = f"{self.file}, {self.repeated[1]}: has the same prompt as {self.repeated[0]}"
            raise ValueError(f"{same}: one could be drawn to train with, the other to test: take one of them out")
        if (number := len(self.by_id)) - tested_of(number) < FOLDS:
            few = f"has {number} items, too few for a test set and {FOLDS} folds"
            raise ValueError(f"{self.file}: {few}: share them out yourself, to train:, val: and test:")

    def refuse_few(self):
        """Too few to score a model by."""
        if self.answered and (number := len(self.by_id)) < LEAST:
            raise ValueError(f"{self.file}: has {number} item{'s' * (number > 1)} to test with: take {LEAST} at least")


def tested_of(number):
    """How many of one file's items are drawn for testing."""
    return math.ceil(number / TEST)

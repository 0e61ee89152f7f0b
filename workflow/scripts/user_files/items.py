"""A user's file as items, {id: {column: value}}, checked. Errors are ValueErrors that name file and line."""

import hashlib

from common.template import columns as columns_of
from common.template import fill, look_up
from user_files.reading import rows


class Items:
    """Of one file. columns: the data set's `prompt`, `answer` and, where given, `id` and `labels`.

    by_id: the items, in the file's order; prompts: {prompt: its place in words}; repeated: two places of one prompt, if
    there is one. Either all items have an answer, or, of a file to predict only, none has.
    """

    def __init__(self, file, columns, answers_needed):
        self.file, self.columns = file, columns
        self.by_id, self.prompts, self.repeated, places, times = {}, {}, None, {}, {}
        self.others = "" if answers_needed else ", but given of others"
        self.answered = True if answers_needed else None
        for place, key, item in rows(file):
            where = f"{file}, {place}"
            try:
                prompt, answer = self.prompt(item), self.answer(item)
                name = self.id(item, key)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            if name is None:
                name = hashlib.sha256(f"{prompt}\0{answer}".encode(errors="surrogatepass")).hexdigest()[:16]
                times[name] = times.get(name, 0) + 1
                name += f"-{times[name]}" if times[name] > 1 else ""  # the same item once more
            if name in self.by_id:
                raise ValueError(f"{where}: the id {name} stands in {places[name]}, too: each item needs its own")
            self.by_id[name], places[name] = item, place
            if (first := self.prompts.setdefault(prompt, place)) != place:
                self.repeated = self.repeated or (first, place)
        if not self.by_id:
            raise ValueError(f"{file}: has no items")

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

"""A prompt's template: text with columns in braces, {column} or, in a nested one, {column.field}; {{ and }} are braces.
Standard library only.
"""

import string
from functools import lru_cache

BRACES = "a column's name has no : and no ! here, and a brace that stands for itself is written twice, {{ or }}"


@lru_cache
def parts(template):
    """[(text, the column's name behind it or None), …]; ValueError where it is no template."""
    try:
        found = [(text, name, form or kind) for text, name, form, kind in string.Formatter().parse(template)]
    except ValueError as error:
        raise ValueError(f"{error}; {BRACES}") from error
    for _, name, more in found:
        if name == "" or more:
            problem = f"{{{name}… names no column" if more else "{} names no column"
            raise ValueError(f"{problem}; {BRACES}")
    return [(text, name) for text, name, _ in found]


def columns(template):
    """The names in braces, in their order."""
    return [name for _, name in parts(template) if name is not None]


def look_up(item, name):
    """The value of a column, or of a field in a nested one; ValueError where there is none."""
    value = item
    for key in [name] if name in item else name.split("."):
        if not isinstance(value, dict) or key not in value:
            there = f"there are {', '.join(value)}" if isinstance(value, dict) else "there are no fields"
            raise ValueError(f"no column {name}: {there}")
        value = value[key]
    return value


def as_text(item, name):
    """What the column puts into the prompt: a text, nothing for null, each text of a list with a newline after it."""
    value = look_up(item, name)
    if isinstance(value, dict):
        raise ValueError(f"column {name} has fields: name one, as {{{name}.{next(iter(value), 'field')}}}")
    if isinstance(value, list):
        if not all(isinstance(part, str) for part in value):
            raise ValueError(f"column {name} is a list of other things than texts")
        return "".join(f"{part}\n" for part in value)
    return value or ""


def fill(template, item):
    """The prompt for an item, {column: value}."""
    return "".join(text + (as_text(item, name) if name is not None else "") for text, name in parts(template))


def place_of(column, template, item):
    """[begin, end] of a column's text in the prompt, without blanks at its end."""
    begin = 0
    for text, name in parts(template):
        value, begin = "" if name is None else as_text(item, name), begin + len(text)
        if name == column:
            return [begin, begin + len(value.rstrip())]
        begin += len(value)

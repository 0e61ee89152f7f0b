"""What the schema says of a configuration, in words."""

import datetime
import difflib
import math
import re

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

# To JSON Schema 1.0 is an integer, to Python none; and .inf and .nan are numbers.
TYPES = Draft202012Validator.TYPE_CHECKER.redefine_many(
    {
        "integer": lambda _, value: isinstance(value, int) and not isinstance(value, bool),
        "number": lambda _, value: type(value) in (int, float) and math.isfinite(value),
    }
)


def whole(validator, pattern, value, schema):
    """A pattern ends with the text. To Python's $ a line break may follow."""
    if isinstance(value, str) and not re.fullmatch(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


KINDS = (("runs", "run"), ("models", "model"), ("datasets", "data set"))
Validator = extend(Draft202012Validator, {"pattern": whole}, type_checker=TYPES)


def hint(unknown, known):
    close = difflib.get_close_matches(unknown, known, n=1)
    return f"is it {close[0]}?" if close else f"there are {', '.join(known)}"


def unquoted(value, word):
    """word: as it is written, where that is known."""
    if not word or not isinstance(word, str):
        return f"{value} is no text; put it in quotes"
    kinds = {int: "a number", float: "a number", datetime.date: "a date", datetime.datetime: "a date"}
    return f'YAML reads {word} as {kinds.get(type(value), value)}; put it in quotes: "{word}"'


def explain(error, written):
    """(where it is, what is wrong) of one of the validator's errors."""
    path, value = list(error.absolute_path), error.instance
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = str(next(key for key in value if key not in known))
        return [*path, unknown], f"no such key; {hint(unknown, known)}"
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in value)
        return path, f"{missing} is missing: {error.schema['properties'][missing]['description']}"
    if "propertyNames" in error.absolute_schema_path:
        return path, f"{value!r}: {error.schema['description']}"
    if error.validator == "oneOf":
        ways = " or ".join(" and ".join(way["required"]) for way in error.validator_value)
        return path, f"has {', '.join(value) or 'nothing'}; it needs {ways}"
    if error.validator == "dependentRequired":
        needed = error.validator_value.items()
        key, others = next((key, others) for key, others in needed if key in value and {*others} - value.keys())
        return path, f"has {key}, and so needs {' and '.join(others)}, too"
    if path[-2:-1] == ["labels"] and error.validator == "type":
        return path, unquoted(value, written(path))
    if error.validator_value == "object" and len(path) == 2 and (kind := dict(KINDS).get(path[0])):
        return path, f"{value!r} is not a {kind}; are these lines indented under the name of one?"
    if error.validator_value in ("number", "integer") and isinstance(value, str):
        return path, f"'{value}' is text to YAML; write a plain number, as 1.0e-4 for 1e-4"
    if error.validator == "pattern" and path[-2:-1] == ["labels"]:
        return path, f"{value!r}: {error.schema['description']}"
    return path, ". ".join(filter(None, [error.message, error.schema.get("description")]))


def problems(schema, config, written=lambda path: None):
    """(path, problem) for each. written(path): the word that YAML reads as the value there, or None."""
    return (explain(error, written) for error in Validator(schema).iter_errors(config))

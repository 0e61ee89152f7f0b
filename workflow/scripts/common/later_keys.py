"""Keys that came into a step's YAML later, its later_keys, at the value that changes nothing. Standard library only."""

import functools
import operator


def without_later_keys(values):
    """Removes them, and the list itself, from the values of a YAML file, a dict of dicts; returns it.

    A key stays where it has another value. One that is a setting's, not yet put in, goes: the setting tells.
    """
    for key, value in values.pop("later_keys").items():
        *above, last = key.split(".")
        place = functools.reduce(operator.getitem, above, values)
        if place[last] == value or str(place[last]).startswith("${settings."):
            del place[last]
    return values

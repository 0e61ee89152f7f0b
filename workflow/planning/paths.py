"""Paths that the configuration names: why nothing can be read there, where that is not just missing."""

import os
import re


def problem(path):
    """Of a path as it is written, or None."""
    if not path.strip():
        return "is empty: write a path"
    if re.match(r"[a-z][a-z0-9+.-]+://", path, re.IGNORECASE):
        return f"{path} is an address: download it first, and write its path here"
    written = os.path.expanduser(os.path.expandvars(path))
    if written != path and not os.path.lexists(path):
        return f"{path}: ~ and variables stand for nothing here: write {written}"
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} is a link to {os.readlink(path)}, which is not there" if os.path.islink(path) else None
    except OSError as error:
        return f"{path[:40]}{'…' * (len(path) > 40)}: {error.strerror}"
    except ValueError:
        return f"{path!r} is no path"
    return None if os.access(path, os.R_OK) else f"{path} can't be read: you have no permission"

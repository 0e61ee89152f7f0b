"""A configuration file, read more strictly than YAML is: what would be taken otherwise than it was meant is refused."""

import json
import os
import re
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import yaml
from snakemake.cli import get_profile_dir

from . import Problem

PREFIX = "tag:yaml.org,2002:"
TEXT, MERGE = f"{PREFIX}str", f"{PREFIX}merge"
TAGS = tuple(f"{PREFIX}{kind}" for kind in ("str", "merge", "int", "float", "bool", "null", "timestamp", "map", "seq"))


def check(file):
    """Problem, with file and line, where the file is no UTF-8, no YAML, has no keys at its top, or a key twice."""
    if Path(file).is_fifo():
        raise Problem(f"{file}: is a pipe, which can be read only once. Save it as a file")
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise Problem(f"{os.path.relpath(file)}: can't be read: {error.strerror}") from None
    file = os.path.relpath(file)
    with suppress(ValueError, RecursionError):
        json.loads(content)
        content = content.replace(b"\t", b" ")  # JSON, which may be indented by tabs; Snakemake reads it as such
    try:
        root = yaml.compose(content.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except RecursionError:
        raise Problem(f"{file}: is nested too deeply") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise Problem(f"{file}, line {line}: is no text in UTF-8. Save the file in UTF-8") from None
    except yaml.reader.ReaderError as error:
        line = content.decode("utf-8-sig")[: error.position].count("\n") + 1
        raise Problem(
            f"{file}, line {line}: holds the character {error.character:#x}, which YAML does not allow"
        ) from None
    except yaml.MarkedYAMLError as error:
        problem = error.problem.replace("character '\\t' that", "a tab, which")
        raise Problem(f"{file}, line {error.problem_mark.line + 1}: {problem}") from None
    if not isinstance(root, yaml.MappingNode):
        raise Problem(f"{file}: has no keys at its top, such as `targets:`")
    check_keys(file, root, (), set())
    check_pathvars(file, root)
    try:
        yaml.SafeLoader("").construct_document(root)
    except yaml.MarkedYAMLError as error:  # of <<
        raise Problem(f"{file}, line {error.problem_mark.line + 1}: {error.problem}") from None


def profiles(arguments, environment):
    """The files of the profiles that a call names. Of a key that one has twice Snakemake takes the last."""
    named = [after for option, after in pairwise(arguments) if option == "--profile"]
    named += [argument.partition("=")[2] for argument in arguments if argument.startswith("--profile=")]
    found = map(get_profile_dir, named or filter(None, environment.get("SNAKEMAKE_PROFILE", "").split(",")))
    return [file for _, file in filter(None, found)]


def check_pathvars(file, root):
    """Of a file that Snakemake reads after this: of path variables that are none it says neither file nor line."""
    for _, section in (pair for pair in root.value if pair[0].value == "pathvars"):
        pairs = section.value if isinstance(section, yaml.MappingNode) else [(section, section)]
        for key, value in pairs:
            if (value.tag != TEXT and key.tag != MERGE) or value is section:
                line = value.start_mark.line + 1
                raise Problem(f"{file}, line {line}: pathvars: has no directory's name here, as in {{results: mine}}")


def check_keys(file, node, above, checked):
    """Of a mapping or list and all in it. above: the nodes that hold it; checked: those that need no second look."""
    if node in above:
        raise Problem(f"{file}, line {node.start_mark.line + 1}: holds itself, by an alias")
    if node in checked:
        return
    checked.add(node)
    if node.tag not in TAGS:
        tag = node.tag.replace(PREFIX, "!!")
        raise Problem(f"{file}, line {node.start_mark.line + 1}: has the tag {tag}, which no key takes. Leave it out")
    if isinstance(node, yaml.ScalarNode):
        try:
            value = yaml.SafeLoader("").construct_object(node)
        except Exception:  # of many kinds: 2026-13-45, !!int x
            kind = node.tag.removeprefix(PREFIX)
            problem = f"{node.value} is no {kind}, for which YAML takes it. Put it in quotes"
            raise Problem(f"{file}, line {node.start_mark.line + 1}: {problem}") from None
        is_octal = re.fullmatch("[-+]?0[0-7_]+", node.value) and int(node.value) != value
        if isinstance(value, int | float) and (is_octal or ":" in node.value):  # the latter is of base 60, as times
            problem = f"{node.value} is {value} to YAML. Write the number in decimal, or put it in quotes"
            raise Problem(f"{file}, line {node.start_mark.line + 1}: {problem}")
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        first = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag not in (TEXT, MERGE):
                name = f"the key {key.value}" if isinstance(key, yaml.ScalarNode) else "a key"
                raise Problem(f"{file}, line {line}: {name} is no text to YAML. Put it in quotes")
            if key.value in first and key.tag != MERGE:  # of several <<, all count
                twice = f"{key.value} stands here and in line {first[key.value]}"
                raise Problem(f"{file}, line {line}: {twice}; only one would count. Remove one")
            first[key.value] = line
            children = [*children, value]
    for child in children:
        check_keys(file, child, (*above, node), checked)

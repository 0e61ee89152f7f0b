"""A configuration file, read more strictly than YAML is: what would be taken otherwise than it was meant is refused."""

import os
from pathlib import Path

import yaml

from . import Problem

TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def check(file):
    """Problem, with file and line, where the file is no UTF-8, no YAML, has no keys at its top, or a key twice."""
    content, file = Path(file).read_bytes(), os.path.relpath(file)
    try:
        root = yaml.compose(content.decode("utf-8-sig"), Loader=yaml.SafeLoader)
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


def check_keys(file, node, above, checked):
    """Of a mapping or list and all in it. above: the nodes that hold it; checked: those that need no second look."""
    if node in above:
        raise Problem(f"{file}, line {node.start_mark.line + 1}: holds itself, by an alias")
    if node in checked:
        return
    checked.add(node)
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        first = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag not in (TEXT, MERGE):
                name = f"the key {key.value}" if isinstance(key, yaml.ScalarNode) else "a key"
                raise Problem(f"{file}, line {line}: {name} is no text to YAML. Put it in quotes")
            if key.value in first:
                twice = f"{key.value} stands here and in line {first[key.value]}"
                raise Problem(f"{file}, line {line}: {twice}; only one would count. Remove one")
            first[key.value] = line
            children = [*children, value]
    for child in children:
        check_keys(file, child, (*above, node), checked)

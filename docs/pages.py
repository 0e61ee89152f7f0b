"""A hook of mkdocs: the pages of the site whose text lies outside docs/, and links between them as on the repository's
own pages. The page of all keys is written from the schema, so that it can't differ from what the workflow accepts.
"""

import logging
import os
import re
from pathlib import Path

import yaml

log = logging.getLogger("mkdocs.hooks")
ROOT = Path(__file__).parent.parent
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"
OUTSIDE = {  # page: its file in the repository
    "index.md": "README.md",
    "index.ja.md": "README.ja.md",
    "configuration.md": "config/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
SECTIONS = {  # heading: where its keys are in the schema
    "Top level": (),
    "A model: `models.NAME`": ("$defs", "model"),
    "A data set: `datasets.NAME`": ("$defs", "dataset"),
    "A run: `runs.NAME`, and `runs.defaults`": ("$defs", "run"),
    "Training: `runs.NAME.train`": ("$defs", "train"),
    "Prediction: `runs.NAME.predict`": ("$defs", "predict"),
    "An adapter from elsewhere: `runs.NAME.adapter`": ("$defs", "adapter"),
}


def form(schema):
    """What a key's value looks like, in words."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    words = [f"list of {form(schema['items'])}" if kind == "array" else f"`{kind}`" for kind in types]
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]}" for key, sign in signs.items() if key in schema]
    return ", ".join([" or ".join(words), *limits])


def all_keys(schema):
    """The page of all keys, in Markdown."""
    text = (
        "# All keys\n\nEvery key of the configuration, as the schema defines it. [Configuration](configuration.md)"
        " explains them.\nA key without a default is off, or has to be given.\n"
    )
    for heading, path in SECTIONS.items():
        part = schema
        for name in path:
            part = part[name]
        text += f"\n## {heading}\n| key | value | default | meaning |\n|---|---|---|---|\n"
        for key, value in part["properties"].items():
            value = {**schema["$defs"].get(value.get("$ref", "").rpartition("/")[2], {}), **value}
            default = "required" if key in part.get("required", ()) else ""
            if "default" in value:
                default = f"`{yaml.safe_dump(value['default'], default_flow_style=True).splitlines()[0]}`"
            text += f"| `{key}` | {form(value)} | {default} | {value['description']} |\n"
    return text


def on_files(files, config):
    from mkdocs.structure.files import File  # not in the environment of the workflow, in which a test is

    for page, file in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text()))
    files.append(File.generated(config, "keys.md", content=all_keys(yaml.safe_load(SCHEMA.read_text()))))
    return files


def as_github_reads_it(markdown):
    """For Python-Markdown, which wants a blank line before a table or list, and four spaces below a list's item."""
    lines, fence, below = [], None, 0
    for line in markdown.splitlines():
        indent = len(line) - len(line.lstrip())
        if not fence and line and indent < below:
            below = 0
        item = None if fence or below else re.match(r"(?:[-*]|\d+\.) +", line)
        text = line.lstrip()
        starts = item or (text.startswith("|") and not fence)
        before = lines[-1].lstrip() if lines else ""
        if starts and before and not before.startswith(("|", "#")) and not (item and re.match(r"[-*] |\d+\. ", before)):
            lines.append("")
        if text.startswith("```"):
            fence = None if fence else "```"
        lines.append(" " * (4 - below) + line if below and line else line)
        below = item.end() if item else below
    return "\n".join(lines) + "\n"


def on_page_markdown(markdown, page, config, files):
    """Links lead to pages. One to a file of the repository that is no page stays, and ends the strict build."""
    pages = {file: name for name, file in OUTSIDE.items()}
    directory = os.path.dirname(OUTSIDE.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def link(found):
        target = os.path.normpath(os.path.join(directory, found[1]))
        return f"]({pages.get(target, os.path.relpath(target, 'docs'))}{found[2] or ''})"

    return as_github_reads_it(re.sub(r"\]\((?![a-z]+:)([^)#\s]+)(#[^)]*)?\)", link, markdown))


def on_page_content(html, page, config, files):
    """A warning, which ends the strict build, where a table or a code block was not seen as one."""
    if found := re.search(r"<(?:p|li)>\s*(\|.*|.*```.*)", html):
        log.warning("%s: is no table or code block on the site: %s", page.file.src_uri, found[1][:60])

"""What the report says, in one of its languages."""

import re
from pathlib import Path

import yaml
from markupsafe import Markup

FILES = {"en": "../../report/words.en.yaml", "ja": "../../report/words.ja.yaml"}


class Words:
    """words("key", n=1): that entry for a page, with its values put in, escaped. words.text(…): for a picture."""

    def __init__(self, language):
        file = Path(__file__).parent / FILES[language]
        self.entries, self.language = yaml.safe_load(file.read_text(encoding="utf-8")), language

    def __call__(self, key, **values):
        return Markup(self.entries[key]).format(**values)

    def text(self, key, **values):
        return self.entries[key].format(**values)

    def name(self, name):
        """A name that figures and files have in English."""
        forms = self.entries["names"].items()
        return next((found.expand(form) for known, form in forms if (found := re.fullmatch(known, name))), name)

    def join(self, parts, by="comma"):
        return Markup(self.entries[by]).join(filter(None, parts))

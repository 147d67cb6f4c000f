r"""Quotes and escapes of the native dialect: "my: ink", my\: ink."""

from __future__ import annotations

import re

_QUOTED = re.compile(r'\\([\s\S])|"')
_SPECIAL = re.compile(r'[\\":<>=]')


def unquoted(text: str) -> str:
    """Return `text` without its quotes, each escaped character in place of the escape."""
    return _QUOTED.sub(lambda match: match[1] or "", text)


def quoted(text: str) -> str:
    """Return `text`, in quotes if need be, so that `unquoted` gives it back and no character of it ends a field."""
    plain = text == text.strip() and not _SPECIAL.search(text)
    return text if plain else '"' + re.sub(r'[\\"<]', r"\\\g<0>", text) + '"'

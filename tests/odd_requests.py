"""Bodies of requests that nobody meant: right and wrong types, odd texts, too deep, too long, and no JSON at all.

LORA_RUNTIME_BAD_REQUESTS is how many each test of them sends, where somebody wants more than usual.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

__all__ = ["PROMPTS", "TEXTS", "VALUES", "bodies", "many"]

_WORDS = """
    <lora:ink:0.7>|<lora:ink|<lora:|:te=0.5|:unet=0@0,1@1|:lbw=MIDD|:IN04=0.5|:box=0,0,0.5,1|:mask=../x.png|>|:|=|a
    , |nan|<lora:nobody>|<lora:ink:0:was=0.7>|<lora:../../x:1>|<lora:#deadbeef:1>|<lyco:
"""
_PIECES = [
    *re.split(r"\n +|\|", _WORDS.strip()),
    "|",
    "[",
    "]",
    " AND ",
    "<set:x>",
    "\0",
    "\U0001f431",
    "\ud83d",
    "\udc31",
]
PROMPTS = st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=8).map("".join)
_ANY_CHARACTER = st.characters(exclude_categories=())  # halves of characters too
TEXTS = st.one_of(
    st.text(_ANY_CHARACTER, max_size=8),
    st.sampled_from(
        ["", "\0", "\ud83d", "\udc31x", "..", "../x", "C:\\x", "con", "a" * 100_000, "<" * 2_000, "\u202e"]
    ),
    PROMPTS,
)
NUMBERS = st.one_of(st.integers(-3, 90), st.integers(), st.floats(), st.sampled_from([10**30, -(2**63), 1e308, -0.0]))
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_NO_JSON = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"{", b"[" * 100_000, b'{"prompt": ' * 5_000, b'"\\ud83d"', b"1e999", b"NaN", b"9" * 5_000]),
    st.sampled_from([b'{"prompt": "\xff"}', b'\xef\xbb\xbf{"prompt": "a"}', b'{"prompt": "a", "prompt": []}', b"\0"]),
)


def bodies(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Return bodies: of the fields, each as it should be or as it should not, of anything, and of no JSON."""
    some = st.fixed_dictionaries({}, optional={name: right | VALUES for name, right in fields.items()})
    return some.map(_dumped) | VALUES.map(_dumped) | _NO_JSON


def many(usual: int) -> settings:
    """Return settings of hypothesis for that many requests, or for as many as somebody wants."""
    wanted = int(os.environ.get("LORA_RUNTIME_BAD_REQUESTS") or usual)
    return settings(max_examples=wanted, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode("ascii")  # halves of characters as \ud83d

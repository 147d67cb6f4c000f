"""The grammars at work: a prompt split into tags and the rest, and a tag split into fields; for each dialect."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from lora_runtime.prompt.presets import text_beside
from lora_runtime.prompt.tags import Dialect

if TYPE_CHECKING:
    from lark import Lark, Token, Tree


_BEGINNING = re.compile(r"<\w+:")  # of a tag, in any dialect


class Piece(NamedTuple):
    """A part of a prompt, from `start` to `end`."""

    is_tag: bool
    start: int
    end: int


class Field(NamedTuple):
    """One field of a tag, by positions in the text given to `split_fields`.

    `key` is what stands before the only "=" of the field, or None; the value goes from `value_start` to `end`.
    """

    key: str | None
    start: int
    value_start: int
    end: int


def split_prompt(text: str, dialect: Dialect = "a1111") -> Iterator[Piece]:
    """Yield the pieces of `text` in order, without gap or overlap; in linear time for any text.

    No tag ends after the last ">", so the grammar gets only what comes before. Without this, each "<a:" of a text
    without ">" would look for one to the end: 10 KB of them took 20 ms, and take 0.01 ms. A text in which no tag can
    begin needs no grammar, and does not load lark, which is most of the first call of a process: 65 ms with it, 2
    without.
    """
    head = text.rfind(">") + 1
    if _BEGINNING.search(text, 0, head) is None:
        head = 0
    end = 0
    for token in _tokens(text[:head], dialect == "native") if head else ():
        start, end = end, end + len(token)
        yield Piece(token.type == "TAG", start, end)
    if head < len(text):
        yield Piece(False, head, len(text))


def _tokens(text: str, native: bool) -> list[Token]:
    return cast("list[Token]", _prompt_grammar(native).parse(text).children)


def split_fields(body: str, dialect: Dialect = "a1111") -> tuple[Field, ...]:
    """Return the fields of a tag, from what follows its kind: `body` begins with ":"."""
    return (_remembered_fields if len(body) <= 200 else _fields)(body, dialect == "native")


def _fields(body: str, native: bool) -> tuple[Field, ...]:
    return tuple(_field(tree) for tree in cast("list[Tree[Token]]", _tag_grammar(native).parse(body).children))


# Reading the fields of a tag takes 20 to 30 µs, and the same tags come again with each picture and each key typed:
# 10 KB with 500 tags took 22 ms, and take 10. Long bodies are mistakes, and not worth the memory. 2,000 characters with
# five tags take 0.24 ms, without any 7 µs (Python 3.11, one core of a shared machine).
_remembered_fields = lru_cache(maxsize=1024)(_fields)


def _field(tree: Tree[Token]) -> Field:
    colon, key, value = cast("list[Token | None]", tree.children)
    start = cast("int", cast("Token", colon).start_pos) + 1
    value_start = start + len(key or "")
    return Field(None if key is None else str(key)[:-1], start, value_start, value_start + len(value or ""))


@cache
def _prompt_grammar(native: bool) -> Lark:
    return _grammar("native_prompt.lark" if native else "prompt.lark", "basic")


@cache
def _tag_grammar(native: bool) -> Lark:
    return _grammar("native_tag.lark" if native else "tag.lark", "contextual")


def _grammar(name: str, lexer: Literal["basic", "contextual"]) -> Lark:
    """Return the parser of a grammar file beside this module."""
    from lark import Lark  # not at the top: this takes longer than parsing a prompt

    return Lark(text_beside(name), parser="lalr", lexer=lexer, maybe_placeholders=True)

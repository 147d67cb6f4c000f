"""Named sets of LoRAs: <set:portrait:0.5> stands for the tags in portrait.set.txt, at half their strengths.

A set is a text file beside the LoRAs, so that it can be written, read, copied and sent as any other. Only its tags
count: what a prompt says in words stays the same wherever it is read. Sets do not nest.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from lora_runtime.errors import CatalogError, TagSyntaxError, UnknownLoraError
from lora_runtime.prompt import Curve, Diagnostic, LoraTag, Prompt, Strength, format_tag, parse_prompt
from lora_runtime.prompt.excerpt import quote
from lora_runtime.prompt.tags import Dialect, Scope, Severity
from lora_runtime.prompt.values import BadValueError, read_number
from lora_runtime.whole_files import write_whole

__all__ = ["SUFFIX", "delete_set", "parse_with_sets", "read_sets", "with_sets", "write_set"]

SUFFIX = ".set.txt"
_MOST_BYTES = 1 << 16  # of one set
_LONGEST_NAME = 100
_UNTYPED = re.compile(r'[<>:"/\\|?*]')  # what a tag or a file system has another meaning for
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # names that Windows keeps
_TAG = re.compile(r"<set:([^:<>]*)(?::([^<>]*))?>")

_MOST_SUGGESTIONS = 20

Sets = Callable[[], Mapping[str, str]]
_Note = tuple[Severity, str, str]  # and the message, and the hint


# --- files -----------------------------------------------------------------------------------------------------------


def read_sets(*folders: str | os.PathLike[str]) -> dict[str, str]:
    """Return the text of each set in some folders by its name; of two of one name that of the first folder.

    Not of the folders in them. A file that is too large, or no file of its own, is left out. Raises CatalogError for a
    folder that cannot be listed.
    """
    found: dict[str, str] = {}
    for folder in folders:
        for name, path in _files(folder):
            if name in found:
                continue
            try:
                with path.open("rb") as file:
                    content = file.read(_MOST_BYTES + 1)
            except OSError:  # gone meanwhile
                continue
            if len(content) <= _MOST_BYTES:
                found[name] = content.decode("utf-8-sig", "replace")
    return found


def write_set(folder: str | os.PathLike[str], name: str, text: str) -> Path:
    """Write the tags in `text` as a set, in place of one of that name; return its file, whole at any time.

    Raises CatalogError for a name that no file can have, or a text without a tag that can be read, OSError where the
    folder cannot be written to.
    """
    path = Path(folder) / f"{_checked(name)}{SUFFIX}"
    content = (text.strip() + "\n").encode("utf-8", "replace")
    if len(content) > _MOST_BYTES:
        raise CatalogError(f"the set {quote(name)} has {len(content):,} bytes; a set has up to {_MOST_BYTES:,}", name)
    if not parse_prompt(text).tags:
        raise CatalogError(f"the set {quote(name)} has no tag in it; write tags such as <lora:NAME:0.7>", name)
    write_whole(path, content)
    return path


def delete_set(folder: str | os.PathLike[str], name: str) -> None:
    """Delete a set; raises UnknownLoraError where the folder has none of that name."""
    found = dict(_files(folder))
    path = found.get(_composed(name))
    if path is None:
        raise _unknown(name, found)
    path.unlink(missing_ok=True)


def _files(folder: str | os.PathLike[str]) -> Iterator[tuple[str, Path]]:
    """Yield name and path of each set in a folder. A link could show what lies elsewhere, and is none."""
    try:
        with os.scandir(folder) as listing:
            names = sorted(item.name for item in listing if item.is_file(follow_symlinks=False))
    except OSError as error:
        raise CatalogError(f"the LoRA folder {folder} cannot be listed: {error.strerror}") from error
    for file in names:
        name = _composed(file.removesuffix(SUFFIX))
        if file.endswith(SUFFIX) and not _misfit(name):
            yield name, Path(folder) / file


def _checked(name: str) -> str:
    """Return a name that a set may have; raises CatalogError for others."""
    name = _composed(name)
    if misfit := _misfit(name):
        raise CatalogError(
            f"{quote(name)} is no name for a set: {misfit}; write letters, digits, blanks, - and _", name
        )
    return name


def _misfit(name: str) -> str:
    """Return why no set may have this name, or ''."""
    if not name or name != name.strip() or name[0] == "." or name[-1] == ".":
        return "it is empty, or begins or ends with a blank or a point"
    if len(name) > _LONGEST_NAME:
        return f"it has more than {_LONGEST_NAME} characters"
    if not name.isprintable() or _UNTYPED.search(name):
        return "it has characters that a tag or a file cannot have"
    return "Windows keeps it for a device" if _DEVICES.fullmatch(name) else ""


def _composed(name: str) -> str:
    """Return the name with accents composed, as keyboards write them; macOS hands out file names decomposed."""
    return unicodedata.normalize("NFC", name)


def _unknown(name: str, known: Mapping[str, object]) -> UnknownLoraError:
    near = _near(name, known)
    return UnknownLoraError(f"no set named {quote(name)}{_or_near(near, known)}", name, near)


def _near(name: str, known: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(get_close_matches(name[:_LONGEST_NAME], known, n=3))


def _or_near(near: tuple[str, ...], known: Mapping[str, object]) -> str:
    if near:
        return f". Did you mean {' or '.join(map(quote, near))}?"
    return f" (there are {len(known):,}); sets are files NAME{SUFFIX} in a LoRA folder"


# --- prompts ---------------------------------------------------------------------------------------------------------


def parse_with_sets(
    text: str,
    sets: Sets,
    *,
    strict: bool = False,
    dialect: Dialect = "a1111",
    scope: Scope = "all",
    presets: Mapping[str, str] | None = None,
) -> Prompt:
    """Return what `parse_prompt` returns, each set as the tags that it stands for; these are in `.source` in its place.

    `sets` is called only where the text has one. What is wrong with a set is in the diagnostics, or with `strict` a
    TagSyntaxError.
    """
    if not isinstance(text, str) or "<set:" not in text:
        return parse_prompt(text, strict=strict, dialect=dialect, scope=scope, presets=presets)
    source, said = _written_out(text, sets(), dialect, presets)
    for diagnostic in said if strict else ():
        if diagnostic.severity == "error":
            raise TagSyntaxError(f"{diagnostic.message} ({diagnostic.hint})", diagnostic)
    prompt = parse_prompt(source, strict=strict, dialect=dialect, scope=scope, presets=presets)
    kept = {diagnostic.span for diagnostic in said if diagnostic.severity == "error"}
    others = [diagnostic for diagnostic in prompt.diagnostics if diagnostic.span not in kept]
    return replace(prompt, diagnostics=tuple(sorted([*others, *said], key=lambda each: each.span)))


def with_sets(text: str, sets: Sets) -> str:
    """Return a prompt with the tags of its sets in their places; what is no set, or cannot be read, stays."""
    return _written_out(text, sets(), "a1111", None)[0] if "<set:" in text else text


def _written_out(
    text: str, sets: Mapping[str, str], dialect: Dialect, presets: Mapping[str, str] | None
) -> tuple[str, list[Diagnostic]]:
    """Return a text with tags in the place of each set, and what there is to say, by places in it."""
    pieces: list[str] = []
    said: list[Diagnostic] = []
    known: dict[tuple[str, str | None], tuple[str | None, list[_Note]]] = {}
    length = end = 0
    for match in _TAG.finditer(text):
        if dialect == "native" and text[: match.start()].endswith("\\"):
            continue
        pieces.append(text[end : match.start()])
        length += len(pieces[-1])
        end = match.end()
        asked = match[1].strip(), match[2]
        if asked not in known:  # a text may name one set thousands of times
            known[asked] = _tags_of(*asked, sets, dialect, presets, suggest=len(known) < _MOST_SUGGESTIONS)
        tags, notes = known[asked]
        pieces.append(match[0] if tags is None else tags)
        span = (length, length + len(pieces[-1]))
        said += [Diagnostic(severity, span, message, hint) for severity, message, hint in notes]
        length += len(pieces[-1])
    return "".join([*pieces, text[end:]]), said


def _tags_of(
    name: str,
    strength: str | None,
    sets: Mapping[str, str],
    dialect: Dialect,
    presets: Mapping[str, str] | None,
    *,
    suggest: bool,
) -> tuple[str | None, list[_Note]]:
    """Return the tags of a set at its strength, None where it has none to give, and what cannot be used of it."""
    text = sets.get(_composed(name))
    if text is None:
        near = _near(name, sets) if suggest else ()
        message = f"no set named {quote(name)}{_or_near(near, sets)}"
        return None, [("error", message, "write the name of a set, or tags")]
    try:
        factor = 1.0 if strength is None else read_number(strength)
    except BadValueError as error:
        message = f"the strength of the set {quote(name)} {error.reason}; it is not applied"
        return None, [("error", message, error.hint)]
    read = parse_prompt(text, presets=presets)
    this = f"the set {quote(name)}"
    told = [each for each in read.diagnostics if each.severity != "info"]
    notes: list[_Note] = [(each.severity, f"in {this}: {each.message}", each.hint) for each in told]
    if any(other.kind == "set" for other in read.others):
        notes.append(("warning", f"{this} has a set in it, which is left out", "write its tags there"))
    if words := read.text.strip(" \t\r\n,;"):
        message = f"{this} has words in it, {quote(words)}, which are left out"
        notes.append(("warning", message, "write them into the prompt"))
    if not read.tags:
        notes.append(("warning", f"{this} has no tag in it", "write tags such as <lora:NAME:0.7>"))
    try:
        return "".join(format_tag(_scaled(tag, factor), dialect=dialect) for tag in read.tags), notes
    except ValueError:  # beyond any number
        message = f"{quote(strength or '')} makes strengths of {this} that no tag can say; it is not applied"
        return None, [("error", message, "write a number such as 0.5")]


def _scaled(tag: LoraTag, factor: float) -> LoraTag:
    """Return a tag with each of its strengths times a factor."""
    conditions, blocks = tag.conditions, tag.conditions.blocks
    if blocks is not None:
        blocks = replace(
            blocks,
            inner=_times(blocks.inner, factor),
            mid=_times(blocks.mid, factor),
            outer=_times(blocks.outer, factor),
        )
    conditions = replace(
        conditions,
        hires_te=_times(conditions.hires_te, factor),
        hires_unet=_times(conditions.hires_unet, factor),
        blocks=blocks,
    )
    te, unet = _times(tag.te, factor), _times(tag.unet, factor)
    assert te is not None
    assert unet is not None
    return replace(tag, te=te, unet=unet, conditions=conditions)


def _times(strength: Strength | None, factor: float) -> Strength | None:
    """Return a strength times a factor; 3 × 0.1 is 0.3, as a person would write it."""
    if isinstance(strength, Curve):
        return replace(strength, keys=tuple(replace(key, value=round(key.value * factor, 9)) for key in strength.keys))
    return None if strength is None else round(strength * factor, 9)

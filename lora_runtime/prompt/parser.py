"""Prompt text to clean text, tags and diagnostics. Every string is a prompt: nothing but `strict` raises.

The grammars say where tags and fields are; what they mean is decided here, by the table in arguments.py. The clean text
and the meaning of a well-formed tag are those of the Stable Diffusion WebUI. Where the WebUI drops every LoRA of the
prompt because of one bad field, or quietly reads something else than what was meant, that one tag is dropped or
repaired here, and a diagnostic says so.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, NamedTuple, cast, get_args

from lora_runtime.errors import TagSyntaxError
from lora_runtime.prompt.arguments import ALIASES, ARGUMENTS, BY_NAME, BY_POSITION, Argument, with_defaults
from lora_runtime.prompt.block_lists import is_block_list, read_rule, rule_misfit
from lora_runtime.prompt.brackets import MOST_LEVELS, parts, scopes
from lora_runtime.prompt.conditions import EXPERTS, conditions_of, has_curve, hold_never, windows_of, with_shape
from lora_runtime.prompt.excerpt import line_and_column, quote, visible
from lora_runtime.prompt.grammar import Field, Piece, split_fields, split_prompt
from lora_runtime.prompt.keyframes import in_brackets
from lora_runtime.prompt.presets import common_presets
from lora_runtime.prompt.quotes import unquoted
from lora_runtime.prompt.tags import Diagnostic, Dialect, LoraTag, OtherTag, Prompt, Scope, Severity, Span
from lora_runtime.prompt.values import BadValueError, Reading

_KINDS = ("lora", "lyco", "loractl")

# A LoRA tag begins where no tag can: inside another, whose ">" is therefore missing.
_OPENER = re.compile(r"<\s*(?:lora|lyco|loractl)\s*[:>]", re.IGNORECASE)
# Text that was meant as a LoRA tag: blanks, the word, what follows, and the ">" if it is there.
_MEANT = re.compile(r"<(\s*)(lora|lyco|loractl)\b([^<>]*)(>?)", re.IGNORECASE)
# Text in full-width brackets or HTML's that was meant as a LoRA tag, whatever its fields are.
_IN_OTHER_BRACKETS = re.compile(
    r"(?:＜|&lt;|&#0?60;)\s{0,2}(lora|lyco|loractl)\s{0,2}[:：]([^<>＜＞&\n]{1,300})(?:＞|&gt;|&#0?62;|>)",
    re.IGNORECASE,
)
# Text that was meant as a LoRA tag and has other brackets: half of those, curly ones, or those of another program. A
# name and a number, since "lora: ink" may be meant as words.
_ELSEWHERE = re.compile(
    r"(?:＜|&lt;|\{|(?<![<\w]))\s{0,2}(?:lora|lyco)\s{0,2}[:：]\s{0,2}"
    r"([^<>＜＞{}&:：,\n]{1,200})[:：]\s*([-+]?[\d.]{1,20})\s{0,2}(?:＞|&gt;|\}|>)"
    r"|\bwithLora\(\s*([^(),\n]{1,200}?)\s*(?:,\s*([-+]?[\d.]+)\s*)?\)",
    re.IGNORECASE,
)
_BETWEEN = str.maketrans({"：": ":", "；": ";", "＝": "="})  # what keyboards put in the place of what is between fields
_OTHER_CLOSERS = re.compile("＞|&gt;|&#0?62;")
# How far a tag without ">" was meant to go: a name may have blanks in it if a colon follows, what stands last may not.
_UNCLOSED = re.compile(r"<\s*\w+\s*:(?:[^:<>]*(?::\s*[^\s:,<>]*)+|[^\s:,<>]*)")
_SWALLOWED = 'and the text up to the next ">" is lost with it'
_ORDER = {argument.name: index for index, argument in enumerate(ARGUMENTS)}
_WINDOWS = ("start", "stop", "step")
_IDLE = frozenset({"curve", "soft", "x", "was", *_WINDOWS})  # arguments that act on others, or may on nothing
_TEXTS = ("mask",)  # arguments whose text may be quoted in the native dialect
# What other programs call an argument, and what people call the first one.
_ELSEWHERE_CALLED = {"clip": "te", "tenc": "te", "text_encoder": "te", "model": "unet", "rank": "dyn", "blocks": "lbw"}
_STRENGTHS = frozenset({"weight", "strength", "scale", "multiplier", "alpha", "s"})
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")


def parse_prompt(
    text: str,
    *,
    strict: bool = False,
    dialect: Dialect = "a1111",
    scope: Scope = "all",
    presets: Mapping[str, str] | None = None,
) -> Prompt:
    """Return the clean text, the tags and the diagnostics of a prompt, in time linear in its length.

    Any str will do. With `strict`, the first error raises TagSyntaxError, and is its `.diagnostic`. TypeError if `text`
    is not a str.

    `dialect` "comfy" has a tag's strengths in the order denoiser, text encoder; "native" has quoted names and escapes.
    With `scope` "edit" a tag inside prompt editing or alternation acts when its text does, with "and" in its part of
    the prompt alone. `presets` are block weights by name, as sd-webui-lora-block-weight writes them; None: its common
    ones.
    """
    if not isinstance(text, str):
        raise TypeError(f"a prompt is a str, not {type(text).__name__}; of a list, parse each prompt on its own")
    for option, value, known in (("dialect", dialect, get_args(Dialect)), ("scope", scope, get_args(Scope))):
        if value not in known:
            raise ValueError(f"{option} is one of {', '.join(known)}, not {value!r}")
    prompt = _Reader(text, dialect, scope, common_presets() if presets is None else presets).read()
    for diagnostic in prompt.diagnostics if strict else ():
        if diagnostic.severity == "error":
            line, column = line_and_column(text, diagnostic.span[0])
            hint = f" ({diagnostic.hint})" if diagnostic.hint else ""
            raise TagSyntaxError(f"line {line}, column {column}: {diagnostic.message}{hint}", diagnostic)
    return prompt


class WrittenField(NamedTuple):
    """A field of a tag as it stands there: `argument` is what it gives, "" for the name and what is ignored."""

    argument: str
    text: str
    value: str  # the text without its key


def written_fields(tag: str, presets: Mapping[str, str]) -> list[WrittenField]:
    """Return the fields of a LoRA tag, given whole and in the WebUI's dialect, in their order; the name is the first.

    Behind an argument that is given before the name, the name comes later; it is put first here.
    """
    reader = _Reader(tag, "a1111", "all", presets)
    body = tag.index(":")
    fields = [*reader.with_whole_paths([_moved(field, body) for field in split_fields(tag[body:-1])])]
    unkeyed, _ = reader.sort_fields(fields)
    names = {one.span: one.argument.name for one in reader.by_position(unkeyed[1:])}
    found = []
    for field in fields:
        span = (field.start, field.end)
        if span in unkeyed[:1]:
            continue
        argument = names.get(span, "")
        if field.key is not None and (known := reader.argument(field.key.strip(), span, is_first=False)) is not None:
            argument = known.name
        found.append(WrittenField(argument, tag[slice(*span)], tag[field.value_start : field.end]))
    name = tag[slice(*unkeyed[0])] if unkeyed else ""
    return [WrittenField("", name, name), *found]


class _Given(NamedTuple):
    """What a tag gives for one argument: the text and where it stands."""

    argument: Argument
    text: str
    span: Span


class _Reader:
    """Reads one prompt from left to right, collecting what it finds."""

    def __init__(self, source: str, dialect: Dialect, scope: Scope, presets: Mapping[str, str]) -> None:
        self.source = source
        self.dialect: Dialect = dialect
        self.scope: Scope = scope
        self.presets = presets
        self.utf16 = _utf16_counter(source)
        self.text: list[str] = []
        self.length = 0  # of the clean text so far
        self.tags: list[LoraTag] = []
        self.places: list[int] = []  # of the tags in the clean text
        self.names: set[str] = set()
        self.others: list[OtherTag] = []
        self.diagnostics: list[Diagnostic] = []

    def read(self) -> Prompt:
        for is_tag, start, end in split_prompt(self.source, self.dialect):
            if is_tag:
                self.read_tag(start, end)
            else:
                self.text.append(self.source[start:end])
                self.length += end - start
                self.read_text(start, end)
        text = "".join(self.text)
        tags = tuple(self.in_scope(text))
        self.diagnostics.sort(key=lambda diagnostic: diagnostic.span)
        others, diagnostics, places = tuple(self.others), tuple(self.diagnostics), tuple(self.places)
        return Prompt(self.source, text, tags, others, diagnostics, self.dialect, self.scope, places)

    def in_scope(self, text: str) -> Iterator[LoraTag]:
        """Yield the tags with the conditions that the text around them makes, if the scope is that of the text."""
        if self.scope == "and":
            for tag, part in zip(self.tags, parts(text, self.places), strict=True):
                yield replace(tag, conditions=replace(tag.conditions, part=part))
            return
        for tag, (whens, unread) in zip(self.tags, scopes(text, self.places), strict=True):
            if unread:
                message = "the brackets around a tag are read as words, and do not switch it"
                self.note("info", tag.span, message, "brackets that do end in a number, as in [a:b:0.5], or are [a|b]")
            if not whens:
                yield tag
            elif self.scope == "edit":
                if len(whens) > MOST_LEVELS:
                    message = f"{quote(tag.name)} stands in more than {MOST_LEVELS} brackets; the inner ones count"
                    self.note("warning", tag.span, message)
                when = (*whens[-MOST_LEVELS:], *tag.conditions.when)
                yield replace(tag, conditions=replace(tag.conditions, when=when))
            else:
                message = "the brackets around a tag do not switch it; it acts in every step, as in the WebUI"
                self.note("info", tag.span, message, 'scope="edit" reads such tags with their brackets')
                yield tag

    def note(self, severity: Severity, span: Span, message: str, hint: str = "") -> None:
        self.diagnostics.append(Diagnostic(severity, span, message, hint))

    def read_text(self, start: int, end: int) -> None:
        """Say which parts of what is no tag were plainly meant as one, and why they are none."""
        lower = self.source[start:end].lower()
        if "lora" not in lower and "lyco" not in lower:  # the patterns below are ten times as slow to say so
            return
        noted = start
        for match in _MEANT.finditer(self.source, start, end):
            noted = match.end()
            blank, word, rest, closed = match.groups()
            rest = rest.lstrip()
            if self.dialect == "native" and self.source[: match.start()].endswith("\\"):
                continue
            if not closed:
                if rest.startswith(":"):
                    self.note_unclosed(match.start(), match.end(), "so it is not a tag")
                continue
            fields = rest.translate(_BETWEEN).lstrip(":;= ").strip()
            fields = fields if ":" in fields else fields.replace(";", ":")
            hint = f"write <{word.lower()}:{visible(fields)}>"
            if not fields:
                why, hint = "it has no name", "write <lora:NAME:0.7>"
            elif not rest.startswith(":"):
                why = f'a ":" is missing after {quote(word)}'
            elif self.dialect == "native" and not (blank or match[0][1 + len(word)] != ":"):
                why, hint = "a quote or an escape in it is not closed", 'write \\" for a quote in a name'
            else:
                why = f"there is a blank after {quote('<' if blank else word)}"
            self.note("warning", match.span(), f"{quote(match[0])} is not a tag: {why}", hint)

        if noted == start:
            self.read_other_brackets(start, end)

    def read_other_brackets(self, start: int, end: int) -> None:
        """Say what in a text without any "<lora" was plainly meant as a tag."""
        for match in _IN_OTHER_BRACKETS.finditer(self.source, start, end):
            start = match.end()
            message = f'{quote(match[0])} is not a tag, which begins with "<" and ends with ">"'
            self.note("warning", match.span(), message, f"write <{match[1].lower()}:{visible(_typed(match[2]), 300)}>")
        for match in _ELSEWHERE.finditer(self.source, start, end):
            name, strength = (match[1], match[2]) if match[1] else (match[3], match[4] or "1")
            message = f'{quote(match[0].strip())} is not a tag, which begins with "<" and ends with ">"'
            self.note("warning", match.span(), message, f"write <lora:{visible(name.strip())}:{strength}>")

    def note_unclosed(self, start: int, end: int, consequence: str) -> None:
        """Say that the tag from `start` has no ">" before `end`, at the place where it was meant to be."""
        tag = cast("re.Match[str]", _UNCLOSED.match(self.source, start, end))[0]
        tag = _OTHER_CLOSERS.split(tag, maxsplit=1)[0].rstrip()
        place = start + len(tag)
        message = f'">" is missing: {quote(tag)} is not closed, {consequence}'
        self.note("error", (place, place), message, f"write {visible(tag)}>")

    def read_tag(self, start: int, end: int) -> None:
        """Read what the WebUI takes for one tag.

        Where LoRA tags begin inside it, each but the last lacks its ">" and is dropped, since where it was meant to end
        is a guess; the last is complete, and is read: its text is gone from the prompt in any case.
        """
        kind = self.kind(start)
        # A native tag has no "<" in it but one that is escaped.
        openers = () if self.dialect == "native" else _OPENER.finditer(self.source, start + 1, end)
        inner = [match.start() for match in openers]
        if kind.lower() in _KINDS:
            starts = [start, *inner]
        else:
            starts = inner
            self.read_other(kind, start, end, swallows=bool(inner))
        for unclosed, following in pairwise(starts):
            self.note_unclosed(unclosed, following, _SWALLOWED)
        for last in starts[-1:]:
            if last == start or [*split_prompt(self.source[last:end])] == [Piece(True, 0, end - last)]:
                self.read_lora(last, end, kind if last == start else self.kind(last))
            else:
                self.read_text(last, end)

    def kind(self, start: int) -> str:
        """Return the kind of the tag at `start`."""
        return self.source[start + 1 : self.source.index(":", start)]

    def read_other(self, kind: str, start: int, end: int, swallows: bool) -> None:
        span = (start, end)
        body = self.source[start + len(kind) + 2 : end - 1]
        self.others.append(OtherTag(kind, body, span, self.utf16(span), self.source[start:end]))
        this = quote(f"<{kind}:")
        if kind == "set":
            message = "a named set means tags where LoRA folders are known; it is taken out of the text"
            self.note("info", span, message)
        elif swallows:
            self.note("warning", span, f"{this} has a LoRA tag inside", f'is a ">" missing after {this}?')
        elif near := _nearest(kind, _KINDS):
            self.note("warning", span, f"{this} is not a kind of tag that is read here", f"did you mean <{near}:?")
        else:
            self.note("info", span, f"{this} is not a kind of tag that is read here; it is taken out of the text")

    def read_lora(self, start: int, end: int, kind: str) -> None:
        """Add the tag from `start` to `end`, or say why it is dropped."""
        body = start + 1 + len(kind)
        split = [_moved(field, body) for field in split_fields(self.source[body : end - 1], self.dialect)]
        if self.dialect != "native" and any(field.key is not None and field.key.strip() in _TEXTS for field in split):
            split = [*self.with_whole_paths(split)]
        unkeyed, given = self.sort_fields(split)
        name = self.read_name(unkeyed[0] if unkeyed else (body + 1, body + 1))
        by_position = self.by_position(unkeyed[1:])
        values = self.read_values(start, end, [*by_position, *given])
        if name is None or values is None:
            return
        te, unet, dyn = with_defaults(values, self.dialect)
        span = (start, end)
        self.tags.append(
            LoraTag(
                name=name,
                te=te,
                unet=unet,
                dyn=dyn,
                span=span,
                utf16_span=self.utf16(span),
                raw=self.source[start:end],
                conditions=conditions_of(values, name),
                was=values.get("was", ""),
            )
        )
        self.places.append(self.length)
        self.note_spelling(kind, name, span)
        if te != unet:
            strengths = {one.argument.name: one for one in by_position if one.argument.name in ("te", "unet")}
            if len(strengths) == 2 and all(one.argument.name not in strengths for one in given):
                self.note_order(strengths["te"], strengths["unet"])

    def with_whole_paths(self, fields: list[Field]) -> Iterator[Field]:
        """Yield the fields, a path with a colon of its own in one: mask=C:/x.png, or mask="a:b.png" in quotes."""
        waiting = list(reversed(fields))
        while waiting:
            field = waiting.pop()
            if field.key is not None and field.key.strip() in _TEXTS:
                while waiting and _goes_on(self.source[field.value_start : field.end], self.source, waiting[-1]):
                    field = field._replace(end=waiting.pop().end)
            yield field

    def note_order(self, te: _Given, unet: _Given) -> None:
        """Say which of two strengths without a key is which."""
        for_te, for_unet = te.text.strip(), unet.text.strip()
        self.note(
            "info",
            (min(te.span, unet.span)[0], max(te.span, unet.span)[1]),
            f"{quote(for_te)} is for the text encoder and {quote(for_unet)} for the denoiser",
            f"te={visible(for_te)}:unet={visible(for_unet)} says the same in plain sight",
        )

    def sort_fields(self, fields: list[Field]) -> tuple[list[Span], list[_Given]]:
        """Return the places of the fields without a key, the name first, and the arguments given by key.

        An unknown key in the first field is part of the name, as in <lora:a=b:1>; elsewhere its field is ignored. Of
        an argument given twice the last counts.
        """
        unkeyed: list[Span] = []
        given: dict[str, _Given] = {}
        for index, field in enumerate(fields):
            span = (field.start, field.end)
            key = None if field.key is None else field.key.strip()
            if key is None:
                unkeyed.append(span)
                continue
            argument = self.argument(key, span, is_first=index == 0)
            if argument is not None:
                if key != field.key:
                    self.note("info", span, f"the blanks around {quote(key)} are ignored")
                if argument.name in given:
                    before = given[argument.name].span
                    self.note("warning", before, f"{quote(key + '=')} is given twice; the last one counts")
                value = (field.value_start, field.end)
                if key == "end" and self.source[slice(*value)].strip() == "1":
                    message = '"end=1" is the end of the first step; as a part of the run it would be "1.0"'
                    self.note("warning", span, message, "write end=100% for the whole run, or stop=1 for one step")
                given[argument.name] = _Given(argument, self.source[slice(*value)], value)
            elif index == 0:
                message = f"{quote(self.source[slice(*span)])} is read as the name, not as an argument"
                self.note("warning", span, message, f"arguments are {_known_keys()}")
                unkeyed.append(span)
        return unkeyed, [*given.values()]

    def argument(self, key: str, span: Span, *, is_first: bool) -> Argument | None:
        """Return the argument that a key means, a rule for blocks or modules among them; None and why for others."""
        name = ALIASES.get(key, key)
        if name in BY_NAME:
            return BY_NAME[name]
        if is_first:
            return None
        misfit = rule_misfit(key)
        if misfit == "":
            return Argument(key, "ratio", partial(read_rule, key))
        if misfit:
            hint = "blocks are BASE, IN00-IN11, M00, OUT00-OUT11; of Flux CLIP, T5, IN, D00-D18, S00-S37, OUT"
            self.note("warning", span, f"{misfit}; this field is ignored", hint)
            return None
        near = _ELSEWHERE_CALLED.get(key.lower()) or _nearest(key, tuple(BY_NAME))
        hint = f"did you mean {near}=?" if near else f"arguments are {_known_keys()}"
        if key.lower() in _STRENGTHS:
            hint = "a strength stands without a key, as in <lora:NAME:0.7>"
        self.note("warning", span, f"there is no argument {quote(key + '=')}; it is ignored", hint)
        return None

    def by_position(self, unkeyed: list[Span]) -> list[_Given]:
        """Return the arguments given by position, `unkeyed` being the fields after the name."""
        plain: list[_Given] = []
        named: list[_Given] = []
        order = BY_POSITION[self.dialect]
        position = 0
        extra: list[Span] = []
        for span in unkeyed:
            text = self.source[slice(*span)]
            if text.strip() in EXPERTS:
                named.append(_Given(BY_NAME["module"], text, span))
            elif is_block_list(text, self.presets):
                self.note("info", span, f"{quote(text)} is read as block weights", f"write lbw={visible(text.strip())}")
                named.append(_Given(BY_NAME["lbw"], text, span))
            elif position < len(order):
                both = position < 2 and in_brackets(text)  # it says what both strengths are
                plain.append(_Given(BY_NAME["unet" if both else order[position]], text, span))
                position = 2 if both else position + 1
            else:
                extra.append(span)
        if extra:
            what = "1 field too many; it is" if len(extra) == 1 else f"{len(extra)} fields too many; they are"
            hint = f"the order is name:{':'.join(order)}"
            self.note("warning", (extra[0][0], extra[-1][1]), f"{what} ignored", hint)
        return [*plain, *named]

    def read_name(self, span: Span) -> str | None:
        """Return the name at `span` without blanks around it; None and a diagnostic if nothing is left."""
        written = self.source[slice(*span)]
        name = self.unquoted(written)
        if not name:
            self.note("error", span, "the name is empty; this tag is not applied", "write <lora:NAME:0.7>")
            return None
        if written != written.strip():
            self.note("info", span, f"the blanks around the name {quote(name)} are ignored")
        if "<" in name and self.dialect != "native":
            self.note("warning", span, f'the name {quote(name)} has "<" in it', 'is a ">" missing before it?')
        return name

    def unquoted(self, text: str) -> str:
        """Return a name without the blanks around it; in the native dialect those inside of quotes are kept."""
        return unquoted(text.strip()) if self.dialect == "native" else text.strip()

    def unquoted_text(self, text: str) -> str:
        """Return a field's text; outside of the native dialect quotes count only around all of it."""
        if self.dialect == "native":
            return self.unquoted(text)
        plain = text.strip()
        return plain[1:-1] if len(plain) > 1 and plain[0] == plain[-1] == '"' else plain

    def read_values(self, start: int, end: int, given: list[_Given]) -> dict[str, Any] | None:
        """Return the values by the names of their arguments, what is given later going first.

        None and diagnostics if the tag cannot be applied. A value that another one overrides is read all the same: what
        cannot be read was not meant.
        """
        reading = Reading(self.presets)
        good = True
        for argument, text, span in sorted(given, key=_rank) if len(given) > 1 else given:
            written = self.unquoted_text(text) if argument.name in _TEXTS else text
            try:
                reading.values[argument.name] = argument.read(written, reading)
            except BadValueError as error:
                if "<" in text and self.dialect != "native":
                    self.note_unclosed(start, end, _SWALLOWED)
                    return None
                severity: Severity = "error" if argument.essential else "warning"
                consequence = "this tag is not applied" if argument.essential else "this field is ignored"
                message = f"the {argument.noun} {error.reason}; {consequence}"
                self.note(severity, _within(span, error.span), message, error.hint)
                good = good and not argument.essential
            while reading.remarks:
                remark = reading.remarks.pop()
                self.note(remark.severity, _within(span, remark.span), remark.message, remark.hint)
        if not good:
            return None
        if not _IDLE.isdisjoint(reading.values):
            self.note_idle({one.argument.name: one.span for one in given}, reading)
        shape = reading.values.get("curve")
        return {key: with_shape(value, shape) for key, value in reading.values.items()} if shape else reading.values

    def note_idle(self, spans: Mapping[str, Span], reading: Reading) -> None:
        """Say which fields were read and have nothing to act on."""
        values = reading.values
        effects = (
            ("curve", any(map(has_curve, values.values())) or "was" in values, "no strength of this tag has keyframes"),
            ("soft", "mask" in values or "box" in values, "this tag has neither mask= nor box="),
            ("x", reading.used_x, "no block weight of this tag has an X"),
            ("was", values.get("te") == values.get("unet", 0.0) == 0.0, "the strength of this tag is not 0"),
        )
        for name, used, why in effects:
            if name in values and not used:
                self.note("warning", spans[name], f"{quote(name + '=')} has no effect: {why}")
        if hold_never(windows_of(values)):
            of = [spans[name] for name in _WINDOWS if name in values]
            message = f"no step lies within {' and '.join(f'{name}=' for name in _WINDOWS if name in values)}"
            span = (min(start for start, _ in of), max(end for _, end in of))
            self.note("warning", span, f"{message}: the denoiser never has this tag", "start= comes before stop=")

    def note_spelling(self, kind: str, name: str, span: Span) -> None:
        """Say what may surprise about a tag that is applied."""
        start, _ = span
        if kind not in _KINDS:
            message = f"{quote(f'<{kind}:')} is read as {quote(f'<{kind.lower()}:')}; the WebUI would not apply it"
            self.note("info", (start + 1, start + 1 + len(kind)), message, f"write <{kind.lower()}:")
        if self.source[max(0, start - 1) : start] == "\\":
            self.note("info", (start - 1, start), 'a "\\" before a tag stays in the text; the tag is applied')
        if name in self.names:
            self.note("info", span, f"{quote(name)} was named before; the strengths add up")
        self.names.add(name)


def _typed(fields: str) -> str:
    """Return what follows the kind of a tag with ":", "=" and numbers as a keyboard for code writes them."""
    name, *rest = (field.strip() for field in fields.translate(_BETWEEN).split(":"))
    return ":".join([name, *(unicodedata.normalize("NFKC", field) for field in rest)])


def _rank(given: _Given) -> int:
    return _ORDER.get(given.argument.name, len(_ORDER))


def _within(span: Span, inner: Span | None) -> Span:
    return span if inner is None else (span[0] + inner[0], span[0] + inner[1])


def _goes_on(written: str, source: str, following: Field) -> bool:
    """Return whether a path goes on behind the colon that has ended its field."""
    plain = written.strip()
    if plain.startswith('"'):
        return len(plain) == 1 or not plain.endswith('"')
    return len(plain) == 1 and plain.isalpha() and source.startswith(("\\", "/"), following.start)


def _moved(field: Field, by: int) -> Field:
    return Field(field.key, field.start + by, field.value_start + by, field.end + by)


def _known_keys() -> str:
    return ", ".join(f"{name}=" for name in BY_NAME if name != "was")  # which only programs write


# The cache keeps a prompt of thousands of misspelt tags from taking thousands of times 0.1 ms.
@lru_cache(maxsize=256)
def _nearest(word: str, known: tuple[str, ...]) -> str:
    """Return the one of `known` that `word` seems to be a misspelling of, or ''."""
    if len(word) > 12:
        return ""
    from difflib import get_close_matches  # not at the top: needed by few prompts

    return next(iter(get_close_matches(word.lower(), known, 1, cutoff=0.75)), "")


def _utf16_counter(source: str) -> Callable[[Span], Span]:
    """Return the function that turns a span in code points into one in UTF-16 code units."""
    astral = [] if source.isascii() else [match.start() for match in _ASTRAL.finditer(source)]

    def units(span: Span) -> Span:
        start, end = span
        return start + bisect_left(astral, start), end + bisect_left(astral, end)

    return units

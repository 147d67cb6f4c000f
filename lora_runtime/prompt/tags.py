"""What a parsed prompt is made of: plain records that never change.

A span is (start, end), half-open. Spans count code points, as Python's strings do; `utf16_span` counts UTF-16 code
units, as the text areas of browsers do. An empty span marks the place where something is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lora_runtime.prompt.block_weights import BlockWeights
from lora_runtime.prompt.excerpt import excerpt, line_and_column
from lora_runtime.prompt.strength import Region, Strength, Turn, Window

Span = tuple[int, int]
Severity = Literal["error", "warning", "info"]
Dialect = Literal["a1111", "comfy", "native"]
Scope = Literal["all", "edit", "and"]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """Something in the prompt that its author should know.

    error: a tag is not applied; warning: something was ignored, or is likely not what was meant; info: how an unusual
    spelling was read.
    """

    severity: Severity
    span: Span
    message: str
    hint: str = ""

    def format(self, source: str) -> str:
        """Return the message with its place, the line of `source` with carets below the span, and the hint."""
        line, column = line_and_column(source, self.span[0])
        picture = excerpt(source, self.span).splitlines()
        return "\n".join(
            [
                f"line {line}, column {column}: {self.severity}: {self.message}",
                *(f"    {row}" for row in picture),
                *([f"    hint: {self.hint}"] if self.hint else []),
            ]
        )


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the strength of a tag depends on beside te and unet; the defaults depend on nothing."""

    hires_te: Strength | None = None  # in the second pass; None: as in the first
    hires_unet: Strength | None = None
    when: tuple[Window | Turn, ...] = ()  # the denoiser's strength is 0 at steps where one of these does not hold
    expert: str | None = None  # the one denoiser, of several, that is meant: "transformer_2"
    region: Region | None = None
    part: int | None = None  # of a prompt with AND, the one part that is meant, counted from 0
    blocks: BlockWeights | None = None  # what each block gets of the strength


ALWAYS = Conditions()


@dataclass(frozen=True, slots=True)
class LoraTag:
    """One `<lora:…>` tag: which LoRA, and how strongly on the text encoder and on the denoiser.

    A strength is a number, or a Curve over the steps. `dyn` limits the rank, as in the WebUI; None leaves it as the
    file has it. `conditions` say what else the strength depends on: blocks, steps, a region. `raw` is the tag as
    written, and equals `prompt.source[slice(*span)]`. `was` is what the strengths of a muted tag were, as text; it
    changes nothing.
    """

    name: str
    te: Strength
    unet: Strength
    dyn: int | None = None
    span: Span = (0, 0)
    utf16_span: Span = (0, 0)
    raw: str = ""
    conditions: Conditions = ALWAYS
    was: str = ""


@dataclass(frozen=True, slots=True)
class OtherTag:
    """A tag of another kind, such as `<hypernet:x:1>`: taken out of the text, and left to whoever knows the kind."""

    kind: str
    body: str
    span: Span
    utf16_span: Span
    raw: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as written (`source`), the text without its tags (`text`), the tags, and what there is to say.

    Tags and diagnostics stand in the order of their places in `source`. `str(prompt)` is the clean text, and
    `tag_places` are the places of the tags in it. `dialect` and `scope` are how the source was read.
    """

    source: str
    text: str
    tags: tuple[LoraTag, ...] = ()
    others: tuple[OtherTag, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    dialect: Dialect = "a1111"
    scope: Scope = "all"
    tag_places: tuple[int, ...] = field(default=(), repr=False, compare=False)

    def __str__(self) -> str:
        return self.text

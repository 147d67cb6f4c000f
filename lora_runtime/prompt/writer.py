"""Tags and prompts back to text that reads the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from lora_runtime.blocks import FLUX, UNET
from lora_runtime.prompt.block_weights import BlockWeights, Rule
from lora_runtime.prompt.conditions import EXPERTS
from lora_runtime.prompt.excerpt import quote
from lora_runtime.prompt.parser import parse_prompt
from lora_runtime.prompt.quotes import quoted
from lora_runtime.prompt.strength import Curve, Position, Strength, Turn, Window, number
from lora_runtime.prompt.tags import Conditions, Dialect, LoraTag, Prompt

_EXPERT_WORDS = {component: word for word, component in EXPERTS.items()}


def format_tag(tag: LoraTag, *, dialect: Dialect = "a1111") -> str:
    """Return the tag in its shortest plain form, which `parse_prompt` reads back to the same name and values.

    ValueError if no text does that: a name that is empty, that has ":" or ">" in it or blanks around it, or that reads
    as an argument ("te=1"); a strength that is not finite; conditions that only the text around a tag can make. The
    native dialect has a text for every name but the empty one.
    """
    text = f"<lora:{':'.join(_fields(tag, dialect))}>"
    if [_meaning(read) for read in parse_prompt(text, dialect=dialect).tags] != [_meaning(tag)]:
        raise ValueError(
            f"no tag can say this: {quote(text)} would be read as something else; change the name or value"
        )
    return text


def unparse(prompt: Prompt) -> str:
    """Return the source with each LoRA tag in its plain form: it parses to the same clean text and the same tags.

    Tags may have been given other names or values. All else stays as written, broken tags too: without them, the text
    on their two sides could join into a tag. ValueError if a tag was added or taken out, or acts otherwise than the
    brackets around it say; edit the text for that.
    """
    read = parse_prompt(prompt.source, dialect=prompt.dialect, scope=prompt.scope).tags
    alone = parse_prompt(prompt.source, dialect=prompt.dialect).tags
    if [tag.span for tag in prompt.tags] != [tag.span for tag in read]:
        raise ValueError(
            "the tags are not those of the prompt's source; add or take out tags in the text, then parse it"
        )
    own = [_out_of_scope(*tags) for tags in zip(prompt.tags, read, alone, strict=True)]
    ends = [0, *(end for tag in prompt.tags for end in tag.span), len(prompt.source)]
    between = [prompt.source[start:end] for start, end in list(pairwise(ends))[::2]]
    tags = [*(format_tag(tag, dialect=prompt.dialect) for tag in own), ""]
    return "".join(text + tag for text, tag in zip(between, tags, strict=True))


def _out_of_scope(tag: LoraTag, read: LoraTag, alone: LoraTag) -> LoraTag:
    """Return the tag without what its surroundings add, which is what `read` has and `alone` has not."""
    added = read.conditions.when[: len(read.conditions.when) - len(alone.conditions.when)]
    if tag.conditions.when[: len(added)] != added or tag.conditions.part != read.conditions.part:
        raise ValueError(f"the text around {quote(tag.raw)} says when it acts; edit the text, then parse it")
    when = tag.conditions.when[len(added) :]
    return replace(tag, conditions=replace(tag.conditions, when=when, part=None))


def _fields(tag: LoraTag, dialect: Dialect) -> Iterator[str]:
    yield quoted(tag.name) if dialect == "native" else tag.name
    if tag.te == tag.unet and not _is_in_brackets(tag.te):
        yield _text(tag.te)
    else:
        yield f"te={_text(tag.te)}"
        yield f"unet={_text(tag.unet)}"
    if tag.dyn is not None:
        yield f"dyn={tag.dyn}"
    yield from condition_fields(tag, dialect=dialect)
    if tag.was:
        yield f"was={tag.was}"


def condition_fields(tag: LoraTag, *, dialect: Dialect = "a1111") -> Iterator[str]:
    """Yield what a tag's strengths depend on, in the fields that say it: "IN=0.5", "stop=10s", "curve=ease".

    What only the text around a tag can say (alternation, a part of a prompt with AND) is left out.
    """
    yield from _hires_fields(tag.conditions)
    if tag.conditions.blocks is not None:
        yield from _block_fields(tag.conditions.blocks)
    yield from _when_fields(tag.conditions.when)
    shapes = {curve.shape for curve in _curves(tag)} - {"linear"}
    yield from (f"curve={shape}" for shape in sorted(shapes))
    if tag.conditions.expert is not None:
        yield f"module={_EXPERT_WORDS.get(tag.conditions.expert, tag.conditions.expert)}"
    region = tag.conditions.region
    if region is not None:
        if region.mask is not None:
            yield f"mask={quoted(region.mask) if dialect == 'native' else _path(region.mask)}"
        if region.box is not None:
            yield f"box={','.join(map(number, region.box))}"
        if region.soft:
            yield f"soft={number(region.soft)}"


def _is_in_brackets(strength: Strength) -> bool:
    """Return whether a strength without a key would be the denoiser's alone."""
    return isinstance(strength, Curve) and strength.keys[0].position.unit == "share"


def _path(text: str) -> str:
    """Return a file's name, in quotes where a colon in it would end the field."""
    return f'"{text}"' if ":" in text and '"' not in text else text


def _hires_fields(conditions: Conditions) -> Iterator[str]:
    te, unet = conditions.hires_te, conditions.hires_unet
    if te is not None and te == unet:
        yield f"hr={_text(te)}"
        return
    if te is not None:
        yield f"hrte={_text(te)}"
    if unet is not None:
        yield f"hrunet={_text(unet)}"


def _block_fields(blocks: BlockWeights) -> Iterator[str]:
    for key, strength in (("in", blocks.inner), ("mid", blocks.mid), ("out", blocks.outer)):
        if strength is not None:
            yield f"{key}={_text(strength)}"
    listed = 0
    for names in (UNET, FLUX):
        if tuple(rule.where for rule in blocks.rules[: len(names)]) == names:
            listed = len(names)
            yield "lbw=" + ",".join(_ratio(rule).replace(",", ";") for rule in blocks.rules[:listed])
    yield from (f"{rule.where}={_ratio(rule)}" for rule in blocks.rules[listed:])


def _when_fields(when: tuple[Window | Turn, ...]) -> Iterator[str]:
    """Yield start= and stop= for the first window and step= for a second; no tag says more, nor a turn."""
    windows = [window for window in when if isinstance(window, Window)]
    for window in windows[:1]:
        yield from (f"{key}={edge.text()}" for key, edge in (("start", window.start), ("stop", window.stop)) if edge)
    for window in windows[1:]:
        yield f"step={_edge(window.start)}-{_edge(window.stop)}"


def _edge(position: Position | None) -> str:
    return "" if position is None else position.text()


def _curves(tag: LoraTag) -> Iterator[Curve]:
    conditions, blocks = tag.conditions, tag.conditions.blocks or BlockWeights()
    everywhere = (tag.te, tag.unet, conditions.hires_te, conditions.hires_unet, blocks.inner, blocks.mid, blocks.outer)
    for value in (*everywhere, *(rule.ratio for rule in blocks.rules)):
        if isinstance(value, Curve):
            yield value


def _text(strength: Strength) -> str:
    return str(strength) if isinstance(strength, Curve) else number(strength)


def _ratio(rule: Rule) -> str:
    return number(rule.ratio) if isinstance(rule.ratio, (int, float)) else str(rule.ratio)


def _meaning(tag: LoraTag) -> tuple[str, Strength, Strength, int | None, Conditions, str]:
    """Return what a tag says; what its random block weights are salted with is its name, which may have changed."""
    blocks = tag.conditions.blocks
    conditions = replace(tag.conditions, blocks=replace(blocks, salt="") if blocks else None)
    return tag.name, tag.te, tag.unet, tag.dyn, conditions, tag.was

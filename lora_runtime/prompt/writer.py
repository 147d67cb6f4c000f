"""Tags and prompts back to text that reads the same."""

from __future__ import annotations

from itertools import pairwise

from lora_runtime.prompt.excerpt import quote
from lora_runtime.prompt.parser import parse_prompt
from lora_runtime.prompt.tags import LoraTag, Prompt


def format_tag(tag: LoraTag) -> str:
    """Return the tag in its shortest plain form, which `parse_prompt` reads back to the same name and values.

    ValueError if no text does that: a name that is empty, that has ":" or ">" in it or blanks around it, or that reads
    as an argument ("te=1"); a strength that is not finite.
    """
    te, unet = _number(tag.te), _number(tag.unet)
    fields = [tag.name, te] if tag.te == tag.unet else [tag.name, f"te={te}", f"unet={unet}"]
    if tag.dyn is not None:
        fields.append(f"dyn={tag.dyn}")
    text = f"<lora:{':'.join(fields)}>"
    if [_meaning(read) for read in parse_prompt(text).tags] != [_meaning(tag)]:
        raise ValueError(
            f"no tag can say this: {quote(text)} would be read as something else; change the name or value"
        )
    return text


def unparse(prompt: Prompt) -> str:
    """Return the source with each LoRA tag in its plain form: it parses to the same clean text and the same tags.

    Tags may have been given other names or values. All else stays as written, broken tags too: without them, the text
    on their two sides could join into a tag. ValueError if a tag was added or taken out; edit the text for that.
    """
    if [tag.span for tag in prompt.tags] != [tag.span for tag in parse_prompt(prompt.source).tags]:
        raise ValueError(
            "the tags are not those of the prompt's source; add or take out tags in the text, then parse it"
        )
    ends = [0, *(end for tag in prompt.tags for end in tag.span), len(prompt.source)]
    between = [prompt.source[start:end] for start, end in list(pairwise(ends))[::2]]
    tags = [*(format_tag(tag) for tag in prompt.tags), ""]
    return "".join(text + tag for text, tag in zip(between, tags, strict=True))


def _meaning(tag: LoraTag) -> tuple[str, float, float, int | None]:
    return tag.name, tag.te, tag.unet, tag.dyn


def _number(value: float) -> str:
    """Return the shortest text that `float()` reads back as `value`."""
    return repr(float(value)).removesuffix(".0")

"""The prompts of one batch as written, and the tags in them; by the time that tags are asked for, texts have lost them.

p.all_prompts, p.all_hr_prompts              raw, of all batches
p.extra_network_data, .hr_extra_network_data the tags of a batch's first prompt, cut apart at every colon
p.negative_prompts, p.hr_negative_prompts    of this batch; the WebUI leaves tags in them
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from modules import extra_networks

from lora_runtime.prompt import Prompt
from lora_runtime.requests import Request

from ...prompts.notices import Notice

KINDS = ("lora", "lyco", "loractl")

Read = Callable[[str], Prompt]


@dataclass(frozen=True)
class BatchPrompts:
    """The prompts of a batch, picture by picture, and of the negative prompts those that are to act.

    Prompts that a script has changed since they were written have no text: only the first one's tags are known.
    """

    prompts: tuple[Prompt, ...]
    negatives: tuple[Prompt, ...] = ()
    changed: bool = False

    def text_of(self, request: Request) -> str:
        """Return the text that a request's tag is in, the first one of several; "" where it is not known."""
        texts = self.negatives if request.side == "negative" else self.prompts
        image = min(request.images) if request.images else 0
        return "" if self.changed or image >= len(texts) else texts[image].source


def read_batch(
    p: Any, params_list: Sequence[Any], hires: bool, read: Read, *, negatives: bool, added: str = ""
) -> BatchPrompts:
    """Return what the prompts of this batch ask for; `params_list` is what the WebUI takes for the first one's tags.

    `added` is what was written at the end of prompts since the WebUI read them.
    """
    handed = Counter(":".join(map(str, params.items)) for params in params_list)

    def differ(texts: Sequence[str]) -> bool:
        return Counter(tag.partition(":")[2] for tag in written_tags(texts[0] if texts else "")) != handed

    texts = of_this_batch(p, "all_hr_prompts" if hires else "all_prompts") or of_this_batch(p, "all_prompts")
    if added and differ(texts):
        texts = [text.removesuffix(added) for text in texts]
    changed = differ(texts)
    if changed:
        texts = ["".join(f"<lora:{':'.join(map(str, params.items))}>" for params in params_list)] * max(1, len(texts))
    known = {text: read(text) for text in texts}
    prompts = tuple(known[text] for text in texts)
    return BatchPrompts(prompts, tuple(map(read, negative_texts(p, hires))) if negatives else (), changed)


def negative_texts(p: Any, hires: bool) -> list[str]:
    """Return the negative prompts of this batch as written."""
    found = of_this_batch(p, "all_hr_negative_prompts") if hires else []
    return found or of_this_batch(p, "all_negative_prompts")


def seeds_of(p: Any, count: int) -> list[int | None]:
    """Return the seeds of this batch's pictures."""
    seeds = [int(seed) for seed in of_this_batch(p, "all_seeds")]
    return [*seeds, *[None] * count][:count]


def written_tags(text: str) -> list[str]:
    """Return what the WebUI takes for tags of ours, without the brackets."""
    return [match[0][1:-1] for match in extra_networks.re_extra_net.finditer(text) if match[1] in KINDS]


def without_tags(text: str) -> str:
    """Return a negative prompt without what the library reads as tags; other kinds stay, as the WebUI leaves them."""
    return str(extra_networks.re_extra_net.sub(lambda m: "" if m[1].lower() in KINDS else m[0], text))


def about_changed_prompts(p: Any, batch: BatchPrompts, hires: bool) -> list[Notice]:
    """Say so where a script has changed prompts that were different: their own tags are not known."""
    texts = of_this_batch(p, "all_hr_prompts" if hires else "all_prompts")
    if not batch.changed or len({tuple(sorted(written_tags(text))) for text in texts}) < 2:
        return []
    return [
        Notice(
            "warning",
            "a script has changed the prompts after they were set; all pictures have the LoRAs of the first one",
            "use a batch size of 1 and a higher batch count",
        )
    ]


def has_tags(p: Any, hires: bool) -> bool:
    """Return whether the negative prompts of this batch hold tags, whatever these do there."""
    return any(written_tags(text) for text in negative_texts(p, hires))


def about_negative_tags(p: Any, hires: bool) -> list[Notice]:
    """Say so where the negative prompt holds tags and they are left there, where they are read as words."""
    texts = (getattr(p, "all_hr_negative_prompts", None) if hires else None) or getattr(p, "all_negative_prompts", None)
    found = dict.fromkeys(tag for text in texts or () for tag in written_tags(text))
    if not found:
        return []
    named = ", ".join(f"<{tag}>" for tag in found)
    return [
        Notice(
            "warning",
            f"{named} in the negative prompt is not applied; it is read as words there",
            'to apply it to the negative side, change the setting "LoRA tags in the negative prompt"',
        )
    ]


_IN_COMMENT = re.compile(rf"<(?:{'|'.join(KINDS)}):[^<>\n]*?#[^\n]*")


def about_comments(texts: Iterable[Any]) -> list[Notice]:
    """Say so where a tag has a "#" in it, with which the WebUI's comments begin: it takes the rest of the line away."""
    found = [text for given in texts for text in (given if isinstance(given, list) else [given]) if text]
    lost = dict.fromkeys(match[0] for text in found for match in _IN_COMMENT.finditer(str(text)))
    return [
        Notice(
            "error",
            f'the WebUI takes "{_cut(rest)}" for a comment from its "#" on: the tag and the rest of its line are lost',
            'write the digits of a hash without "#", or switch off the setting "Enable comments"',
        )
        for rest in lost
    ]


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


def of_this_batch(p: Any, name: str) -> list[Any]:
    """Return this batch's part of a list with an entry for each picture of the job."""
    size = getattr(p, "batch_size", 1)
    start = getattr(p, "iteration", 0) * size
    return list((getattr(p, name, None) or [])[start : start + size])

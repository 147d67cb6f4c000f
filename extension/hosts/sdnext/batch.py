"""The prompts of one batch as written, and the tags in them, which SD.Next hands over of one prompt alone.

p.all_prompts       raw, of all batches; p.prompts have lost their tags by the time that these are asked for
p.refiner_prompt    of the second pass, for all pictures; tags are asked for again only where there is one
p.network_data      the tags of the batch's last prompt that has any, by their kind
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from modules import extra_networks

from ...prompts.notices import Notice
from ..sdwebui.batch import KINDS, BatchPrompts, Read, negative_texts, of_this_batch, written_tags

__all__ = ["CONTENT", "about_changed_prompts", "about_negative_tags", "about_second_pass", "read_batch"]

# Beside a tag in what SD.Next keeps encoded prompts by, so that they are encoded anew when a file has changed.
CONTENT = "lora_runtime_content="


def read_batch(p: Any, params_list: Sequence[Any], hires: bool, read: Read) -> BatchPrompts:
    """Return what the prompts of this batch ask for; `params_list` are the tags that the program has handed over."""
    others = ((p.network_data or {}).get(kind, ()) for kind in KINDS[1:])
    handed = [_written(params) for params in (*params_list, *(params for found in others for params in found))]
    texts = _texts(p, hires)
    tagged = [text for text in texts if extra_networks.re_extra_net.search(text)]
    written = Counter(tag.partition(":")[2] for tag in written_tags(tagged[-1] if tagged else ""))
    changed = written != Counter(handed)
    if changed:
        texts = ["".join(f"<lora:{tag}>" for tag in handed)] * max(1, len(texts))
    known = {text: read(text) for text in texts}
    return BatchPrompts(tuple(known[text] for text in texts), (), changed)


def _written(params: Any) -> str:
    """Return a tag as it was written, without its kind and without what is added here."""
    return ":".join(str(item) for item in params.items if not str(item).startswith(CONTENT))


def _texts(p: Any, hires: bool) -> list[str]:
    """Return the prompts of the pass as written; videos and some other pipelines have one for the job."""
    texts = of_this_batch(p, "all_prompts") or ([p.prompt] if isinstance(p.prompt, str) else list(p.prompt or ()))
    again: str = getattr(p, "refiner_prompt", "") if hires else ""
    return [again] * max(1, len(texts)) if again else texts


def about_changed_prompts(p: Any, batch: BatchPrompts, hires: bool) -> list[Notice]:
    """Say so where a script has changed prompts that were different: their own tags are not known."""
    if not batch.changed or len({tuple(sorted(written_tags(text))) for text in _texts(p, hires)}) < 2:
        return []
    return [
        Notice(
            "warning",
            "a script has changed the prompts after they were set; all pictures have the LoRAs of the last one",
            "use a batch size of 1 and a higher batch count",
        )
    ]


def about_negative_tags(p: Any) -> list[Notice]:
    """Say so where negative prompts hold tags: SD.Next reads them as words."""
    found = dict.fromkeys(tag for text in negative_texts(p, False) for tag in written_tags(text))
    if not found:
        return []
    named = ", ".join(f"<{tag}>" for tag in found)
    return [Notice("warning", f"{named} in the negative prompt is not applied; SD.Next reads it as words there")]


def about_second_pass(p: Any, batch: BatchPrompts, hires: bool) -> list[Notice]:
    """Say so where a tag has strengths for the second pass, for which SD.Next asks nobody again."""
    conditions = [tag.conditions for prompt in batch.prompts for tag in prompt.tags]
    asked = any(given.hires_te is not None or given.hires_unet is not None for given in conditions)
    if hires or not asked or not getattr(p, "enable_hr", False) or getattr(p, "refiner_prompt", None):
        return []
    return [
        Notice(
            "warning",
            "the strengths of the second pass (hr=) are not applied: SD.Next asks for its LoRAs only where it has a "
            "prompt of its own",
            "write the prompt into the refine prompt too",
        )
    ]

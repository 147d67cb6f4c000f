"""Block weights for blocks that a model does not have: they change nothing, so the tag acts there in full."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from lora_runtime.blocks import FLUX, UNET, block_of
from lora_runtime.pipelines import ModelView
from lora_runtime.problems import Problems
from lora_runtime.prompt import Prompt
from lora_runtime.prompt.block_weights import BlockWeights, Rule, selection

__all__ = ["warn_of_idle_blocks"]

_LIST = 12  # rules that the shortest list makes, and more
_LISTED = frozenset({*UNET, *FLUX})
_OF_TEXT = frozenset({"BASE", "CLIP", "T5"})


def warn_of_idle_blocks(prompts: Sequence[Prompt], model: ModelView, problems: Problems) -> None:
    """Warn of block weights that no module of the denoiser is meant by, and say which blocks there are.

    A list speaks of the blocks of a large model, and a smaller one has some of them: of a list all must be idle.
    """
    paths: Mapping[str, str | None] | None = None
    for tag in problems.acting(prompts):
        weights = tag.conditions.blocks
        if weights is None:
            continue
        if paths is None:
            paths = dict(_modules(model))
        idle = _idle(weights, paths)
        if idle and paths:
            message = f'"{tag.name}": no block of this model is meant by {", ".join(idle)}'
            rest = "what no other rule speaks of acts at the tag's full strength"
            names = sorted({block for block in paths.values() if block is not None}, key=(*UNET, *FLUX).index)
            has = f"its blocks are {', '.join(_ranges(names))}" if names else "its blocks have no names"
            problems.warning(f"{message}: {rest}", f"{has}; patterns such as *attn*=0.5 fit any model", tag.span)


def _modules(model: ModelView) -> Iterator[tuple[str, str | None]]:
    """Yield the paths of the denoisers' modules and their blocks."""
    for name, component in model.components.items():
        if not name.startswith("text_encoder"):
            yield from ((path, block_of(name, path)) for path, _ in component.named_modules() if path)


def _idle(weights: BlockWeights, paths: Mapping[str, str | None]) -> list[str]:
    """Return what of a tag's block weights no module is meant by, as the tag may have it."""
    blocks = set(paths.values())
    idle = [
        word
        for word, own, found in (
            ("in=", weights.inner, any(b in UNET and b.startswith("IN") for b in blocks if b)),
            ("mid=", weights.mid, "M00" in blocks),
            ("out=", weights.outer, any(b in UNET and b.startswith("OUT") for b in blocks if b)),
        )
        if own is not None and not found
    ]
    rules = [rule for rule in weights.rules if not _is_of_text(rule)]
    listed = [rule for rule in rules if rule.where in _LISTED]
    if len(listed) < _LIST:
        return idle + [rule.where for rule in rules if not _is_met(rule, paths, blocks)]
    idle += [rule.where for rule in rules if rule.where not in _LISTED and not _is_met(rule, paths, blocks)]
    # The IN and OUT of Flux mean all of a UNet's too: whose list it is, blocks with a number tell.
    numbered = [rule for rule in listed if rule.where[-1].isdigit()]
    if any(_is_met(rule, paths, blocks) for rule in numbered):
        return idle
    others = [rule.where for rule in listed if not rule.where[-1].isdigit() and _is_met(rule, paths, blocks)]
    kind = "UNet" if numbered[0].where in UNET else "Flux"
    but = f" but for its {' and '.join(others)}" if others else ""
    return [*idle, f"a list for the blocks of a {kind}{but}"]


def _is_of_text(rule: Rule) -> bool:
    blocks, _ = selection(rule.where)
    return blocks is not None and blocks <= _OF_TEXT


def _is_met(rule: Rule, paths: Mapping[str, str | None], blocks: set[str | None]) -> bool:
    meant, patterns = selection(rule.where)
    if meant is not None and not meant & {block for block in blocks if block is not None}:
        return False
    return not patterns or any(rule.holds(block, path) for path, block in paths.items())


def _ranges(names: Iterable[str]) -> Iterator[str]:
    """Yield runs of numbered names as one: D00-D18."""
    numbered = [(name, re.fullmatch(r"([A-Z]+)(\d+)", name)) for name in names]
    runs = groupby(enumerate(numbered), key=lambda item: (
        item[1][1][1] if item[1][1] else item[1][0], int(item[1][1][2]) - item[0] if item[1][1] else 0
    ))  # fmt: skip
    for _, run in runs:
        first, *others = [name for _, (name, _) in run]
        yield f"{first}-{others[-1]}" if others else first

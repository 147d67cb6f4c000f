"""AnimateDiff's motion modules: the original's names, `….temporal_transformer.….attention_blocks.0.to_q`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from lora_runtime.families.dialect import WHOLE, Dialect, Part

__all__ = ["MOTION_NAMES"]

_MODULE = re.compile(r"(.*\bmotion_modules\.\d+)\.(.+)")
_IN_BLOCK = re.compile(r"(transformer_blocks\.\d+)\.(attn|norm)([123])\b")
_FEED_FORWARD = "3"  # its norm has a name of its own
_LISTS = {"attn": "attention_blocks", "norm": "norms"}


def _translations(paths: Sequence[str]) -> Iterator[tuple[str, str, Part]]:
    """Yield the original's name of each part of a motion module."""
    for path in paths:
        if match := _MODULE.fullmatch(path):
            yield path, f"{match[1]}.temporal_transformer.{_IN_BLOCK.sub(_original, match[2])}", WHOLE


def _original(match: re.Match[str]) -> str:
    block, kind, number = match.groups()
    return f"{block}.ff_norm" if number == _FEED_FORWARD else f"{block}.{_LISTS[kind]}.{int(number) - 1}"


MOTION_NAMES = Dialect("animatediff", translations=_translations)

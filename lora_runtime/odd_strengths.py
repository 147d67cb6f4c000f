"""Strengths that can hardly be meant: what a file's name and metadata say, and its tag does not fit.

Only what is certain enough to be worth a line: silence says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_runtime.lora import Lora
from lora_runtime.prompt import LoraTag

__all__ = ["doubts"]

# Names of LoRAs that make a model paint in few steps, as their makers publish them. Of the same words other LoRAs are
# about, so that a number of steps, or "lora", has to stand beside them.
_DISTILLED = re.compile(
    r"(?<![a-z])(?:lcm[ _-]?lora|lora[ _-]?lcm|tcd[ _-]sd\w*[ _-]lora|turbo[ _-](?:lora|alpha)"
    r"|(?:lightning|hyper|turbo|dmd2)(?![a-z]).{0,20}?(?<!\d)\d{1,2}[ _-]?steps?)(?![a-z])",
    re.IGNORECASE,
)
# Of other families, Flux among them, some are made for an eighth.
_MADE_FOR_1 = frozenset({"SD1", "SD2", "SDXL"})
_LEAST, _MOST = 0.5, 1.5
_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_WRITE_ALPHAS = ("networks.lora", "lycoris.kohya")


def doubts(tag: LoraTag, lora: Lora) -> Iterator[str]:
    """Yield what is odd about a file at the strength of its tag, a line each."""
    strength = tag.unet
    titles = (lora.name, lora.metadata.get("modelspec.title", ""), lora.metadata.get("ss_output_name", ""))
    if (
        isinstance(strength, (int, float))
        and strength != 0
        and not _LEAST <= strength <= _MOST
        and lora.family in _MADE_FOR_1
        and any(map(_DISTILLED.search, titles))
    ):
        yield f'"{lora.name}" lets a model paint in few steps and is made for strength 1; here it has {strength:g}'
    if factor := _lost_alpha(lora):
        yield (
            f'"{lora.name}" has no alphas, which its trainer writes into every file; if they were lost, it acts '
            f"{factor:.3g} times as strongly as in training"
        )


def _lost_alpha(lora: Lora) -> float | None:
    """Return rank/alpha of the training where a file in kohya's names has no alpha, and one that is not the rank."""
    if not lora.metadata.get("ss_network_module", "").startswith(_WRITE_ALPHAS):
        return None
    if not lora.adapters or not all(stem.startswith(_KOHYA) for stem in lora.adapters):
        return None
    scaled = [each for adapters in lora.adapters.values() for each in adapters if hasattr(each, "alpha")]
    if not scaled or any(each.alpha is not None for each in scaled):
        return None
    try:
        rank, alpha = (float(lora.metadata.get(f"ss_network_{name}", "")) for name in ("dim", "alpha"))
    except ValueError:
        return None
    return rank / alpha if rank > 0 and alpha > 0 and rank != alpha else None

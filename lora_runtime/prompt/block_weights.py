"""Block weights: what each block, or each module whose name fits a pattern, gets of a tag's strength.

Lists (`lbw=`), element rules (`lbwe=`) and readable rules (`IN04-08=0.5`, `*attn1*=0`) all become rules, of which the
last that speaks of a module counts. sd-webui-lora-block-weight has the same order: elements after blocks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from lora_runtime.blocks import FLUX, UNET, block_of, names_between
from lora_runtime.prompt.strength import Curve, Strength

__all__ = ["BlockWeights", "Draw", "Rule"]

# The ranges of the values drawn for R and U: those of sd-webui-lora-block-weight's code; its README has others for U.
_RANGES = {"R": (0.0, 1.0), "U": (-0.5, 1.5)}
_GROUPS = {
    **{group: tuple(name for name in (*UNET, *FLUX) if re.fullmatch(rf"{group}\d*", name)) for group in ("IN", "OUT")},
    **{group: tuple(name for name in FLUX if re.fullmatch(rf"{group}\d+", name)) for group in ("D", "S")},
    "M": ("M00",),
}
_RANGE = re.compile(r"([A-Z]+)(\d+)-(?:([A-Z]+))?(\d+)")


@dataclass(frozen=True, slots=True)
class Draw:
    """A ratio drawn at random: "R" from 0 to 1, "U" from -0.5 to 1.5."""

    letter: str

    def value(self, seed: int | None, salt: str) -> float:
        """Return the value for the seed of an image, the same wherever it is drawn; None is the seed 0."""
        import hashlib  # not at the top: few prompts need it, and it takes a twentieth of the first call

        low, high = _RANGES[self.letter]
        digest = hashlib.sha256(f"{seed or 0}\n{salt}".encode("utf-8", "surrogatepass")).digest()
        return round(low + (high - low) * int.from_bytes(digest[:6], "big") / 2**48, 3)

    def __str__(self) -> str:
        return self.letter


@dataclass(frozen=True, slots=True)
class Rule:
    """A ratio for the modules that `where` speaks of: words for blocks ("IN04-08", "NOT IN05-OUT05") and patterns.

    A module is meant if it is in one of the blocks and its path fits one of the patterns, where there are any.
    """

    where: str
    ratio: float | Curve | Draw

    def holds(self, block: str | None, path: str) -> bool:
        """Return whether the module at `path` is meant, which is in `block`."""
        blocks, patterns = selection(self.where)
        if blocks is not None and not _names(block) & blocks:
            return False
        names = (path, path.replace(".", "_"))
        return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """The rules of one tag, and the strengths of the UNet's three parts where the tag gives them.

    `salt` is the name of the LoRA: two LoRAs with the same random list draw different values.
    """

    rules: tuple[Rule, ...] = ()
    inner: Strength | None = None  # in=, of SD.Next: the strength of the UNet's input blocks instead of unet=
    mid: Strength | None = None
    outer: Strength | None = None
    salt: str = ""

    @property
    def random(self) -> bool:
        """Return whether the seed of the image changes anything."""
        return any(isinstance(rule.ratio, Draw) for rule in self.rules)

    def ratio(self, component: str, path: str, seed: int | None = None) -> float | Curve:
        """Return what the module at `path` of a component gets of the strength, by the last rule about it; else 1."""
        block = block_of(component, path)
        for index in range(len(self.rules) - 1, -1, -1):
            if self.rules[index].holds(block, path):
                ratio = self.rules[index].ratio
                return ratio.value(seed, f"{self.salt}\n{index}") if isinstance(ratio, Draw) else ratio
        return 1.0

    def strength(self, component: str, path: str) -> Strength | None:
        """Return the strength of the part of the UNet that the module at `path` is in; None: the tag's own."""
        block = block_of(component, path)
        if block is None or block not in UNET:
            return None
        return (
            self.inner
            if block.startswith("IN")
            else self.outer
            if block.startswith("OUT")
            else (self.mid if block == "M00" else None)
        )


def _names(block: str | None) -> frozenset[str]:
    """Return the names by which rules may mean a block: BASE is all text encoders, CLIP is those that are no T5."""
    if block is None:
        return frozenset()
    return frozenset({"T5": ("T5", "BASE"), "BASE": ("BASE", "CLIP")}.get(block, (block,)))


@lru_cache(maxsize=1024)
def selection(where: str) -> tuple[frozenset[str] | None, tuple[str, ...]]:
    """Return the blocks (None: any module) and the patterns that words stand for; ValueError for the first bad word."""
    words = where.split()
    inverted = words[:1] == ["NOT"]
    patterns = tuple(word for word in words if _is_pattern(word))
    named = [word for word in words[inverted:] if not _is_pattern(word)]
    blocks = frozenset(name for word in named for name in _blocks(word))
    if inverted:
        blocks = frozenset((*UNET, *FLUX)) - blocks
    return blocks if named else None, patterns


def _is_pattern(word: str) -> bool:
    return word.startswith("*") or word.endswith("*")


def _blocks(word: str) -> tuple[str, ...]:
    """Return the blocks that a word names: "IN04", "IN" for all of them, "IN04-08", "IN05-OUT05"."""
    if word in _GROUPS:
        return _GROUPS[word]
    match = _RANGE.fullmatch(word)
    first, last = (f"{match[1]}{match[2]}", f"{match[3] or match[1]}{match[4]}") if match else (word, word)
    names = names_between(first, last)
    if not names:
        raise ValueError(word)
    return names

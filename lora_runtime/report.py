"""What an apply did, as a person reads it: what went where, and for each key that found no place the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_runtime.prompt.strength import Strength
from lora_runtime.stage import Side

__all__ = ["LoraReport", "Report"]


@dataclass(frozen=True, slots=True)
class LoraReport:
    """What became of one file: `unused` maps each key that found no place to the reason.

    `live` is how many of its weights have a strength that varies; `fixed` maps reasons why a strength could not vary,
    with what came of it, to how many weights.
    """

    name: str
    path: str
    sha256: str
    te: Strength
    unet: Strength
    keys: int
    used: int
    targets: Mapping[str, int]  # component → number of its weights that this file changes
    unused: Mapping[str, str] = field(repr=False)
    live: int = 0
    fixed: Mapping[str, int] = field(default_factory=dict)
    images: frozenset[int] | None = None
    side: Side | None = None

    def __str__(self) -> str:
        """Return one line: strengths, coverage, places, and the reasons with their counts."""
        strength = f"{self.te:g}" if self.te == self.unet else f"te {self.te:g}, unet {self.unet:g}"
        line = f"{self.name} × {strength}"
        if self.images is not None:
            line += f" in image {', '.join(str(image + 1) for image in sorted(self.images))}"
        if self.side is not None:
            line += f" on the {self.side} side"
        line += f": {self.used} of {self.keys} keys"
        if self.targets:
            line += " on " + ", ".join(f"{count} weights of {name}" for name, count in self.targets.items())
        if self.live:
            line += f", {self.live} of them live"
        for reason, count in Counter(self.unused.values()).most_common(_REASONS):
            line += (
                f"; {count} {'is' if count == 1 else 'are'} {reason}"
                if reason.startswith("for ")
                else (f"; {count} unused: {reason}")
            )
        more = len(set(self.unused.values())) - _REASONS
        return line + (f"; and {more} more reasons in .unused" if more > 0 else "")


_REASONS = 3  # a line stays readable; all of them are in LoraReport.unused


@dataclass(frozen=True, slots=True)
class Report:
    """What an apply did: a line for each file, and how many weights are patched."""

    loras: tuple[LoraReport, ...] = ()
    weights: int = 0
    bytes: int = 0
    model: str = ""
    live: int = 0  # modules beside which adapters act, with strengths that vary

    def __str__(self) -> str:
        """Return the report as text, a line for each file."""
        if not self.loras:
            return "no LoRA applied"
        head = f"{self.weights} weights patched ({self.bytes / 1e6:.1f} MB) in {self.model}"
        if self.live:
            head += f", {self.live} modules with a strength that varies"
        return "\n".join([head, *(f"  {lora}" for lora in self.loras)])

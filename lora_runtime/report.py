"""What an apply did, as a person reads it: what went where, and for each key that found no place the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lora_runtime.prompt.strength import Strength
from lora_runtime.stage import Side

__all__ = ["Kept", "LoraReport", "Report"]


@dataclass(frozen=True, slots=True)
class LoraReport:
    """What became of one file: `unused` maps each key that found no place to the reason.

    `merged` is how many of its weights are summed into the model's own, `live` how many act beside a layer: since their
    strength varies, or since the weight cannot be written, for which `beside` maps the reasons to how many weights.
    `dense_bytes` is what those cost that act beside by a dense Δ. `notes` maps what else is worth knowing of a place to
    how many weights; `fixed` maps reasons why a strength could not vary,
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
    merged: int = 0
    beside: Mapping[str, int] = field(default_factory=dict)
    dense_bytes: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)

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
        line += self._beside()
        for note in self.notes:
            line += f"; {note}"
        for reason, count in Counter(self.unused.values()).most_common(_REASONS):
            line += (
                f"; {count} {'is' if count == 1 else 'are'} {reason}"
                if reason.startswith("for ")
                else (f"; {count} unused: {reason}")
            )
        more = len(set(self.unused.values())) - _REASONS
        return line + (f"; and {more} more reasons in .unused" if more > 0 else "")

    def _beside(self) -> str:
        """Return how many of the weights act beside a layer, why, and what that costs."""
        stored = sum(self.beside.values())
        line = f", {self.live - stored} of them live" if self.live > stored else ""
        for reason, count in Counter(self.beside).most_common(_REASONS):
            line += f", {count} of them beside weights {reason}"
        if self.dense_bytes:
            line += f" ({self.dense_bytes / 1e6:.1f} MB for a dense Δ)"
        return line


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of the weights of one device while they are patched, in bytes, and why there.

    `step`: "device" (W′ beside the originals), "host" (originals in host memory), "inplace" (copies of the originals on
    the device, whose addresses stay) or "beside" (adapters beside the modules; `host` is of those that cannot).
    `factor_bytes` lie on the device besides: what was sent there to be summed, for the next change of strength.
    """

    device: str
    step: str
    device_bytes: int
    host_bytes: int
    why: str
    factor_bytes: int = 0

    def __str__(self) -> str:
        """Return one line."""
        on_device = in_words(self.device_bytes)
        in_host = in_words(self.host_bytes or self.device_bytes)  # on the CPU that is the device's memory
        what = {
            "device": f"{on_device} of W′ beside the originals on {self.device}",
            "host": f"{in_host} of originals in host memory, patched in place on {self.device}",
            "inplace": f"{on_device} of copies of the originals on {self.device}, patched in place",
            "beside": f"{on_device} of factors beside the modules on {self.device}",
        }[self.step]
        more = f", and {in_host} of originals in host memory" if self.step == "beside" and self.host_bytes else ""
        if self.factor_bytes:
            more += f", with {in_words(self.factor_bytes)} of factors there for the next change of strength"
        return f"{what}{more}: {self.why}"


def in_words(size: int) -> str:
    """Return a size in bytes as people say it."""
    unit, name = next(((unit, name) for unit, name in _UNITS if size >= unit), (1, "bytes"))
    return f"{size / unit:.1f} {name}" if unit > 1 else f"{size} bytes"


_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
_REASONS = 3  # a line stays readable; all of them are in LoraReport.unused


@dataclass(frozen=True, slots=True)
class Report:
    """What an apply did: a line for each file, and how many weights are patched."""

    loras: tuple[LoraReport, ...] = ()
    weights: int = 0
    bytes: int = 0
    model: str = ""
    live: int = 0  # modules beside which adapters act
    memory: tuple[Kept, ...] = ()  # for each device
    live_of: Mapping[frozenset[int] | None, int] = field(default_factory=dict)  # the same, by images; None: for all

    def of_image(self, image: int) -> Report:
        """Return what was done for one image of a batch: its files alone, and no word of the other images.

        Weights and memory are the model's: what is summed into a weight is for all images.
        """
        loras = tuple(replace(lora, images=None) for lora in self.loras if lora.images is None or image in lora.images)
        live = sum(count for images, count in self.live_of.items() if images is None or image in images)
        return replace(self, loras=loras, live=live, live_of={None: live} if live else {})

    def __str__(self) -> str:
        """Return the report as text, a line for each file."""
        if not self.loras:
            return "no LoRA applied"
        head = f"{self.weights} weights patched ({self.bytes / 1e6:.1f} MB) in {self.model}"
        if self.live:
            head += f", {self.live} {'module' if self.live == 1 else 'modules'} with adapters beside"
        return "\n".join([head, *(f"  {line}" for line in (*self.loras, *self.memory))])

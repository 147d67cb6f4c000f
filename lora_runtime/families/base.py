"""What a record of a model family is, and what is read from one call of its denoiser. Nothing here imports torch.

A family is what generic code would have to guess: how the classes of its denoiser are called, what its files look like,
which of its layers have no place in the picture, and what a call of its denoiser is about. The last is a function, the
reader, which is given the arguments of the call by name and the denoiser's config, and looks at shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from lora_runtime.families.dialect import Dialect

__all__ = [
    "IN_TWO_CALLS",
    "PROMPT_FIRST",
    "Evidence",
    "Family",
    "Given",
    "Grid",
    "Guidance",
    "Mark",
    "Reading",
    "Row",
    "Sequence",
    "Side",
    "Span",
    "pieces",
]

Side = Literal["positive", "negative"]


class Row(NamedTuple):
    """What one row of a batch belongs to."""

    image: int = 0
    side: Side = "positive"
    part: int = 0


class Grid(NamedTuple):
    """The cells of the picture, or of the video, in the units of the finest layer."""

    height: int
    width: int
    frames: int = 1


class Span(NamedTuple):
    """Neighbouring tokens of a layer's sequence: the picture that is painted, or something that has no place in it."""

    kind: Literal["picture", "text", "reference"]
    tokens: int


Sequence = tuple[Span, ...]


class Given:
    """What a denoiser is called with: its arguments by name, and its config."""

    def __init__(self, arguments: Mapping[str, Any], config: Any = None, known: dict[int, Any] | None = None) -> None:
        """Hold them. `known` is what earlier calls of the same run have worked out; see `once`."""
        self.arguments = arguments
        self.config = config
        self._known = {} if known is None else known

    def get(self, *names: str) -> Any:
        """Return the first of these arguments that is given, or None."""
        return next((self.arguments[name] for name in names if self.arguments.get(name) is not None), None)

    def setting(self, name: str, otherwise: Any = None) -> Any:
        """Return a value of the denoiser's config."""
        found = getattr(self.config, name, None)
        return otherwise if found is None else found

    def once(self, argument: Any, compute: Callable[[Any], Any]) -> Any:
        """Return what is computed from an argument's values; for the same object it is computed once.

        Reading a tensor's values waits for the device; pipelines give the same object in each step.
        """
        if id(argument) not in self._known:
            self._known[id(argument)] = argument, compute(argument)  # held, so that its id is nobody else's
        return self._known[id(argument)][1]


@dataclass(frozen=True)
class Reading:
    """What one call of a denoiser shows.

    `rows`: how many rows its batch has. `latents`: a tensor with a row of the picture for each of them, or None where
    none is given as such. `text`: a tensor or a list with what is read for each row; it tells the sides apart.
    `sequences`: all sequences of tokens that its layers see; None: its layers have the grid, or halve it again and
    again, as those of a UNet do.
    """

    rows: int
    latents: Any = None
    text: Any = None
    grid: Grid | None = None
    sequences: tuple[Sequence, ...] | None = None


Reader = Callable[[Given], "Reading | None"]


@dataclass(frozen=True)
class Guidance:
    """How a pipeline asks the denoiser for both sides of classifier-free guidance.

    `stacked`: the sides of the copies in one call, in their order; () where each side has a call of its own, the
    prompt's first. `reason`: why the rows of this pipeline cannot be told; such strengths are refused.
    """

    stacked: tuple[Side, ...] = ("negative", "positive")
    reason: str = ""


IN_TWO_CALLS = Guidance(())
PROMPT_FIRST = Guidance(("positive", "negative"))


@dataclass(frozen=True)
class Evidence:
    """What of a file's keys may tell its family: they as one text with `.` for `_`, and the inputs of each module."""

    text: str
    widths: Mapping[str, int]  # by key, where its shape shows them

    def width(self, piece: str) -> int | None:
        """Return the inputs of the first module whose key holds this piece."""
        return next((width for key, width in self.widths.items() if piece in key), None)


Mark = Callable[[Evidence], bool]


def pieces(*all_of: str, none: tuple[str, ...] = (), width: tuple[str, tuple[int, ...]] | None = None) -> Mark:
    """Return the mark of files whose keys hold all of these pieces, and none of those; `.` stands for `_` too.

    `width`: a piece of a module's key, and how many inputs it may have.
    """

    def found(evidence: Evidence) -> bool:
        if any(piece not in evidence.text for piece in all_of) or any(piece in evidence.text for piece in none):
            return False
        return width is None or evidence.width(width[0]) in width[1]

    return found


@dataclass(frozen=True)
class Family:
    """All that is known of a family of models.

    `name`: as messages and `metadata` call it. `classes`: of diffusers' denoisers. `titles`: pieces of the model's name
    in a file's metadata. `marks`: any of them tells its files by their keys.
    `read` is the reader of its calls, None where nobody has written it: rows and regions are refused then.
    `no_place`: a pattern of the layers that see no picture token, so that a region cannot act there.
    `no_rows`: a pattern of the layers whose batch is not the call's, so that nothing of one row alone can act there.
    `guidance` is how its pipelines call the denoiser, `pipelines` by class name those that do otherwise.
    `placeless`: its pipelines whose calls do not say where the picture lies: regions are refused there.
    `dialects`: what its files call its modules, beside the names of its classes and of what is no family's (dialects/).
    """

    name: str
    classes: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()
    read: Reader | None = None
    no_place: str = ""
    no_rows: str = ""
    guidance: Guidance = Guidance()
    pipelines: Mapping[str, Guidance] = field(default_factory=lambda: MappingProxyType({}))
    placeless: tuple[str, ...] = ()
    dialects: tuple[Dialect, ...] = ()

"""What each call of the denoiser is about, told to the stage of its live modules.

A host says before each denoising which step it is and what its rows belong to; it may then call the denoiser once for
all rows or several times for some, in order. Nothing is watched unless something varies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lora_runtime.beside import Live
from lora_runtime.pipelines import ModelView, WeakView
from lora_runtime.prompt.strength import Moment
from lora_runtime.stage import Call, Row, Stage


class Denoising:
    """The step that is being done, and how many of its rows the denoiser has had."""

    told = True
    """Whether the host says what the rows of each call are, and its picture; else the calls themselves must show it."""

    def __init__(self) -> None:
        self._watched = 0
        self._moment: Moment | None = None
        self._rows: tuple[Row, ...] = ()
        self._done = 0

    @property
    def watched(self) -> bool:
        """Whether anybody wants to know."""
        return self._watched > 0

    @property
    def moment(self) -> Moment | None:
        """The step that is being done, None before the first."""
        return self._moment

    def begin(self, moment: Moment, rows: Sequence[Row]) -> None:
        """Say what the next calls are about: `rows` are all that will come, in their order."""
        self._moment, self._rows, self._done = moment, tuple(rows), 0

    def began(self, looked_at: ModelView) -> Callable[[Live], None]:
        """Return what follows the steps of a model while something acts beside it; it keeps no model."""
        weakly = WeakView(looked_at)

        def began(live: Live) -> None:
            components = weakly.view().components
            for name, stage in live.stages.items():
                live.until_then(self.watch(components[name], stage))

        return began

    def watch(self, denoiser: Any, stage: Stage) -> Callable[[], None]:
        """Tell `stage` of each call of a denoiser from now on; return what ends it."""

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            latents = next((value for value in (*args, *kwargs.values()) if hasattr(value, "shape")), None)
            if latents is not None and self._moment is not None:
                grid = int(latents.shape[-2]), int(latents.shape[-1])
                stage.begin(Call(self._moment, self._next(len(latents)), grid))

        return self.follow(denoiser, before)

    def follow(self, denoiser: Any, before: Callable[..., Any]) -> Callable[[], None]:
        """Have this called before each call of a denoiser, with its arguments; return what ends it."""
        handle = denoiser.register_forward_pre_hook(before, with_kwargs=True)
        self._watched += 1
        self._moment = None  # of another picture

        def end() -> None:
            handle.remove()
            self._watched -= 1

        return end

    def _next(self, count: int) -> tuple[Row, ...]:
        """Return what the next rows are. Who calls the denoiser more often than was said begins again."""
        if self._done + count > len(self._rows):
            self._done = 0
        rows = self._rows[self._done : self._done + count]
        self._done += count
        return rows or (Row(),)

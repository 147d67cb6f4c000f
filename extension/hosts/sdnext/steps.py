"""Which step a call of the denoiser is in, and whose its rows are.

SD.Next runs pipelines of diffusers, so the library's own clock tells, as in `lora_runtime.apply`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lora_runtime.beside import Live
from lora_runtime.clock import Clock
from lora_runtime.pipelines import ModelView, WeakView

from ...engine.denoising import Denoising

__all__ = ["PipelineSteps"]


class PipelineSteps(Denoising):
    """The clock of what acts beside the modules, one for each time that something does."""

    told = False

    def __init__(self) -> None:
        super().__init__()
        self.images = 1
        """How many prompts the batch has: rows are counted by it, from the next time that something acts on."""
        self.said: Mapping[str, str] = {}
        """What could not be told in the calls so far, and of which strengths."""
        self._clocks = 0

    @property
    def watched(self) -> bool:
        """Whether something acts beside the modules now."""
        return self._clocks > 0

    def began(self, looked_at: ModelView) -> Callable[[Live], None]:
        """Return what follows the steps of a model while something acts beside it; it keeps no model."""
        weakly = WeakView(looked_at)

        def began(live: Live) -> None:
            view = weakly.view()
            clock = Clock(view, live.stages, self.images)
            self.said = clock.said
            self._clocks += 1

            def stop() -> None:
                self._clocks -= 1
                clock.stop()

            live.until_then(stop)
            clock.start(view)

        return began

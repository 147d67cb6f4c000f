"""People who ask a studio at the same time, and what one of them would get alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lora_runtime import LoraCatalog
from lora_runtime.studio.canvas import Commission, Step, canvases_of
from lora_runtime.studio.models import EMBEDDED, Models
from lora_runtime.studio.painting import Painted, paint, painted_of
from lora_runtime.studio.settings import Settings
from lora_runtime.studio.workshop import Workshop

SECONDS = 120.0  # where several processes share the cores, threads come late


def alone(pipe: Any, settings: Settings, loras: LoraCatalog, *, model: str = "", **more: Any) -> Painted:
    """Return the pictures of settings, each painted in a call of its own."""
    canvases = canvases_of([settings], model, Commission(settings.pictures))
    [painted] = painted_of([settings], [each for canvas in canvases for each in paint(pipe, [canvas], loras, **more)])
    return painted


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    ends = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.002)


class User(threading.Thread):
    """Somebody who asks for pictures and waits for them."""

    def __init__(self, shop: Workshop, who: str, *asked: Settings, on_step: Callable[[Step], None] | None = None):
        super().__init__(daemon=True)
        self._shop, self.who, self._asked, self._on_step = shop, who, asked, on_step
        self.steps: list[Step] = []
        self._painted: Sequence[Painted] | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for said in self._shop.paint(self._asked, EMBEDDED, self.who):
                if isinstance(said, Step):
                    self.steps.append(said)
                    if self._on_step:
                        self._on_step(said)
                else:
                    self._painted = said
        except Exception as error:
            self.error = error

    @property
    def painted(self) -> Sequence[Painted]:
        """What came of what was asked, once it is there."""
        self.join(SECONDS)
        assert self._painted is not None, self.error
        return self._painted


class Gate:
    """A workshop whose model is loaded only when all who are to be painted together wait for it."""

    def __init__(self, pipe: Any, loras: LoraCatalog, **options: Any) -> None:
        self._begun, self._open = threading.Event(), threading.Event()

        def load(model: Any) -> Any:
            self._begun.set()
            self._open.wait()
            return pipe

        self.shop = Workshop(Models(load=load), loras, **options)

    @contextmanager
    def gathering(self, first: Settings) -> Iterator[None]:
        """Have one picture wait for the model by itself; who asks within the block waits for that one, in order."""
        self.first = User(self.shop, "first", first)
        self.first.start()
        assert self._begun.wait(SECONDS)
        yield
        self._open.set()

    def ask(self, who: str, *asked: Settings, **more: Any) -> User:
        """Return somebody whose pictures are in the line by now."""
        length = self.shop.line_length + sum(settings.pictures for settings in asked)
        user = User(self.shop, who, *asked, **more)
        user.start()
        until(lambda: self.shop.line_length == length)
        return user

    def close(self) -> None:
        """Close the workshop, whatever waits."""
        self._open.set()
        self.shop.close()

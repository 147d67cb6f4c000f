"""The line of a server: rows that wait for one painter, and who is not taken in is told so by a status of HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lora_runtime.batching import line
from lora_runtime.serve.limits import Limits, Refused
from lora_runtime.sweep.paint import Painted
from lora_runtime.sweep.rows import Row

__all__ = ["Line", "Paints"]

_BACK = 10  # seconds until a server that stops may be there again

Paints = line.Paints[Row, Painted]


class Line(line.Line[Row, Painted]):
    """Rows are painted within `async with`."""

    def __init__(self, painter: Paints, limits: Limits, seen: Callable[[int, float], None] | None = None) -> None:
        """Take a painter. `seen` is told of each batch: how many rows, and seconds."""
        super().__init__(
            painter,
            max_batch=limits.max_batch,
            max_queue=limits.max_queue,
            max_wait_ms=limits.max_wait_ms,
            seen=seen,
        )

    async def paint(self, rows: Sequence[Row]) -> list[Painted]:
        """Return what became of the rows, in order. Cancelled, it takes them out of the line.

        Refused with 429 where too many wait, with 503 where the server stops.
        """
        try:
            return await super().paint(rows)
        except line.LineFullError as error:
            raise Refused(429, str(error), "queue_full", retry_after=error.seconds) from error
        except line.LineClosedError as error:
            raise Refused(503, str(error), "stopping", retry_after=_BACK) from error

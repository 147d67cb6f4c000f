"""What Prometheus asks for: how many requests came to what, how long they took, and how full batches are."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Counts"]

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 300)
_ROWS = (1, 2, 4, 8, 16, 32)


class Counts:
    """The numbers of one server; two in one process have two of each."""

    def __init__(self) -> None:
        """Begin at zero. The gauges show what `watch` is given."""
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = own = CollectorRegistry()
        said = "Requests by route and HTTP status"
        self._requests = Counter("lora_runtime_requests", said, ["route", "status"], registry=own)
        said = "Seconds from a request to its answer"
        self._seconds = Histogram("lora_runtime_request_seconds", said, ["route"], buckets=_SECONDS, registry=own)
        said = "Images in one call of the pipeline"
        self._batches = Histogram("lora_runtime_batch_images", said, buckets=_ROWS, registry=own)
        self._painting = Counter("lora_runtime_painting_seconds", "Seconds in which was painted", registry=own)
        self._waiting = Gauge("lora_runtime_waiting_images", "Images that wait", registry=own)
        self._in_hand = Gauge("lora_runtime_images_in_hand", "Images that are being painted", registry=own)
        said = "LoRA files that this process has read from disk"
        self._read = Gauge("lora_runtime_files_read", said, registry=own)

    def watch(self, waiting: Callable[[], int], in_hand: Callable[[], int], read: Callable[[], int]) -> None:
        """Ask these whenever Prometheus asks."""
        for gauge, ask in ((self._waiting, waiting), (self._in_hand, in_hand), (self._read, read)):
            gauge.set_function(ask)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Take note of a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def painted(self, rows: int, seconds: float) -> None:
        """Take note of a batch."""
        self._batches.observe(rows)
        self._painting.inc(seconds)

    def text(self) -> tuple[bytes, str]:
        """Return the numbers as Prometheus reads them, and the type of that text."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST

"""What one request may ask, how much the server takes on, and what it says when that is too much."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from lora_runtime.errors import LoraError

__all__ = ["Limits", "Refused", "ServeError"]


class ServeError(LoraError):
    """A server cannot begin as it is asked for."""


class Refused(LoraError):
    """A request that is not answered with pictures: its HTTP status, and what its sender is told.

    `code` is for programs; `param` is the field that is to blame, `more` whatever else is known, such as the column.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        *,
        retry_after: int | None = None,  # seconds
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.retry_after, self.more = retry_after, more

    @property
    def content(self) -> dict[str, Any]:
        """The body of the answer, in the shape of OpenAI's errors."""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        said = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": {**said, **{name: value for name, value in self.more.items() if value is not None}}}


@dataclass(frozen=True)
class Limits:
    """All whole numbers from 1 on, `max_wait_ms` from 0.

    `max_batch` images of different requests are painted in one call, for which the first of them waits `max_wait_ms`.
    `max_queue` images may wait beside those that are being painted. `timeout` seconds a request has until its answer,
    both times together. The others are of one request: images, pixels of one image, steps, characters of a prompt,
    and bytes of its body.
    """

    max_batch: int = 4
    max_wait_ms: int = 20
    max_queue: int = 64
    timeout: int = 300
    max_n: int = 4
    max_pixels: int = 1536 * 1536
    max_steps: int = 100
    max_prompt: int = 4000
    max_body: int = 1 << 16

    def __post_init__(self) -> None:
        """Refuse numbers that make no server."""
        for each in fields(self):
            value, least = getattr(self, each.name), 0 if each.name == "max_wait_ms" else 1
            if value < least:
                raise ServeError(f"{each.name} is {value}: give a whole number from {least}")

"""What the user is told about a generation: under the picture, in the console and in the API's answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lora_runtime.prompt import Diagnostic
from lora_runtime.prompt.excerpt import line_and_column

from ..whole import whole


@dataclass(frozen=True)
class Notice:
    """One thing to say. `column` counts from 1 in line `line` of the prompt; 0 where it is about no one place."""

    severity: str
    message: str
    hint: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        """Return it as one line of text."""
        line = f"line {self.line}, " if self.line > 1 else ""
        place = f"{line}column {self.column}: " if self.column else ""
        hint = f" ({self.hint})" if self.hint and self.hint not in self.message else ""
        text: str = whole(f"LoRA {self.severity}: {place}{self.message}{hint}")
        return text

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {key: whole(value) for key, value in asdict(self).items()}


def notice_of(diagnostic: Diagnostic, source: str) -> Notice:
    """Return a diagnostic of the library with its place in `source`; an empty source gives none."""
    at = line_and_column(source, diagnostic.span[0]) if source and diagnostic.span != (0, 0) else (0, 0)
    return Notice(diagnostic.severity, diagnostic.message, diagnostic.hint, *at)


class Notices:
    """The notices of one generation, each said once, however many batches and passes it has."""

    def __init__(self) -> None:
        self._notices: dict[Notice, None] = {}

    def add(self, notices: Iterable[Notice]) -> list[Notice]:
        """Take these; return those that are new."""
        new = [notice for notice in dict.fromkeys(notices) if notice not in self._notices]
        self._notices.update(dict.fromkeys(new))
        return new

    def __iter__(self) -> Iterator[Notice]:
        return iter(self._notices)

    def __len__(self) -> int:
        return len(self._notices)

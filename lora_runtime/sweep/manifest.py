"""What a sweep leaves on disk: pictures, and a line of JSON for each row, never a half of either."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_runtime.sweep.rows import Row
from lora_runtime.whole_files import write_whole

__all__ = ["Manifest", "line_of"]

Line = dict[str, Any]


def line_of(row: Row, *, error: str = "", **more: Any) -> Line:
    """Return what the manifest says of a row: all that it asks for, and what became of it."""
    return {
        "key": row.key,
        "file": None,
        "error": error or None,
        "prompt": row.prompt,
        "negative": row.negative,
        "seed": row.seed,
        "width": row.width,
        "height": row.height,
        "steps": row.steps,
        "guidance_scale": row.guidance_scale,
        **({"model": row.model} if row.model else {}),
        "columns": dict(row.columns),
        "digest": row.digest,
        "tags": [tag.raw for tag in row.tags],
        **more,
    }


class Manifest:
    """The lines of a folder, by the keys of their rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, Line] = {}

    def read(self) -> None:
        """Read the lines that are there; the last of a run that was killed may be torn, and is left out."""
        try:
            text = self.path.read_bytes().decode("utf-8", "replace")
        except FileNotFoundError:
            return
        for written in text.split("\n"):
            try:
                line = json.loads(written)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("key"), str):
                self.lines[line["key"]] = line

    def keep(self, keys: Iterable[str]) -> None:
        """Leave only the lines with these keys, in the file too."""
        kept = set(keys)
        self.lines = {key: line for key, line in self.lines.items() if key in kept}
        write_whole(self.path, "".join(map(_written, self.lines.values())).encode())

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add lines, all of them on the disk when this returns."""
        new = {line["key"]: dict(line) for line in lines}
        with self.path.open("ab") as file:
            file.write("".join(map(_written, new.values())).encode())
            file.flush()
            os.fsync(file.fileno())
        self.lines |= new


def _written(line: Mapping[str, Any]) -> str:
    return json.dumps(line, default=str) + "\n"  # ASCII: half of a character in a prompt is no error then

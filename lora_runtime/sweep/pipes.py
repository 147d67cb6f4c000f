"""Which pipeline a row wants, where there are several: by the names that they were given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_runtime.sweep.rows import Row, SweepError

__all__ = ["MakePipe", "model_fault", "pipes_of", "with_models"]

MakePipe = Callable[[], Any] | Mapping[str, Callable[[], Any]]


def pipes_of(make_pipe: MakePipe) -> dict[str, Callable[[], Any]]:
    """Return what makes each pipeline, by its name: "" where there is one and it has none. SweepError for none."""
    found = {"": make_pipe} if callable(make_pipe) else dict(make_pipe)
    if not found:
        raise SweepError("there is no model: give at least one")
    return found


def with_models(rows: Sequence[Row], pipes: Mapping[str, Any]) -> list[Row]:
    """Return the rows, each with the name of its model where there are several: the first, if it says none."""
    if len(pipes) == 1:
        return list(rows)
    first = next(iter(pipes))
    return [row if row.model else replace(row, model=first) for row in rows]


def model_fault(row: Row, pipes: Mapping[str, Any]) -> str:
    """Return why there is no pipeline for a row; "" where there is one."""
    if not row.model or row.model in pipes:
        return ""
    names = ", ".join(filter(None, pipes))
    hint = f"there are {names}" if names else "there is one, without a name: leave the column `model` out"
    return f'no model is called "{row.model[:80]}": {hint}'

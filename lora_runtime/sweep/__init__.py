"""Many rows in, a folder of pictures out: what `lora-runtime sweep` does, for diffusers' pipelines.

rows        one picture to be painted, its key, and what is wrong with it
jobs        files of rows, and grids
pipes       which pipeline a row wants, where there are several
plan        rows to batches, and batches to workers
paint       one worker: a pipeline that paints batches
on_ray      many workers; dispatch: which of them paints what next
lock        one sweep at a time in a folder
manifest    what is written: pictures, and a line for each row
page, sheet the same to look at
loading     a pipeline from a folder
run         the whole line
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_runtime.sweep.jobs import grid_rows as grid_rows
    from lora_runtime.sweep.jobs import read_jobs as read_jobs
    from lora_runtime.sweep.loading import load_pipeline as load_pipeline
    from lora_runtime.sweep.loading import loaders as loaders
    from lora_runtime.sweep.rows import Row as Row
    from lora_runtime.sweep.rows import SweepError as SweepError
    from lora_runtime.sweep.run import Swept as Swept
    from lora_runtime.sweep.run import sweep as sweep

# On first use: files of rows are read without torch.
_HOME = {
    "Row": "rows",
    "SweepError": "rows",
    "Swept": "run",
    "grid_rows": "jobs",
    "load_pipeline": "loading",
    "loaders": "loading",
    "read_jobs": "jobs",
    "sweep": "run",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    """Import a public name from the file that owns it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

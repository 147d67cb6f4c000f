"""What is not installed of the packages that the WebUI and its forks bring along."""

from __future__ import annotations

import importlib.metadata
import importlib.util

__all__ = ["LACKING"]


def _has_gradio() -> bool:
    """Return whether gradio is one of those that the programs have: the studio's is a newer one."""
    try:
        return int(importlib.metadata.version("gradio").partition(".")[0]) in (3, 4)
    except importlib.metadata.PackageNotFoundError:
        return False


LACKING = [] if _has_gradio() else ["gradio 3 or 4"]
LACKING += [] if importlib.util.find_spec("fastapi") else ["fastapi"]

"""What files would do to a model, found out without changing it. Who asks must not hold up a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_runtime.catalog import Entry
from lora_runtime.limits import Limits
from lora_runtime.pipelines import ModelView
from lora_runtime.plan import make_plan
from lora_runtime.report import Report
from lora_runtime.requests import Request
from lora_runtime.targets import Targets
from lora_runtime.workbench.coverage import coverage_of

from ..prompts.notices import Notice
from .judging import Source, judged, nowhere
from .models import OWN_WEIGHTS, Models

__all__ = ["Coverage", "explain"]


def explain(
    model: Any, requests: Sequence[Request], source: Source = nowhere, models: Models = OWN_WEIGHTS
) -> tuple[Report, list[Notice]]:
    """Return what `Session.show` would do, and change nothing; `requests` are those of `Loader.read`."""
    looked_at = models.view(model)
    limits = Limits(looked_at, told=True)
    report = make_plan(requests, _targets(looked_at, models), looked_at.description, limits).report
    return report, judged(report, requests, looked_at, source)


class Coverage:
    """How much of each file fits a model; call it with both. Remembered for the model that was asked about last."""

    def __init__(self, models: Models = OWN_WEIGHTS) -> None:
        self._models = models
        self._targets: Targets | None = None
        self._known: dict[Any, str | None] = {}

    def __call__(self, model: Any, entry: Entry) -> str | None:
        """Return how much of a file fits a model ("812 of 844 keys, made for SDXL"), None where it is made for it.

        Only its header is read, and that once for a model: 20 ms for a file with 800 keys.
        """
        looked_at = self._models.view(model)
        if entry.family == looked_at.family != "unknown":
            return None
        targets = _targets(looked_at, self._models)
        if self._targets is not targets:
            self._targets, self._known = targets, {}
        known, key = self._known, (entry.path, entry.stamp)
        if key not in known:
            known[key] = coverage_of(entry, targets, looked_at.family)
        return known[key]


def _targets(looked_at: ModelView, models: Models) -> Targets:
    """Return the model's targets; the lock is held for no longer."""
    with models.hold(looked_at) as state:
        return state.targets

"""What the host's model shows now: the one state of the extension.

Nothing here knows the WebUI. The host says which model and which tags; weights are patched until it says otherwise, so
that the next picture with the same tags has nothing to do.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from lora_runtime.catalog import Entry
from lora_runtime.errors import LoraError
from lora_runtime.lora import outline
from lora_runtime.lora_cache import LoraCache
from lora_runtime.ownership import owned
from lora_runtime.pipelines import ModelView, view
from lora_runtime.plan import Assignment, Plan, Report, Request, make_plan
from lora_runtime.prompt import Diagnostic, LoraTag
from lora_runtime.prompt.tags import Severity
from lora_runtime.runtime import judge
from lora_runtime.targets import Targets

from .notices import Notice, notice_of
from .shelf import Shelf


class Session:
    """The LoRAs that are wanted, and the model that shows them. Safe to use from several threads."""

    def __init__(self, shelf: Shelf) -> None:
        """Show nothing."""
        self.shelf = shelf
        self.cache = LoraCache()
        self._lock = threading.RLock()
        self._model: weakref.ref[Any] | None = None  # weak: the host decides how long a model lives
        self._wanted: tuple[Request, ...] = ()
        self._planned: tuple[str, Targets, Plan] | None = None
        self._coverage: tuple[Targets | None, dict[Any, str | None]] = None, {}

    @property
    def wanted(self) -> tuple[Request, ...]:
        """What was asked for last, also while it is hidden."""
        return self._wanted

    # --- tags to files ---

    def load(self, tags: Iterable[LoraTag], source: str = "") -> tuple[list[Request], list[Notice]]:
        """Return a request for each tag whose file is found and can be read, and what there is to say.

        `source` is the prompt in which the spans of the tags are.
        """
        requests: list[Request] = []
        notices: list[Notice] = []
        for tag in tags:
            try:
                entry, remark = self.shelf.find(tag.name)
                lora = self.cache.load(entry.path, name=self.shelf.name_of(entry))
            except LoraError as error:
                notices.append(_notice("error", str(error), tag, source))
                continue
            if remark:
                notices.append(_notice("warning", remark, tag, source))
            requests.append(Request(lora, tag.te, tag.unet, tag.dyn, tag.span))
        return requests, notices

    # --- files to weights ---

    def show(self, model: Any, requests: Sequence[Request], source: str = "") -> tuple[Report, list[Notice]]:
        """Make the model show just these, whatever it or another model showed before.

        If it fails, no weight is patched.
        """
        with self._lock:
            self._wanted = tuple(requests)
            shown = self._model and self._model()
            if shown is not None and shown is not model:
                self._restore(shown)
            if not requests:
                if shown is model:
                    self._restore(model)
                return Report(), []
            looked_at = view(model)
            with owned(looked_at) as state:
                state.holder = self
                self._model = weakref.ref(model)
                plan = self._plan(requests, state.targets(looked_at), looked_at)
                state.patcher.apply(plan.assignments)
            return plan.report, _judged(plan.report, requests, looked_at, source)

    def hide(self, *, release: bool = False) -> None:
        """Give all weights back; what was wanted is remembered. `release` frees the memory kept for the next time."""
        with self._lock:
            shown = self._model and self._model()
            if shown is not None:
                self._restore(shown, release=release)

    def forget(self) -> None:
        """Give all weights back, and everything that is held in memory."""
        with self._lock:
            self.hide(release=True)
            self._wanted, self._planned = (), None
            self.cache = LoraCache()

    def show_again(self, model: Any) -> None:
        """Make a model show what was wanted before `hide`: after another checkpoint was loaded."""
        self.show(model, self._wanted)

    def explain(self, model: Any, requests: Sequence[Request], source: str = "") -> tuple[Report, list[Notice]]:
        """Return what `show` would do, and change nothing."""
        looked_at = view(model)
        with owned(looked_at) as state:
            report = make_plan(requests, state.targets(looked_at), looked_at.description).report
        return report, _judged(report, requests, looked_at, source)

    def coverage(self, model: Any, entry: Entry) -> str | None:
        """Return how much of a file fits a model ("812 of 844 keys, made for SDXL"), or None where it is made for it.

        Only its header is read, and that once for a model: 20 ms for a file with 800 keys.
        """
        looked_at = view(model)
        if entry.family == looked_at.family != "unknown":
            return None
        with owned(looked_at) as state:
            targets = state.targets(looked_at)
            if self._coverage[0] is not targets:
                self._coverage = targets, {}
            known = self._coverage[1]
            if (entry.path, entry.stamp) not in known:
                known[entry.path, entry.stamp] = _coverage_of(entry, targets, looked_at.family)
            return known[entry.path, entry.stamp]

    def _plan(self, requests: Sequence[Request], targets: Targets, model: ModelView) -> Plan:
        """Return the plan: the last one again where it is of the same files, strengths and parameters."""
        wanted = identity(requests)
        if self._planned is not None and self._planned[:2] == (wanted, targets):
            plan = self._planned[2]
            if all(_still_there(assignment) for assignment in plan.assignments):
                return plan
        plan = make_plan(requests, targets, model.description)
        self._planned = wanted, targets, plan
        return plan

    def _restore(self, model: Any, *, release: bool = False) -> None:
        with owned(view(model)) as state:
            state.restore(release=release)
        self._model = None
        if release:
            self._planned = None


def _coverage_of(entry: Entry, targets: Targets, family: str) -> str | None:
    try:
        lora = outline(entry.path)
    except LoraError as error:
        return str(error)
    (report,) = make_plan([Request(lora, 1.0, 1.0)], targets).report.loras
    if report.used == report.keys:
        return None
    made_for = "" if lora.family in ("unknown", family) else f", made for {lora.family}"
    return f"{report.used} of {report.keys} keys{made_for}"


def _still_there(assignment: Assignment) -> bool:
    """Return whether the module still has the very parameter that was planned for: hosts replace them."""
    return any(parameter is assignment.parameter for parameter in assignment.target.module._parameters.values())


def identity(requests: Iterable[Request]) -> str:
    """Return a text that is equal only for the same file contents at the same strengths; "" for none."""
    parts = sorted(f"{r.lora.sha256}:{r.te!r}:{r.unet!r}:{r.dyn}" for r in requests)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest() if parts else ""


def _judged(report: Report, requests: Sequence[Request], model: ModelView, source: str) -> list[Notice]:
    """Return what there is to say about files that do not fit the model, in part or at all."""
    notices = []
    for request in requests:
        for lora in report.loras:
            if lora.sha256 == request.lora.sha256:
                diagnostic = judge(lora, request, model)
                if diagnostic is not None:
                    notices.append(notice_of(diagnostic, source))
                elif lora.used < lora.keys:
                    notices.append(Notice("note", str(lora)))
    return notices


def _notice(severity: Severity, message: str, tag: LoraTag, source: str) -> Notice:
    return notice_of(Diagnostic(severity, tag.span, message), source)

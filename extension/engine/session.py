"""What the host's model shows now: the one state of the extension.

Nothing here knows the WebUI. The host says which model and which tags; weights are patched until it says otherwise, so
that the next picture with the same tags has nothing to do.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from lora_runtime.errors import LoraError
from lora_runtime.limits import Limits
from lora_runtime.owners import Owner
from lora_runtime.pipelines import ModelView
from lora_runtime.plan import make_plan
from lora_runtime.problems import show_what_can_be
from lora_runtime.report import Report
from lora_runtime.requests import Request
from lora_runtime.stage import Row

from ..prompts.notices import Notice
from .denoising import Denoising
from .judging import Source, cannot, judged, nowhere, told
from .models import OWN_WEIGHTS, Models
from .per_prompt import seen_by
from .shown import Shown, identity

__all__ = ["Session"]

_log = logging.getLogger("lora_runtime")


class Session:
    """The LoRAs that are wanted, and the model that shows them. Safe to use from several threads."""

    def __init__(self, models: Models = OWN_WEIGHTS, denoising: Denoising | None = None) -> None:
        """Show nothing yet, on models of this kind; `denoising` follows the steps of their denoisers."""
        self.denoising = denoising or Denoising()
        self._models = models
        self._lock = threading.RLock()
        self._model: weakref.ref[Any] | None = None  # weak: the host decides how long a model lives
        self._wanted: tuple[Request, ...] = ()
        self._shown: Shown | None = None
        self._owner = Owner()
        self._unencoded: tuple[str, list[Notice]] = "", []  # what is wanted, and what of it could not be encoded

    @property
    def wanted(self) -> tuple[Request, ...]:
        """What was asked for last, also while it is hidden."""
        return self._wanted

    def show(self, model: Any, requests: Sequence[Request], source: Source = nowhere) -> tuple[Report, list[Notice]]:
        """Make the model show just these, whatever it or another model showed before.

        Those that cannot be shown are left out of `wanted`, each with a notice. If it fails altogether, no weight is
        patched. What is shown already costs a look at each weight: 0.8 ms for the 741 of an SDXL UNet, where planning
        and patching anew would take 6 ms before the first product. Where the prompts of a batch ask for different
        weights of the text encoders, these are the first prompt's; see `encode_for`.
        """
        with self._lock:
            self._wanted = tuple(requests)
            shown = self._model and self._model()
            if shown is not None and (shown is not model or not requests):
                # The memory too: a host needs it more than a later switch does, and the next model is another one.
                self._restore(shown)
            if not requests:
                return Report(), []
            looked_at = self._models.view(model)
            notices: list[Notice] = []

            def present(asked: tuple[Request, ...]) -> Report:
                self._wanted = asked
                return self._present(model, looked_at, Row())

            def leave_out(error: LoraError, request: Request) -> None:
                notices.append(cannot(request, str(error), source))

            try:
                _, report = show_what_can_be(requests, present, leave_out)
            except Exception as error:
                _log.error("LoRAs cannot be applied together", exc_info=True)
                report, more = self._show_one_by_one(model, looked_at, self._wanted, error, source)
                notices += more
            notices += judged(report, self._wanted, looked_at, source)
            return report, notices + self._unencoded_for(self._wanted)

    def _show_one_by_one(
        self, model: Any, looked_at: ModelView, requests: tuple[Request, ...], error: Exception, source: Source
    ) -> tuple[Report, list[Notice]]:
        """Show those of the requests with which it works, the first ones first; say of each other why it does not."""
        failed: list[tuple[Request, Exception]] = []
        kept: tuple[Request, ...] = ()
        report = Report()
        for request in requests if len(requests) > 1 else ():
            self._wanted = (*kept, request)
            try:
                report = self._present(model, looked_at, Row())
                kept = self._wanted
            except Exception as reason:
                failed.append((request, reason))
        self._wanted = kept
        if not kept:
            return Report(), [Notice("error", f"no LoRA is applied: {told(error)}")]
        report = self._present(model, looked_at, Row())
        return report, [
            cannot(request, f'"{request.lora.name}" cannot be applied: {told(reason)}', source)
            for request, reason in failed
        ]

    def encode_for(self, model: Any, row: Row) -> list[Notice]:
        """Make the text encoders show what one row of the batch asks for, until `show_again`.

        What cannot be shown there is left out of this row's text encoders, and said; `show` says it again as long as
        the same is wanted, since what was encoded may be kept.
        """
        notices: list[Notice] = []
        with self._lock:
            looked_at = self._models.view(model)

            def present(asked: tuple[Request, ...]) -> Report:
                return self._present_all(model, looked_at, asked)

            def leave_out(error: LoraError, request: Request) -> None:
                message = f"{error}; left out of the text of picture {row.image + 1} alone"
                notices.append(Notice("error", message))

            if self._wanted:
                show_what_can_be(seen_by(self._wanted, row), present, leave_out)
                notices = list(dict.fromkeys(notices))
                said = dict.fromkeys((*self._unencoded_for(self._wanted), *notices))
                self._unencoded = identity(self._wanted), list(said)
        return notices

    def _unencoded_for(self, requests: Sequence[Request]) -> list[Notice]:
        return list(self._unencoded[1]) if self._unencoded[0] == identity(requests) else []

    def _present(self, model: Any, looked_at: ModelView, row: Row) -> Report:
        """Make the model show what is wanted, the text encoders for one row, unless it does."""
        return self._present_all(model, looked_at, seen_by(self._wanted, row))

    def _present_all(self, model: Any, looked_at: ModelView, requests: Sequence[Request]) -> Report:
        with self._models.hold(looked_at) as state:
            key, shown = identity(requests), self._shown
            if shown is None or not shown.is_still(key, looked_at, state, self._owner):
                self._model = weakref.ref(model)
                self._shown = None
                plan = make_plan(
                    requests, state.targets, looked_at.description, Limits(looked_at, told=self.denoising.told)
                )
                plan = state.show(self._owner, plan, compiled=looked_at.compiled, began=self.denoising.began(looked_at))
                shown = self._shown = Shown(key, looked_at, plan, by_parameter=self._models.parameters_stay)
        return shown.report

    def hide(self) -> None:
        """Give all weights back; what was wanted is remembered."""
        with self._lock:
            shown = self._model and self._model()
            if shown is not None:
                self._restore(shown)

    def forget(self) -> None:
        """Give all weights back, and want nothing any more."""
        with self._lock:
            self.hide()
            self._wanted = ()

    def show_again(self, model: Any) -> None:
        """Make a model show what was wanted before `hide`: after another checkpoint was loaded."""
        self.show(model, self._wanted)

    def _restore(self, model: Any) -> None:
        """Give a model its weights back, and the memory; keep nothing that would keep its parameters."""
        with self._models.hold(self._models.view(model)) as state:
            state.restore(release=True)
        self._model = self._shown = None

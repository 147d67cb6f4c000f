"""Checkpoint swaps: the old weights must be whole before the WebUI reads, moves or overwrites them.

The WebUI may load the next checkpoint into the very tensors of the one that is shown, also in the middle of a picture
(refiner, hires checkpoint), where nobody calls `activate` again. So the two functions through which all of that goes
are wrapped:

    reload_model_weights             outer: afterwards, within a job, the new model shows what the old one did
      └ reuse_model_from_already_loaded   reached only if a swap will really take place: hide

The usual call, which finds that there is nothing to swap, costs a comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from modules import errors, sd_models, shared

from ...engine.session import Session

_WRAPPED = ("reload_model_weights", "reuse_model_from_already_loaded")


class CheckpointSwaps:
    """The wrappers, for as long as the extension is loaded."""

    def __init__(self, session: Session, show_again: Callable[[Any], None]) -> None:
        """Hide `session` before a swap; after one within a job call `show_again` with the model that is there then."""
        self._session = session
        self._show_again_on = show_again
        self._originals: dict[str, Callable[..., Any]] = {}
        self._ours: dict[str, Callable[..., Any]] = {}
        self._active = False
        self._hidden = False

    def install(self) -> None:
        """Wrap the two functions. All callers reach them through the module's attribute."""
        wrappers = {"reload_model_weights": self._around, "reuse_model_from_already_loaded": self._before}
        for name in _WRAPPED:
            self._originals[name] = getattr(sd_models, name)
            self._ours[name] = wrappers[name](self._originals[name])
            setattr(sd_models, name, self._ours[name])
        self._active = True

    def remove(self) -> None:
        """Give the functions back; where another extension has wrapped ours since, ours stays and does nothing."""
        self._active = False
        for name in _WRAPPED:
            if getattr(sd_models, name) is self._ours.get(name):
                setattr(sd_models, name, self._originals[name])

    def _before(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def reuse_model_from_already_loaded(*args: Any, **kwargs: Any) -> Any:
            if self._active:
                self._session.hide()
                self._hidden = True
            return original(*args, **kwargs)

        return reuse_model_from_already_loaded

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def reload_model_weights(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            finally:
                if self._active and self._hidden:
                    self._hidden = False
                    self._show_again()

        return reload_model_weights

    def _show_again(self) -> None:
        """Within a job, patch the model that is there now; a failed load has put the previous one back."""
        model = sd_models.model_data.sd_model
        if model is None or not self._session.wanted or not shared.state.job:
            return
        try:
            self._show_again_on(model)
        except Exception:  # a host's function must not fail for us; the weights are whole
            errors.report("[lora-runtime] LoRAs could not be applied to the checkpoint loaded now", exc_info=True)

"""What others may put around the program's own calls, and into its modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class WrappersMP:
    SAMPLER_SAMPLE = "sampler_sample"
    APPLY_MODEL = "apply_model"


class PatcherInjection:
    def __init__(self, inject: Callable[[Any], None], eject: Callable[[Any], None]) -> None:
        self.inject, self.eject = inject, eject


class WrapperExecutor:
    """The next of the wrappers around a method; called by a wrapper it goes on to the one after."""

    def __init__(self, original: Callable[..., Any], owner: Any, wrappers: list[Callable[..., Any]]) -> None:
        self.original, self.class_obj, self.wrappers = original, owner, wrappers

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        if not self.wrappers:
            return self.original(*args, **kwargs)
        return self.wrappers[0](self, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return WrapperExecutor(self.original, self.class_obj, self.wrappers[1:]).execute(*args, **kwargs)


def wrapped(original: Callable[..., Any], owner: Any, kind: str, options: Mapping[str, Any]) -> WrapperExecutor:
    """Return a method with the wrappers of a kind that the options of a sampling have."""
    own = options.get("wrappers", {}).get(kind, {})
    return WrapperExecutor(original, owner, [wrapper for wrappers in own.values() for wrapper in wrappers])

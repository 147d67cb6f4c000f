"""Dialects: one file a naming family. A new one is a file with a `Dialect` and a line in `DIALECTS`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lora_runtime.dialects.base import ANY, DENOISERS, Dialect
from lora_runtime.dialects.clip import CLIP
from lora_runtime.dialects.kohya import KOHYA
from lora_runtime.dialects.ldm import LDM
from lora_runtime.dialects.peft import PEFT
from lora_runtime.dialects.processor import PROCESSOR

__all__ = ["ANY", "DENOISERS", "DIALECTS", "Dialect", "component_of", "normalise", "prefixes", "spellings"]

DIALECTS: tuple[Dialect, ...] = (KOHYA, LDM, PEFT, PROCESSOR, CLIP)

_BARE = ("", "base_model.model.")


def normalise(name: str) -> str:
    """Return the name with `_` for `.`: files mix the two, and `_` cannot be turned back."""
    return name.replace(".", "_")


def prefixes(component: str, components: Sequence[str]) -> tuple[str, ...]:
    """Return the prefixes that mean `component` in a model with these components, as files write them.

    A path without any prefix means the denoiser, and a text encoder where there is only one.
    """
    if component == ANY:
        return (*_BARE, *dict.fromkeys(prefix for _, prefix in _all_prefixes()))
    found = [prefix for dialect in DIALECTS for prefix in dialect.prefixes.get(component, ())]
    denoiser = next((name for name in DENOISERS if name in components), None)
    if component in DENOISERS and component != denoiser:
        found = [f"{component}."]  # the second of a cascade: only its own name can mean it
    elif not found:
        found = [f"{component}.", f"{component}.base_model.model."]
    encoders = [name for name in components if name.startswith("text_encoder")]
    if component == denoiser or encoders == [component] or len(components) == 1:
        found += _BARE
    return tuple(found)


def component_of(stem: str) -> str | None:
    """Return the component that the prefix of a file's name speaks of ("unet" for any denoiser), or None."""
    name = normalise(stem)
    found = max(
        ((prefix, component) for component, prefix in _all_prefixes() if name.startswith(normalise(prefix))),
        key=lambda pair: len(pair[0]),
        default=None,
    )
    return None if found is None else found[1]


def spellings(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (path, name) for every name that a module of a component has in any dialect, its own included."""
    yield from zip(paths, paths, strict=True)
    for dialect in DIALECTS:
        yield from dialect.spellings(paths)


def _all_prefixes() -> Iterable[tuple[str, str]]:
    for dialect in DIALECTS:
        for component, found in dialect.prefixes.items():
            for prefix in found:
                yield component, prefix

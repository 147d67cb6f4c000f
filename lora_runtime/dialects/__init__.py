"""Dialects: what files call a module, in all ways that are known.

Those of a family are in its record; here are those of no family, one file each, and what is read from all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from lora_runtime.dialects.clip import CLIP
from lora_runtime.dialects.kohya import KOHYA
from lora_runtime.dialects.ldm import LDM
from lora_runtime.dialects.llm import LLM
from lora_runtime.dialects.open_clip import OPEN_CLIP
from lora_runtime.dialects.peft import PEFT
from lora_runtime.dialects.processor import PROCESSOR
from lora_runtime.families import FAMILIES
from lora_runtime.families.dialect import ANY, DENOISERS, WHOLE, Dialect, Part

__all__ = [
    "ANY",
    "DENOISERS",
    "DIALECTS",
    "WHOLE",
    "Dialect",
    "Part",
    "component_of",
    "denoiser_of",
    "fused",
    "normalise",
    "prefixes",
    "spellings",
    "unwrapped",
    "without_prefix",
]

# Of nobody's family first: a name that a family has too means what it means in the family's files.
_OF_NO_FAMILY = (KOHYA, LDM, PEFT, PROCESSOR, CLIP, OPEN_CLIP, LLM)
_OF_FAMILIES = {dialect.name: dialect for family in FAMILIES for dialect in family.dialects}
DIALECTS: tuple[Dialect, ...] = (*_OF_NO_FAMILY, *_OF_FAMILIES.values())

_BARE = ("", "base_model.model.")
_T5 = "text_encoder_3"  # where it is beside two others


def normalise(name: str) -> str:
    """Return the name with `_` for `.`: files mix the two, and `_` cannot be turned back."""
    return name.replace(".", "_")


# What a model is wrapped in, or held by, while it is trained and saved; in a file's name it means nothing.
_WRAPPERS = re.compile(
    r"(?:(?:base_model_model|_?orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module|pipe|model|dit|net|vace)_)+"
)


def unwrapped(name: str, known: Sequence[str]) -> Iterator[str]:
    """Yield a normalised name without the wrappers at its beginning, and without those behind its prefix.

    `known` are normalised prefixes, the longest first. A prefix that is there twice counts once. These are for names
    that mean nothing as they are: "model." begins the paths of language models.
    """
    bare = _WRAPPERS.sub("", name, count=1) if _WRAPPERS.match(name) else name
    if bare != name:
        yield bare
    for prefix in known:
        if prefix and bare.startswith(prefix):
            rest = bare[len(prefix) :]
            inner = _WRAPPERS.sub("", rest, count=1) if _WRAPPERS.match(rest) else rest
            while inner.startswith(prefix):
                inner = inner[len(prefix) :]
            if inner != rest:
                yield prefix + inner


def denoiser_of(components: Sequence[str]) -> str | None:
    """Return the component that a file means by a denoiser's prefix: `transformer`, else `transformer_2`, and so on."""
    for kind in DENOISERS:
        own = [name for name in components if name.startswith(f"{kind}_") and "encoder" not in name]
        if kind in components or own:
            return kind if kind in components else own[0]
    return None


def prefixes(component: str, components: Sequence[str]) -> tuple[str, ...]:
    """Return the prefixes that mean `component` in a model with these components, as files write them.

    A path without any prefix means the denoiser, and a text encoder where there is only one.
    """
    if component == ANY:
        return (*_BARE, *dict.fromkeys(prefix for _, prefix in _all_prefixes()))
    denoiser = denoiser_of(components)
    kind = component
    if component == denoiser and component not in DENOISERS:  # `transformer_2` by itself, or `prior_prior`
        kind = next(kind for kind in DENOISERS if component.startswith(f"{kind}_"))
    found = [prefix for dialect in DIALECTS for prefix in dialect.prefixes.get(kind, ())]
    if kind != component:
        found += [f"{component}.", f"{component}.base_model.model."]
    elif component in DENOISERS and component != denoiser:
        found = [f"{component}."]  # the second of a cascade: only its own name can mean it
    if not found:
        found = [f"{component}.", f"{component}.base_model.model."]
    encoders = [name for name in components if name.startswith("text_encoder")]
    if _T5 not in components and component == max(encoders, default=""):  # to kohya the T5 of Flux is a third
        found += [prefix for dialect in DIALECTS for prefix in dialect.prefixes.get(_T5, ()) if _T5 not in prefix]
    if component == denoiser or encoders == [component] or len(components) == 1:
        found += _BARE
    return tuple(found)


def component_of(stem: str) -> str | None:
    """Return the component that the prefix of a file's name speaks of ("unet" for any denoiser), or None."""
    return without_prefix(stem)[0]


def without_prefix(stem: str) -> tuple[str | None, str]:
    """Return the component that the prefix of a file's name speaks of, or None, and the rest, normalised."""
    name = normalise(stem)
    found = max(
        ((prefix, component) for component, prefix in _all_prefixes() if name.startswith(normalise(prefix))),
        key=lambda pair: len(pair[0]),
        default=None,
    )
    return (None, name) if found is None else (found[1], name[len(found[0]) :])


def spellings(paths: Sequence[str]) -> Iterator[tuple[str, str, Part]]:
    """Yield (path, name, what of it) for every name that a module of a component has in any dialect, its own included.

    A model that is built otherwise has two sets of names: those made of its own paths, and those made of the paths
    that diffusers or transformers have in their place.
    """
    translated = {theirs: (path, part) for dialect in DIALECTS for path, theirs, part in dialect.translations(paths)}
    for path, name in _spell(paths):
        if name not in translated:  # a name that both have means what it means in files: theirs
            yield path, name, WHOLE
    for theirs, name in _spell(tuple(translated)):
        path, part = translated[theirs]
        yield path, name, part


def fused(paths: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (paths in the order of the file's rows, name) for every name that several modules have together."""
    together = {name: live for dialect in DIALECTS for live, name in dialect.fusions(paths)}
    for name, spelling in _spell(tuple(together)):
        yield together[name], spelling


def _spell(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield from zip(paths, paths, strict=True)
    for dialect in DIALECTS:
        yield from dialect.spellings(paths)


def _all_prefixes() -> Iterable[tuple[str, str]]:
    for dialect in DIALECTS:
        for component, found in dialect.prefixes.items():
            for prefix in found:
                yield component, prefix

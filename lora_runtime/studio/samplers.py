"""Samplers by the names that the WebUI has for them, which stand in pictures, and diffusers' schedulers for these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lora_runtime.studio.faults import StudioError

__all__ = ["OWN", "SAMPLERS", "called", "fields_of", "fitting", "sampling"]

OWN = "model's own"


@dataclass(frozen=True)
class Sampler:
    """A class of diffusers and how it differs from the model's configuration; "" is the model's own scheduler."""

    scheduler: str
    changes: Mapping[str, Any] = field(default_factory=dict)


def _dpm(algorithm: str, *, karras: bool) -> Sampler:
    return Sampler("DPMSolverMultistepScheduler", {"algorithm_type": algorithm, "use_karras_sigmas": karras})


_UNIFORM = {"use_karras_sigmas": False}
SAMPLERS: dict[str, Sampler] = {
    OWN: Sampler(""),
    "Euler": Sampler("EulerDiscreteScheduler", _UNIFORM),
    "Euler a": Sampler("EulerAncestralDiscreteScheduler"),
    "DPM++ 2M": _dpm("dpmsolver++", karras=False),
    "DPM++ 2M Karras": _dpm("dpmsolver++", karras=True),
    "DPM++ 2M SDE": _dpm("sde-dpmsolver++", karras=False),
    "DPM++ 2M SDE Karras": _dpm("sde-dpmsolver++", karras=True),
    "Heun": Sampler("HeunDiscreteScheduler", _UNIFORM),
    "DPM2": Sampler("KDPM2DiscreteScheduler", _UNIFORM),
    "UniPC": Sampler("UniPCMultistepScheduler", _UNIFORM),
    "DDIM": Sampler("DDIMScheduler"),
    "PLMS": Sampler("PNDMScheduler"),
    "DDPM": Sampler("DDPMScheduler"),
    "LCM": Sampler("LCMScheduler"),
}
_KARRAS_WORD = " Karras"


def fitting(scheduler: str) -> tuple[str, ...]:
    """Return the names of the samplers for models with this class of diffusers: its own alone for one that flows.

    "" is a class that nobody knows yet.
    """
    known = {sampler.scheduler for sampler in SAMPLERS.values()}
    return tuple(SAMPLERS) if scheduler in known else (OWN,)


@contextmanager
def sampling(pipe: Any, name: str) -> Iterator[None]:
    """Let a pipeline take its steps by this sampler within the block."""
    sampler, own = SAMPLERS[name], pipe.scheduler
    if not sampler.scheduler:
        yield
        return
    import diffusers

    if name not in fitting(kind := type(own).__name__):
        raise StudioError(f"this model takes its steps by {kind}, which {name} cannot stand for: choose {OWN!r}")
    pipe.scheduler = getattr(diffusers, sampler.scheduler).from_config(own.config, **sampler.changes)
    try:
        yield
    finally:
        pipe.scheduler = own


def called(pipe: Any) -> str:
    """Return the name of the sampler that a pipeline has now; diffusers' own for one that is not in the list."""
    kind, config = type(pipe.scheduler).__name__, pipe.scheduler.config
    for name, sampler in SAMPLERS.items():
        if sampler.scheduler == kind and all(config.get(key) == value for key, value in sampler.changes.items()):
            return name
    return str(kind.removesuffix("Scheduler"))


def fields_of(name: str) -> dict[str, str]:
    """Return what the WebUI writes for a sampler: its name, and its schedule apart where it has one of its own."""
    if name.endswith(_KARRAS_WORD):
        return {"Sampler": name.removesuffix(_KARRAS_WORD), "Schedule type": "Karras"}
    return {"Sampler": name}

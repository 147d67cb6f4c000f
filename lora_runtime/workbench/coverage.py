"""How much of a LoRA file fits a model, by the file's header alone."""

from __future__ import annotations

from lora_runtime.catalog import Entry
from lora_runtime.errors import LoraError
from lora_runtime.families import UNKNOWN
from lora_runtime.lora import outline
from lora_runtime.plan import make_plan
from lora_runtime.requests import Request
from lora_runtime.targets import Targets

__all__ = ["coverage_of"]


def coverage_of(entry: Entry, targets: Targets, family: str) -> str | None:
    """Return how much of a file fits a model of a family ("812 of 844 keys, made for SDXL"), None where all of it does.

    20 ms for a file with 800 keys. Where the file cannot be read, it is the reason.
    """
    try:
        lora = outline(entry.path)
    except LoraError as error:
        return str(error)
    (report,) = make_plan([Request(lora, 1.0, 1.0)], targets).report.loras
    if report.used == report.keys:
        return None
    made_for = "" if lora.family in (UNKNOWN, family) else f", made for {lora.family}"
    return f"{report.used} of {report.keys} keys{made_for}"

"""Where a strength that varies cannot act on a live model: what its rows are, or where its picture lies, is not known.

Nothing is guessed there: what is meant for some images, one side or one region is left out, with the reason.
"""

from __future__ import annotations

from torch import nn

from lora_runtime.families import Family, family_of, has_no_place, has_no_rows
from lora_runtime.pipelines import ModelView
from lora_runtime.sides import guidance_of
from lora_runtime.stage import Varying

__all__ = ["NO_PLACE", "Limits"]

NO_PLACE = "it reads text or time, which have no place in the picture; left out"
_SPLITS = "SplitInferenceModule"  # of diffusers' FreeNoise: a layer that gets its batch in pieces


class Limits:
    """What can be told of the calls of one model."""

    def __init__(self, model: ModelView, *, told: bool = False) -> None:
        """Look at the model as it is now. `told`: who runs it says what the rows of each call are, and its picture."""
        self._model = model
        self._told = told
        self.asked = False  # whether anything depended on the model as it was
        self._families: dict[str, Family | None] = {}
        self._blocks: dict[str, dict[str, str]] = {}  # by component: paths of blocks, and what is odd about their batch

    def reason(self, component: str, path: str, strength: Varying) -> str | None:
        """Return why a strength cannot act on a module, or None where it can."""
        if component.startswith("text_encoder") or not (strength.by_row or strength.place is not None):
            return None
        self.asked = True
        if component not in self._families:
            self._families[component] = family_of(self._model.components[component])
            self._blocks[component] = dict(_odd_blocks(self._model.components[component]))
        family = self._families[component]
        if not self._told and (unread := self._unread(component, family, strength)):
            return unread
        odd_block = next((why for block, why in self._blocks[component].items() if _is_within(path, block)), None)
        if odd_block is not None:
            return f"{odd_block}; left out"
        if strength.by_row and has_no_rows(family, path):
            return "it sees the rows of a call mixed or more than once; left out"
        if strength.place is not None and has_no_place(family, path):
            return NO_PLACE
        return None

    def _unread(self, component: str, family: Family | None, strength: Varying) -> str | None:
        """Return why the rows or the picture cannot be read from a denoiser's calls, or None where they can."""
        if family is None or family.read is None:
            kind = type(self._model.components[component]).__name__
            what = "rows of a call are which image and side" if strength.by_row else "tokens lie where in the picture"
            return f"which {what} is not known of {self._name(kind)}; left out"
        if strength.by_row and (odd := guidance_of(family, self._model.titles).reason):
            return f"the rows of {self._name()} cannot be told: {odd}; left out"
        if strength.place is not None and set(family.placeless) & set(self._model.titles):
            return f"the calls of {self._name()} do not say which tokens lie where in the picture; left out"
        return None

    def _name(self, kind: str = "") -> str:
        """Return the pipeline and the denoiser that a message is about."""
        pipeline = self._model.titles[0] if self._model.titles else ""
        return f"a {kind} in a {pipeline}" if kind and pipeline else f"a {kind or pipeline}"


def _is_within(path: str, block: str) -> bool:
    return not block or path == block or path.startswith(f"{block}.")


def _odd_blocks(root: nn.Module) -> list[tuple[str, str]]:
    """Return the blocks of a denoiser whose layers have another batch or other tokens than its calls, and why."""
    found = []
    for path, module in root.named_modules():
        if type(module).__name__ == _SPLITS:
            found.append((path, "its pipeline gives it its batch in pieces (split inference)"))
        elif getattr(module, "_chunk_size", None):
            found.append((f"{path}.ff", "its block runs its feed-forward in chunks (enable_forward_chunking)"))
        elif "faster_cache" in " ".join(getattr(getattr(module, "_diffusers_hook", None), "hooks", ())):
            found.append((path, "FasterCache leaves out rows of its calls"))
    return found

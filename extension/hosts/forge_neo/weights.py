"""What a checkpoint of Forge Neo shows: patches of ours on clones of its patchers.

Forge writes weights itself, whenever it loads a model to its device, and takes them back from copies of its own; where
memory is short, and "on the fly", it makes each W′ anew in every forward pass. So nothing is bound here. Each weight
gets one patch object, on a clone of the patcher, where the built-in extension's own clone would be:

    forge_objects_original            never touched
    forge_objects_after_applying_lora our clones, which the host takes at the start of each pass
    current_lora_hash                 our identity; a host that sets it back has other weights there, or wants them anew

Equal requests get the clone that is there, with the identity that Forge compares, so that nothing is loaded again.
"""

from __future__ import annotations

import logging
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from backend.args import dynamic_args
from backend.patcher.lora import weight_adapter
from torch import Tensor, nn

from lora_runtime.beside import Live
from lora_runtime.errors import LoraError, ModelError
from lora_runtime.hosted import HostKeeper, HostPatch, host_patches, identity_of
from lora_runtime.owners import Owner
from lora_runtime.pipelines import ModelView
from lora_runtime.plan import Plan
from lora_runtime.routes import modules_of
from lora_runtime.targets import Targets, look_at

from .denoiser import mark_rows
from .models import view_engine

__all__ = ["EngineWeights", "ForgePatch", "Weights"]

_log = logging.getLogger("lora_runtime")
_NOTHING = "[]"  # what Forge writes into `current_lora_hash` where no LoRA is applied


class ForgePatch(weight_adapter.WeightAdapterBase):
    """What Forge asks for a W′: all that is asked of one weight by any number of LoRAs."""

    name = "lora_runtime"

    def __init__(self, patch: HostPatch, backups: dict[str, Any], failures: list[str], *, first: bool) -> None:
        """`backups` is the patcher's table of originals; `failures` takes what goes wrong while Forge loads.

        `first`: no other patch comes before this one.
        """
        factors = [term.adapter.factors() for term in patch.terms]
        self.loaded_keys: set[str] = set()
        self.weights = [tensor for found in factors if found is not None for tensor in (found.up, found.down)]
        self._patch, self._backups, self._failures, self._first = patch, backups, failures, first

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Any,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> Tensor:
        """Return W′. The strengths are in the patch already; Forge's are 1.

        While a weight is loaded for good Forge has its original in `backups`, and here in the dtype that it computes
        LoRAs in, half precision on most cards: W′ is made of the original, and float32 for Forge to round. Where W′ is
        made for one forward pass, `weight` is a copy of the original as the layer computes with it.
        """
        kept = self._backups.get(key)
        try:
            if kept is None:
                return self._patch.merged(weight)
            if self._first and kept.weight.dtype == weight.dtype:
                return self._patch.merged(weight).float()
            original = kept.weight.to(weight.device)
            made = self._patch.merged(original).float()
            return made if self._first else made + (weight.float() - original.to(weight.dtype).float())
        except LoraError as error:
            self._failures.append(f"{error}; left out there")
        except Exception as error:  # nothing may stop a host in the middle of its loading
            _log.error("W′ of %s cannot be made", key, exc_info=True)
            self._failures.append(f"{self._patch.target}: {type(error).__name__}: {error}; left out there")
        return weight


class EngineWeights:
    """What one engine shows. It keeps the clones, and no engine."""

    def __init__(self, engine: Any, watched: Callable[[], bool]) -> None:
        """`watched` says whether somebody wants to know the rows of the denoiser's calls."""
        self._engine = weakref.ref(engine)
        self._watched = watched
        self._targets: Targets | None = None
        self._unet: Any = None  # the clones that are shown
        self._clip: Any = None
        self._marked = False
        self._live = Live()  # what acts beside the modules
        self._keys: weakref.WeakKeyDictionary[nn.Module, dict[int, str]] = weakref.WeakKeyDictionary()
        self.view: ModelView | None = None  # while it is held
        self.failures: list[str] = []  # of patches, while Forge loaded

    @property
    def engine(self) -> Any:
        """The engine; ModelError where it is gone."""
        engine = self._engine()
        if engine is None:
            raise ModelError("the checkpoint is gone")
        return engine

    @property
    def targets(self) -> Targets:
        """The places of the model by every name that files use."""
        assert self.view is not None, "hold it first"
        look = look_at(self.view)
        if self._targets is None or not self._targets.fits(look):
            self._targets = Targets(self.view, look)
        return self._targets

    def is_shown(self, owner: Owner) -> bool:
        """Return whether the engine still has our clones, and nobody has loaded other weights since."""
        objects = self.engine.forge_objects_after_applying_lora
        return (
            self._unet is not None
            and self.engine.current_lora_hash == self._identity()
            and objects.unet is self._unet
            and objects.clip is self._clip
        )

    def show(
        self,
        owner: Owner,
        plan: Plan,
        *,
        compiled: Callable[[], bool] = lambda: False,
        began: Callable[[Live], None] = lambda _: None,
    ) -> Plan:
        """Put the patches of a plan on clones, and what varies beside the modules; nothing where one of them fails."""
        engine, kept = self.engine, self.engine.forge_objects_original
        assert self.view is not None, "hold it first"
        modules = [module for root in self.view.components.values() for module in modules_of(root)]
        keeper = HostKeeper(modules, self._original)
        patches = host_patches(plan.assignments, keeper)
        for patch in patches:
            patch.check(self._original(patch.target.module, patch.name))
        of_text = [patch for patch in patches if patch.target.component.startswith("text_encoder")]
        of_denoiser = [patch for patch in patches if not patch.target.component.startswith("text_encoder")]
        marked = any(not live.component.startswith("text_encoder") for live in plan.lives)
        unet, clip = self._denoiser(kept.unet, of_denoiser, marked=marked), self._encoders(kept.clip, of_text)
        self._live = owner.live
        if not self.is_shown(owner):
            # Forge may have other weights there by now, whatever the counts of writes say.
            self._live.clear()
        try:
            if plan.lives:
                owner.live.apply(plan.lives, keeper, compiled=compiled())
                began(owner.live)
            else:
                owner.live.clear()
        except BaseException:
            self.restore()
            raise
        finally:
            self._forget_parameters()
        self._put(engine, unet, clip)
        self._marked = marked
        return plan

    def _forget_parameters(self) -> None:
        """Let go of the parameters that were found for a file: they may be a device's memory."""
        if self._targets is not None:
            self._targets.known.clear()

    def restore(self, *, release: bool = False) -> int:
        """Give the engine its own patchers; Forge takes its weights back when it loads them next."""
        self._live.clear()
        engine, shown = self.engine, self._unet is not None
        if shown:
            kept = engine.forge_objects_original
            self._put(engine, kept.unet, kept.clip)
            engine.current_lora_hash = _NOTHING
        self._unet = self._clip = None
        self._targets = None
        return int(shown)

    def _put(self, engine: Any, unet: Any, clip: Any) -> None:
        """Let the engine paint with these patchers from now on.

        Within a picture other extensions have clones of the denoiser's patcher: it is put there only where it changes.
        """
        ours = self._unet is not None and engine.current_lora_hash == self._identity()
        after = (engine.forge_objects_after_applying_lora if ours else engine.forge_objects).shallow_copy()
        after.unet, after.clip = unet, clip
        if not (ours and unet is self._unet):
            engine.forge_objects.unet = unet
        if not (ours and clip is self._clip):
            engine.forge_objects.clip = clip
        engine.forge_objects_after_applying_lora = after
        self._unet, self._clip = unet, clip
        engine.current_lora_hash = self._identity()

    def _identity(self) -> str:
        text = "" if self._clip is None else self._clip.patcher.patches_uuid
        return f"lora_runtime {self._unet.patches_uuid} {text} {_on_the_fly()}"

    # --- the host's patchers ---

    def _denoiser(self, original: Any, patches: Sequence[HostPatch], *, marked: bool) -> Any:
        """Return a patcher with these patches; `marked`: its calls say whose their rows are."""
        if not patches and not marked:
            return original
        identity = original.patches_uuid if not patches else _uuid(original, patches)
        known, was_marked = self._unet, self._marked
        if known is not None and known.parent is original and (known.patches_uuid, was_marked) == (identity, marked):
            return known
        clone = original.clone()
        self._add(clone, patches)
        if marked:
            clone.add_conditioning_modifier(mark_rows(self._watched))
        return clone

    def _encoders(self, original: Any, patches: Sequence[HostPatch]) -> Any:
        """Return the text encoders with these patches."""
        if original is None or not patches:
            return original
        identity = _uuid(original.patcher, patches)
        known = self._clip
        if known is not None and known is not original and known.patcher.patches_uuid == identity:
            return known
        clone = original.clone()
        self._add(clone.patcher, patches)
        return clone

    def _add(self, patcher: Any, patches: Sequence[HostPatch]) -> None:
        """Give a patcher these patches, under an identity that is equal for equal ones."""
        if not patches:
            return
        identity = _uuid(patcher.parent, patches)
        keys = self._keys_of(patcher.model)
        wanted = {}
        for patch in patches:
            key = f"{keys[id(patch.target.module)]}.{patch.name}"
            wanted[key] = ForgePatch(patch, patcher.backup, self.failures, first=not patcher.patches.get(key))
        taken = patcher.add_patches(wanted, 1.0, filename="lora_runtime", online_mode=_on_the_fly())
        if len(taken) != len(wanted):
            lacking = ", ".join(sorted(set(wanted) - set(taken))[:3])
            raise ModelError(f"Forge has no weights of these names: {lacking}")
        patcher.patches_uuid = identity

    def _keys_of(self, root: nn.Module) -> dict[int, str]:
        """Return the names that Forge has for modules, by their ids."""
        known = self._keys.get(root)
        if known is None:
            known = self._keys[root] = {id(module): name for name, module in root.named_modules()}
        return known

    def _original(self, module: nn.Module, name: str) -> Tensor:
        """Return W₀ of a parameter, which Forge may have replaced since."""
        kept = self.engine.forge_objects_original
        for patcher in (kept.unet, *(() if kept.clip is None else (kept.clip.patcher,))):
            path = self._keys_of(patcher.model).get(id(module))
            if path is not None:
                backup = patcher.backup.get(f"{path}.{name}")
                if backup is not None:
                    found: Tensor = backup.weight
                    return found
        parameter = module._parameters[name]
        assert parameter is not None
        return parameter.data


_NAMES = uuid.UUID("6b8f1a52-6a3c-4b39-9c1e-2f5f0c9c6f0e")  # of our identities


def _on_the_fly() -> bool:
    """Return whether the user wants W′ to be made in each forward pass."""
    return bool(dynamic_args.online_lora)


def _uuid(original: Any, patches: Sequence[HostPatch]) -> uuid.UUID:
    """Return what is equal only for equal patches on one patcher, worked out in the same way."""
    return uuid.uuid5(_NAMES, f"{original.patches_uuid} {_on_the_fly()} {identity_of(patches)}")


class Weights:
    """The engines that there are, and what each shows."""

    def __init__(self, watched: Callable[[], bool]) -> None:
        """`watched` as in EngineWeights."""
        self._watched = watched
        self._lock = threading.RLock()
        self._engines: weakref.WeakKeyDictionary[Any, EngineWeights] = weakref.WeakKeyDictionary()
        self._viewed: weakref.WeakKeyDictionary[ModelView, weakref.ref[Any]] = weakref.WeakKeyDictionary()

    def view(self, engine: Any) -> ModelView:
        """Return what adapters can change in an engine."""
        found = view_engine(engine)
        self._viewed[found] = weakref.ref(engine)
        return found

    @contextmanager
    def hold(self, view: ModelView) -> Iterator[EngineWeights]:
        """Hold an engine for the time of a `with` block."""
        with self._lock:
            engine = self._viewed[view]()
            if engine is None:
                raise ModelError("the checkpoint is gone")
            weights = self._engines.get(engine)
            if weights is None:
                weights = self._engines[engine] = EngineWeights(engine, self._watched)
            weights.view = view
            try:
                yield weights
            finally:
                weights.view = None

    def failures(self) -> list[str]:
        """Return what went wrong while Forge loaded weights since this was asked last, each once."""
        found = [message for weights in list(self._engines.values()) for message in weights.failures]
        for weights in list(self._engines.values()):
            weights.failures.clear()
        return list(dict.fromkeys(found))

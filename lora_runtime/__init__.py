"""Write `<lora:watercolor:0.7>` in a prompt and the picture changes; take it out and every weight is what it was.

    import lora_runtime
    with lora_runtime.apply(pipe, "a red circle <lora:watercolor:0.7>", loras="loras/") as applied:
        image = pipe(applied.prompt).images[0]

Names are imported on first use (PEP 562), so that `parse_prompt` and `LoraCatalog` work without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_runtime.adapters import Adapter as Adapter
    from lora_runtime.applied import Applied as Applied
    from lora_runtime.catalog import LoraCatalog as LoraCatalog
    from lora_runtime.errors import AmbiguousLoraError as AmbiguousLoraError
    from lora_runtime.errors import CatalogError as CatalogError
    from lora_runtime.errors import CorruptFileError as CorruptFileError
    from lora_runtime.errors import LoraError as LoraError
    from lora_runtime.errors import LoraFileError as LoraFileError
    from lora_runtime.errors import MemoryBudgetError as MemoryBudgetError
    from lora_runtime.errors import ModelBusyError as ModelBusyError
    from lora_runtime.errors import ModelError as ModelError
    from lora_runtime.errors import NoMatchError as NoMatchError
    from lora_runtime.errors import RefusedFileError as RefusedFileError
    from lora_runtime.errors import RegionError as RegionError
    from lora_runtime.errors import StrengthError as StrengthError
    from lora_runtime.errors import TagSyntaxError as TagSyntaxError
    from lora_runtime.errors import TrainingError as TrainingError
    from lora_runtime.errors import UnknownLoraError as UnknownLoraError
    from lora_runtime.infotext import Infotext as Infotext
    from lora_runtime.infotext import read_infotext as read_infotext
    from lora_runtime.lookup import clear_cache as clear_cache
    from lora_runtime.lookup import limit_cache as limit_cache
    from lora_runtime.lora import Lora as Lora
    from lora_runtime.lora import load_lora as load_lora
    from lora_runtime.prompt import LoraTag as LoraTag
    from lora_runtime.prompt import Prompt as Prompt
    from lora_runtime.prompt import parse_prompt as parse_prompt
    from lora_runtime.runtime import apply as apply
    from lora_runtime.runtime import restore as restore

__version__ = "1.0.0"

_HOME = {
    "apply": "runtime",
    "restore": "runtime",
    "Applied": "applied",
    "clear_cache": "lookup",
    "limit_cache": "lookup",
    "read_infotext": "infotext",
    "Infotext": "infotext",
    "parse_prompt": "prompt",
    "Prompt": "prompt",
    "LoraTag": "prompt",
    "LoraCatalog": "catalog",
    "load_lora": "lora",
    "Lora": "lora",
    "Adapter": "adapters",
    "LoraError": "errors",
    "TagSyntaxError": "errors",
    "CatalogError": "errors",
    "UnknownLoraError": "errors",
    "AmbiguousLoraError": "errors",
    "LoraFileError": "errors",
    "RefusedFileError": "errors",
    "CorruptFileError": "errors",
    "MemoryBudgetError": "errors",
    "ModelError": "errors",
    "ModelBusyError": "errors",
    "NoMatchError": "errors",
    "RegionError": "errors",
    "StrengthError": "errors",
    "TrainingError": "errors",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    """Import a public name from the room that owns it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names, those not yet imported included."""
    return sorted({*globals(), *_HOME})

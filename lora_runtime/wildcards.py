"""One LoRA of a folder, drawn by the seed of the picture: `<lora:styles/*:0.7>`, or `<lora:*>` for one of all."""

from __future__ import annotations

from collections.abc import Iterable

from lora_runtime.errors import UnknownLoraError
from lora_runtime.prompt.excerpt import quote

__all__ = ["candidates", "draw_name", "is_wildcard"]


def is_wildcard(name: str) -> bool:
    """Return whether a name in a tag stands for one of the files in a folder."""
    return name == "*" or name.endswith("/*")


def candidates(name: str, names: Iterable[str]) -> list[str]:
    """Return the paths below a folder, in order: one of these is drawn."""
    folder = name.removesuffix("*")
    return sorted({path for path in names if path.startswith(folder)})


def draw_name(name: str, names: Iterable[str], seed: int | None) -> str:
    """Return one of the paths below a folder, the same for a seed wherever the folder has the same names in it.

    `names` are paths with `/`, without a suffix. Raises UnknownLoraError where the folder has none, or without a seed.
    """
    import hashlib  # not at the top: few prompts need it, and it takes a twentieth of the first call

    folder, found = name.removesuffix("*"), candidates(name, names)
    if not found:
        where = f"in a folder {quote(folder.rstrip('/'))}" if folder else "in the folders"
        raise UnknownLoraError(f"no LoRA is {where}, so none can be drawn", name)
    if seed is None:
        raise UnknownLoraError(
            f"{quote(name)} is one of {len(found)} files, drawn by the seed of the picture, which is not known here "
            "(apply takes it as seeds=)",
            name,
        )
    digest = hashlib.sha256(f"{seed}\n{name}".encode("utf-8", "surrogatepass")).digest()
    return found[int.from_bytes(digest[:6], "big") * len(found) >> 48]

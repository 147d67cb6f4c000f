"""Pictures and the texts in them."""

from __future__ import annotations

from typing import Any


def read_info_from_image(image: Any) -> tuple[str | None, dict[str, Any]]:
    """Return the parameters in a picture, and what else it holds."""
    return image.info.get("parameters"), {}


def save_image_with_geninfo(image: Any, geninfo: str | None, filename: str, **_: Any) -> None:
    """Write a picture."""
    image.save(filename)

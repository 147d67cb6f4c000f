"""What is pasted: pictures of a gallery."""

from __future__ import annotations

from typing import Any

from PIL import Image


def image_from_url_text(chosen: Any) -> Image.Image:
    """Return the picture that a gallery's entry names."""
    if isinstance(chosen, (list, tuple)):  # with its caption
        chosen = chosen[0]
    name = chosen["name"] if isinstance(chosen, dict) else chosen
    return Image.open(name)

"""The WebUI's Script class: the moments of a generation that the owner of a tag is not told of."""

from __future__ import annotations

from typing import Any

from modules import scripts

from .tag_owner import TagOwner

API_FIELD = "LoRA notices"


def script_class(owner: TagOwner) -> type[Any]:
    """Return a script that is always on and shows nothing; the WebUI makes one for each of its tabs."""

    class LoraRuntimeScript(scripts.Script):
        def title(self) -> str:
            return "LoRA Runtime"

        def show(self, is_img2img: bool) -> Any:
            return scripts.AlwaysVisible

        def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
            owner.before_batch(p)

        def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
            owner.before_conditioning(p)

        def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
            notices = owner.notices(p)
            if notices:
                # Into the answer of the API only: the texts that are saved with the pictures are written by now.
                fields = processed.extra_generation_params or {}
                processed.extra_generation_params = {**fields, API_FIELD: [notice.as_dict() for notice in notices]}

    return LoraRuntimeScript

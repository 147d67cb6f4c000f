"""One worker: a pipeline that is made once, and paints batches whose rows have LoRAs of their own."""

from __future__ import annotations

import inspect
import io
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_runtime.applied import Applied
from lora_runtime.errors import LoraError
from lora_runtime.infotext import infotext_of
from lora_runtime.lookup import Loras, catalog_for, files_of
from lora_runtime.prompt import Diagnostic
from lora_runtime.runtime import apply
from lora_runtime.sweep.manifest import Line, line_of
from lora_runtime.sweep.rows import Row

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Painted", "Painter", "reason_of"]

_CALL = {"num_inference_steps": "steps", "guidance_scale": "guidance_scale", "width": "width", "height": "height"}
_NOT_A_NUMBER = "invalid value encountered in cast"  # what numpy says where pixels become bytes


@dataclass(frozen=True)
class Painted:
    """What became of a row: the bytes of its PNG, None where it failed, and its line in the manifest."""

    png: bytes | None
    line: Line


class Painter:
    """Paints batches with one pipeline. A seed gives the same noise in any batch and on any device."""

    def __init__(self, make_pipe: Callable[[], Any], loras: Loras = None, worker: int = 0) -> None:
        """Make the pipeline; what `make_pipe` raises is raised."""
        self._pipe = make_pipe()
        self._loras = loras
        self._worker = worker
        parameters = inspect.signature(self._pipe.__call__).parameters.values()
        # What a row leaves out is the pipeline's own, and the picture says it.
        self._defaults = {each.name: each.default for each in parameters if isinstance(each.default, (int, float))}

    def paint(self, rows: Sequence[Row]) -> list[Painted]:
        """Return what became of each row of a batch, in order.

        Where something fails the batch is halved until what fails is alone: a bad row costs no other, and a batch that
        is too large for the memory is painted in parts.
        """
        try:
            return self._together(rows)
        except Exception as error:  # a pipeline may be anybody's, and so what it raises; the manifest says it
            if len(rows) == 1:
                return [Painted(None, line_of(rows[0], error=reason_of(error), worker=self._worker))]
        half = len(rows) // 2
        return self.paint(rows[:half]) + self.paint(rows[half:])

    def _together(self, rows: Sequence[Row]) -> list[Painted]:
        started = time.perf_counter()
        negative = [row.negative for row in rows] if rows[0].negative else None
        with apply(
            self._pipe,
            [row.prompt for row in rows],
            negative_prompt=negative,
            loras=self._loras,
            seeds=[row.seed for row in rows],
            strict=True,
        ) as applied:
            pictures = self._call(rows, applied.prompt, negative)
            diagnostics = applied.diagnostics
        seconds = (time.perf_counter() - started) / len(rows)
        found = []
        for index, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
            said = [each for each in diagnostics if _is_about(each, index, applied)]
            more = {"batch": len(rows), "seconds": round(seconds, 6), "worker": self._worker}
            found.append(self._painted(row, picture, applied, said, more))
        return found

    def _call(self, rows: Sequence[Row], prompts: list[str], negative: list[str] | None) -> list[Image.Image]:
        given = {name: getattr(rows[0], field) for name, field in _CALL.items()}
        given["negative_prompt"] = negative
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            pictures = self._pipe(
                prompts,
                generator=[torch.Generator("cpu").manual_seed(row.seed) for row in rows],
                **{name: value for name, value in given.items() if value is not None},
            ).images
        for warning in said:
            if _NOT_A_NUMBER in str(warning.message):
                raise LoraError("its pixels are no numbers (NaN): take lower strengths, or another dtype")
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if len(pictures) != len(rows):
            raise LoraError(f"the pipeline gave {len(pictures)} pictures for {len(rows)} prompts")
        return list(pictures)

    def _painted(
        self, row: Row, picture: Image.Image, applied: Applied[Any], said: Sequence[Diagnostic], more: dict[str, Any]
    ) -> Painted:
        from PIL.PngImagePlugin import PngInfo

        files, hashes = self._files(row, applied)
        parameters = {name: getattr(row, field) for name, field in _CALL.items()}
        parameters |= {name: self._defaults.get(name) for name, value in parameters.items() if value is None}
        parameters |= {"seed": row.seed, "width": picture.width, "height": picture.height}
        infotext = infotext_of(row.prompt, row.negative, parameters, hashes)
        notes, buffer = PngInfo(), io.BytesIO()
        notes.add_text("parameters", infotext)
        picture.save(buffer, "PNG", pnginfo=notes)
        line = line_of(
            row,
            file=f"{row.key}.png",
            infotext=infotext,
            files=files,
            diagnostics=[{"severity": each.severity, "message": each.message, "hint": each.hint} for each in said],
            **more,
        )
        return Painted(buffer.getvalue(), line)

    def _files(self, row: Row, applied: Applied[Any]) -> tuple[dict[str, str], dict[str, str]]:
        """Return, by the names in the tags, the SHA-256 of the files that were applied and that of their tensors."""
        catalog = catalog_for(self._loras)
        used = {str(lora.path): lora.sha256 for lora in applied.report.loras}
        files, hashes = {}, {}
        for tag, entry in (each for asked in row.tags for each in files_of(catalog, asked)):
            now = catalog.hashes(entry)
            files[tag.name] = used.get(str(entry.path), now.sha256)
            if files[tag.name] == now.sha256:  # else it was written anew while this was painted
                hashes[tag.name] = now.sha256_of_tensors
        return files, hashes


def reason_of(error: BaseException) -> str:
    """Return why a row failed, in one line; of what is no error of this library, its kind too."""
    said = " ".join(str(error).split())
    return said if isinstance(error, LoraError) and said else f"{type(error).__name__}: {said}".rstrip(": ")


def _is_about(diagnostic: Diagnostic, index: int, applied: Applied[Any]) -> bool:
    """Return whether a diagnostic is of this image: of its own text or its own tag, or of nobody's alone."""

    def own(image: int) -> bool:
        prompt = applied.prompts[image]
        of_tag = any(tag.span == diagnostic.span and f'"{tag.name}"' in diagnostic.message for tag in prompt.tags)
        return of_tag or diagnostic in prompt.diagnostics

    return own(index) or not any(map(own, range(len(applied.prompts))))

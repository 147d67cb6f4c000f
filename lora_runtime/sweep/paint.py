"""One worker: a pipeline that is made once, and paints batches whose rows have LoRAs of their own."""

from __future__ import annotations

import gc
import inspect
import io
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from lora_runtime.applied import Applied
from lora_runtime.batching.halving import Stopped, in_halves, reason_of
from lora_runtime.errors import LoraError, MemoryBudgetError, ModelBusyError
from lora_runtime.infotext import infotext_of
from lora_runtime.lookup import Loras, catalog_for, files_read
from lora_runtime.prompt import Diagnostic, parse_prompt, unparse
from lora_runtime.runtime import apply
from lora_runtime.sweep.manifest import Line, line_of
from lora_runtime.sweep.pipes import MakePipe, pipes_of
from lora_runtime.sweep.rows import Row
from lora_runtime.tag_files import drawn_from, files_of

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Painted", "Painter"]

_CALL = {"num_inference_steps": "steps", "guidance_scale": "guidance_scale", "width": "width", "height": "height"}
_NOT_A_NUMBER = "invalid value encountered in cast"  # what numpy says where pixels become bytes


@dataclass(frozen=True)
class Painted:
    """What became of a row: the bytes of its PNG, None where it failed, and its line in the manifest.

    `blame` of one that failed is "row" where it asks for what cannot be, "worker" where another might have painted it.
    """

    png: bytes | None
    line: Line
    blame: Literal["", "row", "worker"] = ""


class Painter:
    """Paints batches with one pipeline at a time. A seed gives the same noise in any batch and on any device."""

    def __init__(self, make_pipe: MakePipe, loras: Loras = None, worker: int = 0) -> None:
        """Make the pipeline where there is only one, and raise what that raises; of several each when it is due."""
        self._pipes = pipes_of(make_pipe)
        self._loras = loras
        self._worker = worker
        self._pipe: Any = None
        self._model: str | None = None
        self._accepted: Mapping[str, inspect.Parameter] = {}
        self._defaults: dict[str, float] = {}
        self._broken: dict[str, str] = {}  # why there is no pipeline, by the model's name
        if len(self._pipes) == 1:
            self._take(next(iter(self._pipes)))

    def paint(self, rows: Sequence[Row], stopped: Callable[[], bool] | None = None) -> list[Painted]:
        """Return what became of each row of a batch, in order.

        Where something fails the batch is halved until what fails is alone: a bad row costs no other, and a batch that
        is too large for the memory is painted in parts. `stopped` is asked after each step: once it says yes, Stopped
        is raised; a pipeline that cannot be stopped paints to its end.
        """
        return in_halves(rows, lambda part: self._together(part, stopped), self._failed)

    def _failed(self, row: Row, error: Exception) -> Painted:
        return Painted(None, line_of(row, error=reason_of(error), worker=self._worker), _blame(error))

    def _take(self, model: str) -> None:
        """Have the pipeline of a model. The one before is given up first: there may be no room for two."""
        if model == self._model:
            return
        if model in self._broken:
            raise LoraError(self._broken[model])
        if self._pipe is not None:
            self._pipe, self._model = None, None
            gc.collect()  # a pipeline and its modules know each other
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        try:
            self._pipe = self._pipes[model]()
        except Exception as error:
            if len(self._pipes) == 1:
                raise
            self._broken[model] = f'the model "{model}" cannot be had: {reason_of(error)}'
            raise LoraError(self._broken[model]) from error
        self._model = model
        self._accepted = inspect.signature(self._pipe.__call__).parameters
        # What a row leaves out is the pipeline's own, and the picture says it.
        defaults = {name: each.default for name, each in self._accepted.items()}
        self._defaults = {name: value for name, value in defaults.items() if isinstance(value, (int, float))}

    def _together(self, rows: Sequence[Row], stopped: Callable[[], bool] | None) -> list[Painted]:
        self._take(rows[0].model or next(iter(self._pipes)))
        started, read = time.perf_counter(), files_read()
        negative = [row.negative for row in rows] if rows[0].negative else None
        with apply(
            self._pipe,
            [row.prompt for row in rows],
            negative_prompt=negative,
            loras=self._loras,
            seeds=[row.seed for row in rows],
            strict=True,
        ) as applied:
            _in_one_call(applied)
            pictures = self._call(rows, applied.prompt, negative, stopped)
            _in_one_call(applied)  # of some models only a call shows it
            diagnostics = [applied.diagnostics_of(index) for index in range(len(rows))]
        seconds = (time.perf_counter() - started) / len(rows)
        found = []
        for index, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
            more = {"batch": len(rows), "seconds": round(seconds, 6), "worker": self._worker}
            more["read"] = 0 if index else files_read() - read  # of the whole batch, said once
            found.append(self._painted(row, picture, applied, diagnostics[index], more))
        return found

    def _call(
        self,
        rows: Sequence[Row],
        prompts: list[str],
        negative: list[str] | None,
        stopped: Callable[[], bool] | None,
    ) -> list[Image.Image]:
        asked = {name: getattr(rows[0], field) for name, field in _CALL.items()} | {"negative_prompt": negative}
        given = {name: value for name, value in asked.items() if value is not None}
        if strange := [name for name in given if not self._takes(name)]:
            raise LoraError(f"this pipeline takes no {', '.join(strange)}: leave it out")
        if stopped is not None and "callback_on_step_end" in self._accepted:
            given["callback_on_step_end"] = _stopping(stopped)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            pictures = self._pipe(
                prompts,
                generator=[torch.Generator("cpu").manual_seed(row.seed) for row in rows],
                **given,
            ).images
        for warning in said:
            if _NOT_A_NUMBER in str(warning.message):
                raise LoraError("its pixels are no numbers (NaN): take lower strengths, or another dtype")
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if len(pictures) != len(rows):
            raise LoraError(f"the pipeline gave {len(pictures)} pictures for {len(rows)} prompts")
        return list(pictures)

    def _takes(self, name: str) -> bool:
        """Return whether the pipeline's call has an argument of this name, or takes any."""
        return name in self._accepted or any(each.kind is each.VAR_KEYWORD for each in self._accepted.values())

    def _painted(
        self, row: Row, picture: Image.Image, applied: Applied[Any], said: Sequence[Diagnostic], more: dict[str, Any]
    ) -> Painted:
        from PIL.PngImagePlugin import PngInfo

        files, hashes = self._files(row, applied)
        parameters = {name: getattr(row, field) for name, field in _CALL.items()}
        parameters |= {name: self._defaults.get(name) for name, value in parameters.items() if value is None}
        parameters |= {"seed": row.seed, "width": picture.width, "height": picture.height}
        parameters |= {"Model": row.model} if row.model else {}
        infotext = infotext_of(self._drawn(row), row.negative, parameters, hashes)
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

    def _drawn(self, row: Row) -> str:
        """Return the prompt with the name of a file in each tag that has that of a folder.

        So the picture can be made again, whatever comes into the folder; `applied.infotext` does the same.
        """
        prompt, catalog = parse_prompt(row.prompt), catalog_for(self._loras)
        tags = tuple(drawn_from(catalog, tag, row.seed) for tag in prompt.tags)
        return row.prompt if tags == prompt.tags else unparse(replace(prompt, tags=tags))

    def _files(self, row: Row, applied: Applied[Any]) -> tuple[dict[str, str], dict[str, str]]:
        """Return, by the names in the tags, the SHA-256 of the files that were applied and that of their tensors."""
        catalog = catalog_for(self._loras)
        used = {str(lora.path): lora.sha256 for lora in applied.report.loras}
        files, hashes = {}, {}
        for tag, entry in (each for asked in row.tags for each in files_of(catalog, asked, seed=row.seed)):
            now = catalog.hashes(entry)
            files[tag.name] = used.get(str(entry.path), now.sha256)
            if files[tag.name] == now.sha256:  # else it was written anew while this was painted
                hashes[tag.name] = now.sha256_of_tensors
        return files, hashes


def _in_one_call(applied: Applied[Any]) -> None:
    """Raise LoraError where the rows would not be what each is alone; then they are painted in smaller batches."""
    if len(applied.calls) > 1:
        raise LoraError("in one call some of these pictures would not be what each is alone")


def _blame(error: Exception) -> Literal["row", "worker"]:
    """Return whose fault it is: what this library refuses and values that a pipeline refuses are the row's."""
    of_worker = isinstance(error, (ModelBusyError, MemoryBudgetError)) or not isinstance(error, (LoraError, ValueError))
    return "worker" if of_worker else "row"


def _stopping(stopped: Callable[[], bool]) -> Callable[..., dict[str, Any]]:
    """Return what diffusers calls after each step; it gives back what it is given, and changes nothing."""

    def step(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if stopped():
            raise Stopped
        return values

    return step

"""The weights of a checkpoint that are stored in 8 bits and less: codes, with their scales.

    kind                tensors of a weight                                          value
    fp8                 weight                                                       code
    fp8, scaled         weight, weight_scale (weight_scale_inv, scale_weight)        code · scale
    int8 of bnb         weight, SCB                                                  code · SCB / 127, of a row
    nf4, fp4 of bnb     weight, weight.absmax, weight.quant_map, weight.quant_state  map[code] · absmax, of a block

A weight that has changed is rounded to codes on the scales that are there, so that what stays the same keeps its code.
Nothing is clamped: where a value is beyond what its scale can hold, that scale grows until it holds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lora_runtime.header import Header
from lora_runtime.tensors import read_one
from lora_runtime.workbench.codes_base import Codes, read_json
from lora_runtime.workbench.codes_of_4_bits import InBlocks
from lora_runtime.workbench.codes_of_8_bits import InRows, Plain, Scaled

__all__ = ["Codes", "codes_in"]

_SCALES = ("weight_scale", "weight_scale_inv", "scale_weight")
_FP8 = ("F8_E4M3", "F8_E5M2")
_STATE = "quant_state.bitsandbytes__"
# What ComfyUI notes of a layer: these formats are codes times a scale, others have their values rotated or in 4 bits.
_COMFY_FORMATS = ("float8_e4m3fn", "float8_e5m2")
_COMFY_WORDS = {"format", "full_precision_matrix_mult"}


def codes_in(header: Header) -> Mapping[str, Codes]:
    """Return the weights of a checkpoint that are stored as codes, by key; what is of another kind is none of them."""
    return {codes.key: codes for codes in _found(header)}


def _found(header: Header) -> Iterator[Codes]:
    tensors = header.tensors
    states = {key.partition(f".{_STATE}")[0]: key for key in tensors if f".{_STATE}" in key}
    for key, info in tensors.items():
        module = key.rpartition(".")[0]
        if key in states:
            yield InBlocks(header, key, states[key])
        elif info.dtype == "I8" and f"{module}.SCB" in tensors and key == f"{module}.weight":
            yield InRows(header, key, f"{module}.SCB")
        elif info.dtype in _FP8 and info.shape not in ((0,), (1,), (2,)):  # `scaled_fp8`, ComfyUI's mark of a file
            scales = [f"{module}.{name}" for name in _SCALES if f"{module}.{name}" in tensors]
            if not scales or key != f"{module}.weight":
                yield Plain(header, key)
            elif (
                _read_by_scale(header, f"{module}.comfy_quant") and (scaled := Scaled(header, key, scales[0])).is_known
            ):
                yield scaled


def _read_by_scale(header: Header, note: str) -> bool:
    """Return whether ComfyUI's note on a layer, if there is one, says that its values are codes times a scale."""
    if note not in header.tensors:
        return True
    said = read_json(read_one(header.path, header.tensors[note]))
    return said.get("format") in _COMFY_FORMATS and said.keys() <= _COMFY_WORDS

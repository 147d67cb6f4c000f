"""LoRA and DoRA of MLX-LM: delta = scale · (a·b)ᵀ, with factors that stand right of the input: a (in, r), b (r, out).

The scale is in the adapter_config.json beside adapters.safetensors, and is not divided by the rank. DoRA's `m` is the
length of each output. Experts (`lora_a` of three dimensions) are modules that no PyTorch model has, and are refused; so
are embeddings, which MLX keeps untransposed: their shape does not fit.
"""

from __future__ import annotations

from lora_runtime.adapters.base import Adapter, Algorithm, Group
from lora_runtime.adapters.dora import Dora
from lora_runtime.adapters.lora import LowRank
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "build"]


def build(group: Group) -> list[Adapter]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    a, b = group.need("a", "b")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"the factors are no matrices that fit together: {group.shapes()}")
    scale = group.options.get("mlx_scale")
    if scale is None:
        raise ValueError("only the adapter_config.json, which is not beside it, tells its scale")
    lengths = group.tensors.get("m")
    low_rank = LowRank(b.t(), a.t(), None, group.keys, None, scale)
    if lengths is None:
        return [low_rank]
    if lengths.shape != b.shape[1:]:
        raise ValueError(f"the lengths (DoRA) are not those of the outputs: {group.shapes()}")
    return [Dora((low_rank,), lengths, True, group.keys, low_rank.rank, None)]


ALGORITHM = Algorithm("lora of MLX", ENDINGS["lora of MLX"], build, companions={".m": "mlx/m"}, shared=())

"""Three tiny networks, two pipelines that share one of them, and a folder of LoRA files with their formulas."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lora_runtime

WIDTH = 6
Change = Callable[[Tensor], Tensor]  # W₀ in float64 → Δ at strength 1


class TinyTransformer2DModel(nn.Module):
    """A denoiser: its layers stand side by side, so that the output shows each weight."""

    def __init__(self, seed: int, attention: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a = nn.Linear(WIDTH, WIDTH)
        self.b = nn.Linear(WIDTH, WIDTH, bias=False)
        if attention:
            from diffusers.models.attention_processor import Attention, AttnProcessor2_0

            self.attn = Attention(WIDTH, heads=1, dim_head=WIDTH, processor=AttnProcessor2_0())
        self.eval().requires_grad_(False)

    def forward(self, hidden_states: Tensor, timestep: Tensor | None = None) -> Tensor:
        return torch.stack([layer(hidden_states) for layer in self.children()])

    def fuse(self) -> None:
        """Run attention from one weight, as `fuse_qkv_projections` of diffusers' models does."""
        from diffusers.models.attention_processor import FusedAttnProcessor2_0

        self.attn.fuse_projections(fuse=True)
        self.attn.set_processor(FusedAttnProcessor2_0())

    def unfuse(self) -> None:
        """Run attention from three weights again; the fused one stays where it is, as with diffusers."""
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.attn.set_processor(AttnProcessor2_0())


class Pipeline:
    """A pipeline as the library sees one: a table of components."""

    scheduler = None

    def __init__(self, **components: nn.Module) -> None:
        self.components = components


def probe(dtype: torch.dtype) -> Tensor:
    """Return an input that shows every column of a weight, and its bias: the rows of the identity, and zero."""
    return torch.cat([torch.eye(WIDTH), torch.zeros(1, WIDTH)])[None].to(dtype)


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def _lora(seed: int) -> tuple[dict[str, Tensor], Change]:
    up, down = _random(WIDTH, 2, seed=seed), _random(2, WIDTH, seed=seed + 1)
    return {"lora_B.weight": up, "lora_A.weight": down}, lambda w: up.double() @ down.double()


def _loha(seed: int) -> tuple[dict[str, Tensor], Change]:
    a, c = (_random(WIDTH, 2, seed=seed + i) for i in range(2))
    b, d = (_random(2, WIDTH, seed=seed + i) for i in (2, 3))
    tensors = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}
    return tensors, lambda w: (a.double() @ b.double()) * (c.double() @ d.double())


def _full(seed: int) -> tuple[dict[str, Tensor], Change]:
    difference = _random(WIDTH, WIDTH, seed=seed)
    return {"diff": difference}, lambda w: difference.double()


def _dora(seed: int) -> tuple[dict[str, Tensor], Change]:
    tensors, inner = _lora(seed)
    lengths = _random(WIDTH, 1, seed=seed + 5).abs() + 0.5

    def change(w: Tensor) -> Tensor:
        total = w + inner(w)
        return lengths.double() * total / total.norm(dim=1, keepdim=True) - w

    return {"lora_up.weight": tensors["lora_B.weight"], "lora_down.weight": tensors["lora_A.weight"]} | {
        "dora_scale": lengths
    }, change


# By file: the algorithm, and the layers of each component that it changes.
FILES: Mapping[str, tuple[Callable[[int], tuple[dict[str, Tensor], Change]], Mapping[str, tuple[str, ...]]]] = {
    "all": (_lora, {"transformer": ("a", "b", "attn.to_q", "attn.to_k", "attn.to_v"), "text_encoder": ("a", "b")}),
    "loha": (_loha, {"transformer": ("a", "attn.to_q"), "text_encoder": ("b",)}),
    "full": (_full, {"transformer": ("b",), "text_encoder": ("a",)}),
    "dora": (_dora, {"transformer": ("a", "b", "attn.to_v")}),
}


@cache
def folder() -> tuple[Any, Mapping[str, Mapping[tuple[str, str], Change]]]:
    """Return a catalog of the files, and the change that each makes to a parameter: by component and path."""
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    changes: dict[str, dict[tuple[str, str], Change]] = {}
    for number, (name, (make, places)) in enumerate(FILES.items()):
        tensors: dict[str, Tensor] = {}
        changes[name] = {}
        spots = [(component, layer) for component, layers in places.items() for layer in layers]
        for index, (component, layer) in enumerate(spots):
            keys, change = make(1000 * number + 10 * index)
            tensors |= {f"{component}.{layer}.{key}": tensor for key, tensor in keys.items()}
            changes[name][component, f"{layer}.weight"] = change
        if name == "full":  # and a bias
            bias = _random(WIDTH, seed=77)
            tensors["transformer.a.diff_b"] = bias
            changes[name]["transformer", "a.bias"] = lambda w, bias=bias: bias.double()
        save_file(tensors, root / f"{name}.safetensors")
    return lora_runtime.LoraCatalog(root), changes


@cache
def _pristine() -> tuple[nn.Module, ...]:
    return TinyTransformer2DModel(1), TinyTransformer2DModel(2), TinyTransformer2DModel(3, attention=False)


def networks() -> tuple[nn.Module, ...]:
    """Return two denoisers and a text encoder, new ones each time with the same weights."""
    return tuple(copy.deepcopy(net) for net in _pristine())


@cache
def reference(kind: int) -> nn.Module:
    """Return a network to compute with: the same class, in float64, that no LoRA ever touches."""
    return copy.deepcopy(_pristine()[kind]).double()

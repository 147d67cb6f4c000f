"""Adapters that other libraries make, write and merge: what ours are timed and held against.

LyCORIS and PEFT write the file, our loader reads it, and both say what the weight becomes. Which of our algorithms that
is, the file tells: a kind that is not read yet is skipped by the error of its name, and counts as soon as it is read.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_runtime.adapters import Adapter, Algorithm, split_key
from lora_runtime.errors import LoraFileError
from lora_runtime.lora import load_lora

__all__ = ["JUDGES", "Judge", "Judged", "judged", "quiet"]

STEM = "lora_unet_x"


@dataclass(frozen=True)
class Judged:
    """One adapter on one layer, by us and by the library that wrote it."""

    judge: Judge
    adapters: tuple[Adapter, ...]  # those of the weight
    weight: Tensor  # W₀
    merged: Callable[[], Tensor]  # W′ by the library, computed anew by each call
    reset: Callable[[], None]  # to be called before each `merged`

    @property
    def algorithm(self) -> str:
        """Our name for it, as in the registry: that of the last of its keys which an algorithm owns."""
        owners = (parts.owner for key in reversed(self.adapters[-1].keys) if (parts := split_key(key)) is not None)
        return next(owner.name for owner in owners if isinstance(owner, Algorithm))

    def delta(self) -> Tensor:
        """Return ΣΔ(W₀) by us."""
        first, *others = (adapter.delta(self.weight) for adapter in self.adapters)
        return sum(others, start=first)


@dataclass(frozen=True)
class Judge:
    """A kind of adapter in a library: `make` puts one with random values on a layer and writes it into a folder."""

    library: str
    kind: str
    make: Callable[[nn.Module, Path], tuple[Path, Callable[[], Tensor], Callable[[], None]] | None]
    convolutions: bool = True  # whether the library can put it on one

    @property
    def name(self) -> str:
        """The kind and its library."""
        return f"{self.kind} ({self.library})"


def judged(judge: Judge, layer: nn.Module, folder: Path) -> Judged | None:
    """Return the adapter of a judge on a layer.

    None where its file is of a kind that is not read here, or the installed version of the library is too old for it.
    """
    weight = layer.weight.detach().clone()  # type: ignore[operator]
    with quiet():
        made = judge.make(layer, folder)
    if made is None:
        return None
    path, merged, reset = made
    try:
        (adapters,) = load_lora(path).adapters.values()
    except LoraFileError:
        return None
    return Judged(judge, tuple(a for a in adapters if a.parameter == "weight"), weight, merged, reset)


class quiet(warnings.catch_warnings):
    """In its `with` block the libraries give no advice."""

    def __enter__(self) -> None:  # type: ignore[override]
        super().__enter__()
        warnings.simplefilter("ignore")
        self._level = logging.root.manager.disable
        logging.disable(max(self._level, logging.WARNING))

    def __exit__(self, *error: object) -> None:
        logging.disable(self._level)
        super().__exit__(*error)


@torch.no_grad()
def _fill(parameters: Iterator[tuple[str, nn.Parameter]]) -> None:
    """Fill what is trained with noise that changes a weight by its own size; lengths stay near what they are."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if any(word in name for word in ("dora_scale", "magnitude", "rescale", "ia3_l", "boft_s")):
            parameter.mul_(1 + 0.1 * noise)
        else:
            parameter.copy_(noise * 0.2)


# ---- LyCORIS --------------------------------------------------------------------------------------------------------


def _lycoris(kind: str, module: str, name: str, **options: Any) -> Judge:
    def make(layer: nn.Module, folder: Path) -> tuple[Path, Callable[[], Tensor], Callable[[], None]]:
        made = getattr(import_module(f"lycoris.modules.{module}"), name)("x", layer, **options)
        _fill(made.named_parameters())
        path = folder / "lycoris.safetensors"
        tensors = made.eval().state_dict()
        save_file({f"{STEM}.{key}": value.detach().clone().contiguous() for key, value in tensors.items()}, path)

        @torch.no_grad()
        def merged() -> Tensor:
            weight: Tensor = made.get_merged_weight(multiplier=1.0, shape=layer.weight.shape)[0]  # type: ignore[union-attr]
            return weight

        return path, merged, lambda: None

    return Judge("LyCORIS", kind, make)


# ---- PEFT -----------------------------------------------------------------------------------------------------------


def _peft(kind: str, config: str, *, convolutions: bool = False, **options: Any) -> Judge:
    def make(layer: nn.Module, folder: Path) -> tuple[Path, Callable[[], Tensor], Callable[[], None]] | None:
        import peft

        if not hasattr(peft, config):
            return None
        original = layer.weight.detach().clone()  # type: ignore[operator]
        model: Any = peft.get_peft_model(nn.Sequential(layer), getattr(peft, config)(target_modules=["0"], **options))
        _fill(model.named_parameters())
        model.save_pretrained(str(folder))
        tuner = model.base_model.model[0]

        def reset() -> None:
            tuner.base_layer.weight.data = original.clone()
            tuner.merged_adapters.clear()

        @torch.no_grad()
        def merged() -> Tensor:
            tuner.merge()
            weight: Tensor = tuner.base_layer.weight.data
            return weight

        return folder, merged, reset

    return Judge("PEFT", kind, make, convolutions)


RANK = 16
# In LyCORIS's merged weight LoHa and LoKr take alpha/rank twice: an alpha of the rank says the same both ways.
JUDGES: tuple[Judge, ...] = (
    _lycoris("LoRA, LoCon", "locon", "LoConModule", lora_dim=RANK, alpha=RANK / 2),
    _lycoris("LoCon with a Tucker core", "locon", "LoConModule", lora_dim=RANK, alpha=RANK / 2, use_tucker=True),
    _lycoris("LoHa", "loha", "LohaModule", lora_dim=RANK, alpha=RANK),
    _lycoris("LoHa with a Tucker core", "loha", "LohaModule", lora_dim=RANK, alpha=RANK, use_tucker=True),
    _lycoris("LoKr", "lokr", "LokrModule", lora_dim=RANK, alpha=RANK),
    _lycoris("LoKr of small factors", "lokr", "LokrModule", lora_dim=4, alpha=4, factor=8, decompose_both=True),
    _lycoris("LoKr of whole factors", "lokr", "LokrModule", lora_dim=RANK, alpha=RANK, full_matrix=True),
    _lycoris("GLoRA", "glora", "GLoRAModule", lora_dim=RANK, alpha=RANK),
    _lycoris("IA³", "ia3", "IA3Module"),
    _lycoris("OFT", "diag_oft", "DiagOFTModule", lora_dim=32, constraint=0, rescaled=True),
    _lycoris("BOFT", "boft", "ButterflyOFTModule", lora_dim=16, constraint=0, rescaled=True),
    _lycoris("DoRA", "locon", "LoConModule", lora_dim=RANK, alpha=RANK / 2, weight_decompose=True),
    _peft("LoRA", "LoraConfig", r=RANK, lora_alpha=RANK / 2, convolutions=True),
    _peft("DoRA", "LoraConfig", r=RANK, lora_alpha=RANK / 2, use_dora=True, convolutions=True),
    _peft("LoHa", "LoHaConfig", r=RANK, alpha=RANK / 2, convolutions=True),
    _peft("LoKr", "LoKrConfig", r=RANK, alpha=RANK / 2, convolutions=True),
    _peft("AdaLoRA", "AdaLoraConfig", init_r=RANK, lora_alpha=RANK / 2, total_step=10),
    _peft("IA³", "IA3Config", feedforward_modules=[], convolutions=True),
    _peft("HRA", "HRAConfig", r=8, convolutions=True),
    _peft("HiRA", "HiraConfig", r=RANK, convolutions=True),
    _peft("MiSS", "MissConfig", r=64),
    _peft("MiSS bat", "MissConfig", r=64, init_weights="bat"),
    _peft("C3A", "C3AConfig", block_size=64),
    _peft("SHiRA", "ShiraConfig", r=RANK, random_seed=0),
    _peft("OFT", "OFTConfig", oft_block_size=32, use_cayley_neumann=False),
    _peft("OFT by Neumann's series", "OFTConfig", oft_block_size=32, use_cayley_neumann=True),
    _peft("BOFT", "BOFTConfig", boft_block_size=4, boft_n_butterfly_factor=2),
    _peft("GLoRA", "GloraConfig", r=RANK),
    _peft("VeRA", "VeraConfig", r=64),
    _peft("RoAd", "RoadConfig", variant="road_2", group_size=64),
    _peft("FourierFT", "FourierFTConfig", n_frequency=1000),
    _peft("WaveFT", "WaveFTConfig", n_frequency=1024),
    _peft("DeLoRA", "DeloraConfig", r=RANK),
    _peft("GraLoRA", "GraloraConfig", r=32),
    _peft("RandLoRA", "RandLoraConfig", r=32),
)

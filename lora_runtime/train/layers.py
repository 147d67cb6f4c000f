"""The layers in training: PEFT's, around the modules of a pipeline, and what a file says of them.

Which modules, as kohya's trainer: of a UNet the linear layers and 1 × 1 convolutions of its attention blocks, with
`conv_dim` those of its resnets and samplers too; of a transformer those of attention and feed-forward; of a CLIP all
projections. LoHa and LoKr are PEFT's own as well, which are LyCORIS' by names and formula: one way for all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lora_runtime.errors import TrainingError
from lora_runtime.key_endings import ENDINGS, ending_of
from lora_runtime.train.config import Config
from lora_runtime.train.models import Model
from lora_runtime.train.names import stems_of

__all__ = ["Layers", "wrap"]

_ADAPTER = "trained"  # a module has an attribute "training" of its own
_ATTENTION = "Transformer2DModel"
_CONVOLVED = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
_BLOCKS = re.compile(r"(.*_)?(transformer_)?blocks\.\d+\.")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclass(frozen=True, eq=False)
class _Layer:
    """One module in training: where it is, what a file calls it, and what stands there meanwhile."""

    component: str
    parent: nn.Module
    name: str  # in its parent
    path: str
    stem: str
    wrapped: Any  # peft's layer; its `base_layer` is the module of the model

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the tensors in training, by names that stay the same from run to run."""
        for name, parameter in self.wrapped.named_parameters():
            if not name.startswith("base_layer."):
                yield f"{self.component}.{self.path}.{name}", parameter


class Layers:
    """All layers in training of a model. They are on it until `take_off`, but not within `aside`."""

    def __init__(self, layers: list[_Layer], algorithm: str, frozen: dict[nn.Parameter, bool]) -> None:
        self._layers, self._algorithm, self._frozen = layers, algorithm, frozen

    def __len__(self) -> int:
        """Return how many modules have one."""
        return len(self._layers)

    def add(self, layers: list[_Layer]) -> None:
        """Have these layers too, which are on their modules."""
        self._layers += layers

    def parameters(self, component: str) -> dict[str, nn.Parameter]:
        """Return the tensors in training of one component, float32."""
        return dict(pair for layer in self._layers if layer.component == component for pair in layer.parameters())

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Have the model as it is without these layers for a `with` block."""
        for layer in self._layers:
            setattr(layer.parent, layer.name, layer.wrapped.base_layer)
        try:
            yield
        finally:
            for layer in self._layers:
                setattr(layer.parent, layer.name, layer.wrapped)

    def take_off(self) -> None:
        """Give the model its own modules back, and each parameter whether it wants a gradient."""
        for layer in self._layers:
            setattr(layer.parent, layer.name, layer.wrapped.base_layer)
        for parameter, wanted in self._frozen.items():
            parameter.requires_grad_(wanted)

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return what a file says: copies in `dtype` by key, with an alpha where the names go with one.

        TrainingError where a number is beyond what the dtype can hold.
        """
        found: dict[str, Tensor] = {}
        for layer in self._layers:
            for key, tensor in _said(layer, self._algorithm):
                found[key] = tensor.detach().to("cpu", dtype, copy=True).contiguous()
                if not bool(torch.isfinite(found[key]).all()):
                    raise TrainingError(
                        f"{key}: its numbers are beyond what {dtype} can hold; give save_precision float32, or a lower "
                        "learning_rate"
                    )
        return found


def wrap(model: Model, config: Config) -> Layers:
    """Put layers on a model's modules, the rest of which wants no gradient from now on; TrainingError where none fit.

    The numbers that they begin with follow from config.seed alone.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    components: dict[str, nn.Module] = {model.component: model.denoiser} if config.train_unet else {}
    if config.train_text_encoder:
        components |= model.trainable_encoders
    parts = (model.denoiser, *model.encoders.values(), model.autoencoder)
    for part in parts:
        if any(isinstance(module, BaseTunerLayer) for module in part.modules()):
            raise TrainingError(f"{type(part).__name__} has layers of PEFT already: unload_lora_weights() first")
    frozen = {parameter: parameter.requires_grad for part in parts for parameter in part.parameters()}
    layers = Layers([], config.network_module, frozen)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            for part in parts:
                part.requires_grad_(False)
            for component, root in components.items():
                layers.add(_wrapped(model, component, root, config))
    except BaseException:
        layers.take_off()
        raise
    return layers


def _wrapped(model: Model, component: str, root: nn.Module, config: Config) -> list[_Layer]:
    """Put layers on a component."""
    from peft import inject_adapter_in_model

    chosen = list(_denoiser_modules(root, config) if root is model.denoiser else _projections(root))
    if not chosen:
        raise TrainingError(f"{type(root).__name__} has no module that is trained")
    stems = stems_of(model, component, root)
    parents = {path: root.get_submodule(path.rpartition(".")[0]) for path in chosen}
    with _marked_as_quantised(root, config):
        inject_adapter_in_model(_peft_config(root, chosen, config), root, adapter_name=_ADAPTER)
    del root.peft_config  # peft's note that it was here; the layers are all that there is
    layers = []
    for path, parent in parents.items():
        name = path.rpartition(".")[2]
        layers.append(_Layer(component, parent, name, path, stems[path], getattr(parent, name)))
    for layer in layers:
        for _, parameter in layer.parameters():
            parameter.data = parameter.data.float()
    return layers


def _denoiser_modules(root: nn.Module, config: Config) -> Iterator[str]:
    """Yield the paths of the modules of a denoiser that are trained."""
    inside: list[tuple[str, bool]] = []  # paths of blocks, and whether they are those of conv_dim
    for path, module in root.named_modules():
        kind = type(module).__name__
        if kind == _ATTENTION or (config.conv_dim and kind in _CONVOLVED):
            inside.append((f"{path}.", kind != _ATTENTION))
    for path, module in root.named_modules():
        if not inside:  # a transformer
            if isinstance(module, nn.Linear) and _BLOCKS.match(path) and "norm" not in path:
                yield path
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            in_attention = any(path.startswith(block) for block, convolved in inside if not convolved)
            in_resnet = any(path.startswith(block) for block, convolved in inside if convolved)
            if in_resnet or (in_attention and not _is_wide(module)):
                yield path


def _projections(root: nn.Module) -> Iterator[str]:
    for path, module in root.named_modules():
        if isinstance(module, nn.Linear) and path.endswith(_PROJECTIONS):
            yield path


def _is_wide(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)


def _peft_config(root: nn.Module, chosen: list[str], config: Config) -> Any:
    """Return PEFT's configuration for these modules of a component."""
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    # One pattern, as PEFT takes the names in a list for endings.
    wanted = "|".join(map(re.escape, chosen))
    wide = [f"^{re.escape(path)}$" for path in chosen if _is_wide(root.get_submodule(path))]
    ranks = dict.fromkeys(wide, config.conv_dim)
    alphas = dict.fromkeys(wide, config.conv_alpha or config.conv_dim)
    common: dict[str, Any] = {"target_modules": wanted, "rank_pattern": ranks, "alpha_pattern": alphas}
    if config.network_module == "lora":
        return LoraConfig(
            r=config.network_dim,
            lora_alpha=config.network_alpha,
            use_rslora=config.use_rslora,
            use_dora=config.use_dora,
            **common,
        )
    if config.quantize != "no":
        raise TrainingError(f"{config.network_module} on a quantised model: PEFT has none; give network_module lora")
    common |= {"r": config.network_dim, "alpha": config.network_alpha}
    if config.network_module == "loha":
        return LoHaConfig(**common)
    return LoKrConfig(decompose_factor=config.factor, init_weights="lycoris", **common)


@contextmanager
def _marked_as_quantised(root: nn.Module, config: Config) -> Iterator[None]:
    """Tell PEFT, which asks the model and not its layers, that bitsandbytes has its weights."""
    mark = {"nf4": "is_loaded_in_4bit", "int8": "is_loaded_in_8bit"}.get(config.quantize)
    if mark is None or hasattr(root, mark):
        yield
        return
    setattr(root, mark, True)
    try:
        yield
    finally:
        delattr(root, mark)


def _said(layer: _Layer, algorithm: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a layer by their keys."""
    wrapped, stem = layer.wrapped, layer.stem
    scale = float(wrapped.scaling[_ADAPTER])
    rank = int(wrapped.r[_ADAPTER])
    if algorithm == "lora":
        yield from _lora(stem, wrapped, scale, rank)
        return
    whole = algorithm == "lokr" and _ADAPTER in wrapped.lokr_w2
    for ending, spelled in ENDINGS[algorithm].items():
        held = getattr(wrapped, ending.removeprefix("."), {})  # peft keeps each tensor under its name in files
        if _ADAPTER in held:
            # Two whole factors have no rank to divide by: readers take them at scale 1.
            yield stem + ending, held[_ADAPTER] * scale if whole and spelled == "lokr/w1" else held[_ADAPTER]
    # LyCORIS reads no file without an alpha, though it has none to do with two whole factors.
    yield f"{stem}.alpha", torch.tensor(float(rank) if whole else scale * rank)


def _lora(stem: str, wrapped: Any, scale: float, rank: int) -> Iterator[tuple[str, Tensor]]:
    """Yield factors and magnitudes. A scale of α/√r (rsLoRA) is said as α·√r/r, for readers that know no other."""
    up, down = wrapped.lora_B[_ADAPTER].weight, wrapped.lora_A[_ADAPTER].weight
    magnitudes = getattr(wrapped, ending_of("dora", "dora/vector").removeprefix("."), {})
    magnitude = magnitudes[_ADAPTER].weight if _ADAPTER in magnitudes else None
    if "." in stem:  # a path, with which nobody reads an alpha
        yield stem + ending_of("lora", "peft/down"), down
        yield stem + ending_of("lora", "peft/up"), up * scale
        if magnitude is not None:
            yield stem + ending_of("dora", "dora/vector"), magnitude
        return
    yield stem + ending_of("lora", "kohya/down"), down
    yield stem + ending_of("lora", "kohya/up"), up
    yield f"{stem}.alpha", torch.tensor(scale * rank)
    if magnitude is not None:
        yield stem + ending_of("dora", "dora/scale"), magnitude.reshape(-1, *(1 for _ in range(down.ndim - 1)))

"""What may have been done to a pipeline before a LoRA is applied to it, by diffusers or by its user."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import lora_runtime
from matrix.device import DEVICE
from matrix.paint import Record

CPU = torch.device("cpu")


@dataclass(frozen=True)
class State:
    """`prepare` does it to a pipeline; `weights` are what its denoiser then computes with.

    `tolerance` is what the rounding of activations may come to over a picture, of the LoRA's own effect. `packages`
    must be installed; `applies` says to which denoiser it can be done. `offloads`:
    it brings the denoisers' weights to the device itself.
    """

    prepare: Callable[[Any, Record], None]
    weights: Callable[[nn.Module], Mapping[str, Tensor]] = lambda model: model.state_dict()
    tolerance: float = 2e-3
    packages: tuple[str, ...] = ()
    applies: Callable[[nn.Module], bool] = lambda model: True
    within: Callable[[], AbstractContextManager[None]] = nullcontext
    offloads: bool = False
    amid: Callable[[Record, Any, str], AbstractContextManager[None]] = lambda record, pipe, folder: nullcontext()

    @contextmanager
    def prepared(self, pipe: Any, record: Record) -> Iterator[Any]:
        """Give the pipeline in this state."""
        with self.within():
            if self.offloads:
                for name, part in pipe.components.items():
                    if isinstance(part, nn.Module) and name not in record.denoisers:
                        part.to(DEVICE)
            self.prepare(pipe, record)
            yield pipe if self.offloads else pipe.to(DEVICE)

    def lacks(self, record: Record) -> str:
        """Return why there is no such thing as this state of this pipeline, or an empty text."""
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            return f"{', '.join(missing)} is not installed"
        return "" if self.applies(getattr(record.make(), record.denoisers[0])) else "diffusers has no such thing here"


def _each(change: Callable[[nn.Module], Any]) -> Callable[[Any, Record], None]:
    """Return what does this to every denoiser of a pipeline."""

    def prepare(pipe: Any, record: Record) -> None:
        for name in record.denoisers:
            change(getattr(pipe, name))

    return prepare


# ---- one weight for three layers -----------------------------------------------------------------------------------


def _can_fuse(model: nn.Module) -> bool:
    trial = copy.deepcopy(model)
    try:
        trial.fuse_qkv_projections()
    except Exception:
        return False
    return any(getattr(module, "fused_projections", False) for module in trial.modules())


# ---- the same component in two pipelines ---------------------------------------------------------------------------


@contextmanager
def _another_comes_and_goes(record: Record, pipe: Any, folder: str) -> Iterator[None]:
    """Have another pipeline with the same denoiser apply something else, and leave again."""
    other = SimpleNamespace(components={name: getattr(pipe, name) for name in record.denoisers}, scheduler=None)
    with lora_runtime.apply(other, "<lora:x:-2>", loras=folder):
        pass
    yield


# ---- offloading ----------------------------------------------------------------------------------------------------


def _to_and_fro(model: nn.Module) -> None:
    """Do to each parameter what a move to the accelerator and back does: it comes back as new memory."""

    def move(*_: Any) -> None:
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()

    model.register_forward_pre_hook(move)
    model.register_forward_hook(move)


def _model_offload(pipe: Any, record: Record) -> None:
    if CPU == DEVICE:
        _each(_to_and_fro)(pipe, record)
    else:
        pipe.enable_model_cpu_offload(device=DEVICE)


def _sequential(pipe: Any, record: Record) -> None:
    from accelerate import cpu_offload

    for module in pipe.components.values():  # all of them: the pipeline asks any of them where it runs
        if isinstance(module, nn.Module):
            cpu_offload(module, DEVICE, offload_buffers=len(module._parameters) > 0)


def _group(kind: str, **more: Any) -> Callable[[nn.Module], None]:
    def offload(model: nn.Module) -> None:
        from diffusers.hooks import apply_group_offloading

        blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        disk = {"offload_to_disk_path": tempfile.mkdtemp()} if more.get("disk") else {}
        apply_group_offloading(model, DEVICE, CPU, offload_type=kind, **blocks, **disk)

    return offload


class _Stream:
    def synchronize(self) -> None: ...


class _Backend:
    """What diffusers asks of an accelerator, on the CPU."""

    def __init__(self, device: Any) -> None: ...

    def stream(self, stream: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def current_stream(self) -> _Stream:
        return _Stream()


@contextmanager
def _pretended_streams() -> Iterator[None]:
    """Stand in for the two things that only an accelerator has: streams, and pinned memory."""
    if CPU != DEVICE:
        yield
        return
    from unittest.mock import patch

    from diffusers.hooks import group_offloading

    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(group_offloading, "TorchDeviceBackend", _Backend, create=True))
        stack.enter_context(patch.object(torch.Tensor, "pin_memory", lambda self, *_: self.clone()))
        stack.enter_context(patch.object(torch.Tensor, "is_pinned", lambda self, *_: True))
        yield


def _streamed(kind: str) -> Callable[[nn.Module], None]:
    def offload(model: nn.Module) -> None:
        from diffusers.hooks import group_offloading as g

        if CPU != DEVICE:
            g.apply_group_offloading(model, DEVICE, CPU, kind, num_blocks_per_group=1, use_stream=True)
            return
        chosen = g.GroupOffloadingType.BLOCK_LEVEL if kind == "block_level" else g.GroupOffloadingType.LEAF_LEVEL
        config = g.GroupOffloadingConfig(
            onload_device=CPU,
            offload_device=CPU,
            offload_type=chosen,
            num_blocks_per_group=1,
            non_blocking=False,
            record_stream=False,
            low_cpu_mem_usage=False,
            stream=_Stream(),
        )
        g._apply_group_offloading(model, config)

    return offload


# ---- eight bits and fewer ------------------------------------------------------------------------------------------


def _layerwise(model: nn.Module) -> None:
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def _layerwise_weights(model: nn.Module) -> dict[str, Tensor]:
    trial = copy.deepcopy(model)
    _layerwise(trial)
    return {name: tensor.float() for name, tensor in trial.state_dict().items()}


def _bitsandbytes(kind: str) -> tuple[Callable[[nn.Module], None], Callable[[nn.Module], dict[str, Tensor]]]:
    def replace(model: nn.Module) -> None:
        import bitsandbytes as bnb

        whole = getattr(model, "_keep_in_fp32_modules", None) or ()  # diffusers' loader leaves these as they are
        for path, layer in [(p, m) for p, m in model.named_modules() if type(m) is nn.Linear]:
            if any(name in path.split(".") for name in whole):
                continue
            parent = model.get_submodule(path.rpartition(".")[0])
            new = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, layer.bias is not None, torch.float32, quant_type=kind
            )
            new.load_state_dict(layer.state_dict())
            new.weight.requires_grad_(False)
            setattr(parent, path.rpartition(".")[2], new.to("cpu"))

    def weights(model: nn.Module) -> dict[str, Tensor]:
        import bitsandbytes.functional as codes

        trial = copy.deepcopy(model)
        replace(trial)
        state = dict(model.state_dict())
        for path, layer in trial.named_modules():
            if type(layer).__name__ == "Linear4bit":
                state[f"{path}.weight"] = codes.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        return state

    return replace, weights


def _torchao() -> tuple[Callable[[nn.Module], None], Callable[[nn.Module], dict[str, Tensor]]]:
    def replace(model: nn.Module) -> None:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(model, Int8WeightOnlyConfig())

    return replace, _dequantised(replace)


def _quanto() -> tuple[Callable[[nn.Module], None], Callable[[nn.Module], dict[str, Tensor]]]:
    def replace(model: nn.Module) -> None:
        from optimum.quanto import freeze, qint8, quantize

        quantize(model, weights=qint8)
        freeze(model)

    return replace, _dequantised(replace)


def _dequantised(replace: Callable[[nn.Module], None]) -> Callable[[nn.Module], dict[str, Tensor]]:
    def weights(model: nn.Module) -> dict[str, Tensor]:
        trial = copy.deepcopy(model)
        replace(trial)
        return dict(model.state_dict()) | {
            name: parameter.dequantize().detach().float()
            for name, parameter in trial.named_parameters()
            if type(parameter.data) is not Tensor or type(parameter) is not nn.Parameter
        }

    return weights


def _gguf() -> tuple[Callable[[nn.Module], None], Callable[[nn.Module], dict[str, Tensor]]]:
    def replace(model: nn.Module) -> None:
        import gguf
        from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

        for path, layer in [(p, m) for p, m in model.named_modules() if type(m) is nn.Linear]:
            if layer.in_features % 32:
                continue
            parent = model.get_submodule(path.rpartition(".")[0])
            new = GGUFLinear(layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=torch.float32)
            packed = gguf.quantize(layer.weight.detach().numpy(), gguf.GGMLQuantizationType.Q8_0)
            new.weight = GGUFParameter(torch.from_numpy(packed), quant_type=gguf.GGMLQuantizationType.Q8_0)
            new.bias = layer.bias
            setattr(parent, path.rpartition(".")[2], new)

    def weights(model: nn.Module) -> dict[str, Tensor]:
        import gguf

        kind = gguf.GGMLQuantizationType.Q8_0
        state = dict(model.state_dict())
        for path, layer in model.named_modules():
            if type(layer) is nn.Linear and layer.in_features % 32 == 0:
                packed = gguf.quantize(layer.weight.detach().numpy(), kind)
                # diffusers multiplies code and scale in float16, whatever it computes with after that.
                state[f"{path}.weight"] = torch.from_numpy(gguf.dequantize(packed, kind)).half().float()
        return state

    return replace, weights


# ---- compiled ------------------------------------------------------------------------------------------------------


def _compiled(**more: Any) -> Callable[[Any, Record], None]:
    def prepare(pipe: Any, record: Record) -> None:
        torch.compiler.reset()
        for name in record.denoisers:
            getattr(pipe, name).compile(backend="eager", **more)

    return prepare


def _regional(pipe: Any, record: Record) -> None:
    torch.compiler.reset()
    for name in record.denoisers:
        getattr(pipe, name).compile_repeated_blocks(backend="eager", fullgraph=True)


def _quantised(made: tuple[Callable[[nn.Module], None], Callable[[nn.Module], Any]], *packages: str) -> State:
    return State(_each(made[0]), made[1], packages=packages, tolerance=5e-3)


STATES: Mapping[str, State] = {
    "plain": State(lambda pipe, record: None),
    "fused qkv": State(_each(lambda model: model.fuse_qkv_projections()), applies=_can_fuse),
    "shared": State(lambda pipe, record: None, amid=_another_comes_and_goes),
    "model offload": State(_model_offload, offloads=CPU != DEVICE),
    "sequential offload": State(_sequential, packages=("accelerate",), offloads=True),
    "group offload, blocks": State(_each(_group("block_level")), offloads=True),
    "group offload, leaves": State(_each(_group("leaf_level")), offloads=True),
    "group offload, disk": State(_each(_group("leaf_level", disk=True)), offloads=True),
    "group offload, stream": State(_each(_streamed("block_level")), within=_pretended_streams, offloads=True),
    "layerwise fp8": State(_each(_layerwise), _layerwise_weights),
    "bitsandbytes nf4": _quantised(_bitsandbytes("nf4"), "bitsandbytes"),
    "torchao int8": _quantised(_torchao(), "torchao"),
    "quanto int8": _quantised(_quanto(), "optimum.quanto")
    if find_spec("optimum")
    else State(lambda pipe, record: None, packages=("optimum",)),
    "GGUF Q8_0": _quantised(_gguf(), "gguf"),
    "compiled": State(_compiled()),
    "compiled, full graph": State(_compiled(fullgraph=True)),
    "compiled by regions": State(_regional, applies=lambda model: bool(getattr(model, "_repeated_blocks", None))),
}

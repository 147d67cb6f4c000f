"""The judge: the same picture by a plain pipeline, whose denoiser runs with W₀ + sΔ, computed in float64, for each row.

It knows nothing of the library that it judges. Whose a row of the batch is, the text in it says; the step, how often
the time that the denoiser is given has changed; where a token lies, the pipeline's record.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from matrix.device import DEVICE
from matrix.files import Change
from matrix.paint import Paint, Record, quiet
from matrix.strengths import Strength

Changes = Mapping[tuple[str, str], Change]


def judged(
    record: Record, wish: Strength, weights: Mapping[str, Mapping[str, Tensor]], changes: Mapping[tuple[str, str], Any]
) -> Tensor:
    """Return what the pipeline paints with these weights and changes."""
    pipe = quiet(record.make()).to(DEVICE)
    picture = Paint(wish.images)
    step = _steps()
    for name in record.denoisers:
        model = getattr(pipe, name)
        model.load_state_dict(dict(weights[name]), strict=False)
        mine = {path: change for (component, path), change in changes.items() if component == name}
        model.forward = _forward(_at(model, mine, wish, record), wish, picture, step)
    return picture_of(record.call(pipe, picture))


def picture_of(out: Any) -> Tensor:
    """Return what a pipeline painted as one tensor."""
    return (torch.stack(list(out)) if isinstance(out, (list, tuple)) else torch.as_tensor(out)).cpu().double()


def _at(
    model: nn.Module, changes: Mapping[str, Change], wish: Strength, record: Record
) -> Callable[[float], nn.Module]:
    """Return what gives the model at a strength, as it is when first asked for: pipelines add to models."""
    known: dict[float, nn.Module] = {}

    def at(strength: float) -> nn.Module:
        if strength not in known:
            known[strength] = copy.deepcopy(model)
            del known[strength].forward
            for name, change in changes.items():
                parameter = known[strength].get_parameter(name)
                weight = parameter.cpu().double()
                delta = strength * change(weight)
                if wish.left_half:
                    _act_left(known[strength].get_submodule(name.rpartition(".")[0]), delta, record)
                else:
                    parameter.data = (weight + delta).to(parameter)
        return known[strength]

    return at


def _forward(
    at: Callable[[float], nn.Module], wish: Strength, picture: Paint, step: Callable[..., int]
) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        now = step(args, kwargs)
        rows = picture.rows([args, kwargs])
        if rows is None:
            raise AssertionError("the judge does not find the text in the denoiser's call")
        strengths = [wish.at(now, picture.steps, image, side) for image, side in rows]
        outs = {strength: at(strength)(*args, **kwargs) for strength in dict.fromkeys(strengths)}
        return _mixed([outs[strength] for strength in strengths])

    return forward


def _steps() -> Callable[..., int]:
    """Return what counts the time steps that denoisers are called at, from 0."""
    seen: list[float] = []

    def step(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
        time = next((kwargs[name] for name in ("timestep", "timesteps", "t", "timestep_ratio") if name in kwargs), None)
        value = float(torch.as_tensor(args[1] if time is None else time).flatten()[0])
        if not seen or seen[-1] != value:
            seen.append(value)
        return len(seen) - 1

    return step


def _mixed(outs: Sequence[Any]) -> Any:
    """Return an output of which each row is that of its own model; frames of one picture may be rows of their own."""
    first = outs[0]
    if isinstance(first, Tensor) or (isinstance(first, list) and isinstance(first[0], Tensor)):
        rows = [out[index] for index, out in enumerate(outs[:: len(outs) // len(first)])]
        return torch.stack(rows) if isinstance(first, Tensor) else rows
    if isinstance(first, tuple):
        return tuple(_mixed([out[index] for out in outs]) for index in range(len(first)))
    values = {key: _mixed([out[key] for out in outs]) for key in first if first[key] is not None}
    return type(first)(**values)


def _act_left(layer: nn.Module, delta: Tensor, record: Record) -> None:
    """Have a layer's change act on the left half of the picture alone: its tokens are rows, frame by frame."""
    frames, height, width = record.grid or (0, 0, 0)

    def act(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        tokens = args[0].shape[-2]
        scale = next((k for k in (1, 2, 4, 8) if frames * height * width // k**2 == tokens), 1)
        columns = torch.arange(width // scale) < width // scale / 2
        inside = torch.zeros(tokens, 1)
        inside[: frames * height * width // scale**2, 0] = columns.repeat(frames * (height // scale)).float()
        return out + inside.to(out) * nn.functional.linear(args[0], delta.to(out))

    layer.register_forward_hook(act)

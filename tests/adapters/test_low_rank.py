"""LoRA and LoCon against the formula in float64 and against the layers' own forward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from lora_runtime.adapters import Adapter, Group, LowRank
from lora_runtime.adapters.lora import build
from lora_runtime.lora import load_lora, outline

# Δ is one product in float32 of inputs of size one over a rank of 3, so float32's last place and a few more.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def made(up: Tensor, down: Tensor, mid: Tensor | None = None, alpha: float | None = None, rs: bool = False) -> LowRank:
    tensors = {"up": up, "down": down} | ({} if mid is None else {"mid": mid})
    return build(Group("stem", tensors, ("u", "d"), alpha, rs))


def product(up: Tensor, down: Tensor, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    """Return the delta in float64, element by element as a sum of outer products."""
    flat_up, flat_down = up.double().flatten(1), down.double().flatten(1)
    total = torch.zeros(shape[0], flat_down.shape[1], dtype=torch.float64)
    for index in range(flat_up.shape[1]):
        total += torch.outer(flat_up[:, index], flat_down[index])
    return scale * total.reshape(shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3), (3, 1), (5,), (1, 3, 3)])
def test_delta_is_up_times_down_for_layers_of_any_dimension(kernel: tuple[int, ...], dtype: torch.dtype) -> None:
    up, down = rand(7, 3, *(1 for _ in kernel), dtype=dtype), rand(3, 5, *kernel, dtype=dtype)
    weight = rand(7, 5, *kernel)
    delta = made(up, down, alpha=1.5).delta(weight)
    assert delta.dtype == torch.float32
    torch.testing.assert_close(delta.double(), product(up, down, (7, 5, *kernel), 0.5), **CLOSE)


@pytest.mark.parametrize("up_shape", [(7, 3), (7, 3, 1, 1)])
@pytest.mark.parametrize("down_shape", [(3, 5), (3, 5, 1, 1)])
@pytest.mark.parametrize("weight_shape", [(7, 5), (7, 5, 1, 1), (7, 5, 1)])
def test_linear_and_1x1_storage_mean_the_same(
    up_shape: tuple[int, ...], down_shape: tuple[int, ...], weight_shape: tuple[int, ...]
) -> None:
    up, down, weight = rand(7, 3), rand(3, 5), rand(*weight_shape)
    adapter = made(up.reshape(up_shape), down.reshape(down_shape))
    assert adapter.misfit(weight.shape) is None
    assert adapter.delta(weight).shape == weight.shape
    torch.testing.assert_close(adapter.delta(weight).double(), product(up, down, weight_shape), **CLOSE)


def test_a_kernel_stored_flat_is_the_same_kernel() -> None:
    up, down = rand(7, 3), rand(3, 5, 3, 3)
    adapter = made(up, down.flatten(1))
    assert adapter.misfit(torch.Size((7, 5, 3, 3))) is None
    torch.testing.assert_close(adapter.delta(rand(7, 5, 3, 3)).double(), product(up, down, (7, 5, 3, 3)), **CLOSE)


@pytest.mark.parametrize(
    ("conv", "kernel"), [(F.conv1d, (3,)), (F.conv2d, (3, 3)), (F.conv2d, (1, 1)), (F.conv3d, (3, 3, 3))]
)
def test_a_convolution_acts_as_its_two_convolutions_do(conv: Callable[..., Tensor], kernel: tuple[int, ...]) -> None:
    ones = tuple(1 for _ in kernel)
    up, down = rand(6, 2, *ones), rand(2, 4, *kernel)
    adapter = made(up, down, alpha=4.0)
    image = rand(1, 4, *(7 for _ in kernel)).double()
    delta = adapter.delta(rand(6, 4, *kernel)).double()
    beside = conv(conv(image, down.double(), stride=2, padding=1), up.double()) * (4.0 / 2)
    torch.testing.assert_close(conv(image, delta, stride=2, padding=1), beside, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("conv", "kernel"), [(F.conv1d, (3,)), (F.conv2d, (3, 3)), (F.conv3d, (1, 3, 3))])
def test_a_tucker_core_acts_as_three_convolutions_do(conv: Callable[..., Tensor], kernel: tuple[int, ...]) -> None:
    ones = tuple(1 for _ in kernel)
    up, mid, down = rand(6, 3, *ones), rand(3, 3, *kernel), rand(3, 4, *ones)
    adapter = made(up, down, mid, alpha=1.0)
    weight = rand(6, 4, *kernel)
    assert adapter.misfit(weight.shape) is None
    image = rand(1, 4, *(6 for _ in kernel)).double()
    beside = conv(conv(conv(image, down.double()), mid.double()), up.double()) / 3
    torch.testing.assert_close(conv(image, adapter.delta(weight).double()), beside, rtol=1e-5, atol=1e-5)


def test_a_grouped_convolution_gets_the_delta_of_each_group() -> None:
    up, down = rand(6, 2, 1, 1), rand(2, 2, 3, 3)  # 4 channels in 2 groups
    layer = torch.nn.Conv2d(4, 6, 3, groups=2, bias=False)
    adapter = made(up, down)
    assert adapter.misfit(layer.weight.shape) is None
    delta = adapter.delta(layer.weight).double()
    image = rand(1, 4, 5, 5).double()
    # Each group of outputs sees its own two channels, through the same down factor.
    groups = [
        F.conv2d(F.conv2d(image[:, 2 * g : 2 * g + 2], down.double()), up[3 * g : 3 * g + 3].double()) for g in (0, 1)
    ]
    torch.testing.assert_close(F.conv2d(image, delta, groups=2), torch.cat(groups, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("alpha", "stabilised", "scale"), [(None, False, 1.0), (2.0, False, 0.5), (0.0, False, 0.0), (6.0, True, 3.0)]
)
def test_scale_is_alpha_over_rank(alpha: float | None, stabilised: bool, scale: float) -> None:
    adapter = made(rand(7, 4), rand(4, 5), alpha=alpha, rs=stabilised)
    assert (adapter.rank, adapter.alpha, adapter.scale) == (4, alpha, scale)
    assert adapter.algorithm == "lora"
    assert not adapter.base_dependent


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_rank_zero_changes_nothing(alpha: float | None) -> None:
    adapter = made(torch.zeros(7, 0), torch.zeros(0, 5), alpha=alpha)
    weight = rand(7, 5)
    assert adapter.rank == 0
    assert torch.equal(adapter.delta(weight), torch.zeros(7, 5))
    factors = adapter.factors()
    assert (factors.up.shape, factors.down.shape) == ((7, 0), (0, 5))


def test_factors_are_views_of_the_file() -> None:
    up, down = rand(7, 3, 1, 1, dtype=torch.float16), rand(3, 5, 3, 3, dtype=torch.float16)
    factors = made(up, down, alpha=6.0).factors()
    assert (factors.up.shape, factors.down.shape, factors.scale) == ((7, 3), (3, 45), 2.0)
    assert (factors.up.data_ptr(), factors.down.data_ptr()) == (up.data_ptr(), down.data_ptr())
    assert factors.up.dtype == factors.down.dtype == torch.float16


def test_a_core_folds_into_a_factor_of_the_same_rank() -> None:
    up, mid, down = rand(6, 3, 1, 1), rand(3, 3, 3, 3), rand(3, 4, 1, 1)
    factors = made(up, down, mid).factors()
    assert (factors.up.shape, factors.down.shape) == ((6, 3), (3, 36))
    folded = torch.zeros(3, 4, 3, 3, dtype=torch.float64)
    for m in range(3):
        for n in range(3):
            folded[m] += down[n].double() * mid[m, n].double()
    torch.testing.assert_close(factors.down.double(), folded.flatten(1), **CLOSE)


def test_delta_is_not_rounded_inside_autocast() -> None:
    up, mid, down = rand(6, 3, 1, 1), rand(3, 3, 3, 3), rand(3, 4, 1, 1)
    adapter, weight = made(up, down, mid), rand(6, 4, 3, 3)
    outside = adapter.delta(weight)
    with torch.autocast("cpu", torch.bfloat16):
        inside = adapter.delta(weight)
    assert torch.equal(inside, outside)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((320, 1024), "made for (320, 768), the weight is (320, 1024)"),
        ((640, 768), "made for (320, 768), the weight is (640, 768)"),
        ((320, 768, 3, 3), "made for (320, 768), the weight is (320, 768, 3, 3)"),
        ((320,), "made for (320, 768), the weight is (320,)"),
        ((), "made for (320, 768), the weight is ()"),
    ],
)
def test_a_misfit_names_both_shapes(shape: tuple[int, ...], reason: str) -> None:
    assert made(torch.zeros(320, 4), torch.zeros(4, 768)).misfit(torch.Size(shape)) == reason


def test_factors_for_a_weight_that_was_enlarged_fit_only_one_that_is(tmp_path: Path) -> None:
    tensors = {
        "img_in.lora_B.weight": rand(6, 2),
        "img_in.lora_A.weight": rand(2, 8),
        "img_in.reshape_weight": torch.tensor([6, 8]),
    }
    path = tmp_path / "control.safetensors"
    save_file(tensors, path)
    for lora in (load_lora(path), outline(path)):
        (adapter,) = lora.adapters["img_in"]
        assert set(adapter.keys) == set(tensors)
        assert adapter.misfit(torch.Size((6, 8))) is None
        reason = "made for a weight enlarged to (6, 8); a live weight, here (6, 4), keeps its shape"
        assert adapter.misfit(torch.Size((6, 4))) == reason


def test_a_kernel_does_not_fit_a_linear_layer_of_the_same_size() -> None:
    adapter = made(torch.zeros(8, 2, 1, 1), torch.zeros(2, 4, 3, 3))
    assert adapter.misfit(torch.Size((8, 36))) == "made for (8, 4, 3, 3), the weight is (8, 36)"


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"up": (7, 3)}, "an up factor without its down factor"),
        ({"down": (3, 5)}, "a down factor without its up factor"),
        ({"mid": (3, 3, 3, 3)}, "a core without its factors"),
        ({"up": (7, 3), "down": (4, 5)}, "the ranks of the factors differ: up (7, 3), down (4, 5)"),
        ({"up": (7, 3), "down": (5,)}, "the factors are neither matrices nor kernels: up (7, 3), down (5,)"),
        ({"up": (), "down": (3, 5)}, "the factors are neither matrices nor kernels: up (), down (3, 5)"),
        (
            {"up": (7, 3, 3, 3), "down": (3, 5, 1, 1)},
            "the factors are neither matrices nor kernels: up (7, 3, 3, 3), down (3, 5, 1, 1)",
        ),
        (
            {"up": (7, 3), "mid": (3, 2, 3, 3), "down": (3, 5)},
            "the ranks of the factors differ: up (7, 3), mid (3, 2, 3, 3), down (3, 5)",
        ),
        (
            {"up": (7, 3), "mid": (3, 3, 3, 3), "down": (3, 5, 3, 3)},
            "both the core and the down factor have a kernel: up (7, 3), mid (3, 3, 3, 3), down (3, 5, 3, 3)",
        ),
        (
            {"up": (7, 3), "mid": (3,), "down": (3, 5)},
            "the ranks of the factors differ: up (7, 3), mid (3,), down (3, 5)",
        ),
    ],
)
def test_tensors_that_do_not_fit_together_are_named(tensors: dict[str, tuple[int, ...]], reason: str) -> None:
    group = Group("stem", {role: torch.zeros(shape) for role, shape in tensors.items()}, ("key",))
    with pytest.raises(ValueError) as caught:
        build(group)
    assert str(caught.value) == reason


def test_a_low_rank_adapter_is_an_adapter() -> None:
    assert isinstance(made(rand(7, 3), rand(3, 5)), Adapter)

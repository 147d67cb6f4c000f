"""Factors on a device: how often they are copied there, how long they stay, and that no bit depends on it."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from device.pretend import Log, Pretend
from safetensors.torch import save_file
from torch import Tensor, nn

import lora_runtime
from lora_runtime.errors import StrengthError

OUT, IN, LAYERS, RANK = 96, 64, 3, 4
SIZE = 2 * OUT * IN * LAYERS  # of the weights, in half precision
MODES = ["device", "host", "inplace"]
Draw = Callable[..., Tensor]


def lora(draw: Draw) -> dict[str, Tensor]:
    return {"lora_A.weight": draw(RANK, IN), "lora_B.weight": draw(OUT, RANK)}


def dora(draw: Draw) -> dict[str, Tensor]:
    return {**lora(draw), "lora_magnitude_vector": draw(OUT).abs() + 1}


def loha(draw: Draw) -> dict[str, Tensor]:
    up, down = (OUT, RANK), (RANK, IN)
    return {"hada_w1_a": draw(*up), "hada_w1_b": draw(*down), "hada_w2_a": draw(*up), "hada_w2_b": draw(*down)}


def lokr(draw: Draw) -> dict[str, Tensor]:
    return {"lokr_w1": draw(8, 8), "lokr_w2_a": draw(OUT // 8, 2), "lokr_w2_b": draw(2, IN // 8)}


def full(draw: Draw) -> dict[str, Tensor]:
    return {"diff": draw(OUT, IN)}


KINDS = [lora, dora, loha, lokr, full]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def write(path: Path, kind: Callable[[Draw], dict[str, Tensor]], seed: int = 0, dtype: Any = torch.float16) -> int:
    """Write a file of one kind for all layers; return the bytes of its tensors, each padded to 64, and these to 512."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.1).to(dtype)

    tensors = {f"{layer}.{name}": tensor for layer in range(LAYERS) for name, tensor in kind(draw).items()}
    save_file(tensors, path)
    of_one = (tensor for name, tensor in tensors.items() if name.startswith("0."))
    size = sum(-(-tensor.numel() * tensor.element_size() // 64) * 64 for tensor in of_one)
    return LAYERS * (-(-size // 512) * 512)


@pytest.fixture
def layers(pretend: Pretend) -> Iterator[nn.Module]:
    """Give linear layers in bfloat16 on the device."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(IN, OUT, bias=False) for _ in range(LAYERS)))
    yield model.to(torch.bfloat16).requires_grad_(False).to(pretend.device)
    pretend.reset()
    lora_runtime.restore(model)


def bits(model: nn.Module) -> list[Tensor]:
    """Return copies of all parameters, in host memory."""
    return [parameter.detach().cpu().clone() for parameter in model.parameters()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def uploads(log: Log) -> int:
    return log.kinds["h2d"] + log.kinds["h2d async"]


def free(pretend: Pretend) -> int:
    gc.collect()
    return pretend.used


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_weight_has_one_upload_and_a_change_of_strength_none(
    pretend: Pretend, layers: nn.Module, tmp_path: Path, kind: Any, mode: Any
) -> None:
    write(tmp_path / "ink.safetensors", kind)
    write(tmp_path / "wash.safetensors", kind, seed=1)
    options: dict[str, Any] = {"loras": tmp_path, "originals": mode}
    with pretend.logged() as log:
        lora_runtime.apply(layers, "<lora:ink:0.3>", **options)
    assert uploads(log) == LAYERS
    originals = LAYERS if mode == "host" else 0  # W₀, of which the device has no copy
    for strength in (0.6, 0.9):
        with pretend.logged() as log:
            lora_runtime.apply(layers, f"<lora:ink:{strength}>", **options)
        assert uploads(log) == originals
    with pretend.logged() as log:
        lora_runtime.apply(layers, "<lora:ink:0.9><lora:wash>", **options)
    assert uploads(log) == originals + LAYERS  # of the file that came in
    with pretend.logged() as log:
        lora_runtime.apply(layers, "<lora:wash:0.2>", **options)
        lora_runtime.apply(layers, "<lora:ink:0.1>", **options)
    assert uploads(log) == 2 * originals  # what is not asked for stays too, where there is room


CONFIGURED: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {
    "fourierft": ({"random_loc_seed": 7, "scaling": 40.0}, {"fourierft_spectrum": torch.arange(1.0, 10)}),
    "waveft": (
        {"random_loc_seed": 7, "scaling": 4.0, "use_idwt": True, "wavelet_family": "db2"},
        {"waveft_spectrum": torch.arange(1.0, 10)},
    ),
    "trainable_tokens": ({"token_indices": [5, 2, 60]}, {"trainable_tokens_delta": torch.ones(3, IN)}),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", CONFIGURED)
def test_places_that_no_file_has_go_up_with_it(
    pretend: Pretend, layers: nn.Module, tmp_path: Path, kind: str, mode: Any
) -> None:
    """Which elements the numbers are for is in a configuration, or drawn for the size of the weight."""
    config, tensors = CONFIGURED[kind]
    (tmp_path / "ink").mkdir()
    said = {"peft_type": kind.upper(), "base_model_name_or_path": "", **config}
    (tmp_path / "ink/adapter_config.json").write_text(json.dumps(said))
    named = {f"base_model.model.{layer}.{key}": value for layer in range(LAYERS) for key, value in tensors.items()}
    save_file({key: value.clone() for key, value in named.items()}, tmp_path / "ink/adapter_model.safetensors")
    options: dict[str, Any] = {"loras": tmp_path, "originals": mode}
    before = bits(layers)
    with pretend.logged() as log:
        applied = lora_runtime.apply(layers, "<lora:ink:0.3>", **options)
    assert applied.report.live == 0
    assert uploads(log) == LAYERS
    with pretend.logged() as log:
        lora_runtime.apply(layers, "<lora:ink:0.7>", **options)
    assert uploads(log) == (LAYERS if mode == "host" else 0)
    shown = bits(layers)
    layers.to("cpu")
    lora_runtime.restore(layers)
    assert equal(bits(layers), before)
    lora_runtime.apply(layers, "<lora:ink:0.7>", loras=tmp_path)
    assert equal(bits(layers), shown)
    lora_runtime.restore(layers)


@pytest.mark.quick
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_the_cpus_however_long_factors_stay(
    pretend: Pretend, layers: nn.Module, tmp_path: Path, kind: Any, dtype: torch.dtype
) -> None:
    write(tmp_path / "ink.safetensors", kind, dtype=dtype)  # float64 is what the device refuses
    before, shown = bits(layers), []
    options: dict[str, Any] = {"loras": tmp_path, "originals": "device"}
    for device in ("cpu", "pretend"):
        layers.to(device)
        for room in (None, SIZE):  # none is left of the second
            lora_runtime.apply(layers, "<lora:ink:0.2>", device_memory=room, **options)
            (kept,) = lora_runtime.apply(layers, "<lora:ink:0.7>", device_memory=room, **options).report.memory
            assert bool(kept.factor_bytes) == (device == "pretend" and room is None)
            shown.append(bits(layers))
            lora_runtime.restore(layers)
            assert equal(bits(layers), before)
    assert not equal(shown[0], before)
    assert all(equal(shown[0], other) for other in shown)


@pytest.mark.parametrize("mode", MODES)
def test_what_stays_is_counted_said_and_given_back(
    pretend: Pretend, layers: nn.Module, tmp_path: Path, mode: Any
) -> None:
    size = write(tmp_path / "ink.safetensors", lora)
    used = free(pretend)
    applied = lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path, originals=mode)
    (kept,) = applied.report.memory
    assert kept.factor_bytes == size
    assert free(pretend) - used == size + kept.device_bytes
    assert "with 4.6 kB of factors there for the next change of strength" in str(kept)
    applied.restore()
    assert free(pretend) - used == size
    lora_runtime.restore(layers)
    assert free(pretend) == used


def test_half_of_a_budget_keeps_half_of_the_factors(pretend: Pretend, layers: nn.Module, tmp_path: Path) -> None:
    size = write(tmp_path / "ink.safetensors", lora)
    options: dict[str, Any] = {"loras": tmp_path, "device_memory": SIZE + size - 1}
    used = free(pretend)
    (kept,) = lora_runtime.apply(layers, "<lora:ink>", **options).report.memory
    assert (kept.step, kept.factor_bytes) == ("device", size * (LAYERS - 1) // LAYERS)
    assert free(pretend) - used == kept.device_bytes + kept.factor_bytes <= SIZE + size
    with pretend.logged() as log:
        lora_runtime.apply(layers, "<lora:ink:0.5>", **options)
    assert uploads(log) == 1


def test_a_budget_that_gets_less_gives_up_factors(pretend: Pretend, layers: nn.Module, tmp_path: Path) -> None:
    write(tmp_path / "ink.safetensors", lora)
    used = free(pretend)
    lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path)
    lora_runtime.apply(layers, "<lora:ink:0.5>", loras=tmp_path, device_memory=SIZE)
    assert free(pretend) - used == SIZE


def test_a_file_nobody_asks_for_makes_room_for_another(pretend: Pretend, layers: nn.Module, tmp_path: Path) -> None:
    size = write(tmp_path / "ink.safetensors", lora)
    write(tmp_path / "wash.safetensors", lora, seed=1)
    options: dict[str, Any] = {"loras": tmp_path, "device_memory": SIZE + size}
    used = free(pretend)
    lora_runtime.apply(layers, "<lora:ink>", **options)
    (kept,) = lora_runtime.apply(layers, "<lora:wash>", **options).report.memory
    assert kept.factor_bytes == size == free(pretend) - used - SIZE
    with pretend.logged() as log:
        lora_runtime.apply(layers, "<lora:wash:0.5>", **options)
    assert uploads(log) == 0


def test_a_quarter_of_what_is_free_is_the_most(pretend: Pretend, layers: nn.Module, tmp_path: Path) -> None:
    size = write(tmp_path / "ink.safetensors", full)
    pretend.limit(free(pretend) + SIZE + 4 * (size - 1))
    (kept,) = lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path, originals="device").report.memory
    assert kept.factor_bytes == size * (LAYERS - 1) // LAYERS


@pytest.mark.parametrize("mode", MODES)
def test_factors_are_given_up_before_anything_else(
    pretend: Pretend, layers: nn.Module, tmp_path: Path, mode: Any
) -> None:
    write(tmp_path / "ink.safetensors", lora)
    used = free(pretend)
    lora_runtime.apply(layers, "<lora:ink:0.5>", loras=tmp_path, originals=mode)
    expected = bits(layers)
    lora_runtime.restore(layers)
    begun = pretend.allocations
    lora_runtime.apply(layers, "<lora:ink:0.5>", loras=tmp_path, originals=mode)
    for place in range(1, pretend.allocations - begun):  # the first is that of the first factors
        lora_runtime.restore(layers)
        pretend.fail_in(place)
        (kept,) = lora_runtime.apply(layers, "<lora:ink:0.5>", loras=tmp_path, originals=mode).report.memory
        assert (kept.step, kept.factor_bytes) == (mode, 0)
        assert equal(bits(layers), expected)
        assert free(pretend) - used == kept.device_bytes


def test_factors_make_room_for_originals(pretend: Pretend, layers: nn.Module, tmp_path: Path) -> None:
    write(tmp_path / "ink.safetensors", full)
    before = bits(layers)
    other = nn.Sequential(*(nn.Linear(IN, OUT, bias=False) for _ in range(LAYERS))).requires_grad_(False)
    other.to(torch.bfloat16).to(pretend.device)
    lora_runtime.apply(
        other, "<lora:ink>", loras=tmp_path, originals="device"
    )  # its factors are as large as the weights
    layers.to("cpu")
    lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path)
    layers.to(pretend.device)
    kept = layers.state_dict()  # W′ is somebody's, so each original needs memory of its own
    pretend.limit(free(pretend))
    lora_runtime.restore(layers)
    assert equal(bits(layers), before)
    pretend.reset()
    del kept
    lora_runtime.restore(other)


def test_what_acts_beside_takes_the_place_of_factors(pretend: Pretend, layers: nn.Module, tmp_path: Path) -> None:
    write(tmp_path / "ink.safetensors", lora)
    write(tmp_path / "wash.safetensors", lora, seed=1)
    lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path)
    merged = bits(layers)
    pretend.fail_in(0)  # nothing is merged anew: it is an allocation for what acts beside
    applied = lora_runtime.apply(layers, "<lora:ink><lora:wash:0@0,1@1>", loras=tmp_path)
    (kept,) = applied.report.memory
    assert (applied.report.live, kept.factor_bytes) == (LAYERS, 0)
    assert equal(bits(layers), merged)


@pytest.mark.parametrize("patched", [True, False])
def test_factors_leave_a_device_with_the_model(
    pretend: Pretend, layers: nn.Module, tmp_path: Path, patched: bool
) -> None:
    write(tmp_path / "ink.safetensors", lora)
    applied = lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path)
    if not patched:
        applied.restore()
    layers.to("cpu")
    assert free(pretend) == 0
    lora_runtime.restore(layers)
    assert not any("_apply" in vars(layer) for layer in layers)


def test_two_models_share_the_factors_of_one_file(pretend: Pretend, layers: nn.Module, tmp_path: Path) -> None:
    size = write(tmp_path / "ink.safetensors", lora)
    other = nn.Sequential(*(nn.Linear(IN, OUT, bias=False) for _ in range(LAYERS))).requires_grad_(False)
    other.to(torch.bfloat16).to(pretend.device)
    used = free(pretend)
    lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path)
    with pretend.logged() as log:
        lora_runtime.apply(other, "<lora:ink>", loras=tmp_path)
    assert uploads(log) == 0
    assert free(pretend) - used == 2 * SIZE + size
    lora_runtime.restore(layers)
    assert free(pretend) - used == SIZE + size
    lora_runtime.restore(other)
    assert free(pretend) == used


def test_half_precision_is_summed_without_reading_back(pretend: Pretend, layers: nn.Module, tmp_path: Path) -> None:
    write(tmp_path / "ink.safetensors", lora)
    layers.to(torch.float16)
    lora_runtime.apply(layers, "<lora:ink:0.2>", loras=tmp_path)
    with pretend.logged() as log:
        lora_runtime.apply(layers, "<lora:ink:0.5>", loras=tmp_path)
    assert not log.ours["d2h"] + log.ours["d2h async"] + log.ours["sync"]


def test_an_apply_that_fails_leaves_nothing_on_a_device_that_the_model_leaves(
    pretend: Pretend, layers: nn.Module, tmp_path: Path
) -> None:
    write(tmp_path / "ink.safetensors", lora)
    layers.to(torch.float16)
    with pytest.raises(StrengthError):
        lora_runtime.apply(layers, "<lora:ink:1e9>", loras=tmp_path, strict=True)
    layers.to("cpu")
    assert free(pretend) == 0


def test_what_a_file_has_once_for_all_its_modules_goes_up_once(
    pretend: Pretend, layers: nn.Module, tmp_path: Path
) -> None:
    shared = {"vera_A": torch.randn(RANK, IN), "vera_B": torch.randn(OUT, RANK)}
    own = {
        f"{layer}.vera_lambda_{side}": torch.ones(size)
        for layer in range(LAYERS)
        for side, size in (("b", OUT), ("d", RANK))
    }
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in (shared | own).items()}, tmp_path / "ink.safetensors"
    )
    with pretend.logged() as log:
        lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path)
    assert uploads(log) == LAYERS
    numbers = 4 * OUT + 64  # λ of one module, each padded to 64 bytes
    assert log.bytes["h2d"] + log.bytes["h2d async"] == 4 * RANK * (IN + OUT) + LAYERS * numbers
    with pretend.logged() as log:
        lora_runtime.apply(layers, "<lora:ink:0.5>", loras=tmp_path)
    assert uploads(log) == 0

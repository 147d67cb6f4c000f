"""One file to adapters: what is used, what is not and why, and what is refused."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import os
import struct
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import lora_runtime.lora as loading
from lora_runtime.errors import CorruptFileError, LoraFileError, RefusedFileError
from lora_runtime.lora import Lora, load_lora, outline

UP, DOWN = torch.randn(6, 2), torch.randn(2, 4)


def kohya(stem: str = "lora_unet_x", **extra: Tensor) -> dict[str, Tensor]:
    """Return the factors of one module, and its other tensors by ending."""
    return {f"{stem}.lora_up.weight": UP, f"{stem}.lora_down.weight": DOWN} | {
        f"{stem}.{ending}": tensor for ending, tensor in extra.items()
    }


def written(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = folder / "ink.safetensors"
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, metadata)  # it refuses shared memory
    return path


def raw_file(path: Path, header: object, data: bytes) -> Path:
    """Write a file whose header is as given."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_a_file_is_its_content(tmp_path: Path) -> None:
    path = written(tmp_path, kohya(alpha=torch.tensor(1.0)), {"ss_output_name": "Ink"})
    lora = load_lora(str(path))
    assert isinstance(lora, Lora)
    assert (lora.name, lora.path) == ("ink", path)
    assert lora.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert dict(lora.metadata) == {"ss_output_name": "Ink"}
    assert (lora.key_count, lora.nbytes) == (3, path.stat().st_size)
    assert dict(lora.unused) == {}
    assert repr(lora) == f"<Lora 'ink' #{lora.sha256[:12]}: 1 modules, 3 keys>"
    assert load_lora(path, name="other").name == "other"


def test_only_who_asks_for_the_hash_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    class Slow:
        """Hashes on other threads than this one when it is let."""

        def __init__(self) -> None:
            self.real = hashlib.sha256()
            self.hexdigest = self.real.hexdigest

        def update(self, data: bytes) -> None:
            if threading.current_thread() is not threading.main_thread():
                assert go_on.wait(60)
            self.real.update(data)

    path = tmp_path / "ink.safetensors"
    save_file({"x.lora_A.weight": torch.ones(2, 3), "x.lora_B.weight": torch.ones(4, 2)}, path)
    monkeypatch.setattr("lora_runtime.tensors.hashlib", SimpleNamespace(sha256=Slow))
    lora = load_lora(path)
    assert list(lora.adapters) == ["x"]
    go_on.set()
    assert lora.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_lora_cannot_be_changed(tmp_path: Path) -> None:
    lora = load_lora(written(tmp_path, kohya()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        lora.name = "other"  # type: ignore[misc]
    for table in (lora.adapters, lora.unused, lora.metadata):
        with pytest.raises(TypeError):
            table["x"] = None  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_tensors_are_those_of_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    path = written(tmp_path, {key: tensor.to(dtype) for key, tensor in kohya().items()})
    (adapter,) = load_lora(path).adapters["lora_unet_x"]
    factors = adapter.factors()
    assert factors is not None
    with safe_open(path, "pt") as judge:
        for mine, key in ((factors.up, "lora_unet_x.lora_up.weight"), (factors.down, "lora_unet_x.lora_down.weight")):
            assert mine.dtype == dtype
            assert torch.equal(mine, judge.get_tensor(key))


def test_fp8_factors_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, {key: tensor.to(torch.float8_e4m3fn) for key, tensor in kohya().items()})
    (adapter,) = load_lora(path).adapters["lora_unet_x"]
    expected = UP.to(torch.float8_e4m3fn).double() @ DOWN.to(torch.float8_e4m3fn).double()
    torch.testing.assert_close(adapter.delta(torch.zeros(6, 4)).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_alpha_is_one_number_of_any_dtype(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = written(tmp_path, kohya(alpha=torch.full(shape, 3, dtype=dtype)))
    (adapter,) = load_lora(path).adapters["lora_unet_x"]
    assert (adapter.alpha, adapter.scale) == (3.0, 1.5)
    assert set(adapter.keys) == {f"lora_unet_x.{ending}" for ending in ("lora_up.weight", "lora_down.weight", "alpha")}


def test_a_missing_alpha_means_scale_one(tmp_path: Path) -> None:
    (adapter,) = load_lora(written(tmp_path, kohya())).adapters["lora_unet_x"]
    assert (adapter.alpha, adapter.scale) == (None, 1.0)


def test_an_alpha_of_a_key_goes_before_that_of_the_metadata(tmp_path: Path) -> None:
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8})}
    path = written(tmp_path, kohya("unet.x", alpha=torch.tensor(1.0)) | kohya("unet.y"), metadata)
    lora = load_lora(path)
    assert [lora.adapters[stem][0].scale for stem in ("unet.x", "unet.y")] == [0.5, 4.0]


def test_two_adapters_on_one_module_are_both_kept(tmp_path: Path) -> None:
    tensors = {f"x.lora_{side}.{name}.weight": t for name in "ab" for side, t in (("A", DOWN), ("B", UP))}
    lora = load_lora(written(tmp_path, tensors | {"x.alpha": torch.tensor(1.0)}))
    assert len(lora.adapters["x"]) == 2
    assert {adapter.scale for adapter in lora.adapters["x"]} == {0.5}
    assert sum(len(adapter.keys) for adapter in lora.adapters["x"]) == lora.key_count  # no key counts twice
    assert dict(lora.unused) == {}


SUPPORTED = kohya("good")


@pytest.mark.parametrize(
    ("tensors", "reasons"),
    [
        ({"x.weight": UP}, {"x.weight": "no adapter has keys with this ending"}),
        ({"x.alpha": torch.tensor(1.0)}, {"x.alpha": "an alpha without factors"}),
        ({"x.lora_up.weight": UP}, {"x.lora_up.weight": "an up factor without its down factor"}),
        (
            {"x.lora_down.weight": DOWN, "x.alpha": torch.tensor(1.0)},
            {"x.lora_down.weight": "a down factor without its up factor", "x.alpha": "an alpha without factors"},
        ),
        (
            {"x.lora_up.weight": UP, "x.lora_down.weight": torch.randn(3, 4)},
            dict.fromkeys(
                ("x.lora_up.weight", "x.lora_down.weight"), "the ranks of the factors differ: up (6, 2), down (3, 4)"
            ),
        ),
        (
            {"x.lora_up.weight": UP, "x.lora_down.weight": DOWN * float("nan")},
            dict.fromkeys(("x.lora_up.weight", "x.lora_down.weight"), "x.lora_down.weight has NaN or infinity in it"),
        ),
        (
            kohya("x", alpha=torch.tensor(float("inf"))),
            {
                "x.lora_up.weight": "x.alpha has NaN or infinity in it",
                "x.lora_down.weight": "x.alpha has NaN or infinity in it",
                "x.alpha": "an alpha without factors",
            },
        ),
        (
            kohya("x", alpha=torch.ones(2)),
            {
                "x.lora_up.weight": "alpha should be one number and has the shape (2,)",
                "x.lora_down.weight": "alpha should be one number and has the shape (2,)",
                "x.alpha": "an alpha without factors",
            },
        ),
        ({"x.scale": torch.tensor(1.0)}, {"x.scale": "a scale without factors"}),
        ({"x.hada_w1_a": UP}, {"x.hada_w1_a": "w1_a without w1_b and w2_a and w2_b"}),
        ({"x.psoft_R.weight": UP}, {"x.psoft_R.weight": "PSOFT is not supported yet"}),
        (
            kohya("x", reshape_weight=torch.tensor([6, 8]), alpha=torch.tensor(1.0)),
            {
                **dict.fromkeys(
                    ("x.lora_up.weight", "x.lora_down.weight"),
                    "the weight is to be enlarged to [6, 8], the factors are for (6, 4)",
                ),
                "x.reshape_weight": "a reshape_weight without factors",
                "x.alpha": "an alpha without factors",
            },
        ),
        (
            kohya("x", diff=torch.ones(6, 4), lambda_layer=torch.ones(6, 4)),
            {
                "x.lambda_layer": "T-LoRA cannot be used: its change depends on the timestep, and on a decomposition "
                "of the weights it was trained on that is not saved",
                **dict.fromkeys(
                    ("x.lora_up.weight", "x.lora_down.weight", "x.diff"),
                    "left out, since alone it would be wrong: it belongs with x.lambda_layer (T-LoRA)",
                ),
            },
        ),
        (
            {"x.lora_up": UP, "x.lora_down": DOWN.t().contiguous()},
            dict.fromkeys(
                ("x.lora_up", "x.lora_down"),
                "Nunchaku's packed LoRA cannot be used: its factors are padded and in the order of its kernels; "
                "use the file that it was converted from",
            ),
        ),
        (
            {"unet:0:up": UP, "unet:0:down": DOWN},
            dict.fromkeys(
                ("unet:0:up", "unet:0:down"),
                "cloneofsimo's LoRA cannot be used: its keys count the modules in an order that only its training "
                "script has; convert it to diffusers' names",
            ),
        ),
    ],
)
def test_a_key_that_is_not_used_has_its_reason(
    tensors: dict[str, Tensor], reasons: dict[str, str], tmp_path: Path
) -> None:
    lora = load_lora(written(tmp_path, SUPPORTED | tensors))
    assert dict(lora.unused) == reasons
    used = {key for adapters in lora.adapters.values() for adapter in adapters for key in adapter.keys}
    assert used | set(reasons) == set(SUPPORTED | tensors)
    assert not used & set(reasons)


@pytest.mark.parametrize(
    ("tensors", "error", "reason"),
    [
        ({}, LoraFileError, "holds no tensors"),
        ({"x.weight": UP}, LoraFileError, "x.weight: no adapter has keys with this ending"),
        (
            {"x.psoft_R.vector_a": UP, "x.psoft_R.vector_b": UP},
            LoraFileError,
            "x.psoft_R.vector_a (and 1 more key): PSOFT is not supported yet",
        ),
        ({"x.lora_up.weight": UP}, CorruptFileError, "an up factor without its down factor"),
        ({"x.lora_up.weight": UP * float("inf"), "x.lora_down.weight": DOWN}, CorruptFileError, "NaN or infinity"),
    ],
)
def test_a_file_without_a_usable_adapter_is_an_error(
    tensors: dict[str, Tensor], error: type[LoraFileError], reason: str, tmp_path: Path
) -> None:
    path = written(tmp_path, tensors)
    with pytest.raises(LoraFileError) as caught:
        load_lora(path)
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)


ALL_AT_ONCE = {
    "x.lora_up.weight": UP,
    "x.lora_down.weight": DOWN,
    "x.alpha": torch.tensor(1.0),
    "x.diff": torch.randn(6, 4),
    "x.diff_b": torch.randn(6),
    "x.hada_w1_a": UP,
    "x.hada_w1_b": DOWN,
    "x.hada_w2_a": UP,
    "x.hada_w2_b": DOWN,
    "x.oft_blocks": torch.randn(2, 3, 3),
}


def test_several_algorithms_on_one_module_all_count(tmp_path: Path) -> None:
    lora = load_lora(written(tmp_path, ALL_AT_ONCE))
    found = lora.adapters["x"]
    assert [(adapter.algorithm, adapter.parameter) for adapter in found] == [
        ("lora", "weight"),
        ("loha", "weight"),
        ("oft", "weight"),
        ("full", "weight"),
        ("full", "bias"),
    ]
    # Every key is in one adapter, and the alpha in the first of those that use it.
    assert sorted(key for adapter in found for key in adapter.keys) == sorted(ALL_AT_ONCE)
    assert dict(lora.unused) == {}
    assert [adapter.alpha for adapter in found] == [1.0, 1.0, 1.0, None, None]


def test_the_order_of_the_keys_does_not_matter(tmp_path: Path) -> None:
    files = []
    for number, keys in enumerate((list(ALL_AT_ONCE), list(reversed(ALL_AT_ONCE)))):
        header, data = {}, b""
        for key in keys:
            raw = ALL_AT_ONCE[key].numpy().tobytes()
            offsets = [len(data), len(data) + len(raw)]
            header[key] = {"dtype": "F32", "shape": list(ALL_AT_ONCE[key].shape), "data_offsets": offsets}
            data += raw
        files.append(load_lora(raw_file(tmp_path / f"{number}.safetensors", header, data)))
    weight = torch.randn(6, 4)
    for one, other in zip(*(file.adapters["x"] for file in files), strict=True):
        assert (one.algorithm, one.parameter) == (other.algorithm, other.parameter)
        assert set(one.keys) == set(other.keys)
        like = weight if one.parameter == "weight" else weight[:, 0]
        assert torch.equal(one.delta(like), other.delta(like))


def test_what_is_broken_on_a_module_leaves_the_rest_of_it(tmp_path: Path) -> None:
    lora = load_lora(written(tmp_path, kohya("x", hada_w1_a=UP, diff_b=torch.ones(6), alpha=torch.tensor(1.0))))
    assert [adapter.algorithm for adapter in lora.adapters["x"]] == ["lora", "full"]
    assert dict(lora.unused) == {"x.hada_w1_a": "w1_a without w1_b and w2_a and w2_b"}


BUNDLE = {
    "bundle_emb.ink.string_to_param.*": torch.randn(2, 8),
    "bundle_emb.sdxl-style.clip_l": torch.randn(1, 8),
    "bundle_emb.sdxl-style.clip_g": torch.randn(1, 12),
}


@pytest.mark.parametrize("with_adapters", [False, True])
def test_bundled_embeddings_are_tensors_by_name(with_adapters: bool, tmp_path: Path) -> None:
    lora = load_lora(written(tmp_path, BUNDLE | (kohya() if with_adapters else {})))
    assert list(lora.adapters) == (["lora_unet_x"] if with_adapters else [])
    assert {name: set(keys) for name, keys in lora.embeddings.items()} == {
        "ink": {"string_to_param.*"},
        "sdxl-style": {"clip_l", "clip_g"},
    }
    assert torch.equal(lora.embeddings["ink"]["string_to_param.*"], BUNDLE["bundle_emb.ink.string_to_param.*"])
    assert dict(lora.unused) == {}
    for table in (lora.embeddings, lora.embeddings["ink"]):
        with pytest.raises(TypeError):
            table["x"] = None  # type: ignore[index]


def test_a_bundled_embedding_that_cannot_be_used_has_its_reason(tmp_path: Path) -> None:
    bad = {"bundle_emb.ink": UP, "bundle_emb..clip_l": UP, "bundle_emb.nan.clip_l": UP * float("nan")}
    lora = load_lora(written(tmp_path, kohya() | bad))
    assert dict(lora.embeddings) == {}
    assert dict(lora.unused) == {
        "bundle_emb.ink": "a bundled embedding without a name",
        "bundle_emb..clip_l": "a bundled embedding without a name",
        "bundle_emb.nan.clip_l": "bundle_emb.nan.clip_l has NaN or infinity in it",
    }


def test_a_file_without_embeddings_has_none(tmp_path: Path) -> None:
    assert dict(load_lora(written(tmp_path, kohya())).embeddings) == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_element_is_found_in_any_dtype(dtype: torch.dtype, value: float, tmp_path: Path) -> None:
    bad = DOWN.clone()
    bad[1, 3] = value
    tensors = kohya("good") | {"x.lora_up.weight": UP, "x.lora_down.weight": bad}
    lora = load_lora(written(tmp_path, {key: tensor.to(dtype) for key, tensor in tensors.items()}))
    assert list(lora.adapters) == ["good"]
    assert set(lora.unused.values()) == {"x.lora_down.weight has NaN or infinity in it"}


def test_large_finite_values_are_no_infinity(tmp_path: Path) -> None:
    largest = torch.finfo(torch.float16).max
    up = torch.tensor([[largest, -largest]] * 6, dtype=torch.float16)
    assert load_lora(written(tmp_path, {"x.lora_up.weight": up, "x.lora_down.weight": DOWN.half()})).adapters


def test_metadata_that_contradicts_itself_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, kohya(), {"lora_adapter_metadata": "{"})
    with pytest.raises(CorruptFileError, match=r"ink\.safetensors: its metadata lora_adapter_metadata cannot be read"):
        load_lora(path)


def test_tensors_of_a_dtype_that_torch_lacks_are_named(tmp_path: Path) -> None:
    floats = torch.ones(8).numpy().tobytes()
    header = {
        "good.lora_up.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "odd.lora_up.weight": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [16, 20]},
        "good.lora_down.weight": {"dtype": "F32", "shape": [2, 1], "data_offsets": [20, 28]},
        "odd.lora_down.weight": {"dtype": "F32", "shape": [1], "data_offsets": [28, 32]},
    }
    lora = load_lora(raw_file(tmp_path / "a.safetensors", header, floats))
    assert list(lora.adapters) == ["good"]
    assert set(lora.unused.values()) == {"odd.lora_up.weight is stored as F8_E8M0, which this torch cannot read"}


def test_tensors_at_odd_addresses_are_read(tmp_path: Path) -> None:
    data = b"\x01" + UP.numpy().tobytes() + DOWN.numpy().tobytes()
    header = {
        "x.note": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "x.lora_up.weight": {"dtype": "F32", "shape": [6, 2], "data_offsets": [1, 49]},
        "x.lora_down.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [49, 81]},
    }
    (adapter,) = load_lora(raw_file(tmp_path / "a.safetensors", header, data)).adapters["x"]
    factors = adapter.factors()
    assert factors is not None
    assert torch.equal(factors.up, UP)
    assert torch.equal(factors.down, DOWN)


def test_rank_zero_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, {"x.lora_up.weight": torch.zeros(6, 0), "x.lora_down.weight": torch.zeros(0, 4)})
    (adapter,) = load_lora(path).adapters["x"]
    assert adapter.rank == 0
    assert torch.equal(adapter.delta(torch.ones(6, 4)), torch.zeros(6, 4))


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin"])
def test_pickles_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    torch.save(kohya(), path)
    with pytest.raises(RefusedFileError):
        load_lora(path)
    with pytest.raises(RefusedFileError):
        load_lora(path.rename(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("length", [0, 7, 40, 200, -1])
def test_a_file_that_is_cut_off_is_corrupt(length: int, tmp_path: Path) -> None:
    path = written(tmp_path, kohya())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CorruptFileError, match="ink"):
        load_lora(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoraFileError, match="none"):
        load_lora(tmp_path / "none.safetensors")


def test_a_file_that_shrinks_while_it_is_read_is_corrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, kohya())
    fstat, size = os.fstat, path.stat().st_size

    def then_shrink(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        os.truncate(path, size - 1)
        return status

    monkeypatch.setattr(loading.os, "fstat", then_shrink)
    with pytest.raises(CorruptFileError, match="cut off"):
        load_lora(path)


def test_the_hash_is_that_of_the_whole_file(tmp_path: Path) -> None:
    path = written(tmp_path, kohya())
    assert load_lora(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_writing_to_the_file_afterwards_changes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, kohya())
    (adapter,) = load_lora(path).adapters["lora_unet_x"]
    path.write_bytes(b"")
    assert torch.equal(adapter.delta(torch.zeros(6, 4)), UP @ DOWN)


def test_the_callers_modes_do_not_matter(tmp_path: Path) -> None:
    path = written(tmp_path, kohya(alpha=torch.tensor(1.0)))
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        with torch.inference_mode():
            (adapter,) = load_lora(path).adapters["lora_unet_x"]
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    factors = adapter.factors()
    assert factors is not None
    for tensor in (factors.up, factors.down):
        assert tensor.device.type == "cpu"
        assert tensor.dtype == torch.float32
        assert not tensor.is_inference()
        assert not tensor.requires_grad
    assert torch.equal(factors.up, UP)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_as_before(enabled: bool, tmp_path: Path) -> None:
    path = written(tmp_path, kohya())
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        load_lora(path)
        assert gc.isenabled() is enabled
        with pytest.raises(LoraFileError):
            load_lora(tmp_path / "none.safetensors")
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 4), (1, 2, 3, 4, 5)])
def test_a_tensor_of_any_shape_is_that_of_the_file(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = torch.randn(shape)
    path = written(tmp_path, {"bundle_emb.x.clip_l": tensor, "bundle_emb.a.clip_l": torch.randn(5)})
    found = load_lora(path).embeddings["x"]["clip_l"]
    assert found.is_contiguous()
    assert torch.equal(found, tensor)


def test_an_outline_has_the_adapters_of_the_file_without_their_values(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        "x.lora_up.weight": torch.ones(4, 2),
        "x.lora_down.weight": torch.ones(2, 3),
        "x.alpha": torch.tensor(2.0),
        "y.diff": torch.ones(5, 5),
        "z.unknown": torch.ones(1),
    }
    save_file(tensors, path)
    whole, found = load_lora(path), outline(path)
    assert {stem: [type(a) for a in adapters] for stem, adapters in found.adapters.items()} == {
        stem: [type(a) for a in adapters] for stem, adapters in whole.adapters.items()
    }
    assert found.unused == whole.unused
    assert found.key_count == whole.key_count
    assert found.adapters["x"][0].misfit(torch.Size((4, 3))) is None
    assert found.adapters["x"][0].misfit(torch.Size((4, 4))) is not None

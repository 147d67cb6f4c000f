"""What encoders made of pictures, kept: computed once, and the same from memory and from disk."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lora_runtime.errors import TrainingError
from lora_runtime.train.buckets import Placed
from lora_runtime.train.encoded import Encoded, key_of
from lora_runtime.train.folders import Picture, sha256_of

Draw = Callable[..., Path]
PLACED = Placed((64, 64), (80, 64), (8, 0))
KEY = "a" * 64


class Count:
    """An encoder that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.batch = torch.arange(24.0).reshape(2, 3, 4).to(torch.bfloat16)

    def __call__(self) -> dict[str, Tensor]:
        self.calls += 1
        # As a batch's own: a row of it, transposed, with a gradient.
        return {"mean": self.batch[1].T.requires_grad_(), "other": torch.tensor([self.calls])}


def picture(path: Path, sha256: str = "") -> Picture:
    return Picture(path, "a", "1_x", 1, False, (80, 64), sha256=sha256)


@pytest.mark.parametrize("on_disk", [False, True])
def test_tensors_are_computed_once_and_are_the_same_again(tmp_path: Path, on_disk: bool) -> None:
    encoded, count = Encoded(tmp_path / "a" / "b" if on_disk else None), Count()
    first, again = encoded.get(KEY, count), encoded.get(KEY, count)
    assert count.calls == 1
    for tensors in (first, again):
        assert torch.equal(tensors["mean"], count.batch[1].T)
        assert tensors["mean"].dtype == torch.bfloat16
        assert tensors["mean"].is_contiguous() and not tensors["mean"].requires_grad
        assert tensors["mean"].untyped_storage().nbytes() == 24  # of a row, not of the batch
    encoded.get("b" * 64, count)
    assert count.calls == 2


def test_another_run_finds_what_an_earlier_one_left_on_disk(tmp_path: Path) -> None:
    count = Count()
    Encoded(tmp_path).get(KEY, count)
    assert torch.equal(Encoded(tmp_path).get(KEY, count)["mean"], count.batch[1].T)
    assert count.calls == 1
    assert [path.name for path in tmp_path.iterdir()] == [f"{KEY}.safetensors"]
    assert torch.equal(load_file(tmp_path / f"{KEY}.safetensors")["other"], torch.tensor([1]))


@pytest.mark.parametrize("damage", [b"", b"nonsense that is no header at all", None])
def test_a_broken_file_is_computed_anew_and_replaced(tmp_path: Path, damage: bytes | None) -> None:
    count = Count()
    path = tmp_path / f"{KEY}.safetensors"
    Encoded(tmp_path).get(KEY, count)
    path.write_bytes(path.read_bytes()[:-5] if damage is None else damage)
    assert torch.equal(Encoded(tmp_path).get(KEY, count)["other"], torch.tensor([2]))
    assert torch.equal(Encoded(tmp_path).get(KEY, count)["other"], torch.tensor([2]))
    assert count.calls == 2


def test_a_full_disk_ends_nothing_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, count = Encoded(tmp_path), Count()
    whole = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        whole(self, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert torch.equal(encoded.get(KEY, count)["mean"], encoded.get(KEY, count)["mean"])
    assert count.calls == 1
    assert list(tmp_path.iterdir()) == []
    assert "No space left on device" in encoded.problem and "kept in memory" in encoded.problem


def test_a_folder_that_cannot_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"file/x: no folder for what is encoded"):
        Encoded(tmp_path / "file" / "x")


def test_a_key_is_of_the_content_and_of_all_that_changes_the_result(tmp_path: Path, draw: Draw) -> None:
    path = draw(tmp_path / "a.png")
    copy = draw(tmp_path / "elsewhere" / "b.png")
    other = draw(tmp_path / "c.png", color=(1, 2, 3))
    key = key_of(picture(path), PLACED, False, "model")
    assert key_of(picture(copy), PLACED, False, "model") == key
    assert key_of(picture(path, sha256_of(path)), PLACED, False, "model") == key
    others = [
        key_of(picture(other), PLACED, False, "model"),
        key_of(picture(path), replace(PLACED, bucket=(64, 56)), False, "model"),
        key_of(picture(path), replace(PLACED, resized=(96, 64)), False, "model"),
        key_of(picture(path), replace(PLACED, crop=(7, 0)), False, "model"),
        key_of(picture(path), PLACED, True, "model"),
        key_of(picture(path), PLACED, False, "another"),
    ]
    assert len({key, *others}) == 7
    assert all(len(one) == 64 and set(one) <= set("0123456789abcdef") for one in others)

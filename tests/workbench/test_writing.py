"""Files that are written: as the library reads them, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lora_runtime.errors import LoraFileError
from lora_runtime.header import hashes, read_header
from lora_runtime.tensors import read_one
from lora_runtime.workbench import writing
from lora_runtime.workbench.writing import Blank, check_free, write_file, write_stream

TENSORS = {
    "b.half": torch.tensor([[1.5, -2.0]], dtype=torch.float16),
    "a.brain": torch.tensor([3.0, 4.0, 5.0], dtype=torch.bfloat16),
    "c.alpha": torch.tensor(4.0),
    "d.empty": torch.zeros(0, 3),
    "e.turned": torch.arange(6.0).reshape(2, 3).t(),
    "f.int": torch.tensor([7, 8], dtype=torch.int64),
    "ü.byte": torch.tensor([9], dtype=torch.uint8),
}


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    file = write_file(path, TENSORS, {"ss_network_dim": "4", "note": "grün"})
    with safetensors.safe_open(path, "pt") as opened:
        metadata = opened.metadata()
        assert set(opened.keys()) == set(TENSORS)
        for key, tensor in TENSORS.items():
            found = opened.get_tensor(key)
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(found, tensor)
    content = path.read_bytes()
    assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert (metadata["ss_network_dim"], metadata["note"]) == ("4", "grün")
    # kohya's two, of what the library itself writes: the one is of the tensors' bytes alone.
    assert metadata["sshs_model_hash"] == hashes(path).sha256_of_tensors
    judged = safetensors.torch.save({key: tensor.contiguous() for key, tensor in TENSORS.items()})
    own = content[8 + struct.unpack("<Q", content[:8])[0] :]
    assert own == judged[8 + struct.unpack("<Q", judged[:8])[0] :]


def test_the_older_hash_is_of_64_kb_from_the_first_megabyte_on(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(300_000, dtype=torch.int64)}
    metadata = {"ss_a": "b", "other": "left out of this hash"}
    write_file(tmp_path / "a.safetensors", tensors, metadata)
    judged = safetensors.torch.save(tensors, {"ss_a": "b"})
    expected = hashlib.sha256(judged[0x100000:0x110000]).hexdigest()[:8]
    assert read_header(tmp_path / "a.safetensors").metadata["sshs_legacy_hash"] == expected


def test_one_tensor_is_read_back_alone(tmp_path: Path) -> None:
    write_file(tmp_path / "a.safetensors", TENSORS, {})
    header = read_header(tmp_path / "a.safetensors")
    for key, tensor in TENSORS.items():
        assert torch.equal(read_one(tmp_path / "a.safetensors", header.tensors[key]), tensor)


def test_what_is_cut_off_meanwhile_is_told(tmp_path: Path) -> None:
    write_file(tmp_path / "a.safetensors", TENSORS, {})
    header = read_header(tmp_path / "a.safetensors")
    os.truncate(tmp_path / "a.safetensors", 100)
    with pytest.raises(LoraFileError, match="was cut off since its header was read, 4 bytes are missing"):
        read_one(tmp_path / "a.safetensors", header.tensors["b.half"])


def test_a_tensor_that_is_not_what_was_announced_ends_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="where Blank"):
        write_stream(tmp_path / "a.safetensors", {"a": Blank(torch.float16, (2,))}, lambda _: torch.zeros(3), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupt_or_a_full_disk_leaves_what_was_there(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(writing.os, "fsync", fail)
    with pytest.raises((KeyboardInterrupt, LoraFileError)) as caught:
        write_file(path, TENSORS, {})
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path}: cannot be written: No space left on device; nothing was left behind"
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == b"old"


def test_a_place_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    there = tmp_path / "there.safetensors"
    there.touch()
    (tmp_path / "folder.safetensors").mkdir()
    for path, reason in [
        (there, "exists already; give another name, or --force (force=True) to replace it"),
        (tmp_path / "folder.safetensors", "this is a folder; give the name of a file"),
        (tmp_path / "none" / "a.safetensors", f"the folder {tmp_path / 'none'} does not exist; make it first"),
        (tmp_path / "a.bin", "would be no safetensors file by its name; give one that ends in .safetensors"),
    ]:
        with pytest.raises(LoraFileError) as caught:
            check_free(path, force=False)
        assert str(caught.value) == f"{path}: {reason}"
    assert check_free(there, force=True) == there


def test_a_view_is_written_as_what_it_shows(tmp_path: Path) -> None:
    shared = torch.arange(10.0)
    parts: dict[str, Tensor] = {"a": shared[2:5], "b": shared[::3]}
    write_file(tmp_path / "a.safetensors", parts, {})
    found = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(found[key], part) for key, part in parts.items())

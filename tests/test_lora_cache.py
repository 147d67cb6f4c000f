"""Loaded files are kept while they fit and while they are what is on disk."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_runtime.errors import LoraFileError
from lora_runtime.lora_cache import LoraCache


def write(path: Path, value: float) -> Path:
    """Write a LoRA for one module and return its path."""
    save_file({"x.lora_up.weight": torch.full((4, 2), value), "x.lora_down.weight": torch.ones(2, 3)}, path)
    return path


def test_a_file_is_read_once(tmp_path: Path) -> None:
    cache, path = LoraCache(), write(tmp_path / "a.safetensors", 1)
    assert cache.load(path) is cache.load(path)


def test_a_file_written_anew_is_read_again(tmp_path: Path) -> None:
    cache, path = LoraCache(), write(tmp_path / "a.safetensors", 1)
    before = cache.load(path)
    path.unlink()
    write(path, 2)
    assert cache.load(path).sha256 != before.sha256


@pytest.mark.skipif(os.name == "nt", reason="its files do not tell when they were changed, only when made and written")
def test_a_file_written_anew_in_place_with_its_old_date_is_read_again(tmp_path: Path) -> None:
    cache, path = LoraCache(), write(tmp_path / "a.safetensors", 1)
    before, status = cache.load(path), path.stat()
    content = write(tmp_path / "b.safetensors", 2).read_bytes()
    time.sleep(0.02)  # a file's times go in ticks
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (status.st_size, status.st_mtime_ns, status.st_ino)
    assert cache.load(path).sha256 != before.sha256


def test_the_limit_is_that_of_all_files_together(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.safetensors", value) for value, name in enumerate("abcdef")]
    size = paths[0].stat().st_size
    cache = LoraCache(limit=3 * size)
    for path in paths:
        assert cache.load(path).nbytes == size
    assert [path for path, _ in cache._loras.items()] == paths[-3:]


def test_the_files_used_longest_ago_go_first(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.safetensors", value) for value, name in enumerate("abc")]
    cache = LoraCache(limit=2 * paths[0].stat().st_size)
    a, b = cache.load(paths[0]), cache.load(paths[1])
    cache.load(paths[0])
    cache.load(paths[2])
    assert cache.load(paths[0]) is a
    assert cache.load(paths[1]) is not b


def test_a_file_larger_than_the_limit_is_kept_alone(tmp_path: Path) -> None:
    cache, path = LoraCache(limit=1), write(tmp_path / "a.safetensors", 1)
    assert cache.load(path) is cache.load(path)


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    cache, path = LoraCache(), write(tmp_path / "a.safetensors", 1)
    cache.load(path)
    path.unlink()
    with pytest.raises(LoraFileError, match="cannot be read"):
        cache.load(path)


def test_a_limit_of_files_drops_those_used_longest_ago(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.safetensors", value) for value, name in enumerate("abc")]
    cache = LoraCache(files=2)
    first, second, _ = (cache.load(path) for path in paths)
    assert cache.load(paths[1]) is second
    assert cache.load(paths[0]) is not first


def test_a_copy_of_a_file_shares_its_memory_under_its_own_name(tmp_path: Path) -> None:
    path, copy = write(tmp_path / "a.safetensors", 1), write(tmp_path / "b.safetensors", 1)
    cache = LoraCache(limit=path.stat().st_size)  # enough for one of them
    first, second = cache.load(path), cache.load(copy)
    assert first.adapters is second.adapters
    assert [(lora.name, lora.path) for lora in (first, second)] == [("a", path), ("b", copy)]
    assert (cache.load(path), cache.load(copy)) == (first, second)


def test_what_is_in_use_is_kept_whatever_the_limit(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.safetensors", value) for value, name in enumerate("abcd")]
    cache = LoraCache(limit=1)
    loaded = [cache.load(path, trim=False) for path in paths]
    cache.trim(keep=set(paths[:3]))
    assert [cache.load(path, trim=False) is lora for path, lora in zip(paths, loaded, strict=True)] == [True] * 3 + [
        False
    ]
    cache.trim()
    assert not cache._loras


def test_clearing_drops_everything(tmp_path: Path) -> None:
    cache, path = LoraCache(), write(tmp_path / "a.safetensors", 1)
    before = cache.load(path)
    cache.clear()
    assert cache.load(path) is not before

"""Files that are damaged, hostile or something else: each costs only itself, and says which file, what and why.

What `read_header` refuses is in test_metadata.py, single reasons of `load_lora` in test_lora.py. Here a whole `apply`
must come out as if the bad file, or the bad keys of a file, were not there.
"""

from __future__ import annotations

import gc
import io
import json
import math
import mmap
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import frame, tensor, write
from safetensors.torch import save_file
from torch import Tensor, nn

import lora_runtime
from lora_runtime import tensors
from lora_runtime.adapters import training
from lora_runtime.errors import CorruptFileError, LoraError, LoraFileError, RefusedFileError
from lora_runtime.header import read_header
from lora_runtime.lora import load_lora, outline

SECONDS = 20.0  # ten times what is aimed at: this is against what never ends; `make bench` measures
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Model(nn.Module):
    """Two layers of different shapes, and a third that only good files change."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 6)
        self.second = nn.Conv2d(4, 4, 3)
        self.third = nn.Linear(4, 6, bias=False)


def factors(seed: int, out: int = 6, columns: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, 2, generator=generator), torch.randn(2, columns, generator=generator)


def raw(value: Tensor) -> tuple[str, list[int], bytes]:
    """Return a tensor as `handmade.write` takes it: bfloat16 goes as its bits."""
    (name,) = (name for name, dtype in DTYPES.items() if dtype == value.dtype)
    bits = value.contiguous().view(torch.int16) if value.dtype == torch.bfloat16 else value.contiguous()
    return name, list(value.shape), bits.numpy().tobytes()


def module(stem: str, seed: int = 0) -> dict[str, tuple[str, list[int], bytes]]:
    up, down = factors(seed)
    return {f"{stem}.lora_up.weight": raw(up), f"{stem}.lora_down.weight": raw(down)}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    """Return a folder with two good files."""
    write(tmp_path / "ink.safetensors", module("first", 1) | module("third", 2))
    write(tmp_path / "wash.safetensors", module("third", 3))
    return tmp_path


def patched_by(prompt: str, loras: Path) -> tuple[dict[str, Tensor], Any]:
    model = Model()
    before = state(model)
    applied = lora_runtime.apply(model, prompt, loras=loras)
    after = state(model)
    applied.restore()
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    return after, applied


# ---- files that are not used at all ---------------------------------------------------------------------------------

GOOD = frame(
    {"__metadata__": {"ss_output_name": "bad"}, "first.lora_up.weight": tensor("F32", [6, 2])}
    | {"first.lora_down.weight": tensor("F32", [2, 4], 48)},
    bytes(80),
)
HEADER = len(GOOD) - 80


def zipped(name: str = "archive/data.pkl") -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, b"x")
    return content.getvalue()


def one(record: dict[str, Any], data: bytes = b"") -> bytes:
    return frame({"first.lora_up.weight": record}, data)


def record(dtype: Any = "F32", shape: Any = (), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


NAME = "tensor 'first.lora_up.weight'"
BIG = 2**62
CORRUPT: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "cut within the length": (GOOD[:5], "it is only 5 bytes long"),
    "cut after the length": (GOOD[:8], "it is cut off"),
    "cut within the header": (GOOD[: HEADER // 2], "it is cut off"),
    "cut after the header": (GOOD[:HEADER], "the file is cut off"),
    "cut within the first tensor": (GOOD[: HEADER + 5], "the file is cut off"),
    "cut between the tensors": (GOOD[: HEADER + 48], "the file is cut off"),
    "cut by one byte": (GOOD[:-1], "the file is cut off"),
    "one byte more": (GOOD + b"x", "bytes that belong to no tensor"),
    "zeros": (bytes(100), "its first 100 bytes are zeros: the download was not finished"),
    "a length of 2⁶⁴ − 1": (b"\xff" * 8 + GOOD[8:], "header should have 18,446,744,073,709,551,615 bytes"),
    "a length beyond the file": (struct.pack("<Q", len(GOOD)) + GOOD[8:], "it is cut off"),
    "a length one short": (struct.pack("<Q", HEADER - 9) + GOOD[8:], "the header is not JSON"),
    "overlapping": (
        frame({"a.lora_up.weight": tensor("F32", [2]), "b.lora_up.weight": tensor("F32", [2], 4)}, bytes(12)),
        "tensor 'b.lora_up.weight' overlaps another",
    ),
    "the same bytes twice": (
        frame({"a.lora_up.weight": tensor("F32", [2]), "b.lora_up.weight": tensor("F32", [2])}, bytes(8)),
        "overlaps another",
    ),
    "a gap": (
        frame({"a.lora_up.weight": tensor("F32", [1]), "b.lora_up.weight": tensor("F32", [1], 8)}, bytes(12)),
        "tensor 'b.lora_up.weight' leaves a gap before it",
    ),
    "negative places": (one(record(offsets=(-4, 0))), "must be whole numbers from 0"),
    "places the wrong way round": (one(record(offsets=(4, 0)), bytes(4)), "does not fill bytes 4 to 0"),
    "places far away": (one(record(offsets=(2**63, 2**63 + 4)), bytes(4)), "leaves a gap before it"),
    "places of many digits": (one(record(offsets=(0, 10**4000))), "F32 [] does not fill bytes 0 to 1000"),
    "places with a fraction": (one(record(offsets=(0, 4.0)), bytes(4)), "must be whole numbers from 0"),
    "three places": (one(record(offsets=(0, 2, 4)), bytes(4)), "lacks its shape or data_offsets"),
    "an unknown dtype": (one(record("Q4_K"), bytes(4)), f"{NAME} has no known dtype"),
    "a dtype that is no text": (one(record(7), bytes(4)), f"{NAME} has no known dtype"),
    "a dtype in small letters": (one(record("f32"), bytes(4)), f"{NAME} has no known dtype"),
    "another size than its bytes": (one(record(shape=[3], offsets=(0, 8)), bytes(8)), "F32 [3] does not fill bytes 0"),
    "a shape that overflows": (one(record(shape=[2**33, 2**33])), f"{NAME} is impossibly large"),
    "a shape that overflows to nothing": (one(record(shape=[2**32, 2**32], offsets=(0, 0))), "is impossibly large"),
    "a shape that overflows beside 0": (one(record(shape=[0, BIG, BIG], offsets=(0, 0))), "is impossibly large"),
    "a dimension beyond 64 bits": (one(record(shape=[0, 10**30], offsets=(0, 0))), f"{NAME} is impossibly large"),
    "a dimension of minus one": (one(record(shape=[-1])), "must be whole numbers from 0"),
    "a shape of text": (one(record(shape=["6"])), "must be whole numbers from 0"),
    "a tensor that is no table": (frame({"first.lora_up.weight": [1]}), f"{NAME} has no known dtype"),
    "a key twice": (
        frame(b'{"a.alpha":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a.alpha":{}}', bytes(4)),
        "the header has 'a.alpha' twice",
    ),
    "a shape twice": (
        frame(b'{"a.alpha":{"dtype":"F32","shape":[],"shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        "the header has 'shape' twice",
    ),
    "metadata twice": (frame(b'{"__metadata__":{},"__metadata__":{"a":"b"}}'), "has '__metadata__' twice"),
    "deep JSON": (frame(b'{"a":' + b"[" * 100_000), "the header is "),
    "deep JSON in objects": (frame(b'{"a":' * 100_000), "the header is "),
    "too many brackets": (frame(b'{"a":[' + b"[]," * 2_000_000), "more than 4,000,000 brackets and commas"),
    "a number too long": (frame(b'{"a":' + b"9" * 100_000 + b"}"), "not a valid safetensors file: "),
    "bytes that are no UTF-8": (frame(b'{"\xc3\x28":{}}'), "the header is not UTF-8 at byte 10"),
    "UTF-16": (frame("{}".encode("utf-16")), "the header is not UTF-8 at byte 8"),
    "UTF-32": (frame("{}".encode("utf-32-le") + bytes(8)), "the header is not JSON"),
    "a byte order mark": (frame(b"\xef\xbb\xbf{}"), "the header does not begin with {"),
    "half a character in a key": (
        frame(b'{"a\\ud800":' + json.dumps(tensor("U8", [0])).encode() + b"}"),
        "half a char",
    ),
    "half a character in the metadata": (frame(b'{"__metadata__":{"a":"\\uDFFF"}}'), "stands for half a character"),
    "metadata with numbers": (frame({"__metadata__": {"ss_network_dim": 8}}), "__metadata__ is not a table of strings"),
    "metadata with tables": (frame({"__metadata__": {"a": {"b": "c"}}}), "__metadata__ is not a table of strings"),
    "metadata as text": (frame({"__metadata__": "ss"}), "__metadata__ is not a table of strings"),
    "a list": (frame(b'["a"]'), "the header does not begin with {"),
    "more after the JSON": (frame(b"{} {}"), "the header is not JSON: Extra data"),
    "text in single quotes": (frame(b"{'a': 1}"), "the header is not JSON"),
    "a line break in a name": (frame({"a\nb\x1b[31m": {}}), "tensor \"'a\\\\nb\\\\x1b[31m'\" has no known dtype"),
    "a name of a million letters": (frame({"a" * 1_000_000: {}}), f"tensor '{'a' * 119}…' has no known dtype"),
    "a web page": (b"<!DOCTYPE html><html><head></head></html>", "it is a web page, not the file"),
    "a web page without a head": (b"<html><body>Log in", "it is a web page, not the file"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "run `git lfs pull`"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(100), "it is a GGUF file, which is not read: look for the same LoRA as"),
    "a xet pointer": (
        b"# xet version 0\nfilesize = 7\nhash = 'ab'\n",
        "it is a xet pointer, not the file: run `git lfs pull`",
    ),
    "an error in JSON": (
        b'{"error": "Unauthorized",\n "message": "log in"}' + bytes(0),
        'it is a message in JSON, not the file ({"error": "Unauthorized", "message": "log in"}): the download probably',
    ),
    "an error in XML": (
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "it is XML, not the file (<?xml",
    ),
    "a line of text": (
        "Entrée invalide: accès refusé".encode(),
        "it is text, not the file (Entrée invalide: accès refusé)",
    ),
    "a zip archive": (
        zipped("my lora.safetensors"),
        'it is a zip archive, which begins with "my lora.safetensors": unpack it',
    ),
    "a 7z archive": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "it is a 7z archive: unpack it"),
    "what macOS keeps beside a file": (
        b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(100),
        "(AppleDouble), not the file: delete it",
    ),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "it is a picture (PNG). Download it again"),
    "random bytes": (bytes(range(7, 256)), "not a valid safetensors file: "),
}
REFUSED: dict[str, tuple[bytes, str]] = {
    "a pickle": (pickle.dumps({"first.lora_up.weight": [1.0]}, protocol=4), "this is a pickle under another name"),
    "an old pickle": (b"\x80\x02" + bytes(40), "this is a pickle under another name"),
    "what torch.save writes": (zipped(), "this is a pickle under another name"),
}
UNUSABLE: dict[str, tuple[bytes, str]] = {
    "no tensors": (frame({}), "holds no tensors"),
    "a key of no algorithm": (
        frame({"first.weight": tensor("F16", [2])}, bytes(4)),
        "first.weight: no adapter has keys",
    ),
    "an unknown algorithm": (frame({"first.psoft_R.weight": tensor("F16", [2])}, bytes(4)), "PSOFT is not supported"),
    "only an alpha": (frame({"first.alpha": tensor("F32", [])}, bytes(4)), "first.alpha: an alpha without factors"),
    "a name that would write on the terminal": (
        frame({"\x1b[2J\n.weight": tensor("F16", [2])}, bytes(4)),
        "'\\x1b[2J\\n.weight': no adapter has keys",
    ),
}
BAD = {**CORRUPT, **REFUSED, **UNUSABLE}


def error_of(path: Path, read: Callable[[Path], Any]) -> LoraFileError:
    """Return the error of reading a bad file, which is quick, names the file, and is one line that can be printed."""
    start = time.process_time()
    with pytest.raises(LoraFileError) as caught:
        read(path)
    assert time.process_time() - start < SECONDS
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.removeprefix(str(path)).isprintable()
    assert len(message) < len(str(path)) + 1000
    return caught.value


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_costs_only_itself(name: str, loras: Path) -> None:
    content, reason = BAD[name]
    path = loras / "bad.safetensors"
    path.write_bytes(content)
    for read in (load_lora, outline):
        error = error_of(path, read)
        assert reason in str(error)
        assert isinstance(error, CorruptFileError) is (name in CORRUPT)
        assert isinstance(error, RefusedFileError) is (name in REFUSED)
    expected, _ = patched_by("<lora:ink:0.5><lora:wash:0.7>", loras)
    found, applied = patched_by("<lora:ink:0.5><lora:bad><lora:wash:0.7>", loras)
    assert {report.name for report in applied.report.loras} == {"ink", "wash"}
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    (diagnostic,) = applied.diagnostics
    assert diagnostic.severity == "error"
    assert str(path) in diagnostic.message


@pytest.mark.parametrize("name", CORRUPT)
def test_a_corrupt_file_says_what_to_do_next(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(CORRUPT[name][0])
    message = str(error_of(path, load_lora))
    assert any(
        word in message
        for word in ("ownload it again", "look for", "git lfs pull", "asks for a login", "unpack it", "delete it")
    )


FOREIGN = {
    "a checkpoint": (
        {
            "model.diffusion_model.input_blocks.0.0.weight": [4, 4, 3, 3],
            "first_stage_model.encoder.conv_in.weight": [4],
        },
        "a whole model (a checkpoint), not a LoRA: load it as the model",
    ),
    "a checkpoint's denoiser": ({"model.diffusion_model.out.2.weight": [2]}, "a model's own weights (a denoiser)"),
    "a denoiser of diffusers": (
        {"transformer_blocks.0.attn.to_q.weight": [4, 4]},
        "a model's own weights (a denoiser)",
    ),
    "an embedding of SD": ({"emb_params": [4, 768]}, "a textual inversion (an embedding), not a LoRA: load it as an"),
    "an embedding of SDXL": ({"clip_l": [1, 768], "clip_g": [1, 1280]}, "a textual inversion (an embedding)"),
    "an embedding of diffusers": ({"<cat-toy>": [768]}, "a textual inversion (an embedding)"),
    "a VAE": ({"encoder.conv_in.weight": [4, 3, 3, 3], "decoder.conv_out.weight": [3, 4, 3, 3]}, "a VAE, not a LoRA"),
    "a Control-LoRA": (
        {"lora_controlnet": [0], "input_blocks.1.1.transformer_blocks.0.attn1.to_q.up": [4, 1]},
        "a Control-LoRA, which holds the factors of a ControlNet and changes no model: load it as a ControlNet",
    ),
    "a ControlNet": (
        {"controlnet_cond_embedding.conv_in.weight": [4, 3, 3, 3], "down_blocks.0.x.weight": [1]},
        "a ControlNet",
    ),
    "an IP-Adapter": (
        {"image_proj.norm.weight": [4], "ip_adapter.1.to_k_ip.weight": [4, 4]},
        "an IP-Adapter, not a LoRA",
    ),
    "a text encoder": ({"text_model.encoder.layers.0.mlp.fc1.weight": [4, 4]}, "a text encoder, not a LoRA"),
    "an upscaler": ({"conv_first.weight": [4, 3, 3, 3]}, "an upscaler, not a LoRA"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_kind_is_named_and_told_where_it_belongs(name: str, tmp_path: Path) -> None:
    keys, kind = FOREIGN[name]
    path = write(tmp_path / "bad.safetensors", {key: ("F32", shape) for key, shape in keys.items()})
    for read in (load_lora, outline, lambda path: lora_runtime.LoraCatalog(path.parent).resolve("bad")):
        assert str(error_of(path, read)).startswith(f"{path}: this is {kind}")
    assert lora_runtime.LoraCatalog(tmp_path).entries == ()


def test_a_file_with_one_adapter_is_a_lora_whatever_else_it_holds(tmp_path: Path) -> None:
    keys = {
        "first.lora_up.weight": ("F32", [6, 2]),
        "first.lora_down.weight": ("F32", [2, 4]),
        "text_model.encoder.x": ("F32", [1]),
    }
    path = write(tmp_path / "both.safetensors", keys)
    assert list(load_lora(path).adapters) == ["first"]
    assert lora_runtime.LoraCatalog(tmp_path).resolve("both").path == path


@pytest.mark.parametrize("ending", [".part", ".crdownload", ".aria2"])
def test_a_download_that_is_not_finished_is_named_as_such(ending: str, loras: Path) -> None:
    (loras / f"new.safetensors{ending}").write_bytes(GOOD[:50])
    catalog = lora_runtime.LoraCatalog(loras)
    for name in ("new", f"new.safetensors{ending}"):
        with pytest.raises(LoraFileError, match="this download is not finished; wait for it, or start it again"):
            catalog.resolve(name)


def test_an_error_that_nobody_foresaw_costs_only_its_own_tag(loras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.1 raised for every float16 file: it had no such operation."""
    want, _ = patched_by("<lora:ink:1>", loras)
    tried = tensors.is_finite

    def lacking(values: Tensor) -> bool:
        if values.dtype == torch.float16:
            raise RuntimeError("\"aminmax_all\" not implemented for 'Half'")
        return tried(values)

    monkeypatch.setattr(tensors, "is_finite", lacking)
    save_file({"first.lora_up.weight": torch.ones(6, 1).half()}, loras / "half.safetensors")
    got, applied = patched_by("<lora:half:1> <lora:ink:1>", loras)
    assert all(torch.equal(got[name], want[name]) for name in want)
    (problem,) = applied.diagnostics
    assert "half.safetensors: cannot be read with torch" in problem.message
    assert "not implemented for 'Half'" in problem.message


def test_a_torch_without_both_extremes_in_one_pass_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "_has_aminmax", lambda dtype: False)
    values = torch.tensor([0.5, -2.0], dtype=torch.float16)
    assert tensors.is_finite(values)
    for bad in (torch.nan, torch.inf, -torch.inf):
        assert not tensors.is_finite(torch.tensor([0.5, bad, -2.0], dtype=torch.float16))


def test_strict_raises_and_changes_nothing(loras: Path) -> None:
    (loras / "bad.safetensors").write_bytes(GOOD[:-1])
    model = Model()
    before = state(model)
    with pytest.raises(LoraError, match="bad"):
        lora_runtime.apply(model, "<lora:ink><lora:bad>", loras=loras, strict=True)
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").mkdir()
    assert "not a regular file" in str(error_of(tmp_path / "bad.safetensors", load_lora))


def test_tensors_in_any_order_are_no_damage(tmp_path: Path) -> None:
    header = {"x.lora_down.weight": tensor("F32", [2, 4], 48), "x.lora_up.weight": tensor("F32", [6, 2])}
    up, down = factors(1)
    path = tmp_path / "a.safetensors"
    path.write_bytes(frame(header, up.numpy().tobytes() + down.numpy().tobytes()))
    (adapter,) = load_lora(path).adapters["x"]
    expected = up.double() @ down.double()
    torch.testing.assert_close(adapter.delta(torch.zeros(6, 4)).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("blanks", range(9))
def test_a_header_of_any_length_leaves_the_tensors_as_they_are(blanks: int, tmp_path: Path) -> None:
    up, down = factors(1)
    header = {"x.lora_up.weight": tensor("F32", [6, 2]), "x.lora_down.weight": tensor("F32", [2, 4], 48)}
    path = tmp_path / "a.safetensors"
    path.write_bytes(frame(json.dumps(header).encode() + b" " * blanks, up.numpy().tobytes() + down.numpy().tobytes()))
    (adapter,) = load_lora(path).adapters["x"]
    found = adapter.factors()
    assert found is not None
    assert torch.equal(found.up, up)
    assert torch.equal(found.down, down)


# ---- what PEFT writes beside a file ---------------------------------------------------------------------------------

PATTERNS = {f"{number}": 1 for number in range(5000)}
CONFIGS: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"{", "cannot be read"),
    "a list": (b"[]", "cannot be read"),
    "no UTF-8": (b"\xff\xff\xff", "cannot be read"),
    "deep": (b'{"a":' * 100_000, "cannot be read"),
    "too long": (b" " * (1 << 20) + b"{}", "is larger than 1048576 bytes"),
    "an alpha of text": (b'{"peft_type": "LORA", "lora_alpha": "8"}', "alpha '8' is no number"),
    "an alpha that is not finite": (b'{"peft_type": "LORA", "lora_alpha": NaN}', "alpha nan is no number"),
    "an alpha of many digits": (b'{"peft_type": "LORA", "lora_alpha": 1' + b"0" * 400 + b"}", "is no number"),
    "a pattern that never ends": (b'{"peft_type": "LORA", "alpha_pattern": {"(a+)+$": 1}}', "is more than a name"),
    "patterns as a list": (b'{"peft_type": "LORA", "alpha_pattern": [1]}', "cannot be read"),
    "too many patterns": (
        json.dumps({"peft_type": "LORA", "alpha_pattern": PATTERNS}).encode(),
        "5,000 patterns are more than 2,048",
    ),
    "a rank of zero": (b'{"peft_type": "LOKR", "r": 0, "alpha": 1}', "a rank that is not positive"),
    "a rank of text": (b'{"peft_type": "LOKR", "r": "x", "alpha": 1}', "cannot be read"),
    "no rank": (b'{"peft_type": "LOHA", "alpha": 1}', "cannot be read"),
    "changed weights": (b'{"peft_type": "LORA", "init_lora_weights": "pissa"}', "changing the model's weights (pissa)"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bad_configuration_costs_only_its_folder(name: str, loras: Path) -> None:
    content, reason = CONFIGS[name]
    path = write(loras / "bad" / "adapter_model.safetensors", module("first"))
    (path.parent / "adapter_config.json").write_bytes(content)
    assert reason in str(error_of(path, load_lora))
    expected, _ = patched_by("<lora:ink:0.5>", loras)
    found, applied = patched_by("<lora:ink:0.5><lora:bad>", loras)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert [diagnostic.severity for diagnostic in applied.diagnostics] == ["error"]


def test_an_alpha_for_each_module_of_a_large_model_is_read_in_time(tmp_path: Path) -> None:
    up, down = (bytes(32), [4, 2]), (bytes(32), [2, 4])
    tensors = {
        f"base_model.model.blocks.{number}.to_q.lora_{side}.weight": ("F32", shape, data)
        for number in range(1000)
        for side, (data, shape) in (("B", up), ("A", down))
    }
    path = write(tmp_path / "style" / "adapter_model.safetensors", tensors)
    patterns = {f"blocks.{number}.to_q": number + 1 for number in range(1000)}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "alpha_pattern": patterns}
    (path.parent / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    start = time.process_time()
    lora = load_lora(path)
    assert time.process_time() - start < SECONDS
    assert [lora.adapters[f"base_model.model.blocks.{n}.to_q"][0].alpha for n in (0, 7, 999)] == [1, 8, 1000]


def test_patterns_that_would_take_for_ever_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_MOST_TRIALS", 3)
    path = write(tmp_path / "adapter_model.safetensors", module("first"))
    config = {"peft_type": "LORA", "lora_alpha": 1, "alpha_pattern": {"a": 1, "b": 2}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "2 patterns of alphas and ranks are too many for 2 keys" in str(error_of(path, load_lora))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "no table"),
        ("{" * 100_000, "cannot be read"),
        (" " * 2_000_000, "it has 2,000,000 characters, more than 1,048,576"),
        (json.dumps({f"{n}.lora_alpha": 1 for n in range(20)}), "20 components are more than 8"),
        ('{"unet.lora_alpha": Infinity}', "alpha inf is no number"),
    ],
)
def test_bad_settings_in_the_metadata_name_the_file(text: str, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.safetensors", module("first"), {"lora_adapter_metadata": text})
    message = str(error_of(path, load_lora))
    assert "its metadata lora_adapter_metadata cannot be read" in message
    assert reason in message


# ---- keys that are not used, in files that are ----------------------------------------------------------------------

UP, DOWN = (raw(value) for value in factors(5))
SPOILT = factors(5)[0].clone()
SPOILT[3, 1] = float("nan")
INFINITE = factors(5)[0].clone().half()
INFINITE[0, 0] = float("-inf")
MISFIT = "made for (6, 9), the weight is (6, 4)"

# name → (tensors on `first`, reasons by ending): what is left out of the file, and why.
Tensors = Mapping[str, Any]
KEYS: dict[str, tuple[Tensors, Mapping[str, str]]] = {
    "NaN": (
        {"lora_up.weight": raw(SPOILT), "lora_down.weight": DOWN},
        dict.fromkeys(("lora_up.weight", "lora_down.weight"), "{}.lora_up.weight has NaN or infinity in it"),
    ),
    "infinity in half precision": (
        {"lora_up.weight": raw(INFINITE), "lora_down.weight": DOWN},
        dict.fromkeys(("lora_up.weight", "lora_down.weight"), "{}.lora_up.weight has NaN or infinity in it"),
    ),
    "factors that do not meet": (
        {"lora_up.weight": UP, "lora_down.weight": ("F32", [3, 4])},
        dict.fromkeys(
            ("lora_up.weight", "lora_down.weight"), "the ranks of the factors differ: up (6, 2), down (3, 4)"
        ),
    ),
    "one factor alone": ({"lora_down.weight": DOWN}, {"lora_down.weight": "a down factor without its up factor"}),
    "factors without dimensions": (
        {"lora_up.weight": ("F32", []), "lora_down.weight": ("F32", [])},
        dict.fromkeys(
            ("lora_up.weight", "lora_down.weight"),
            "the factors are neither matrices nor kernels: up (), down ()",
        ),
    ),
    "another layer's shape": (
        {"lora_up.weight": UP, "lora_down.weight": ("F32", [2, 9], b"\0\0\x80?" * 18)},
        dict.fromkeys(("lora_up.weight", "lora_down.weight"), MISFIT),
    ),
    "a dtype that torch lacks": (
        {"lora_up.weight": UP, "lora_down.weight": ("F8_E8M0", [2, 4], bytes(8))},
        dict.fromkeys(
            ("lora_up.weight", "lora_down.weight"),
            "{}.lora_down.weight is stored as F8_E8M0, which this torch cannot read",
        ),
    ),
    "a hundred dimensions": (
        {"lora_up.weight": ("F32", [1] * 100), "lora_down.weight": DOWN},
        dict.fromkeys(
            ("lora_up.weight", "lora_down.weight"),
            "{}.lora_up.weight has 100 dimensions; no weight has more than 8",
        ),
    ),
    "an alpha of two numbers": (
        {"lora_up.weight": UP, "lora_down.weight": DOWN, "alpha": ("F32", [2])},
        dict.fromkeys(("lora_up.weight", "lora_down.weight"), "alpha should be one number and has the shape (2,)")
        | {"alpha": "an alpha without factors"},
    ),
    "an alpha of none": (
        {"lora_up.weight": UP, "lora_down.weight": DOWN, "alpha": ("F32", [0])},
        dict.fromkeys(("lora_up.weight", "lora_down.weight"), "alpha should be one number and has the shape (0,)")
        | {"alpha": "an alpha without factors"},
    ),
    "an alpha of NaN": (
        {"lora_up.weight": UP, "lora_down.weight": DOWN, "alpha": raw(torch.tensor(float("nan")).half())},
        dict.fromkeys(("lora_up.weight", "lora_down.weight"), "{}.alpha has NaN or infinity in it")
        | {"alpha": "an alpha without factors"},
    ),
    "an alpha beyond float32": (
        {"lora_up.weight": UP, "lora_down.weight": DOWN, "alpha": ("F64", [1], struct.pack("<d", -1e300))},
        dict.fromkeys(("lora_up.weight", "lora_down.weight"), "alpha is -1e+300, which no product in float32 can take")
        | {"alpha": "an alpha without factors"},
    ),
    "an ending that nobody knows": (
        {"lora_sideways.weight": UP},
        {"lora_sideways.weight": "no adapter has keys with this ending"},
    ),
    "an algorithm without support": (
        {"psoft_R.vector_a": ("F32", [6]), "psoft_R.vector_b": ("F32", [2])},
        dict.fromkeys(("psoft_R.vector_a", "psoft_R.vector_b"), "PSOFT is not supported yet"),
    ),
}


def spelled(stem: str, endings: Tensors) -> dict[str, Any]:
    return {f"{stem}.{ending}": value for ending, value in endings.items()}


@pytest.fixture(autouse=True)
def _bytes_of_exotic_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["handmade"].BYTES, "F8_E8M0", 1)


@pytest.mark.parametrize("name", KEYS)
def test_bad_keys_leave_the_rest_of_their_file(name: str, loras: Path) -> None:
    tensors, reasons = KEYS[name]
    path = write(loras / "mixed.safetensors", spelled("first", tensors) | module("third", 4))
    write(loras / "rest.safetensors", module("third", 4))
    start = time.process_time()
    lora = load_lora(path)
    assert time.process_time() - start < SECONDS
    assert "third" in lora.adapters
    expected, _ = patched_by("<lora:ink:0.5><lora:rest>", loras)
    found, applied = patched_by("<lora:ink:0.5><lora:mixed>", loras)
    # In another order of files the sum of the floats may be another.
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-6)
    (report,) = (report for report in applied.report.loras if report.name == "mixed")
    assert dict(report.unused) == {f"first.{ending}": reason.format("first") for ending, reason in reasons.items()}
    assert report.used == 2


def test_packed_factors_are_told_from_plain_ones_by_their_shapes(tmp_path: Path) -> None:
    """Nunchaku's are (out, rank) and (in, rank); its ending is somebody's for plain factors too."""
    up, down = factors(1)
    plain = write(tmp_path / "plain.safetensors", {"first.lora_up": raw(up), "first.lora_down": raw(down)})
    (adapter,) = load_lora(plain).adapters["first"]
    found = adapter.factors()
    assert found is not None
    assert torch.equal(found.up @ found.down, up @ down)
    packed = write(tmp_path / "packed.safetensors", {"first.lora_up": raw(up), "first.lora_down": raw(down.T)})
    with pytest.raises(CorruptFileError, match="Nunchaku's packed LoRA cannot be used: its factors are padded"):
        load_lora(packed)


def test_a_mixed_file_is_used_key_by_key(tmp_path: Path) -> None:
    tensors: dict[str, Any] = module("third", 4)
    reasons = {}
    for number, (endings, why) in enumerate(KEYS.values()):
        stem = f"layer_{number}"
        tensors |= spelled(stem, endings)
        reasons |= {f"{stem}.{ending}": reason.format(stem) for ending, reason in why.items() if reason != MISFIT}
    model = Model()
    before = state(model)
    applied = lora_runtime.apply(model, "<lora:mixed:0.5>", loras=write(tmp_path / "mixed.safetensors", tensors).parent)
    (report,) = applied.report.loras
    assert {key: report.unused[key] for key in reasons} == reasons
    assert report.used + len(report.unused) == report.keys == len(tensors)
    up, down = (value.double() for value in factors(4))
    for name, value in state(model).items():
        exact = before[name].double() + (0.5 * (up @ down) if name == "third.weight" else 0.0)
        torch.testing.assert_close(value.double(), exact, rtol=0, atol=1e-6)
        assert name == "third.weight" or torch.equal(value, before[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("alpha", [-3.0, 0.0, 1e4])
def test_an_odd_alpha_is_believed(alpha: float, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors: dict[str, Any] = module("third", 4) | {"third.alpha": raw(torch.tensor([alpha], dtype=dtype))}
    (adapter,) = load_lora(write(tmp_path / "a.safetensors", tensors)).adapters["third"]
    up, down = (value.double() for value in factors(4))
    exact = torch.tensor(alpha, dtype=dtype).double() / 2 * (up @ down)
    torch.testing.assert_close(adapter.delta(torch.zeros(6, 4)).double(), exact, rtol=1e-5, atol=1e-6)


def test_two_spellings_of_one_module_do_not_add_up(tmp_path: Path) -> None:
    tensors = module("unet.mid.to_q", 4) | module("unet.mid_to_q", 5)

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mid = nn.ModuleDict({"to_q": nn.Linear(4, 6)})

    model = Nested()
    before = model.mid["to_q"].weight.detach().clone()
    applied = lora_runtime.apply(model, "<lora:a>", loras=write(tmp_path / "a.safetensors", tensors).parent)
    up, down = (value.double() for value in factors(4))
    torch.testing.assert_close(
        model.mid["to_q"].weight.detach().double(), before.double() + up @ down, rtol=0, atol=1e-6
    )
    assert dict(applied.report.loras[0].unused) == dict.fromkeys(
        ("unet.mid_to_q.lora_up.weight", "unet.mid_to_q.lora_down.weight"),
        "for a weight that unet.mid.to_q of the same file changes already",
    )


# ---- time and memory ------------------------------------------------------------------------------------------------


_TIMES = """
import sys, time
from lora_runtime.lora import load_lora

def seconds():
    start = time.process_time()
    lora = load_lora(sys.argv[1])
    assert (len(lora.adapters), len(lora.unused)) == (33_334, 0)
    return time.process_time() - start

print(min(seconds() for _ in range(3)))
"""


def run(code: str, *arguments: Path) -> str:
    """Return what a fresh interpreter prints: nothing traces its lines, and its memory is its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def many_keys(path: Path) -> Path:
    header, place = {}, 0
    for number in range(33_334):
        stem = f"lora_unet_down_blocks_{number}_attentions_0_transformer_blocks_0_attn1_to_q"
        for ending, shape, size in (("lora_up.weight", [4, 1], 8), ("lora_down.weight", [1, 4], 8), ("alpha", [], 2)):
            header[f"{stem}.{ending}"] = tensor("F16", shape, place)
            place += size
    path.write_bytes(frame(header, bytes(place)))
    return path


@pytest.mark.slow
def test_a_hundred_thousand_keys_are_read_in_time(tmp_path: Path) -> None:
    assert float(run(_TIMES, many_keys(tmp_path / "a.safetensors"))) < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_the_garbage_collector_keeps_what_a_host_has_frozen(frozen: bool, tmp_path: Path) -> None:
    path = many_keys(tmp_path / "a.safetensors")
    gc.unfreeze()  # what the tests keep so themselves
    gc.collect()
    if frozen:
        gc.freeze()
    try:
        count = gc.get_freeze_count()
        read_header(path)
        assert gc.isenabled()
        assert (gc.get_freeze_count() > 0) is frozen
        assert gc.get_freeze_count() >= count * 0.9
    finally:
        gc.freeze()


def test_a_header_full_of_brackets_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(frame(b'{"a":[' + b"{}," * 5_000_000))
    tracemalloc.start()
    try:
        error_of(path, load_lora)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * path.stat().st_size


@pytest.mark.parametrize("content", [b"GGUF\3\0\0\0", b"<html>", GOOD])
def test_of_a_large_file_that_is_no_lora_only_the_header_is_read(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bad.safetensors"
    with path.open("wb") as file:  # sparse: takes no room
        file.write(content)
        file.truncate(1 << 36)

    def none_left(*_: object) -> Tensor:
        raise AssertionError("memory was taken")

    monkeypatch.setattr(tensors, "_memory", none_left)
    error_of(path, load_lora)


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, "Cannot allocate memory")])
def test_tensors_that_no_memory_holds_are_an_error_of_the_file(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bad.safetensors"
    content = frame({"x.lora_up.weight": tensor("F32", [1 << 22])})
    with path.open("wb") as file:
        file.write(content)
        file.truncate(len(content) + (1 << 24))

    def none_left(*_: object, **__: object) -> Tensor:
        raise error

    monkeypatch.setattr(tensors.mmap, "mmap", none_left)
    assert "there is no memory for its 16,777,216 bytes" in str(error_of(path, load_lora))


@pytest.mark.parametrize("columns", [4, 1 << 20])
def test_a_file_is_read_without_numpy(columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.1 and 2.2 have none where numpy 2 is installed."""

    def missing(*_: object) -> None:
        raise RuntimeError("Numpy is not available")

    up, down = factors(1, 6, columns)
    path = write(tmp_path / "a.safetensors", {"x.lora_up.weight": raw(up), "x.lora_down.weight": raw(down)})
    monkeypatch.setattr(Tensor, "numpy", missing)
    monkeypatch.setattr(torch, "from_numpy", missing)
    (adapter,) = load_lora(path).adapters["x"]
    found = adapter.factors()
    assert found is not None
    assert torch.equal(found.up, up)
    assert torch.equal(found.down, down)


@pytest.mark.parametrize("kernel_has_them", [False, True])
def test_what_lies_in_huge_pages_is_what_the_file_holds(
    kernel_has_them: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel_has_them:

        class Memory(mmap.mmap):
            def madvise(self, *_: object) -> None:
                raise OSError(22, "Invalid argument")

        monkeypatch.setattr(tensors.mmap, "mmap", Memory)
    up, down = factors(1, 6, 1 << 20)
    path = write(tmp_path / "a.safetensors", {"x.lora_up.weight": raw(up), "x.lora_down.weight": raw(down)})
    (adapter,) = load_lora(path).adapters["x"]
    found = adapter.factors()
    assert found is not None
    assert torch.equal(found.up, up)
    assert torch.equal(found.down, down)


_PEAK = """
import sys
import lora_runtime.lora as loading
from pathlib import Path

def peak():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

small, large = map(Path, sys.argv[1:])
loading.load_lora(small)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is in use
before = peak()
lora = loading.load_lora(large)
print(peak() - before)
"""


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield write(tmp_path_factory.mktemp("small") / "a.safetensors", module("x"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read as Linux tells it")
@pytest.mark.parametrize(
    "blanks", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(3, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("torn", [False, True])
def test_a_file_takes_its_own_size_in_memory(torn: bool, blanks: int, tmp_path: Path, small_file: Path) -> None:
    stems = [f"x{number}" for number in range(16)]
    header: dict[str, Any] = {}
    place = 0
    for stem in stems:
        for ending, shape in (("lora_up.weight", [1 << 20, 1]), ("lora_down.weight", [1, 1 << 20])):
            header[f"{stem}.{ending}"] = tensor("F16", shape, place)
            place += 2 << 20
    data = bytearray(place)
    if torn:
        data[0:2] = b"\x00\x7e"  # NaN: each tensor is looked at
    text = json.dumps(header).encode()
    path = tmp_path / "large.safetensors"
    path.write_bytes(frame(text + b" " * (-len(text) % 8 + blanks), bytes(data)))
    assert math.isclose(int(run(_PEAK, small_file, path)), path.stat().st_size, rel_tol=0.2)

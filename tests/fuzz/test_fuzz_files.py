"""Any bytes under a .safetensors name: a Lora or a LoraError, never anything else, and never for long.

Mutated files, random headers, and random tensors under the endings that the algorithms own. In CI the examples are the
same each time. To look further:

    FUZZ_EXAMPLES=100000 pytest tests/fuzz -p no:cacheprovider

`--hypothesis-seed=N` takes another path. What is found is shrunk and printed as the call that repeats it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import BYTES, frame, tensor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import lora_runtime
from lora_runtime.adapters import ALGORITHMS
from lora_runtime.adapters.pending import PENDING
from lora_runtime.errors import LoraError
from lora_runtime.header import Header, hashes, read_header
from lora_runtime.lora import Lora, load_lora, outline
from lora_runtime.metadata import describe

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
SECONDS = 2.0  # of the processor, for files of a few hundred bytes

fuzz = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def read(path: Path) -> Lora | None:
    """Read a file in every way; return its adapters, or None where it was refused."""
    start = time.process_time()
    found: list[object] = []
    for way in (load_lora, outline, lambda path: describe(read_header(path)), hashes):
        try:
            found.append(way(path))
        except LoraError as error:
            found.append(None)
            assert str(path) in str(error)
            assert str(error).removeprefix(str(path)).isprintable()
    lora = found[0]
    assert time.process_time() - start < SECONDS
    if isinstance(lora, Lora):
        check_keys(lora, read_header(path))
        for adapter in (adapter for adapters in lora.adapters.values() for adapter in adapters):
            str(adapter.misfit(torch.Size((6, 4))))
        return lora
    assert lora is None
    return None


def check_keys(lora: Lora, header: Header) -> None:
    """Check that each key of the file is in one adapter, or an embedding, or unused with a reason."""
    used = [key for adapters in lora.adapters.values() for adapter in adapters for key in adapter.keys]
    bundled = {f"bundle_emb.{name}.{key}" for name, keys in lora.embeddings.items() for key in keys}
    assert len(used) == len(set(used))
    assert sorted([*used, *lora.unused, *bundled]) == sorted(header.tensors)
    assert all(lora.unused.values())


# ---- bytes ----------------------------------------------------------------------------------------------------------

WHOLE = frame(
    {
        "__metadata__": {"ss_output_name": "x", "lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8})},
        "first.lora_up.weight": tensor("F32", [6, 2]),
        "first.lora_down.weight": tensor("F32", [2, 4], 48),
        "first.alpha": tensor("F16", [], 80),
        "first.dora_scale": tensor("F32", [6, 1], 82),
        "bundle_emb.ink.clip_l": tensor("U8", [2], 106),
    },
    bytes(range(1, 109)),
)
# Numbers, quotes and brackets change what a header says more often than any byte would.
PIECES = st.binary(max_size=4) | st.sampled_from(
    [b"0", b"9" * 30, b"-1", b'"', b"{}", b"[]", b",", b"null", b"\\ud800"]
)
MUTATIONS = st.lists(st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 20), PIECES), min_size=1, max_size=6)


def mutated(content: bytes, mutations: list[tuple[int, int, bytes]], *, mend: bool) -> bytes:
    """Return the content with pieces replaced; `mend` sets the length of the header to fit again."""
    length = int.from_bytes(content[:8], "little")
    changed = bytearray(content)
    for place, count, piece in mutations:
        changed[place : place + count] = piece
        if place < length:
            length += len(piece) - len(content[place : place + count])
    return max(0, length).to_bytes(8, "little") + bytes(changed[8:]) if mend else bytes(changed)


@fuzz
@given(mutations=MUTATIONS, mend=st.booleans())
def test_a_mutated_file(mutations: list[tuple[int, int, bytes]], mend: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(mutated(WHOLE, mutations, mend=mend))
    read(path)


@fuzz
@given(length=st.integers(0, len(WHOLE)))
def test_a_file_that_is_cut_off(length: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(WHOLE[:length])
    assert (read(path) is not None) is (length == len(WHOLE))


@fuzz
@given(before=st.binary(max_size=12), after=st.binary(max_size=40))
def test_random_bytes_around_a_valid_header(before: bytes, after: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(before + WHOLE + after)
    read(path)
    path.write_bytes(frame(WHOLE[8:-108], after))
    read(path)


# ---- keys and shapes ------------------------------------------------------------------------------------------------

ENDINGS = sorted(
    {ending for algorithm in ALGORITHMS for ending in (*algorithm.endings, *algorithm.companions)}
    | {*PENDING, ".alpha", ".scale", ".lora_A.default.weight", ".lora_B.default.weight", ".lora_magnitude_vector.x"}
)
FAMILIES = [(*algorithm.endings, *algorithm.companions, ".alpha") for algorithm in ALGORITHMS]
STEMS = st.sampled_from(["first", "second", "lora_unet_first", "base_model.model.first", "", ".", "bundle_emb.x"])
SHAPES = st.lists(st.sampled_from([0, 1, 2, 2, 3, 4, 4, 6, 6]), max_size=5) | st.sampled_from(
    [[6, 2], [2, 4], [6, 4], [6, 1], [6], [4], [2, 2], [2, 3, 3], [1, 2, 2, 3]]
)
TENSORS = st.tuples(
    SHAPES, st.sampled_from(["F32"] * 4 + sorted(BYTES)), st.sampled_from([b"\0", b"\x3c", b"\1", b"\x7e"])
)
SAME_FAMILY = st.sampled_from(FAMILIES).flatmap(
    lambda endings: st.dictionaries(st.tuples(STEMS, st.sampled_from(sorted(endings))), TENSORS, min_size=1, max_size=8)
)
ANY_ENDING = st.dictionaries(st.tuples(STEMS, st.sampled_from(ENDINGS) | st.text(max_size=5)), TENSORS, max_size=6)


def file_of(tensors: Mapping[tuple[str, str], tuple[list[int], str, bytes]], path: Path) -> Path:
    header: dict[str, Any] = {}
    data = b""
    for (stem, ending), (shape, dtype, value) in tensors.items():
        name = f"{stem}{ending}"
        if name in header or name == "__metadata__":
            continue
        record = tensor(dtype, shape, len(data))
        header[name] = record
        data += value * (record["data_offsets"][1] - len(data))
    path.write_bytes(frame(json.dumps(header).encode("utf-8", "replace"), data))
    return path


class Model(nn.Module):
    """A linear layer and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 6), nn.Conv2d(4, 4, 3)


@pytest.mark.filterwarnings("ignore:Casting complex:UserWarning")
@settings(fuzz, max_examples=EXAMPLES or 400)
@given(tensors=SAME_FAMILY | ANY_ENDING)
def test_any_keys_and_shapes_load_and_apply_or_have_a_reason(
    tensors: dict[tuple[str, str], tuple[list[int], str, bytes]], tmp_path: Path
) -> None:
    if read(file_of(tensors, tmp_path / "x.safetensors")) is None:
        return
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    applied = lora_runtime.apply(model, "<lora:x:0.5>", loras=tmp_path)
    report = applied.report.loras[0]
    assert report.used + len(report.unused) == report.keys
    applied.restore()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@fuzz
@given(
    config=st.dictionaries(
        st.sampled_from(["peft_type", "r", "lora_alpha", "alpha", "alpha_pattern", "rank_pattern", "init_r"]),
        st.sampled_from(["LORA", "LOHA", "LOKR", "ADALORA", "IA3", "HRA"])
        | st.none()
        | st.integers()
        | st.floats()
        | st.text(max_size=3)
        | st.dictionaries(st.text("ab.\\\\^$*(1", max_size=4), st.integers(-2, 2) | st.text(max_size=1), max_size=2),
    )
    | st.binary(max_size=8)
)
def test_any_configuration_beside_the_file(config: dict[str, Any] | bytes, tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(WHOLE)
    raw = config if isinstance(config, bytes) else json.dumps(config).encode()
    (tmp_path / "adapter_config.json").write_bytes(raw)
    read(path)

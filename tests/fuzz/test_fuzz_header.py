"""Our reader of safetensors headers beside the safetensors library: the same tensors of the same bytes, or both refuse.

Ours takes nothing that the library refuses, and refuses what the library takes only for a bound that
`lora_runtime/header.py` states. How to look further stands in test_fuzz_files.py.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import safetensors
from handmade import frame
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lora_runtime.errors import LoraFileError
from lora_runtime.header import read_header

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))

fuzz = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Name, shape, dtype: what a reader may say of each tensor. And where its bytes lie, by the bytes themselves.
Found = dict[str, tuple[str, tuple[int, ...], bytes]]

# Reasons of ours that the library does not have: a name twice, of which it takes one; what no LoRA needs.
BOUNDS = re.compile(
    r" twice|more than [\d,]+ brackets|impossibly large|does not begin with \{|stands for half a character"
)
# The bytes of one element; the library names its dtypes so.
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F16": 2, "BF16": 2, "I16": 2, "F32": 4, "I32": 4, "F64": 8, "I64": 8}


def by_us(path: Path, content: bytes) -> Found | str:
    """Return what our reader says of a file, or why it refuses it."""
    try:
        header = read_header(path)
    except LoraFileError as error:
        return str(error)
    return {
        name: (tensor.dtype, tensor.shape, content[tensor.begin : tensor.end])
        for name, tensor in header.tensors.items()
    }


def by_the_library(content: bytes) -> Found | None:
    """Return what the library says of the same bytes, None where it refuses them."""
    try:
        found: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(content)
    except Exception:  # 0.4 raises a class of its own that is no ValueError, newer ones another
        return None
    return {name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"])) for name, tensor in found}


def agree(content: bytes, path: Path) -> Found | None:
    """Hold both readers to each other; return what they found."""
    path.write_bytes(content)
    ours, theirs = by_us(path, content), by_the_library(content)
    if isinstance(ours, str):
        assert theirs is None or BOUNDS.search(ours), ours
        return None
    assert ours == theirs
    return ours


SHAPES = st.lists(st.integers(0, 3), max_size=4)
TENSORS = st.dictionaries(st.text(max_size=6), st.tuples(st.sampled_from(sorted(SIZES)), SHAPES), max_size=5)
METADATA = st.none() | st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3)


def header_of(tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str] | None) -> tuple[dict[str, Any], int]:
    """Return the header of tensors that follow each other, and how many bytes they have."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin = end
        end += SIZES[dtype]
        for extent in shape:
            end = begin + (end - begin) * extent
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    return header, end


@fuzz
@given(tensors=TENSORS, metadata=METADATA, blanks=st.integers(0, 8), ascii_only=st.booleans(), data=st.data())
def test_a_valid_file_is_read_alike(
    tensors: dict[str, tuple[str, list[int]]],
    metadata: dict[str, str] | None,
    blanks: int,
    ascii_only: bool,
    data: st.DataObject,
    tmp_path: Path,
) -> None:
    tensors.pop("__metadata__", None)
    header, size = header_of(tensors, metadata)
    text = json.dumps(header, ensure_ascii=ascii_only) + " " * blanks
    content = frame(text.encode(), data.draw(st.binary(min_size=size, max_size=size)))
    found = agree(content, tmp_path / "a.safetensors")
    assert found is not None and found.keys() == tensors.keys()
    assert read_header(tmp_path / "a.safetensors").metadata == (metadata or {})


TEXT, SIZE = header_of({"a": ("F32", [2, 3]), "b": ("BF16", [4]), "c": ("I64", [])}, {"k": "v"})
WHOLE = json.dumps(TEXT)
NUMBERS = ["0", "-0", "1e0", "1.0", "01", "-1", "9" * 25, "18446744073709551616", "NaN", "null", "true"]
MARKS = ['"', "{}", "[]", ",", "\\ud800", "\\u0061", "\t", "\n", "\x00", "\ufeff"]
WORDS = ["F8_E4M3", "f32", '"a":1,', '"shape"', '"dtype":"F32",']
PIECES = st.text(max_size=3) | st.sampled_from([*NUMBERS, *MARKS, *WORDS])
PLACES = st.integers(0, len(WHOLE))


@fuzz
@given(
    mutations=st.lists(st.tuples(PLACES, st.integers(0, 12), PIECES), min_size=1, max_size=3), more=st.integers(-2, 2)
)
@example(mutations=[(WHOLE.index("[0, 24"), 2, "[-0")], more=0)
@example(mutations=[(WHOLE.index("[0, 24"), 2, "[0.0")], more=0)
def test_a_header_with_pieces_replaced(mutations: list[tuple[int, int, str]], more: int, tmp_path: Path) -> None:
    text = WHOLE
    for place, count, piece in mutations:
        text = text[:place] + piece + text[place + count :]
    agree(frame(text.encode("utf-8", "surrogatepass"), bytes(SIZE + more)), tmp_path / "a.safetensors")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 30) | st.floats() | st.sampled_from(["F32", "U8", "", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "U8", "I8"]) | VALUES,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | VALUES,
        "data_offsets": st.lists(st.integers(-1, 24), min_size=1, max_size=3) | VALUES,
        "more": VALUES,
    },
)


@fuzz
@given(
    header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__", ""]), RECORDS | VALUES, max_size=3) | VALUES,
    length=st.integers(0, 24),
)
def test_a_header_of_any_values(header: Any, length: int, tmp_path: Path) -> None:
    agree(frame(json.dumps(header).encode(), bytes(length)), tmp_path / "a.safetensors")


@fuzz
@given(content=st.binary(max_size=40), length=st.integers(0, 40))
def test_any_bytes(content: bytes, length: int, tmp_path: Path) -> None:
    agree(content, tmp_path / "a.safetensors")
    agree(length.to_bytes(8, "little") + content, tmp_path / "a.safetensors")

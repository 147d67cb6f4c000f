"""`lora-runtime list`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Command
from handmade import LONG_AGO, write

TO_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `loras` in the current directory."""
    folder = tmp_path / "loras"
    write(folder / "ink.safetensors", {f"{TO_K}.lora_down.weight": ("F16", [4, 768])}, {"ss_output_name": "ink"})
    write(folder / "style/oil.safetensors", {f"{TO_K}.hada_w1_b": ("F32", [8, 2048])}, {"ss_output_name": "old oil"})
    monkeypatch.chdir(tmp_path)
    return folder


def test_it_prints_a_table(command: Command, loras: Path) -> None:
    result = command("list", "loras")
    assert (result.status, result.err) == (0, "")
    assert result.out == (
        "loras: 2 files\n"
        "  name       model  algorithm  rank  size     alias\n"
        "  ink        SD1    lora       4     6.3 kB\n"
        "  style/oil  SDXL   loha       8     65.7 kB  old oil\n"
    )


def test_without_a_folder_it_lists_the_default_ones(command: Command, loras: Path) -> None:
    assert command("list").out == command("list", "loras").out


def test_each_folder_has_its_own_table(command: Command, loras: Path) -> None:
    write(loras.parent / "more/pen.safetensors")
    (loras.parent / "empty").mkdir()
    lines = command("list", "loras", "more", "empty").out.splitlines()
    assert [line for line in lines if line and not line.startswith(" ")] == [
        "loras: 2 files",
        "more: 1 file",
        "empty: 0 files",
    ]


def test_files_that_cannot_be_used_follow_with_reason_and_remedy(command: Command, loras: Path) -> None:
    (loras / "old.pt").touch()
    (loras / "torn.safetensors").write_bytes(b"torn")
    lines = command("list", "loras").out.splitlines()
    start = lines.index("not usable: 2")
    assert lines[start + 1].split() == ["file", "reason"]
    assert lines[start + 2].split(maxsplit=1) == [
        str(Path("loras/old.pt")),
        ".pt files are pickles, which can run code when read; never opened.",
    ]
    assert lines[start + 3].endswith("not a valid safetensors file: it is only 4 bytes long")
    assert "weights_only=True" in lines[start + 5]


def test_without_a_pickle_nothing_is_said_of_converting(command: Command, loras: Path) -> None:
    (loras / "torn.safetensors").write_bytes(b"torn")
    assert "not usable: 1" in command("list", "loras").out
    assert "convert" not in command("list", "loras").out


def test_a_file_of_no_known_algorithm_is_listed_too(command: Command, tmp_path: Path) -> None:
    write(tmp_path / "odd.safetensors", {"x": ("U8", [1])})
    assert command("list", tmp_path).out.splitlines()[2].split() == ["odd", "unknown", "-", "-", "69", "B"]


def test_json_holds_all_of_it(command: Command, loras: Path) -> None:
    (loras / "old.pt").touch()
    found = json.loads(command("list", "--json", "loras").out)
    path = loras / "ink.safetensors"
    assert found["folders"] == ["loras"]
    assert found["loras"][0] == {
        "name": "ink",
        "relative": "ink",
        "alias": "ink",
        "path": str(Path("loras/ink.safetensors")),
        "folder": "loras",
        "model": "SD1",
        "algorithms": ["lora"],
        "ranks": [4],
        "size": path.stat().st_size,
        "mtime_ns": LONG_AGO * 10**9,
    }
    assert [entry["path"] for entry in found["refused"]] == [str(Path("loras/old.pt"))]


def test_without_any_folder_it_says_what_to_do(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("list")
    assert result.status == 2
    assert result.err == (
        "lora-runtime: error: no folder to list: give one, make models/Lora or loras here, or set LORA_RUNTIME_PATH\n"
    )

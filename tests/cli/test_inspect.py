"""`lora-runtime inspect`."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
from commands import Command
from handmade import write

TO_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def ink(tmp_path: Path) -> Path:
    """A file with two keys of the UNet, one of the text encoder and what a trainer says of it."""
    tensors: dict[str, tuple[str, list[int]] | tuple[str, list[int], bytes]] = {
        f"{TO_K}.alpha": ("F32", [], struct.pack("<f", 2.0)),
        f"{TO_K}.lora_down.weight": ("F16", [4, 768]),
        "lora_te_a.lora_down.weight": ("F16", [8, 9]),
    }
    metadata = {"ss_output_name": "ink wash", "modelspec.title": "Ink\x1b[31m", "modelspec.trigger_phrase": "inkwash"}
    return write(tmp_path / "loras/ink.safetensors", tensors, metadata)


def test_it_says_what_the_file_is(command: Command, ink: Path) -> None:
    result = command("inspect", ink)
    assert (result.status, result.err) == (0, "")
    content = ink.read_bytes()
    tensors = hashlib.sha256(content[8 + struct.unpack("<Q", content[:8])[0] :]).hexdigest()
    assert result.out.splitlines() == [
        f"file            {ink}",
        "title           Ink\\x1b[31m",
        "alias           ink wash",
        "model           SD1",
        "algorithm       lora (2 modules)",
        "rank            4..8",
        "alpha           2",
        "trigger words   inkwash",
        "keys            3 keys",
        "  unet          2 keys",
        "  text_encoder  1 key",
        f"  not used      no adapter in it can be used: {TO_K}.lora_down.weight (and 2 more keys): a down "
        "factor without its up factor",
        f"size            6.8 kB ({len(content):,} bytes)",
        f"sha256          {hashlib.sha256(content).hexdigest()}",
        f"  of tensors    {tensors}",
        f"name by hash    #{tensors[:12]}",
    ]


def test_json_holds_the_same_and_the_metadata(command: Command, ink: Path) -> None:
    found = json.loads(command("inspect", "--json", ink).out)
    assert found["family"] == "SD1"
    assert found["algorithms"] == {"lora": 2}
    assert (found["ranks"], found["alphas"]) == ([4, 8], [2.0])
    assert found["trigger_words"] == ["inkwash"]
    assert found["components"] == {"unet": 2, "text_encoder": 1}
    assert found["sha256"] == hashlib.sha256(ink.read_bytes()).hexdigest()
    assert found["metadata"]["ss_output_name"] == "ink wash"


def test_a_name_is_looked_up_as_a_prompt_would(
    command: Command, ink: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_path = command("inspect", "--json", ink).out
    assert command("inspect", "--json", "ink wash", "--loras", ink.parent).out == by_path
    monkeypatch.chdir(tmp_path)
    assert json.loads(command("inspect", "--json", "ink").out)["path"] == str(Path("loras/ink.safetensors"))


def test_a_folder_with_one_file_is_that_file(command: Command, tmp_path: Path) -> None:
    file = write(tmp_path / "pirate/adapter_model.safetensors", {"a.lora_A.weight": ("F32", [4, 8])})
    assert command("inspect", file.parent).out == command("inspect", file).out
    write(tmp_path / "other.safetensors", {"a.lora_A.weight": ("F32", [4, 8])})
    result = command("inspect", tmp_path)
    assert (result.status, result.err) == (
        2,
        f"lora-runtime: error: {tmp_path} has 2 files that are LoRAs in it: name one\n",
    )


def test_a_file_that_tells_nothing_is_shown_with_what_there_is(command: Command, tmp_path: Path) -> None:
    result = command("inspect", write(tmp_path / "odd.safetensors", {"x": ("U8", [1])}))
    labels = [line.split("  ")[0] for line in result.out.splitlines()]
    assert labels == [
        "file",
        "model",
        "algorithm",
        "rank",
        "alpha",
        "keys",
        "",
        "",
        "size",
        "sha256",
        "",
        "name by hash",
    ]
    assert "algorithm     unknown\n" in result.out


def test_an_unknown_name_and_a_missing_file_are_told_apart(command: Command, ink: Path) -> None:
    assert 'Did you mean "ink"' in command("inspect", "inc", "--loras", ink.parent).err
    missing = ink.parent / "gone.safetensors"
    assert command("inspect", missing).err == f"lora-runtime: error: no such file: {missing}\n"


def test_a_pickle_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "old.pt").touch()
    result = command("inspect", tmp_path / "old.pt")
    assert result.status == 2
    assert "files are pickles" in result.err


def test_keys_that_no_model_would_use_have_their_reasons(command: Command, tmp_path: Path) -> None:
    tensors = {"x.lora_up.weight": ("F32", [4, 2]), "x.lora_down.weight": ("F32", [2, 3])}
    strange = {"y.strange": ("F32", [1]), "z.strange": ("F32", [1])}
    path = write(tmp_path / "a.safetensors", {**tensors, **strange}, {})
    reason = "no adapter has keys with this ending"
    assert f"  not used    2: {reason}" in command("inspect", path).out.splitlines()
    assert json.loads(command("inspect", "--json", path).out)["unused"] == {reason: 2}
    path = write(tmp_path / "b.safetensors", strange, {})
    assert "no adapter in it can be used: y.strange (and 1 more key)" in command("inspect", path).out

"""Hashes in a picture's parameters, and prompts pasted from there."""

from __future__ import annotations

import pytest

from lora_runtime import infotext

LOCAL = {"0123456789ab": "mine", "ffffffffffff": "other"}


def paste(prompt: str, hashes: str) -> str:
    return infotext.rename(prompt, infotext.parse_hashes(hashes), LOCAL.get)


def test_hashes_are_written_as_the_builtin_writes_them() -> None:
    assert (
        infotext.format_hashes({"ink": "0123456789ab", "wash": "cdef01234567"})
        == "ink: 0123456789ab, wash: cdef01234567"
    )


def test_what_separates_is_left_out_of_names() -> None:
    assert infotext.format_hashes({"a, b": "0123456789ab"}) == "a b: 0123456789ab"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a <lora:ink:0.7> b", "a <lora:mine:0.7> b"),
        ("<lora:ink>", "<lora:mine>"),
        ("<lyco:ink:0.7>", "<lyco:mine:0.7>"),
        ("<loractl:ink:0@0,1@1>", "<loractl:mine:0@0,1@1>"),
        ("<lora:ink:te=0.5:unet=1>", "<lora:mine:te=0.5:unet=1>"),
        ("<lora:a, b:1>", "<lora:other:1>"),
        ("<lora:unknown:1>", "<lora:unknown:1>"),
        ("<hypernet:ink:1>", "<hypernet:ink:1>"),
    ],
)
def test_names_become_those_of_the_files_here(prompt: str, expected: str) -> None:
    assert paste(prompt, "ink: 0123456789ab, a b: ffffffffffff, unknown: 999999999999") == expected


@pytest.mark.parametrize("text", ["", "ink", "ink: ", "ink: xyz", ": 0123", "ink: 0123"])
def test_what_is_no_hash_is_left_out(text: str) -> None:
    assert infotext.parse_hashes(text) == {}


def test_a_name_with_a_colon_keeps_its_hash() -> None:
    assert infotext.parse_hashes("C: ink: 0123456789AB") == {"C ink": "0123456789ab"}


def test_the_fields_of_additional_networks_become_tags() -> None:
    fields = {
        "AddNet Module 1": "LoRA",
        "AddNet Model 1": "ink(0123456789ab)",
        "AddNet Weight A 1": "0.5",
        "AddNet Weight B 1": "0.25",
        "AddNet Module 2": "LoRA",
        "AddNet Model 2": "wash",
        "AddNet Module 3": "ControlNet",
        "AddNet Model 3": "edges",
    }
    assert infotext.additional_networks(fields) == "<lora:ink:te=0.25:unet=0.5><lora:wash:1.0>"

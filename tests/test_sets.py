"""Named sets: files of tags beside the LoRAs, and prompts that name them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import write
from torch import nn

import lora_runtime
from lora_runtime.errors import CatalogError, TagSyntaxError, UnknownLoraError
from lora_runtime.prompt import Prompt, parse_prompt
from lora_runtime.sets import delete_set, parse_with_sets, read_sets, with_sets, write_set

PORTRAIT = "<lora:ink:0.8> <lora:wash:te=0.2:unet=0.4>"


class Model(nn.Module):
    """One layer whose weight is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(4, 4)
        self.x.weight.data.zero_()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the LoRAs ink and wash, whose Δ is 1 and 4 in every place, and the set portrait."""
    for name, value in (("ink", 1.0), ("wash", 4.0)):
        up, down = (torch.full((4,), number).numpy().tobytes() for number in (value, 1.0))
        tensors = {"x.lora_up.weight": ("F32", [4, 1], up), "x.lora_down.weight": ("F32", [1, 4], down)}
        write(tmp_path / f"{name}.safetensors", tensors)  # type: ignore[arg-type]
    (tmp_path / "portrait.set.txt").write_text(PORTRAIT, encoding="utf-8")
    return tmp_path


def read(text: str, sets: Mapping[str, str], **how: Any) -> Prompt:
    return parse_with_sets(text, lambda: sets, **how)


# --- in a prompt -----------------------------------------------------------------------------------------------------


def test_a_set_acts_as_its_tags_and_leaves_no_text(folder: Path) -> None:
    model = Model()
    with lora_runtime.apply(model, "a boat <set:portrait> at sea", loras=folder, strict=True) as applied:
        with_set = model.x.weight.detach().clone()
        assert applied.prompt == "a boat  at sea"
        assert applied.strengths == {"ink": 0.8, "wash": (0.2, 0.4)}
    with lora_runtime.apply(model, PORTRAIT, loras=folder, strict=True):
        assert torch.equal(with_set, model.x.weight.detach())
    assert torch.equal(model.x.weight, torch.zeros(4, 4))


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("<set:a:0.5>", "<lora:ink:0.4><lora:wash:te=0.1:unet=0.2>"),
        ("<set:a:0>", "<lora:ink:0><lora:wash:0>"),
        ("<set:a:-1>", "<lora:ink:-0.8><lora:wash:te=-0.2:unet=-0.4>"),
        ("<set: a : 0.5 >", "<lora:ink:0.4><lora:wash:te=0.1:unet=0.2>"),
        ("<set:b:0.5>", "<lora:ink:te=0.5@0,0@1:unet=0.5@0,0@1:stop=10s>"),
        ("<set:c:3>", "<lora:ink:0.3:hr=0.6:in=1.5:IN04=0.5>"),
        ("<set:a><set:a>", (PORTRAIT * 2).replace(" ", "")),
    ],
)
def test_a_strength_is_for_every_strength_of_the_set(text: str, tags: str) -> None:
    sets = {"a": PORTRAIT, "b": "<lora:ink:1@0,0@1:stop=10>", "c": "<lora:ink:0.1:hr=0.2:in=0.5:IN04=0.5>"}
    found, meant = read(text, sets), parse_prompt(tags)
    for one, other in zip(found.tags, meant.tags, strict=True):
        assert (one.name, one.te, one.unet, one.conditions) == (other.name, other.te, other.unet, other.conditions)
    assert found.text == ""


def test_the_tags_of_a_set_have_places_in_the_source() -> None:
    prompt = read("a <set:a> b <lora:oil:1>", {"a": "<lora:ink:0.5>"})
    assert prompt.source == "a <lora:ink:0.5> b <lora:oil:1>"
    assert [prompt.source[slice(*tag.span)] for tag in prompt.tags] == ["<lora:ink:0.5>", "<lora:oil:1>"]
    assert prompt.text == "a  b "


@pytest.mark.parametrize("dialect", ["a1111", "comfy", "native"])
def test_a_set_means_the_same_in_any_dialect(dialect: str) -> None:
    (tag,) = read("<set:a>", {"a": "<lora:ink:0.2:0.4>"}, dialect=dialect).tags
    assert (tag.te, tag.unet) == (0.2, 0.4)


def test_brackets_around_a_set_switch_its_tags() -> None:
    meant = parse_prompt("[<lora:ink:0.5><lora:wash:1>::10]", scope="edit")
    assert read("[<set:a>::10]", {"a": "<lora:ink:0.5> <lora:wash:1>"}, scope="edit").tags == meant.tags


def test_a_text_without_a_set_asks_for_none() -> None:
    def sets() -> dict[str, str]:
        raise AssertionError("nobody needs them")

    for text in ("a <lora:ink:0.5> cat", "reset: a set:b", ""):
        assert parse_with_sets(text, sets) == parse_prompt(text)
        assert with_sets(text, sets) == text


def test_an_unknown_set_is_an_error_with_what_comes_near() -> None:
    prompt = read("a <set:portait> <lora:ink:1>", {"portrait": PORTRAIT})
    (told,) = prompt.diagnostics
    assert (told.severity, told.span) == ("error", (2, 15))
    assert told.message == 'no set named "portait". Did you mean "portrait"?'
    assert (prompt.text, [tag.name for tag in prompt.tags]) == ("a  ", ["ink"])
    with pytest.raises(TagSyntaxError, match='no set named "portait"'):
        read("a <set:portait>", {"portrait": PORTRAIT}, strict=True)


def test_where_there_are_none_it_is_said_where_sets_are() -> None:
    (told,) = read("<set:x>", {}).diagnostics
    assert told.message == 'no set named "x" (there are 0); sets are files NAME.set.txt in a LoRA folder'


@pytest.mark.parametrize(
    ("text", "content", "severity", "message"),
    [
        ("<set:a:x>", PORTRAIT, "error", 'the strength of the set "a" "x" is not a number; it is not applied'),
        ("<set:a:0.5:1>", PORTRAIT, "error", 'the strength of the set "a" "0.5:1" is not a number; it is not applied'),
        ("<set:a>", "<lora:b:1> <set:c>", "warning", 'the set "a" has a set in it, which is left out'),
        ("<set:a>", "<lora:b:1> film, ", "warning", 'the set "a" has words in it, "film", which are left out'),
        ("<set:a>", "<lora:b:1><lora:c:x>", "error", 'in the set "a": the strength "x" is not a number; this tag is'),
        ("<set:a>", "", "warning", 'the set "a" has no tag in it'),
    ],
)
def test_what_is_wrong_with_a_set_is_said(text: str, content: str, severity: str, message: str) -> None:
    prompt = read(text, {"a": content, "c": PORTRAIT})
    (told,) = prompt.diagnostics
    assert told.severity == severity
    assert told.message.startswith(message)
    assert prompt.text == ""


def test_a_set_alone_is_said_to_need_a_folder() -> None:
    prompt = parse_prompt("a <set:x> b")
    assert prompt.text == "a  b"
    assert [(d.severity, d.message) for d in prompt.diagnostics] == [
        ("info", "a named set means tags where LoRA folders are known; it is taken out of the text")
    ]


def test_an_escaped_set_is_text_in_the_native_dialect() -> None:
    assert read("a \\<set:a> b", {"a": PORTRAIT}, dialect="native").tags == ()


def test_a_set_in_the_negative_prompt_is_warned_of(folder: Path) -> None:
    applied = lora_runtime.apply(Model(), "x", negative_prompt="<set:portrait>", loras=folder)
    assert applied.diagnostics[0].message.startswith("<set:portrait> in the negative prompt is not applied")


def test_the_parameters_of_a_picture_have_the_tags(folder: Path) -> None:
    applied = lora_runtime.apply(Model(), "a boat <set:portrait:0.5>", loras=folder)
    assert applied.infotext(seed=1).startswith("a boat <lora:ink:0.4><lora:wash:te=0.1:unet=0.2>\n")


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_set_is_written_read_and_deleted(tmp_path: Path) -> None:
    path = write_set(tmp_path, "my café", f"\n{PORTRAIT}\n")
    assert path == tmp_path / "my café.set.txt"
    assert read_sets(tmp_path) == {"my café": PORTRAIT + "\n"}
    write_set(tmp_path, "my café", "<lora:ink:1>")
    assert read_sets(tmp_path) == {"my café": "<lora:ink:1>\n"}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    delete_set(tmp_path, "my café")
    assert read_sets(tmp_path) == {}


@pytest.mark.parametrize(
    "name",
    [
        *("", " a", "a ", ".a", "a.", "..", "../a", "a/b", "a\\b", "C:a", "a:b", "a>b", "a*", "a\0b", "a\nb"),
        *("con", "NUL", "com1.x", "x" * 101),
    ],
)
def test_a_name_stays_in_its_folder_and_fits_a_tag(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "loras"
    inside.mkdir()
    with pytest.raises(CatalogError, match="is no name for a set"):
        write_set(inside, name, PORTRAIT)
    with pytest.raises(UnknownLoraError):
        delete_set(inside, name)
    assert [*tmp_path.rglob("*")] == [inside]


def test_what_is_no_set_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="has no tag in it"):
        write_set(tmp_path, "a", "just words")
    with pytest.raises(CatalogError, match="a set has up to 65,536"):
        write_set(tmp_path, "a", "<lora:ink:1>" * 6000)
    assert [*tmp_path.iterdir()] == []


def test_the_first_folder_has_the_name_and_folders_within_are_left_out(tmp_path: Path) -> None:
    for number, place in enumerate(("one", "two", "one/within")):
        (tmp_path / place).mkdir()
        write_set(tmp_path / place, f"set{number % 2}", f"<lora:{place[:3]}:1>")
    write_set(tmp_path / "two", "set0", "<lora:no:1>")
    assert read_sets(tmp_path / "one", tmp_path / "two") == {"set0": "<lora:one:1>\n", "set1": "<lora:two:1>\n"}


def test_odd_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "big.set.txt").write_bytes(b"<lora:a:1>" * 7000)
    (tmp_path / "bom.set.txt").write_bytes(b"\xef\xbb\xbf<lora:a:1>\xff")
    (tmp_path / "folder.set.txt").mkdir()
    (tmp_path / ".hidden.set.txt").write_text("<lora:a:1>", encoding="utf-8")
    (tmp_path / "other.txt").write_text("<lora:a:1>", encoding="utf-8")
    secret = tmp_path / "secret"
    secret.write_text("<lora:a:1>", encoding="utf-8")
    with suppress(OSError):  # Windows, for a user who may not
        (tmp_path / "link.set.txt").symlink_to(secret)
    assert read_sets(tmp_path) == {"bom": "<lora:a:1>\ufffd"}


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="cannot be listed"):
        read_sets(tmp_path / "none")

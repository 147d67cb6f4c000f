"""The cards of the studio: which come first, which fit the chosen model, and which file each of them means."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from handmade import write
from safetensors.torch import save_file

from lora_runtime import LoraCatalog
from lora_runtime.demo.scene_pipeline import LORAS
from lora_runtime.panel.marks import Marks
from lora_runtime.studio import gallery as gallery_module
from lora_runtime.studio.fitting import Fitting
from lora_runtime.studio.gallery import Gallery
from lora_runtime.studio.models import Models
from lora_runtime.studio.shelf import Wanted

SD1, SDXL = {"ss_base_model_version": "sd_v1"}, {"ss_base_model_version": "sdxl_base_v1-0"}


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """Two models: one of SD1, whose UNet is a file of weights alone, and one of weights that are no safetensors."""
    pipeline = tmp_path / "models" / "small"
    (pipeline / "unet").mkdir(parents=True)
    (pipeline / "model_index.json").write_text("{}")
    unet = tiny.unet("sd1")
    config = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768}  # as SD1's has it
    (pipeline / "unet" / "config.json").write_text(json.dumps(config))
    weights = {name: tensor.contiguous() for name, tensor in unet.state_dict().items()}
    save_file(weights, pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "models" / "pickled").mkdir()
    (tmp_path / "models" / "pickled" / "model_index.json").write_text("{}")
    return Models([tmp_path / "models"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "loras"
    found.mkdir()
    return found


def gallery_of(folder: Path, models: Models, *more: Path) -> Gallery:
    return Gallery(LoraCatalog(folder, *more), Marks(folder / "marks.json"), Fitting(models), lambda: True)


def titles(gallery: Gallery, **asked: Any) -> list[str]:
    return [card.title for card in gallery.find(Wanted(), **asked).cards]


def test_what_is_made_for_another_family_comes_last_and_says_so(folder: Path, models: Models) -> None:
    for name, metadata in {"a": SDXL, "b": SD1, "c": None, "d": SDXL}.items():
        write(folder / f"{name}.safetensors", metadata=metadata)
    found = gallery_of(folder, models).find(Wanted(), model="small").cards
    assert [(card.title, card.other) for card in found] == [("b", False), ("c", False), ("a", True), ("d", True)]
    # Where nobody can tell the model's family, and of one that is not there, nothing is another's.
    for model in ("pickled", "nobody", ""):
        assert titles(gallery_of(folder, models), model=model) == ["a", "b", "c", "d"]


def test_what_fits_is_what_says_so_or_finds_a_place_with_all_of_its_keys(folder: Path, models: Models) -> None:
    unet = tiny.unet("sd1")
    write(folder / "says so.safetensors", metadata=SD1)
    write(folder / "another.safetensors", metadata=SDXL)
    pair = {f"lora_unet_nowhere.lora_{side}.weight": ("F32", [2, 2]) for side in ("down", "up")}
    write(folder / "nowhere.safetensors", pair)
    tiny.write_kohya_lora(folder / "by its keys.safetensors", unet, components=("unet",), metadata={})
    gallery = gallery_of(folder, models)
    assert titles(gallery, model="small", fits=True) == ["by its keys", "says so"]
    assert len(titles(gallery, model="pickled", fits=True)) == 4  # nothing speaks against any
    [entry] = [each for each in LoraCatalog(folder).entries if each.name == "nowhere"]
    assert gallery.details(f"0/{entry.relative}.safetensors", "small")["coverage"] == "0 of 2 keys"  # type: ignore[index]


def test_the_embedded_loras_fit_the_embedded_model() -> None:
    gallery = Gallery(LoraCatalog(LORAS), Marks(), Fitting(Models()))
    found = gallery.find(Wanted(), model="embedded", fits=True)
    assert (found.total, found.unsure) == (len(list(LORAS.glob("*.safetensors"))), 0)


def test_files_for_which_there_was_no_time_stay_until_it_is_asked_again(
    folder: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        write(folder / f"{name}.safetensors")
    gallery = gallery_of(folder, models)
    monkeypatch.setattr(gallery_module, "_SECONDS_TO_FIT", 0.0)
    found = gallery.find(Wanted(), model="small", fits=True)
    assert (found.total, found.unsure) == (3, 3)
    monkeypatch.setattr(gallery_module, "_SECONDS_TO_FIT", 60.0)
    assert gallery.find(Wanted(), model="small", fits=True).total == 0
    monkeypatch.setattr(gallery_module, "_SECONDS_TO_FIT", 0.0)
    assert gallery.find(Wanted(), model="small", fits=True).total == 0  # what was found out stays


def test_each_card_means_one_file_and_its_tag_too(folder: Path, models: Models, tmp_path: Path) -> None:
    second = tmp_path / "second"
    for path in (folder / "ink", second / "ink", second / "style" / "ink", second / "one > two"):
        write(path.with_name(f"{path.name}.safetensors"))
    gallery = gallery_of(folder, models, second)
    cards = gallery.find(Wanted()).cards
    paths = [entry.path for card in cards if (entry := gallery.entry(card.name))]
    assert paths == [entry.path for entry in LoraCatalog(folder, second).entries]
    assert [card.tag for card in cards][:1] == ["ink"]
    [odd] = [card for card in cards if card.title == "one > two"]
    assert odd.tag.startswith("#")
    assert gallery.find(Wanted(), at="1/style/ink.safetensors").at == paths.index(second / "style" / "ink.safetensors")
    assert gallery.find(Wanted("two"), at="0/ink.safetensors").at == -1


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="this system has no such file names")
def test_a_name_that_is_no_text_can_be_sent_and_asked_for(folder: Path, models: Models) -> None:
    path = write(folder / "x.safetensors")
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.safetensors"))
    path.rename(odd)
    odd.with_suffix(".webm").touch()
    gallery = gallery_of(folder, models)
    [card] = gallery.find(Wanted()).cards
    entry = gallery.entry(card.name)
    assert entry is not None
    assert entry.path == odd
    assert card.film.isascii()


def test_a_card_has_what_lies_beside_its_file(folder: Path, models: Models) -> None:
    write(folder / "ink.safetensors", metadata=SD1)
    write(
        folder / "wash.safetensors", {"y.lora_down.weight": ("F32", [1, 2])}, {"modelspec.trigger_phrase": "wet, paper"}
    )
    for name in ("ink.webm", "ink.png"):
        (folder / name).touch()
    (folder / "ink.civitai.info").write_text('{"id": 2, "modelId": 1, "trainedWords": ["ink wash"]}')
    ink, wash = gallery_of(folder, models).find(Wanted(), blurred=["wet"]).cards
    assert (ink.words, ink.family, ink.blurred) == (("ink wash",), "SD1", False)
    assert ink.page == "https://civitai.com/models/1?modelVersionId=2"
    assert ink.film.startswith("film?name=0%2Fink.safetensors&v=")
    assert ink.picture.startswith("picture?name=0%2Fink.safetensors&v=")
    assert (wash.words, wash.family, wash.picture, wash.film, wash.page) == (("wet", "paper"), "", "", "", "")
    assert wash.blurred  # by its words


@pytest.mark.parametrize(
    ("key", "shape", "family"),
    [
        ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", [320, 768], "SD1"),
        ("model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", [640, 2048], "SDXL"),
        ("model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", [640, 7], ""),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", [8, 8], "SD3"),
        ("double_blocks.0.img_attn.qkv.weight", [8, 8], "Flux"),
        ("something.weight", [8, 8], ""),
    ],
)
def test_a_checkpoint_tells_its_family_by_its_tensors(tmp_path: Path, key: str, shape: list[int], family: str) -> None:
    write(tmp_path / "model.safetensors", {key: ("F16", shape)})
    assert Fitting(Models([tmp_path / "model.safetensors"])).of("model.safetensors").family == family


@pytest.mark.parametrize(
    ("part", "config", "family"),
    [
        ("unet", {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 2048}, "SDXL"),
        ("unet", {"_class_name": "UNet2DConditionModel", "cross_attention_dim": [1024, 1024]}, "SD2"),
        ("unet", {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 32}, ""),  # of no family that has files
        ("transformer", {"_class_name": "FluxTransformer2DModel"}, "Flux"),
        ("transformer", {"_class_name": "NobodysModel"}, ""),
        ("transformer", [], ""),
    ],
)
def test_a_pipeline_tells_its_family_by_the_config_of_its_denoiser(
    tmp_path: Path, part: str, config: object, family: str
) -> None:
    (tmp_path / "model" / part).mkdir(parents=True)
    (tmp_path / "model" / "model_index.json").write_text("{}")
    (tmp_path / "model" / part / "config.json").write_text(json.dumps(config))
    assert Fitting(Models([tmp_path / "model"])).of("model").family == family


def test_a_model_is_looked_at_once(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_runtime.workbench import base_model

    asked, open_model = [], base_model.open_model

    def counted(path: Path) -> Any:
        asked.append(path.name)
        return open_model(path)

    monkeypatch.setattr(base_model, "open_model", counted)
    fitting = Fitting(models)
    for _ in range(3):
        assert fitting.of("small").family == "SD1"
        assert fitting.of("pickled").family == ""
    assert asked == ["small", "pickled"]

"""Which models there are in the places that were given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_runtime.demo.scene_pipeline import PIPELINE
from lora_runtime.studio.faults import StudioError
from lora_runtime.studio.models import EMBEDDED, Model, Models, find_models
from lora_runtime.studio.samplers import OWN


def saved(folder: Path, scheduler: str) -> None:
    """Write what a saved pipeline of 1024 pixels says of itself."""
    for name, said in {
        "model_index.json": {},
        "transformer/config.json": {"sample_size": 128},
        "vae/config.json": {"block_out_channels": [1, 2, 3, 4]},
        "scheduler/scheduler_config.json": {"_class_name": scheduler},
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(said))
    (folder / "transformer" / "model.safetensors").write_bytes(b"")


def test_without_a_place_there_is_the_embedded_model() -> None:
    [model] = find_models([])
    assert (model.name, model.path, model.side) == (EMBEDDED, None, 48)


def test_folders_and_files_are_found_below_a_place_and_parts_of_a_model_are_none(tmp_path: Path) -> None:
    saved(tmp_path / "flows", "FlowMatchEulerDiscreteScheduler")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "one.safetensors").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no model")
    flows, one = find_models([tmp_path])
    assert (flows.name, flows.side, flows.samplers) == ("flows", 1024, (OWN,))
    assert (one.name, one.path) == ("old/one.safetensors", tmp_path / "old" / "one.safetensors")


def test_models_of_one_name_in_two_places_are_told_apart(tmp_path: Path) -> None:
    for place in ("a", "b", "c"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "one.safetensors").write_bytes(b"")
    names = [model.name for model in find_models([tmp_path / place for place in ("a", "b", "c")])]
    assert names == ["one.safetensors", "one.safetensors (2)", "one.safetensors (3)"]


def test_a_place_that_is_not_there_and_one_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="does not exist"):
        Models([tmp_path / "nowhere"])
    with pytest.raises(StudioError, match=r"there is no model in .*model_index\.json"):
        Models([tmp_path])


def test_one_model_is_in_memory_and_loaded_once_for_pictures_that_follow_each_other(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    loaded = []

    def load(model: Model) -> str:
        loaded.append(model.name)
        return model.name

    models = Models([tmp_path], load=load)
    for name in ("a", "a", "b", "a"):
        with models.using(f"{name}.safetensors") as pipe:
            assert pipe == f"{name}.safetensors"
    assert loaded == ["a.safetensors", "b.safetensors", "a.safetensors"]


def test_a_saved_pipeline_is_loaded_as_diffusers_has_saved_it(pipe: Any) -> None:
    [model] = Models([PIPELINE]).all.values()
    assert (model.name, model.path, model.side) == ("pipeline", PIPELINE, 48)
    assert type(pipe).__name__ == "StableDiffusionPipeline"


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.safetensors"
    path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(StudioError, match="is no checkpoint of SD1"), Models([path]).using("no.safetensors"):
        pass

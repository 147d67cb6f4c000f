"""What a file says of its training: other tools read it, and this repository's own readers judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from extension_package import module
from safetensors.torch import save_file

from lora_runtime.families import FAMILIES
from lora_runtime.metadata import describe, read_header
from lora_runtime.train.config import Config
from lora_runtime.train.folders import Dataset, Picture
from lora_runtime.train.notes import metadata_of, trigger_phrase

_INFO = module("library.training_info")
Fact, facts, tag_counts = _INFO.Fact, _INFO.facts, _INFO.tag_counts

STARTED = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC


def picture(path: str, caption: str, repeats: int = 20, size: tuple[int, int] = (512, 512), **more: Any) -> Picture:
    place = Path(path)
    words = place.parent.name.partition("_")[2]
    return Picture(place, caption, place.parent.name, repeats, more.pop("beside", False), size, words=words)


DATASET = Dataset(
    (
        picture("train/20_robot/a.png", "Robot, red"),
        picture("train/20_robot/b.png", "robot, blue, "),
        picture("train/3_robot arm/c.png", "robot arm", 3, (1024, 256)),
        picture("reg/1_toy/d.png", "toy", 22, beside=True),
        picture("reg/1_toy/e.png", "toy", 21, beside=True),
    )
)
CONFIG = Config(
    output_name="robot",
    network_dim=8,
    network_alpha=4,
    conv_dim=4,
    train_batch_size=2,
    max_train_epochs=3,
    unet_lr=2e-4,
    optimizer_type="prodigyopt.Prodigy",
    optimizer_args=(("weight_decay", 0.1), ("betas", (0.9, 0.99))),
    min_snr_gamma=5,
)


def metadata(config: Config = CONFIG, dataset: Dataset = DATASET, **more: Any) -> dict[str, str]:
    said: dict[str, Any] = {
        "family": "SD1",
        "model_name": "base.safetensors",
        "model_hash": "ab" * 32,
        "steps": 100,
        "epoch": 2,
        "started": STARTED,
        "finished": STARTED + 60,
    }
    return metadata_of(config, dataset, **{**said, **more})


def test_all_values_are_texts_as_the_format_asks() -> None:
    assert all(isinstance(name, str) and isinstance(value, str) for name, value in metadata().items())


def test_the_webuis_editor_shows_the_training() -> None:
    said = metadata()
    assert facts(said)[:4] == [
        Fact("Output name", "robot"),
        Fact("Model", "base.safetensors"),
        Fact("Kohya module", "networks.lora"),
        Fact("Date trained", "2023-11-14 22:13"),
    ]
    assert facts(said)[-1] == Fact("Dataset size", "3")
    assert tag_counts(said) == [("robot", 2), ("red", 1), ("blue", 1), ("robot arm", 1)]
    square = Dataset(DATASET.pictures[:2])
    assert Fact("Resolution", "512x512") in facts(metadata(dataset=square))


def test_folders_tags_and_buckets_are_kohyas_tables() -> None:
    said = metadata()
    assert json.loads(said["ss_dataset_dirs"]) == {
        "20_robot": {"n_repeats": 20, "img_count": 2},
        "3_robot arm": {"n_repeats": 3, "img_count": 1},
    }
    assert json.loads(said["ss_reg_dataset_dirs"]) == {"1_toy": {"n_repeats": 22, "img_count": 2}}
    assert json.loads(said["ss_tag_frequency"]) == {
        "20_robot": {"robot": 2, "red": 1, "blue": 1},
        "3_robot arm": {"robot arm": 1},
    }
    # Width first, uses with their repeats: 20 + 20 + 22 + 21 of one, 3 of the other; all ratios are met exactly.
    assert json.loads(said["ss_bucket_info"]) == {
        "buckets": {"0": {"resolution": [512, 512], "count": 83}, "1": {"resolution": [1024, 256], "count": 3}},
        "mean_img_ar_error": 0.0,
    }


def test_numbers_are_those_of_the_run() -> None:
    said = metadata()
    # 83 uses in batches of 2 are 42, and 3 are 2.
    assert {name: said[name] for name in said if name.startswith("ss_num_")} == {
        "ss_num_epochs": "3",
        "ss_num_batches_per_epoch": "44",
        "ss_num_train_images": "43",
        "ss_num_reg_images": "43",
    }
    wanted = {
        "ss_max_train_steps": "132",
        "ss_steps": "100",
        "ss_epoch": "2",
        "ss_network_dim": "8",
        "ss_network_alpha": "4.0",
        "ss_learning_rate": "0.0001",
        "ss_unet_lr": "0.0002",
        "ss_text_encoder_lr": "0.0",
        "ss_optimizer": "prodigyopt.Prodigy(weight_decay=0.1,betas=(0.9, 0.99))",
        "ss_lr_scheduler": "cosine",
        "ss_resolution": "(512, 512)",
        "ss_seed": "42",
        "ss_mixed_precision": "no",
        "ss_min_snr_gamma": "5.0",
        "ss_noise_offset": "None",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_new_sd_model_hash": "ab" * 32,
        "ss_training_started_at": "1700000000.0",
        "ss_training_finished_at": "1700000060.0",
        "ss_output_name": "robot",
    }
    assert {name: said[name] for name in wanted} == wanted
    assert json.loads(said["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "4"}


def test_modelspec_says_what_the_file_is() -> None:
    said = metadata()
    assert {name: said[name] for name in said if name.startswith("modelspec.")} == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "robot",
        "modelspec.resolution": "512x512",
        "modelspec.date": "2023-11-14T22:14:20",
        "modelspec.prediction_type": "epsilon",
        "modelspec.trigger_phrase": "robot, robot arm",
    }
    v = metadata(family="SD2", prediction="v_prediction")
    assert (v["ss_base_model_version"], v["ss_v2"]) == ("sd_v2_v", "True")
    assert v["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert v["modelspec.prediction_type"] == "v"


@pytest.mark.parametrize("family", [family.name for family in FAMILIES if family.titles])
def test_inspect_tells_the_family_alias_and_words_back(tmp_path: Path, family: str) -> None:
    path = tmp_path / "robot.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(8, 4)}, path, metadata(family=family))
    told = describe(read_header(path))
    assert told.family == family
    assert (told.title, told.alias) == ("robot", "robot")
    assert told.trigger_words[:2] == ("robot", "robot arm")
    assert "toy" not in told.trigger_words
    assert told.alphas == (4.0,)


def test_a_new_word_is_the_first_of_the_trigger_phrase() -> None:
    config = Config(token_string="<robot>")
    assert trigger_phrase(config, DATASET) == "<robot>, robot, robot arm"
    assert trigger_phrase(Config(), Dataset((picture("train/5/a.png", ""),))) == ""
    assert "modelspec.trigger_phrase" not in metadata(dataset=Dataset((picture("train/5/a.png", ""),)))


def test_two_folders_of_one_name_are_told_apart() -> None:
    pictures = (picture("a/2_x/a.png", "one"), picture("b/2_x/a.png", "two"), picture("c/2_x/a.png", "three"))
    said = metadata(dataset=Dataset(pictures))
    assert json.loads(said["ss_tag_frequency"]) == {"2_x": {"one": 1}, "2_x (2)": {"two": 1}, "2_x (3)": {"three": 1}}


def test_other_kinds_of_layers_are_named_as_lycoris_names_them() -> None:
    said = metadata(Config(network_module="lokr", factor=4, use_dora=True, use_rslora=True))
    assert said["ss_network_module"] == "lycoris.kohya"
    told = json.loads(said["ss_network_args"])
    assert told == {"algo": "lokr", "factor": "4", "dora_wd": "True", "rs_lora": "True"}


def test_a_run_that_is_not_at_its_end_says_so() -> None:
    said = metadata(finished=None, model_hash="")
    assert said["ss_training_finished_at"] == "None"
    assert said["modelspec.date"] == "2023-11-14T22:13:20"
    assert "ss_new_sd_model_hash" not in said

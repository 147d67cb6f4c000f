"""What kohya's trainer wrote into the metadata, as its source and the WebUI's editor have it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from extension_package import module
from hypothesis import given
from hypothesis import strategies as st

info = module("library.training_info")

METADATA = {
    "ss_output_name": "inkwash",
    "ss_sd_model_name": "v1-5.safetensors",
    "ss_clip_skip": "None",
    "ss_network_module": "networks.lora",
    "ss_training_started_at": "1700000000.5",  # 2023-11-14 22:13:20 UTC
    # (width, height), as the sizes of sd-scripts' bucket manager are
    "ss_bucket_info": json.dumps(
        {"buckets": {"0": {"resolution": [512, 768], "count": 12}, "1": {"resolution": [640, 640], "count": 30}}}
    ),
    "ss_dataset_dirs": json.dumps({"10_ink": {"n_repeats": 10, "img_count": 40}, "5_x": {"img_count": 2}}),
}


def test_the_table_tells_what_the_trainer_wrote() -> None:
    assert [(row.label, row.text) for row in info.facts(METADATA)] == [
        ("Output name", "inkwash"),
        ("Model", "v1-5.safetensors"),
        ("Kohya module", "networks.lora"),
        ("Date trained", "2023-11-14 22:13"),
        ("Resolutions", "640x640, 512x768"),
        ("Dataset size", "42"),
    ]


def test_of_many_resolutions_four_are_shown_and_all_are_in_the_hint() -> None:
    buckets = {str(n): {"resolution": [64, 64 * n], "count": 10 - n} for n in range(1, 7)}
    rows = info.facts({"ss_bucket_info": json.dumps({"buckets": buckets})})
    assert rows == [
        info.Fact(
            "Resolutions",
            "64x64, 64x128, 64x192, 64x256, …",
            "64x64, 64x128, 64x192, 64x256, 64x320, 64x384",
        )
    ]


def test_tags_are_counted_over_all_folders_of_pictures() -> None:
    frequency = {"10_a": {"boat ": 3, "sea": 5}, "2_b": {"boat": 4}}
    assert info.tag_counts({"ss_tag_frequency": json.dumps(frequency)}) == [("boat", 7), ("sea", 5)]


def test_captions_in_sentences_are_cut_into_words_of_three_letters_and_more() -> None:
    frequency = {"1": {"a black cat on the red-hot roof": 2, "the cat's dream": 1}}  # 31 and 15 letters: 23 on average
    assert dict(info.tag_counts({"ss_tag_frequency": json.dumps(frequency)})) == {
        "black": 2, "cat": 2, "the": 3, "red-hot": 2, "roof": 2, "cat's": 1, "dream": 1,
    }  # fmt: skip


def test_the_most_frequent_tag_is_always_in_a_random_prompt() -> None:
    tags = [("boat", 10), ("never", 0)]
    assert {info.random_prompt(tags, random.Random(seed)) for seed in range(50)} == {"boat"}


def test_tags_come_as_often_as_they_were_in_the_captions() -> None:
    chance = random.Random(0)
    drawn = [info.random_prompt([("boat", 10), ("sea", 5)], chance) for _ in range(1000)]
    # 1000 draws at 1/2: 450 to 550 is more than three standard deviations to each side.
    assert 450 < drawn.count("boat, sea") < 550
    assert drawn.count("boat, sea") + drawn.count("boat") == 1000


def test_one_seed_gives_one_prompt() -> None:
    tags = [(f"tag{n}", n) for n in range(20, 0, -1)]
    assert info.random_prompt(tags, random.Random(3)) == info.random_prompt(tags, random.Random(3))


def test_what_means_strength_in_a_prompt_is_escaped() -> None:
    assert info.random_prompt([("[a] (b) {c}", 1)], random.Random(0)) == r"\[a\] \(b\) \{c\}"


@pytest.mark.parametrize(
    ("text", "tag", "expected"),
    [
        ("", "boat", "boat"),
        ("sea", "boat", "sea, boat"),
        ("sea, boat , sky", "boat", "sea, sky"),
        ("boat", "boat", ""),
        ("steamboat", "boat", "steamboat, boat"),
    ],
)
def test_a_click_on_a_tag_adds_it_or_takes_it_out(text: str, tag: str, expected: str) -> None:
    assert info.toggle_tag(text, tag) == expected


HOSTILE = [
    "", "None", "null", "[]", "{", "[" * 100_000, "NaN", "1e999", "-1", "9" * 5000, '"x"', "true", "\0", "<script>",
    '{"buckets": []}', '{"buckets": {"0": 1, "1": {"resolution": ["a", {}]}, "2": {"resolution": [1, 2, 3]}}}',
    '{"buckets": {"0": {"resolution": [1e999, 8], "count": NaN}}}', '{"a": {"b": 1e999, "c": [], "d": "x", "e": null}}',
    '{"a": {"img_count": "many"}, "b": 3, "c": {"img_count": -5}}',
]  # fmt: skip
KEYS = ["ss_tag_frequency", "ss_bucket_info", "ss_dataset_dirs", "ss_training_started_at", "ss_output_name"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", HOSTILE)
def test_no_metadata_can_make_it_raise(key: str, value: str) -> None:
    rows = info.facts({key: value})
    tags = info.tag_counts({key: value})
    assert all(isinstance(row.text, str) for row in rows)
    assert isinstance(info.random_prompt(tags, random.Random(0)), str)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["buckets", "0", "tag"]), inner),
)


@given(st.sampled_from(KEYS), JSON)
def test_no_json_can_make_it_raise(key: str, value: Any) -> None:
    metadata = {key: json.dumps(value)}
    info.facts(metadata)
    assert all(count > 0 and tag for tag, count in info.tag_counts(metadata))

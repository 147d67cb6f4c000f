"""Batches: which pictures a step sees follows from the seed and the number of the epoch alone."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_runtime.train import batches
from lora_runtime.train.batches import Use, batches_per_epoch, epochs_of, plan_epoch, steps_of, steps_per_epoch
from lora_runtime.train.buckets import place
from lora_runtime.train.config import Config
from lora_runtime.train.folders import Dataset, Picture

SIZES = [(512, 512), (640, 480), (480, 640), (1000, 300)]


def picture(number: int, size: tuple[int, int] = (512, 512), repeats: int = 1, beside: bool = False) -> Picture:
    return Picture(Path(f"{number:03}.png"), f"robot, tag {number}, red, big", "1_robot", repeats, beside, size)


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    count = draw(st.integers(1, 12))
    sizes = draw(st.lists(st.sampled_from(SIZES), min_size=count, max_size=count))
    repeats = draw(st.lists(st.integers(1, 5), min_size=count, max_size=count))
    return Dataset(tuple(picture(n, sizes[n], repeats[n]) for n in range(count)))


@given(dataset=datasets(), size=st.integers(1, 7), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_each_repeat_is_used_once_and_a_batch_has_one_bucket(
    dataset: Dataset, size: int, seed: int, epoch: int
) -> None:
    config = Config(train_batch_size=size, seed=seed)
    plan = plan_epoch(dataset, config, epoch)
    uses = Counter(use.picture for batch in plan for use in batch)
    assert uses == Counter({picture: picture.repeats for picture in dataset.pictures})
    for batch in plan:
        assert 1 <= len(batch) <= size
        assert len({use.placed.bucket for use in batch}) == 1
        assert all(use.placed == place(use.picture.size, config) for use in batch)
    # Of each bucket at most one batch is smaller.
    small = Counter(batch[0].placed.bucket for batch in plan if len(batch) < size)
    assert all(count == 1 for count in small.values())
    assert len(plan) == batches_per_epoch(dataset, config)


def test_an_epochs_batches_depend_on_nothing_but_seed_and_number() -> None:
    dataset = Dataset(tuple(picture(n, SIZES[n % 4], 3) for n in range(10)))
    config = Config(shuffle_caption=True, flip_aug=True, caption_dropout_rate=0.2, train_batch_size=2)
    plans = [plan_epoch(dataset, config, epoch) for epoch in range(4)]
    # In any order, and after others.
    assert [plan_epoch(dataset, config, epoch) for epoch in (3, 1, 0, 2)] == [plans[3], plans[1], plans[0], plans[2]]
    assert len({str(plan) for plan in plans}) == 4
    other = Config(shuffle_caption=True, flip_aug=True, caption_dropout_rate=0.2, train_batch_size=2, seed=43)
    assert plan_epoch(dataset, other, 0) != plans[0]
    # The sum of seed and epoch is the same, the order is not.
    assert plan_epoch(dataset, other, 0) != plans[1]


def test_another_process_with_other_hashes_plans_the_same() -> None:
    code = """
import json
from pathlib import Path
from lora_runtime.train.batches import plan_epoch
from lora_runtime.train.config import Config
from lora_runtime.train.folders import Dataset, Picture
sizes = [(512, 512 + 64 * n) for n in range(9)]
dataset = Dataset(tuple(Picture(Path(f"{s[1]}.png"), "a, b, c, d", "1_x", 2, False, s) for s in sizes))
plan = plan_epoch(dataset, Config(shuffle_caption=True, flip_aug=True, train_batch_size=3), 5)
print(json.dumps([[[str(use.picture.path), use.caption, use.flipped] for use in batch] for batch in plan]))
"""
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    here = io.StringIO()
    with redirect_stdout(here):
        exec(code, {})
    assert done.stdout == here.getvalue()


@pytest.mark.parametrize(
    "name", ["batches", "buckets", "captions", "config", "folders", "kohya", "kohya_names", "notes"]
)
def test_what_is_read_and_planned_needs_no_torch(name: str) -> None:
    code = Path(batches.__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    assert re.findall(r"^\s*(?:import|from) (?:torch|numpy|safetensors)", code, re.MULTILINE) == []


def test_pictures_are_mirrored_half_of_the_time_where_it_is_asked() -> None:
    dataset = Dataset((picture(0, repeats=4000),))
    flips = [use.flipped for batch in plan_epoch(dataset, Config(flip_aug=True), 0) for use in batch]
    # Four standard deviations of 4000 draws are 126.
    assert abs(sum(flips) - 2000) < 126
    assert not any(use.flipped for batch in plan_epoch(dataset, Config(), 0) for use in batch)


def test_captions_vary_from_use_to_use() -> None:
    dataset = Dataset((picture(0, repeats=100),))
    captions = {use.caption for batch in plan_epoch(dataset, Config(shuffle_caption=True), 0) for use in batch}
    assert len(captions) > 20
    kept = Config(shuffle_caption=True, keep_tokens=4)
    assert {use.caption for batch in plan_epoch(dataset, kept, 0) for use in batch} == {"robot, tag 0, red, big"}


def test_regularisation_pictures_weigh_what_is_asked_in_the_same_batches() -> None:
    dataset = Dataset((picture(0, repeats=8), picture(1, repeats=8, beside=True)))
    config = Config(prior_loss_weight=0.3, train_batch_size=4)
    plan = plan_epoch(dataset, config, 0)
    uses: list[Use] = [use for batch in plan for use in batch]
    assert {(use.picture.regularisation, use.weight) for use in uses} == {(False, 1.0), (True, 0.3)}
    assert any(len({use.weight for use in batch}) == 2 for batch in plan)


@pytest.mark.parametrize(
    ("numbers", "per_epoch", "steps", "epochs"),
    [
        # Ten uses of one bucket and four of another: 3 + 1 batches of 4.
        ({"train_batch_size": 4, "max_train_steps": 10}, 4, 10, 3),
        ({"train_batch_size": 4, "max_train_epochs": 6}, 4, 24, 6),
        ({"train_batch_size": 4, "gradient_accumulation_steps": 3, "max_train_epochs": 2}, 2, 4, 2),
        ({"train_batch_size": 1, "gradient_accumulation_steps": 4, "max_train_steps": 8}, 4, 8, 2),
        ({"train_batch_size": 1, "max_train_steps": 14}, 14, 14, 1),
        ({"train_batch_size": 1, "max_train_steps": 15}, 14, 15, 2),
    ],
)
def test_steps_and_epochs_are_counted_as_by_hand(
    numbers: dict[str, int], per_epoch: int, steps: int, epochs: int
) -> None:
    dataset = Dataset((picture(0, (512, 512), 10), picture(1, (1024, 256), 4)))
    config = Config(**numbers)
    assert steps_per_epoch(dataset, config) == per_epoch
    assert steps_of(dataset, config) == steps
    assert epochs_of(dataset, config) == epochs

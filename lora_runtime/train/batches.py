"""Which pictures a step sees, and how: the batches of an epoch, made anew from the seed and the epoch's number alone.

So a run that was broken off needs two numbers to go on as if it had not been: the epoch, and how many batches of it
are done.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from lora_runtime.train.buckets import Placed, Size, place
from lora_runtime.train.captions import vary
from lora_runtime.train.config import Config
from lora_runtime.train.folders import Dataset, Picture

__all__ = ["Use", "batches_per_epoch", "epochs_of", "places_of", "plan_epoch", "steps_of", "steps_per_epoch"]


@dataclass(frozen=True)
class Use:
    """One showing of a picture: where it is cut, whether mirrored, what is said of it, and its weight in the loss."""

    picture: Picture
    placed: Placed
    flipped: bool
    caption: str
    weight: float


def places_of(dataset: Dataset, config: Config) -> dict[Size, Placed]:
    """Return how pictures of each size in `dataset` are placed."""
    return {size: place(size, config) for size in sorted({picture.size for picture in dataset.pictures})}


def plan_epoch(dataset: Dataset, config: Config, epoch: int) -> list[list[Use]]:
    """Return the batches of an epoch, which count from 0, in the order of the steps.

    Each picture is used as often as its repeats say. All of a batch have one bucket; what is left in a bucket when
    whole batches are taken is a smaller batch. The same numbers give the same batches, on every system.
    """
    # A text, since a pair of numbers would be hashed, and two sums of seed and epoch may be equal.
    rng = random.Random(f"{config.seed}, epoch {epoch}")
    places = places_of(dataset, config)
    buckets: dict[Size, list[Use]] = {}
    for picture in dataset.pictures:
        placed = places[picture.size]
        for _ in range(picture.repeats):
            buckets.setdefault(placed.bucket, []).append(_use(picture, placed, config, rng))
    batches = []
    for _, uses in sorted(buckets.items()):
        rng.shuffle(uses)
        size = config.train_batch_size
        batches += [uses[begin : begin + size] for begin in range(0, len(uses), size)]
    rng.shuffle(batches)
    return batches


def _use(picture: Picture, placed: Placed, config: Config, rng: random.Random) -> Use:
    flipped = config.flip_aug and rng.random() < 0.5
    caption = vary(
        picture.caption,
        rng,
        shuffle=config.shuffle_caption,
        keep_tokens=config.keep_tokens,
        dropout=config.caption_dropout_rate,
    )
    return Use(picture, placed, flipped, caption, config.prior_loss_weight if picture.regularisation else 1.0)


def batches_per_epoch(dataset: Dataset, config: Config) -> int:
    """Return the number of batches of each epoch."""
    places = places_of(dataset, config)
    uses: Counter[Size] = Counter()
    for picture in dataset.pictures:
        uses[places[picture.size].bucket] += picture.repeats
    return sum(-(-count // config.train_batch_size) for count in uses.values())


def steps_per_epoch(dataset: Dataset, config: Config) -> int:
    """Return the optimiser's steps of each epoch; batches left over at its end make a step of their own."""
    return -(-batches_per_epoch(dataset, config) // config.gradient_accumulation_steps)


def epochs_of(dataset: Dataset, config: Config) -> int:
    """Return how many epochs a run begins; the last may be broken off by max_train_steps."""
    return config.max_train_epochs or -(-config.max_train_steps // steps_per_epoch(dataset, config))


def steps_of(dataset: Dataset, config: Config) -> int:
    """Return the optimiser's steps of the run: those of max_train_epochs where it is given, else max_train_steps."""
    if config.max_train_epochs:
        return config.max_train_epochs * steps_per_epoch(dataset, config)
    return config.max_train_steps

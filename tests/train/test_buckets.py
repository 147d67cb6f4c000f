"""Buckets: kohya's rule in other words, with exact fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lora_runtime.errors import TrainingError
from lora_runtime.train.buckets import Placed, bucket_of, bucket_sizes, place
from lora_runtime.train.config import Config

SIDES = st.integers(1, 6000)
STEPS = st.sampled_from([8, 16, 32, 64])


def restated(resolution: tuple[int, int], least: int, most: int, step: int) -> set[tuple[int, int]]:
    """Return every size of whole steps that fits the area and cannot have a longer second side, either way round."""
    area = resolution[0] * resolution[1]
    steps = range(step, most + 1, step)
    fits = {(w, h) for w in steps for h in steps if w >= least and h >= least and w * h <= area}
    longest = {(w, h) for w, h in fits if h == max(b for a, b in fits if a == w)}
    square = max(side for side in steps if side * side <= area)
    return longest | {(h, w) for w, h in longest} | {(square, square)}


def test_the_sizes_of_512_are_kohyas() -> None:
    upright = [(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576)]
    lying = [(h, w) for w, h in upright]
    assert bucket_sizes((512, 512), 256, 1024, 64) == sorted([*upright, (512, 512), *lying])


@given(
    width=st.integers(4, 24), height=st.integers(4, 24), least=st.integers(1, 8), most=st.integers(20, 60), step=STEPS
)
def test_sizes_are_whole_steps_within_the_area_and_as_large_as_can_be(
    width: int, height: int, least: int, most: int, step: int
) -> None:
    resolution = (width * step, height * step)
    least, most = min(least, width, height) * step, max(most, width, height) * step
    assert set(bucket_sizes(resolution, least, most, step)) == restated(resolution, least, most, step)


def test_limits_are_rounded_to_steps_outwards_and_never_shut_the_resolution_out() -> None:
    assert bucket_sizes((512, 512), 300, 1000, 64) == bucket_sizes((512, 512), 256, 1024, 64)
    assert bucket_sizes((48, 48), 256, 1024, 16) == bucket_sizes((48, 48), 48, 1024, 16)
    assert (48, 48) in bucket_sizes((48, 48), 256, 1024, 16)
    assert (2048, 2048) in bucket_sizes((2048, 2048), 256, 1024, 64)


@given(size=st.tuples(SIDES, SIDES))
def test_a_picture_has_the_bucket_of_the_nearest_ratio_and_just_covers_it(size: tuple[int, int]) -> None:
    sizes = bucket_sizes((512, 768), 256, 1024, 64)
    placed = bucket_of(size, sizes)
    ratio = Fraction(*size)
    missed = abs(Fraction(*placed.bucket) - ratio)
    assert missed <= min(abs(Fraction(*known) - ratio) for known in sizes) + Fraction(1, 10**9)
    # One side is the bucket's, the other as long as the picture's own ratio makes it, to the nearest pixel.
    exact = max(Fraction(placed.bucket[0], size[0]), Fraction(placed.bucket[1], size[1]))
    for side, scaled, cut in zip(size, placed.resized, placed.bucket, strict=True):
        assert abs(scaled - side * exact) <= Fraction(1, 2) + Fraction(1, 10**6)
        assert scaled >= cut
    assert placed.resized[0] == placed.bucket[0] or placed.resized[1] == placed.bucket[1]


@given(size=st.tuples(SIDES, SIDES), upscale=st.booleans())
def test_as_much_is_cut_from_one_end_as_from_the_other(size: tuple[int, int], upscale: bool) -> None:
    try:
        placed = bucket_of(size, bucket_sizes((512, 512), 256, 1024, 64), upscale=upscale, area=512 * 512, step=64)
    except TrainingError:
        assert not upscale
        return
    for scaled, cut, begin in zip(placed.resized, placed.bucket, placed.crop, strict=True):
        rest = scaled - cut - begin
        assert 0 <= rest - begin <= 1


def test_a_picture_that_has_a_buckets_size_keeps_it() -> None:
    # Both have the ratio 2, and the first comes first.
    assert bucket_of((512, 256), [(256, 128), (512, 256)]) == Placed((512, 256), (512, 256), (0, 0))


@pytest.mark.parametrize(
    ("size", "placed"),
    [
        # Less than the area: nothing is scaled, and what is more than whole steps is cut.
        ((300, 200), Placed((256, 192), (300, 200), (22, 4))),
        # √(512²·1.25) = 572.4 → 512, and 512 / 1.25 = 410 → 384: 1.333; 457.9 → 448, and 448·1.25 = 560 → 512: 1.143.
        ((1000, 800), Placed((512, 384), (512, 410), (0, 13))),
        # √(512²·1.5) = 627.1 → 576, and 576 / 1.5 = 384: 1.5 exactly, both ways.
        ((1200, 800), Placed((576, 384), (576, 384), (0, 0))),
        # √(512²/1.6) = 404.8 → 384, and 384·1.6 = 614 → 576: 0.667; 647.7 → 640, and 640 / 1.6 = 400 → 384: 0.6.
        ((1000, 1600), Placed((384, 640), (400, 640), (8, 0))),
    ],
)
def test_without_upscaling_pictures_are_only_made_smaller(size: tuple[int, int], placed: Placed) -> None:
    assert bucket_of(size, (), upscale=False, area=512 * 512, step=64) == placed


@given(size=st.tuples(SIDES, SIDES), step=STEPS)
@example(size=(102, 3490), step=8)  # 87.53 is rounded to 88, which is whole steps, and 88 / ratio to 3011
def test_without_upscaling_no_side_grows_and_each_is_whole_steps(size: tuple[int, int], step: int) -> None:
    area = 512 * 512
    try:
        placed = bucket_of(size, (), upscale=False, area=area, step=step)
    except TrainingError:
        # Only what has not one step on a side: at its own size, or scaled down to the area.
        short, ratio = min(size), max(size) / min(size)
        assert min(short, (area / ratio) ** 0.5) < 2 * step
        return
    for side, scaled, cut in zip(size, placed.resized, placed.bucket, strict=True):
        assert cut % step == 0 and 0 < cut <= scaled <= side + 1
        assert scaled - cut < step
    # One side has the area's length to the nearest pixel, the other what the ratio makes of it, to the nearest again.
    ratio, half = size[0] / size[1], 0.5
    wide, high = (area * ratio) ** 0.5 + half, (area / ratio) ** 0.5 + half
    most = max(wide * (wide / ratio + half), high * (high * ratio + half)) if size[0] * size[1] > area else area
    assert placed.bucket[0] * placed.bucket[1] <= most


def test_a_picture_too_small_for_one_step_is_refused() -> None:
    with pytest.raises(TrainingError, match="60 × 500 is too small or too long for bucket_no_upscale"):
        bucket_of((60, 500), (), upscale=False, area=512 * 512, step=64)


def test_a_runs_numbers_say_which_rule_counts() -> None:
    size = (300, 200)
    # 1.5 is nearer to 640 / 384 = 1.667 than to 576 / 448 = 1.286.
    assert place(size, Config()).bucket == (640, 384)
    assert place(size, Config(enable_bucket=False)).bucket == (512, 512)
    assert place(size, Config(bucket_no_upscale=True)).bucket == (256, 192)


def test_without_buckets_all_pictures_have_the_resolution() -> None:
    # 300 × 200 covers 512 × 512 at 768 × 512; 128 are cut from either end.
    assert place((300, 200), Config(enable_bucket=False)) == Placed((512, 512), (768, 512), (128, 0))

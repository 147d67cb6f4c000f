"""What a person can ask for, and what not."""

from __future__ import annotations

from typing import Any

import pytest

from lora_runtime.studio.faults import StudioError
from lora_runtime.studio.settings import Settings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"width": 4096}, "width is 4096: give a whole number from 8 to 2048"),
        ({"height": 50}, "height is 50: give a multiple of 8"),
        ({"steps": 0}, "steps is 0: give a whole number from 1 to 150"),
        ({"steps": True}, "steps is True: give a whole number from 1 to 150"),
        ({"pictures": 17}, "pictures is 17: give a whole number from 1 to 16"),
        ({"seed": 1 << 32}, "seed is 4294967296: give a whole number from 0 to 4294967295"),
        ({"guidance": float("nan")}, "guidance is nan: give a number from 0 to 100"),
        ({"strength": 1.5}, "strength is 1.5: give a number from 0 to 1"),
        ({"sampler": "Euler b"}, "there is no sampler 'Euler b': choose one of model's own, Euler, "),
        ({"prompt": "a" * 20_001}, "the prompt has more than 20,000 characters: write a shorter one"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(given: dict[str, Any], said: str) -> None:
    with pytest.raises(StudioError) as error:
        Settings(**given)
    assert str(error.value).startswith(said)

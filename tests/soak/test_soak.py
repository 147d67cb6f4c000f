"""A sample of the soak: what people do with a model, in random order, leaves no wrong bit."""

from __future__ import annotations

import logging

import pytest

from soak.sequence import drawn, fault, shortened

SEQUENCES, PARTS, QUICK = 2000, 20, 2


@pytest.mark.parametrize(
    "part", [*range(QUICK), *(pytest.param(part, marks=pytest.mark.slow) for part in range(QUICK, PARTS))]
)
@pytest.mark.filterwarnings("ignore")
def test_no_random_sequence_leaves_a_wrong_bit(part: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "lora_runtime")
    each = SEQUENCES // PARTS
    wrong = []
    for seed in range(part * each, (part + 1) * each):
        found = fault(drawn(seed))
        if found is not None:
            steps = drawn(seed) if wrong else shortened(drawn(seed))  # which takes a while
            # One that depends on the order of threads may be right this time.
            wrong.append(f"seed {seed}: {found}\n  shortest: {fault(steps)}\n  steps = {steps}")
    assert not wrong, "\n".join(wrong)

"""The digits of float32 products: a host's speed is off within `full_precision`, and the host's again after it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lora_runtime import precision
from lora_runtime.precision import full_precision


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    """Let the host have allowed TF32 and bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


def is_exact() -> bool:
    """Return whether a product on the CPU may not be rounded, by torch's own word, and that of each backend."""
    if not hasattr(torch.backends, "fp32_precision"):
        return torch.get_float32_matmul_precision() == "highest"
    return torch.backends.mkldnn.matmul.fp32_precision == "ieee" == torch.backends.cuda.matmul.fp32_precision


def test_threads_that_multiply_at_once_all_have_it_and_leave_the_hosts_setting() -> None:
    """The switch is process-wide: who is done first must not turn it back under the others."""
    began, may_end, found = threading.Event(), threading.Event(), []

    def other() -> None:
        with full_precision():
            began.set()
            may_end.wait(60)
            found.append(is_exact())

    thread = threading.Thread(target=other)
    with full_precision():
        thread.start()
        assert began.wait(60)
        assert is_exact()
    may_end.set()
    thread.join(60)
    assert found == [True]
    assert not is_exact()
    assert torch.get_float32_matmul_precision() == "medium"


def test_one_within_another_ends_nothing() -> None:
    with full_precision():
        with full_precision():
            assert is_exact()
        assert is_exact()
    assert not is_exact()


def test_an_error_within_ends_it() -> None:
    with pytest.raises(ValueError, match="no"), full_precision(), full_precision():
        raise ValueError("no")
    assert not is_exact()
    with full_precision():
        assert is_exact()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["turn_off", "turn_back"])
def test_an_interrupt_leaves_no_product_inexact_and_the_host_its_speed(
    what: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = getattr(precision._SWITCHES, what)

    def interrupted(who: Any) -> None:
        if when == "after":
            done(who)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(precision._SWITCHES, what, interrupted)
    with pytest.raises(KeyboardInterrupt), full_precision():
        pass
    gc.collect()  # the frames of the interrupted block
    with full_precision():
        assert is_exact()
    assert not is_exact()


def test_a_block_whose_end_never_began_holds_no_thread_within_it() -> None:
    full_precision().__enter__()
    torch.set_float32_matmul_precision("medium")  # the host asks again
    with full_precision():
        assert is_exact()
    assert not is_exact()

"""Who shows what: stacks of owners, claims that follow tasks and threads, and models that share what they have."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import io
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lora_runtime
from lora_runtime import patcher as patcher_module
from lora_runtime import scopes
from lora_runtime.errors import ModelBusyError
from lora_runtime.ownership import _claims, _waiters
from lora_runtime.pipelines import ModelView, view
from lora_runtime.scopes import Scope, scope_of


class Pipeline:
    """A pipeline as the library sees one."""

    def __init__(self, **components: nn.Module) -> None:
        self.components = components


def block(seed: int) -> nn.Module:
    """Return a small component of two layers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("ink", "wash", "grain"), start=1):
        generator = torch.Generator().manual_seed(seed)
        save_file(
            {
                f"{component}.{layer}.lora_{side}.weight": torch.randn(shape, generator=generator)
                for component in ("unet", "text_encoder")
                for layer in (0, 1)
                for side, shape in (("A", (2, 8)), ("B", (8, 2)))
            },
            tmp_path / f"{name}.safetensors",
        )
    return tmp_path


def shown(*modules: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for module in modules for parameter in module.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


@pytest.fixture(autouse=True)
def nobody_is_left_holding() -> Any:
    yield
    assert not _claims
    assert not _waiters


# ---- stacks ---------------------------------------------------------------------------------------------------------


def test_two_pipelines_that_share_an_encoder_meet_only_there(folder: Path) -> None:
    words = block(0)
    one, two = Pipeline(unet=block(1), text_encoder=words), Pipeline(unet=block(2), text_encoder=words)
    plain = shown(*one.components.values(), two.components["unet"])
    first = lora_runtime.apply(one, "<lora:ink>", loras=folder)
    ink = shown(one.components["unet"]), shown(words)
    second = lora_runtime.apply(two, "<lora:wash>", loras=folder)
    assert same(shown(one.components["unet"]), ink[0])
    assert not same(shown(words), ink[1])
    assert (first.active, second.active) == (False, True)
    second.restore()
    assert same(shown(words), ink[1])
    assert first.active
    first.restore()
    assert same(shown(*one.components.values(), two.components["unet"]), plain)


def test_blocks_of_two_pipelines_that_share_an_encoder_nest(folder: Path) -> None:
    words = block(0)
    one, two = Pipeline(unet=block(1), text_encoder=words), Pipeline(unet=block(2), text_encoder=words)
    plain = shown(one.components["unet"], two.components["unet"], words)
    with lora_runtime.apply(one, "<lora:ink>", loras=folder) as base:
        ink = shown(one.components["unet"]), shown(words)
        with lora_runtime.apply(two, "<lora:wash:0:1>", loras=folder):
            assert same(shown(one.components["unet"]), ink[0])
            assert same(shown(words), plain[-4:])  # the refiner asks nothing of the encoder
        assert base.active
        assert same(shown(words), ink[1])
    assert same(shown(one.components["unet"], two.components["unet"], words), plain)


@pytest.mark.parametrize("first_out", [0, 1])
def test_one_parameter_under_two_roots_is_one_parameter(folder: Path, first_out: int) -> None:
    unet = block(1)
    plain = shown(unet)
    applied = [
        lora_runtime.apply(Pipeline(unet=nn.Sequential(*unet)), "<lora:ink>", loras=folder),
        lora_runtime.apply(Pipeline(unet=unet), "<lora:wash>", loras=folder),
    ]
    wash = shown(unet)
    applied[first_out].restore()
    assert same(shown(unet), wash) is (first_out == 0)
    applied[1 - first_out].restore()
    assert same(shown(unet), plain)


def test_a_block_on_a_bare_apply_gives_that_ones_state_again(folder: Path) -> None:
    pipe = Pipeline(unet=block(1))
    lora_runtime.apply(pipe, "<lora:ink>", loras=folder)
    ink = shown(pipe.components["unet"])
    with lora_runtime.apply(pipe, "<lora:wash>", loras=folder):
        assert not same(shown(pipe.components["unet"]), ink)
    assert same(shown(pipe.components["unet"]), ink)


def test_an_outer_block_that_is_left_first_leaves_the_inner_as_it_is(folder: Path) -> None:
    pipe = Pipeline(unet=block(1))
    plain = shown(pipe.components["unet"])
    outer = lora_runtime.apply(pipe, "<lora:ink>", loras=folder).__enter__()
    inner = lora_runtime.apply(pipe, "<lora:wash>", loras=folder).__enter__()
    wash = shown(pipe.components["unet"])
    outer.__exit__(None, None, None)
    assert same(shown(pipe.components["unet"]), wash)
    inner.__exit__(None, None, None)
    assert same(shown(pipe.components["unet"]), plain)


@pytest.mark.parametrize("in_a_block", [False, True])
def test_a_strength_that_is_set_while_others_cover_it_shows_when_it_is_uncovered(
    folder: Path, in_a_block: bool
) -> None:
    unet = block(1)
    lora_runtime.apply(Pipeline(unet=unet), "<lora:ink:0.5>", loras=folder)
    half = shown(unet)
    lora_runtime.restore(Pipeline(unet=unet))
    pipe = Pipeline(unet=unet)
    applied = lora_runtime.apply(pipe, "<lora:ink:1>", loras=folder)
    if in_a_block:
        applied.__enter__()
    with lora_runtime.apply(pipe, "<lora:wash>", loras=folder):
        washed = shown(unet)
        applied.set("ink", 0.5)
        assert same(shown(unet), washed)
    assert same(shown(unet), half)
    assert applied.active
    if in_a_block:
        applied.__exit__(None, None, None)
    lora_runtime.restore(pipe)


def test_each_leaves_its_own_block_of_one_apply(folder: Path) -> None:
    pipe = Pipeline(unet=block(1))
    applied, inside, go = lora_runtime.apply(pipe, "<lora:ink>", loras=folder), threading.Event(), threading.Event()
    inked = shown(pipe.components["unet"])
    seen: list[list[Tensor]] = []

    def inner() -> None:
        with applied:
            inside.set()
            go.wait(20)
            seen.append(shown(pipe.components["unet"]))

    with applied:
        thread = threading.Thread(target=contextvars.copy_context().run, args=(inner,))
        thread.start()
        assert inside.wait(20)
    with pytest.raises(ModelBusyError):
        lora_runtime.apply(pipe, "<lora:wash>", loras=folder, wait=0.05)
    go.set()
    thread.join(20)
    assert same(seen[0], inked)


def test_blocks_of_one_apply_that_end_at_the_same_time_leave_no_claim(folder: Path) -> None:
    for _ in range(40):
        pipe = Pipeline(unet=block(1))
        applied, inside, both = (
            lora_runtime.apply(pipe, "<lora:ink>", loras=folder),
            threading.Event(),
            threading.Barrier(2),
        )

        def inner(applied: Any = applied, inside: Any = inside, both: Any = both) -> None:
            with applied:
                inside.set()
                both.wait(20)

        with applied:
            lora_runtime.apply(pipe, "<lora:wash>", loras=folder)  # covers it
            thread = threading.Thread(target=contextvars.copy_context().run, args=(inner,))
            thread.start()
            inside.wait(20)
            both.wait(20)
        thread.join(20)
        assert not _claims


def test_a_failing_inner_apply_leaves_the_outer_block_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline(unet=block(1))
    with lora_runtime.apply(pipe, "<lora:ink>", loras=folder) as outer:
        ink, real, calls = shown(pipe.components["unet"]), patcher_module.merge_into, iter(range(99))

        def fail_once(*args: Any) -> None:
            if next(calls) == 1:
                raise MemoryError("injected")
            real(*args)

        monkeypatch.setattr(patcher_module, "merge_into", fail_once)
        with pytest.raises(MemoryError, match="injected"):
            lora_runtime.apply(pipe, "<lora:wash>", loras=folder)
        assert outer.active
        assert same(shown(pipe.components["unet"]), ink)


def test_what_acts_beside_a_module_nests_too(folder: Path) -> None:
    unet = block(1)
    inputs = torch.randn(2, 8)
    with torch.no_grad():
        plain = unet(inputs)
        with lora_runtime.apply(Pipeline(unet=unet), "<lora:ink:0.5@0,1@1>", loras=folder):
            outer = unet(inputs)
            with lora_runtime.apply(Pipeline(unet=unet), "<lora:wash:0.5@0,1@1>", loras=folder):
                assert not torch.equal(unet(inputs), outer)
            assert torch.equal(unet(inputs), outer)
        assert torch.equal(unet(inputs), plain)


def test_the_same_again_computes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline(unet=block(1), text_encoder=block(2))
    lora_runtime.apply(pipe, "<lora:ink>", loras=folder)
    monkeypatch.setattr(patcher_module, "merge_into", lambda *_: pytest.fail("computed again"))
    with lora_runtime.apply(pipe, "<lora:ink>", loras=folder):
        pass


@pytest.mark.parametrize("compiling", [False, True])
def test_nothing_keeps_the_model(folder: Path, compiling: bool) -> None:
    if compiling:
        pytest.importorskip("torch._dynamo")
    unet = block(1)
    gone = weakref.ref(unet), weakref.ref(unet[0].weight)  # type: ignore[index]
    with lora_runtime.apply(unet, "<lora:ink>", loras=folder) as applied:
        pass
    outer = lora_runtime.apply(unet, "<lora:ink:0.5@0,1@1>", loras=folder)
    gc.disable()
    try:
        del unet
        if "torch._dynamo" in sys.modules:  # what acts then marks its module with its own `forward`, which is a circle
            gc.collect()
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()
    assert not applied.active
    with pytest.raises(lora_runtime.ModelError, match="is gone"), outer:
        pass


# ---- tasks and threads ----------------------------------------------------------------------------------------------


def test_two_tasks_take_turns_with_async_with(folder: Path) -> None:
    pipe = Pipeline(unet=block(1))
    alone = {}
    for name in ("ink", "wash"):
        with lora_runtime.apply(pipe, f"<lora:{name}>", loras=folder):
            alone[name] = shown(pipe.components["unet"])
    ticks = 0

    async def paint(name: str) -> bool:
        async with lora_runtime.apply(pipe, f"a <lora:{name}>", loras=folder) as applied:
            assert applied.prompt == "a "
            await asyncio.sleep(0.05)
            seen = await asyncio.to_thread(lambda: shown(pipe.components["unet"]))
            return same(seen, alone[name])

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    async def main() -> list[bool]:
        ticking = asyncio.create_task(tick())
        done = await asyncio.gather(*(paint(name) for name in ("ink", "wash", "ink", "wash")))
        ticking.cancel()
        return done

    assert asyncio.run(main()) == [True] * 4
    assert ticks > 5  # the loop went on


def test_a_plain_with_in_a_task_says_who_holds_and_what_to_write(folder: Path) -> None:
    pipe = Pipeline(unet=block(1))

    async def hold() -> None:
        async with lora_runtime.apply(pipe, "a cat <lora:ink>", loras=folder):
            await asyncio.sleep(0.2)

    async def main() -> None:
        holding = asyncio.create_task(hold(), name="painter")
        await asyncio.sleep(0.05)
        applied = lora_runtime.apply(pipe, "<lora:wash>", loras=folder)
        with pytest.raises(lora_runtime.ModelBusyError, match=r'task "painter".*a cat.*use "async with') as caught:
            applied.__enter__()
        applied.restore()
        assert "Pipeline" in str(caught.value)
        with pytest.raises(lora_runtime.ModelBusyError):
            _ = lora_runtime.apply(pipe, "<lora:wash>", loras=folder).report
        await holding

    asyncio.run(main())


def test_an_apply_that_had_to_wait_and_was_never_entered_is_reported(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = Pipeline(unet=block(1))

    async def hold() -> None:
        async with lora_runtime.apply(pipe, "<lora:ink>", loras=folder):
            await asyncio.sleep(0.1)

    async def main() -> None:
        holding = asyncio.create_task(hold())
        await asyncio.sleep(0.02)
        lora_runtime.apply(pipe, "<lora:wash>", loras=folder)
        await holding

    asyncio.run(main())
    assert "was never entered: nothing was applied" in caplog.text


def test_children_of_a_task_and_its_threads_are_let_in(folder: Path) -> None:
    pipe = Pipeline(unet=block(1))

    def inner() -> list[Tensor]:
        with lora_runtime.apply(pipe, "<lora:wash>", loras=folder, wait=5):
            return shown(pipe.components["unet"])

    async def main() -> tuple[list[Tensor], list[Tensor]]:
        async with lora_runtime.apply(pipe, "<lora:ink>", loras=folder):
            in_thread = await asyncio.to_thread(inner)

            async def child() -> list[Tensor]:
                return inner()

            return in_thread, await asyncio.create_task(child())

    in_thread, in_task = asyncio.run(main())
    with lora_runtime.apply(pipe, "<lora:wash>", loras=folder):
        assert same(in_thread, shown(pipe.components["unet"]))
        assert same(in_task, in_thread)


def test_a_worker_that_is_given_the_object_may_ask_and_restore(folder: Path) -> None:
    pipe = Pipeline(unet=block(1))
    plain = shown(pipe.components["unet"])
    with ThreadPoolExecutor(1) as pool, lora_runtime.apply(pipe, "<lora:ink>", loras=folder) as applied:
        assert pool.submit(lambda: applied.active).result(10)
        pool.submit(applied.restore).result(10)
        assert same(shown(pipe.components["unet"]), plain)


def test_waiting_too_long_names_the_holder(folder: Path) -> None:
    pipe = Pipeline(unet=block(1))

    def late() -> None:
        with pytest.raises(lora_runtime.ModelBusyError, match=r'thread "MainThread".*Waited 0.05 s: give wait= more'):
            lora_runtime.apply(pipe, "<lora:wash>", loras=folder, wait=0.05)

    with ThreadPoolExecutor(1) as pool, lora_runtime.apply(pipe, "<lora:ink>", loras=folder):
        pool.submit(late).result(10)


def test_a_circle_of_waiters_is_found_at_once(folder: Path) -> None:
    one, two = Pipeline(unet=block(1)), Pipeline(unet=block(2))
    both, outcomes = threading.Barrier(2), []

    def run(first: Pipeline, second: Pipeline) -> None:
        try:
            with lora_runtime.apply(first, "<lora:ink>", loras=folder):
                both.wait(10)
                with lora_runtime.apply(second, "<lora:wash>", loras=folder, wait=30):
                    outcomes.append("done")
        except lora_runtime.ModelBusyError as error:
            assert "neither would ever go on" in str(error)
            outcomes.append("told")

    threads = [threading.Thread(target=run, args=pair) for pair in ((one, two), (two, one))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(outcomes) == ["done", "told"]


def test_pipelines_that_share_nothing_do_not_wait_for_each_other(folder: Path) -> None:
    one, two = Pipeline(unet=block(1)), Pipeline(unet=block(2))
    with ThreadPoolExecutor(1) as pool, lora_runtime.apply(one, "<lora:ink>", loras=folder):
        pool.submit(lora_runtime.apply, two, "<lora:wash>", loras=folder, wait=0).result(10)
    lora_runtime.restore(two)


def test_who_gives_up_waiting_takes_nothing(folder: Path) -> None:
    pipe = Pipeline(unet=block(1))

    async def wait() -> None:
        async with lora_runtime.apply(pipe, "<lora:wash>", loras=folder):
            pytest.fail("let in")

    async def hold() -> None:
        async with lora_runtime.apply(pipe, "<lora:ink>", loras=folder):
            await asyncio.sleep(0.1)

    async def main() -> None:
        holding = asyncio.create_task(hold())
        await asyncio.sleep(0.02)
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await holding

    asyncio.run(main())


# ---- what others hold and write -------------------------------------------------------------------------------------


def test_a_state_dict_taken_while_patched_stays_as_it_was(folder: Path) -> None:
    pipe = Pipeline(unet=block(1))
    with lora_runtime.apply(pipe, "<lora:ink>", loras=folder):
        taken = pipe.components["unet"].state_dict()
        values = {name: value.clone() for name, value in taken.items()}
        lora_runtime.apply(pipe, "<lora:wash>", loras=folder)
    with lora_runtime.apply(pipe, "<lora:grain>", loras=folder):
        assert all(torch.equal(taken[name], value) for name, value in values.items())


def test_values_written_through_data_stay_in_all_weights_and_are_reported_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unet = block(1)
    wanted = [torch.randn_like(parameter) for parameter in unet.parameters()]
    with lora_runtime.apply(unet, "<lora:ink>", loras=folder), caplog.at_level(logging.WARNING, "lora_runtime"):
        for parameter, value in zip(unet.parameters(), wanted, strict=True):  # what an EMA's copy_to does
            parameter.data.copy_(value)
    assert same(shown(unet), wanted)
    assert caplog.text.count("2 weights were written while LoRAs were applied") == 1


def test_an_optimizers_step_is_reported_and_one_that_changes_nothing_leaves_the_original(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unet = block(1)
    plain = shown(unet)
    for rate in (0.0, 0.1):
        optimizer = torch.optim.SGD(unet.parameters(), lr=rate)
        with lora_runtime.apply(unet, "<lora:ink>", loras=folder):
            unet(torch.ones(1, 8)).sum().backward()
            optimizer.step()
        assert same(shown(unet), plain) is (rate == 0)
        assert ("baked into them" in caplog.text) is (rate != 0)


@pytest.mark.parametrize("what", ["restore", "another apply"])
def test_a_backward_pass_over_a_switch_fails_instead_of_using_other_weights(folder: Path, what: str) -> None:
    unet = block(1)
    applied = lora_runtime.apply(unet, "<lora:ink>", loras=folder)
    loss = unet(torch.ones(1, 8, requires_grad=True)).sum()
    if what == "restore":
        applied.restore()
    else:
        lora_runtime.apply(unet, "<lora:wash>", loras=folder)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("originals", ["device", "host"])
def test_peft_may_fuse_inside_and_unfuse_outside(folder: Path, safe: bool, originals: Any) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    unet = block(1)
    plain = shown(unet)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"], init_lora_weights=False), unet)
    layer: Any = unet[0]  # type: ignore[index]
    with lora_runtime.apply(unet, "<lora:ink>", loras=folder, originals=originals) as applied:
        assert applied.report.weights == 2
        layer.merge(safe_merge=safe)
    layer.unmerge()
    torch.testing.assert_close(layer.base_layer.weight.detach(), plain[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("flag", ["overwrite", "swap"])
@pytest.mark.parametrize("originals", ["device", "host"])
def test_parameters_that_to_makes_anew_get_the_original(folder: Path, flag: str, originals: Any) -> None:
    setting = getattr(torch.__future__, f"set_{flag}_module_params_on_conversion", None)
    if setting is None:
        pytest.skip("this torch has no such switch")
    unet = block(1)
    wanted = [value.half() for value in shown(unet)]
    applied = lora_runtime.apply(unet, "<lora:ink>", loras=folder, originals=originals)
    setting(True)
    try:
        unet.half()
    finally:
        setting(False)
    applied.restore()
    assert same(shown(unet), wanted)


@pytest.mark.parametrize("originals", ["device", "host"])
def test_an_offload_round_trip_computes_nothing_anew(
    folder: Path, originals: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = block(1)
    plain = shown(unet)
    lora_runtime.apply(unet, "<lora:ink>", loras=folder, originals=originals)
    ink = shown(unet)
    for parameter in unet.parameters():  # what Module.to does, to a device and back
        parameter.data = parameter.data.clone()
    with monkeypatch.context() as patch:
        patch.setattr(patcher_module, "merge_into", lambda *_: pytest.fail("computed again"))
        lora_runtime.apply(unet, "<lora:ink>", loras=folder, originals=originals)
    assert same(shown(unet), ink)
    lora_runtime.restore(unet)
    assert same(shown(unet), plain)


@pytest.mark.parametrize("originals", ["device", "host"])
def test_other_values_bound_through_data_are_not_taken_for_ours(folder: Path, originals: Any) -> None:
    unet = block(1)
    wanted = [torch.randn_like(parameter) for parameter in unet.parameters()]
    lora_runtime.apply(unet, "<lora:ink>", loras=folder, originals=originals)
    for parameter, value in zip(unet.parameters(), wanted, strict=True):
        parameter.data = value.clone()
    lora_runtime.apply(unet, "<lora:ink>", loras=folder, originals=originals)
    assert not same(shown(unet), wanted)  # it acts on the new values
    lora_runtime.restore(unet)
    assert same(shown(unet), wanted)


@pytest.mark.parametrize("taken", [copy.deepcopy, lambda m: _through_a_file(m)], ids=["deepcopy", "torch.save"])
def test_a_copy_of_a_merged_model_is_a_plain_model_with_the_merged_weights(
    folder: Path, taken: Callable[[nn.Module], nn.Module]
) -> None:
    unet = block(1)
    applied = lora_runtime.apply(unet, "<lora:ink>", loras=folder)
    twin = taken(unet)
    ink = shown(unet)
    applied.restore()
    assert same(shown(twin), ink)
    assert all(
        vars(new).keys() == vars(old).keys() for new, old in zip(twin.modules(), block(2).modules(), strict=True)
    )


def _through_a_file(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# ---- the call -------------------------------------------------------------------------------------------------------


def test_a_typo_in_originals_names_the_choices(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"originals='Host': choose one of \"auto\", \"device\", \"host\""):
        lora_runtime.apply(block(1), "", loras=folder, originals="Host")  # type: ignore[arg-type]


def test_lists_of_other_lengths_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="1 negative prompts for 2 prompts"):
        lora_runtime.apply(block(1), ["a", "b"], negative_prompt=["c"], negative_tags="apply", loras=folder)


def test_no_prompt_and_a_tuple_of_prompts_are_taken_as_a_pipeline_takes_them(folder: Path) -> None:
    assert lora_runtime.apply(block(1), None, loras=folder).prompt is None
    assert lora_runtime.apply(block(1), ("a <lora:ink>", "b"), loras=folder).prompt == ["a ", "b"]


def test_data_parallel_is_looked_through(folder: Path) -> None:
    unet = block(1)
    assert lora_runtime.apply(nn.DataParallel(unet), "<lora:ink>", loras=folder).report.weights == 2


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_traced_module_is_refused(folder: Path) -> None:
    traced = torch.jit.trace(block(1), torch.zeros(1, 8))
    with pytest.raises(lora_runtime.ModelError, match="traced or scripted"):
        lora_runtime.apply(traced, "", loras=folder)


def test_the_object_says_what_it_is(folder: Path) -> None:
    applied = lora_runtime.apply(block(1), "a <lora:ink>", loras=folder)
    assert repr(applied) == "<Applied 'a ' to Sequential (model): ink; 2 weights, 0 modules beside; active>"


def test_threads_that_look_at_a_new_model_at_once_find_one_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one of two threads had made was gone before it was used."""
    made = scopes._Reach.__init__

    def slowly(self: Any, modules: list[nn.Module]) -> None:
        time.sleep(0.02)  # the others come meanwhile
        made(self, modules)

    monkeypatch.setattr(scopes._Reach, "__init__", slowly)
    for seed in range(2):
        model, gate = view(Pipeline(unet=block(seed))), threading.Barrier(4)
        found: list[Scope] = []

        def look(model: ModelView = model, gate: threading.Barrier = gate, found: list[Scope] = found) -> None:
            gate.wait()
            found.append(scope_of(model))

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [scope.targets is found[0].targets for scope in found] == [True] * 4

"""The benchmark runs, compares like with like, and writes what it says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from device import pretend
from safetensors import safe_open

from benchmarks import bench, model
from benchmarks.aims import Aim, aims
from benchmarks.cases.extracting import extracting
from benchmarks.cases.merging import merging
from benchmarks.contestants import CONTESTANTS, Setting
from benchmarks.judges import JUDGES
from benchmarks.plain_svd import deltas_of
from benchmarks.records import Options, Record, merged
from benchmarks.timing import Limits, Times, timing_of

ROOT = Path(__file__).resolve().parent.parent
CASES = {"apply", "change", "restore", "step"}
WHO = {"ours", "unmerged", "fuse", "loop", "floor", "bare"}


def small_setting(folder: Path, *, convolutions: bool) -> Setting:
    torch.manual_seed(0)
    unet = model.make_unet(model.SMALL, torch.float32, torch.device("cpu"))
    modules = model.convolutions(unet) if convolutions else model.linears(unet)
    return Setting(model.make_pipeline(unet), modules, model.write_loras(folder, modules, count=3, rank=4))


def test_what_was_measured_before_it_was_broken_off_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Record("apply", "float32", "ours", 0.5, None, 0.01, 3)]

    def work(jobs: list[bench.Job]) -> list[Record]:
        if jobs[0][0] != "live":
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(bench, "work", work)
    bench.main(["--dtype", "float32", "--out", str(tmp_path / "bench.json")])
    assert json.loads((tmp_path / "bench.json").read_text()) == [asdict(found[0])]


@pytest.mark.parametrize("convolutions", [False, True], ids=["linears", "convolutions"])
@pytest.mark.parametrize("who", ["ours", "fuse", "loop"])
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_all_who_merge_come_to_the_same_weights(tmp_path: Path, who: str, convolutions: bool) -> None:
    setting = small_setting(tmp_path, convolutions=convolutions)
    before = {name: module.weight.clone() for name, module in setting.modules.items()}
    strengths = [0.5, 0.25, 1.0]
    expected = {}
    for name, module in setting.modules.items():
        expected[name] = before[name].double()
        for strength, file in zip(strengths, setting.files, strict=True):
            key = "lora_unet_" + name.replace(".", "_")
            with safe_open(file, framework="pt") as tensors:
                up, down = (tensors.get_tensor(f"{key}.lora_{side}.weight").double() for side in ("up", "down"))
            delta = up.flatten(1) @ down.flatten(1)
            expected[name] += strength * 0.5 * delta.view(module.weight.shape)  # alpha is half of the rank

    contestant = CONTESTANTS[who](setting)
    contestant.apply([0.1, 0.2, 0.3])
    contestant.change(strengths)
    unet = setting.pipe.unet
    for name, weight in expected.items():
        layer = unet.get_submodule(name)
        layer = getattr(layer, "base_layer", layer)
        assert not torch.equal(layer.weight, before[name])
        torch.testing.assert_close(layer.weight.double(), weight, rtol=0, atol=1e-6)
    contestant.restore()
    contestant.clean()
    for name, module in setting.modules.items():
        torch.testing.assert_close(module.weight, before[name], rtol=0, atol=0 if who != "fuse" else 1e-6)


def test_the_full_size_is_that_of_stable_diffusion_1_5() -> None:
    unet = model.make_unet(model.SD15, torch.float32, torch.device("meta"))
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    linears = model.linears(unet)
    assert len(linears) == 160
    assert sum(module.weight.numel() for module in linears.values()) == 242_196_480
    assert len(model.convolutions(unet)) == 50


@pytest.mark.slow
def test_a_quick_run_writes_every_case_of_every_way(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks.bench", "--quick", "--rounds", "1", "--out", str(out)]
    command += ["--dtype", "float32", "--variant", "3x32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"Wrote {out}" in done.stdout

    records = json.loads(out.read_text(encoding="utf-8"))
    assert all(set(record) == {"case", "dtype", "who", "seconds", "bytes", "spread", "rounds"} for record in records)
    found = {(record["case"], record["who"]): record for record in records}
    assert len(found) == len(records)
    assert {case for case, _ in found} >= CASES
    assert {who for case, who in found if case in CASES} == WHO
    assert {who for case, who in found if case == "load200"} == {"ours", "read", "sha256"}
    for case in ("keys100k", "planned", "make_plan", "unchanged", "restore80"):
        assert found[case, "ours"]["seconds"] > 0
        assert found[case, "ours"]["rounds"] == 1
    for case in ("merge", "extract"):
        assert {who for each, who in found if each == case} == {"ours", "loop"}
    assert {who for case, who in found if case == "train"} == {"ours", "loop", "bare"}
    for judge in JUDGES:
        pair = [found.get((f"delta {judge.name} attention", who)) for who in ("ours", judge.library)]
        assert all(record is None or record["seconds"] > 0 for record in pair)
        assert (pair[0] is None) == (pair[1] is None)
    assert sum(case.startswith("delta") for case, _ in found) >= 2 * 20
    for who in ("ours", "unmerged", "fuse", "loop"):
        for case in CASES:
            assert found[case, who]["seconds"] > 0
            assert found[case, who]["bytes"] >= 0
    assert found["step", "bare"]["seconds"] > 0
    assert found["apply", "floor"]["bytes"] > 0


@pytest.mark.slow
def test_the_workbench_and_the_plain_loop_come_to_the_same_changes(tmp_path: Path) -> None:
    options = Options("cpu", "-", "", str(tmp_path), quick=True, rounds=1, seconds=1.0)
    for case, worker in (("merging", merging), ("extracting", extracting)):
        records = [*worker(options)]
        assert [record.who for record in records] == ["ours", "loop"]
        assert all(record.bytes is not None and record.bytes >= 0 for record in records)
        ours, loop = (dict(deltas_of(tmp_path / case / f"{who}.safetensors")) for who in ("ours", "loop"))
        assert ours.keys() == loop.keys() and ours
        for stem, delta in loop.items():
            assert float((ours[stem] - delta).norm() / delta.norm()) < 2e-3  # float16 factors


def test_the_planned_model_has_the_layers_of_flux() -> None:
    with torch.device("meta"):
        narrow = model.make_flux(model.FLUX_NARROW)
    # 19 blocks with 14 linear layers each, 38 with 6, and 10 around them, as in the released checkpoint.
    assert sum(isinstance(module, torch.nn.Linear) for module in narrow.modules()) == 19 * 14 + 38 * 6 + 10


def test_records_of_one_case_become_their_lowest_and_its_spread() -> None:
    one = Record("apply", "float32", "ours", 2.0)
    two = Record("apply", "float32", "ours", 1.0, 30)
    three = Record("apply", "float32", "ours", None, 20)
    assert merged([one, two, three]) == [Record("apply", "float32", "ours", 1.0, 20, spread=1.0, rounds=2)]
    measured = Record("apply", "float32", "ours", 1.5, None, spread=0.01, rounds=7)
    assert merged([measured, three]) == [Record("apply", "float32", "ours", 1.5, 20, spread=0.01, rounds=7)]


@pytest.mark.parametrize(
    ("durations", "rounds"),
    [
        ([9.0, 1.0, 1.02], 4),  # the first two agree long before the fourth, which is the least
        ([3.0, 2.5, 2.0, 1.5, 1.2, 1.19], 6),
        ([float(1 << number) for number in range(20, 0, -1)], 8),  # never: the cap
    ],
    ids=["soon", "later", "never"],
)
def test_rounds_go_on_until_the_two_lowest_agree(durations: list[float], rounds: int) -> None:
    times: Times[str] = Times(Limits(rounds=8, seconds=60, least=2, settled=4))
    counted = 0
    for counts in times.rounds():
        if counts:
            times.add("steady", 5.0)
            times.add("noisy", durations[min(counted, len(durations) - 1)])
            counted += 1
    timing = times.timings()["noisy"]
    assert (counted, timing.rounds) == (rounds, rounds)
    assert timing.seconds == min(durations[:rounds])
    assert timing.agrees == (rounds < 8)


def test_no_round_begins_after_the_time_is_up_but_the_least_that_are_needed() -> None:
    times: Times[str] = Times(Limits(rounds=50, seconds=0, least=3))
    for number, counts in enumerate(times.rounds()):
        if counts:
            times.add("x", float(1 << number))
    assert times.timings()["x"].rounds == 3


def test_one_round_has_no_spread_and_is_not_taken_for_exact() -> None:
    assert timing_of([2.0]).spread is None
    assert not timing_of([2.0]).agrees
    assert timing_of([4.0, 2.0, 3.0]).spread == pytest.approx(0.5)


def test_an_aim_that_is_missed_says_so() -> None:
    records = [Record("apply", "float32", "ours", 1.5, 110), Record("apply", "float32", "floor", 1.0, 100)]
    records.append(Record("files", "float32", "floor", None, 8))
    assert [str(aim).split()[0] for aim in aims(records)] == ["MISSED", "met", "MISSED"]
    assert "1.500 ≤ 1.2    float32 3x32: apply / floor" in str(next(aims(records)))
    assert str(Aim("x", 5, 4, at_least=True)).split()[0] == "met"
    many = [Record("restore800", "-", "ours", 0.0016), Record("planned", "-", "ours", 0.006)]
    assert [(aim.value, aim.bound, str(aim).split()[0]) for aim in aims(many)] == [
        (0.006, 0.005, "MISSED"),
        (pytest.approx(2.0), 3, "met"),
    ]


@pytest.mark.parametrize(
    ("given", "module", "left"),
    [
        (["--quick"], "benchmarks.bench", ["--quick"]),
        (["--gpu", "--minutes", "5"], "benchmarks.gpu", ["--minutes", "5"]),
    ],
)
def test_make_bench_starts_the_program_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, given: list[str], module: str, left: list[str]
) -> None:
    found = importlib.util.spec_from_file_location("bootstrap", ROOT / "tools" / "bootstrap.py")
    assert found is not None
    assert found.loader is not None
    bootstrap = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, found.name, bootstrap)  # where its dataclasses look for themselves
    found.loader.exec_module(bootstrap)
    started: list[tuple[object, ...]] = []
    monkeypatch.setattr(bootstrap, "install", lambda what: None)
    monkeypatch.setattr(bootstrap, "run", lambda *command: started.append(command))
    bootstrap.bench(given)
    assert [command[1:] for command in started] == [("-m", module, *left)]


MODES = ("ours, device", "ours, host", "ours, inplace")
CHECKS = {"originals come back, bfloat16", "all modes show the same, float16", "a move to the host and back"}


@pytest.mark.slow
@pytest.mark.parametrize(("device", "models"), [("pretend", ["SD1.5", "SDXL", "Flux"]), ("cpu", ["Flux"])])
def test_what_runs_on_a_gpu_runs_with_tiny_models(tmp_path: Path, device: str, models: list[str]) -> None:
    if device == "pretend" and (reason := pretend.why_not()) is not None:
        pytest.skip(reason)
    out, page = tmp_path / "gpu.json", tmp_path / "gpu.md"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", device, "--tiny", "--minutes", "20"]
    command += ["--model", *models]
    done = subprocess.run([*command, "--out", str(out), "--table", str(page)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["ok"]
    assert (found["dropped"], found["failed"]) == ([], [])
    assert {"name", "torch"} <= set(found["device"])
    assert set(found["checks"]) >= CHECKS
    assert ("a step waits for nothing" in found["checks"]) == (device == "pretend")
    cells = {(record["case"], record["who"]): record for record in found["records"]}
    for name in models:
        assert cells[f"{name} step", "bare"]["seconds"] > 0
        for who in (*MODES, "ours, beside", "live", "unmerged", "fuse", "hotswap"):
            for case in ("first", "apply", "switch", "restore", "step"):
                assert cells[f"{name} {case}", who]["seconds"] > 0, (name, case, who)
        if device == "pretend":  # of a process's own memory a few kilobytes cannot be told
            kept = {who: cells[f"{name} kept", who]["bytes"] for who in (*MODES, "ours, beside", "live")}
            assert kept["ours, device"] == kept["ours, inplace"] > kept["live"] == kept["ours, beside"] > 0
            # The factors alone: in the files' half precision, where beside a layer they are in float32.
            assert kept["live"] / 2 <= kept["ours, host"] < kept["live"]
            assert all(cells[f"{name} peak", who]["bytes"] >= size for who, size in kept.items())
            for who in MODES:
                peak, told = (cells[f"{name} {size}", who]["bytes"] for size in ("peak", "told"))
                assert peak == pytest.approx(told, rel=0.02), (name, who)
    assert "| ours, device |" in page.read_text(encoding="utf-8")


def test_a_gpu_run_whose_time_is_up_says_what_it_dropped(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--minutes", "0"]
    done = subprocess.run(
        [*command, "--out", str(out), "--table", str(tmp_path / "gpu.md")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads(out.read_text(encoding="utf-8"))
    assert (found["checks"], found["records"]) == ({}, [])
    assert "SDXL fuse: no time left" in found["dropped"]
    assert "- SDXL fuse: no time left" in done.stdout

"""`lora-runtime plan`: what a prompt would do to a pipeline, told from configs and headers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from commands import Command, Result
from safetensors import safe_open
from safetensors.torch import save_file

import lora_runtime

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, pipe: Any) -> Path:
    """A saved pipeline without its weights: nobody may read them."""
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    removed = [path.unlink() for path in folder.rglob("*.safetensors")]
    assert len(removed) == 3
    return folder


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory, pipe: Any) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    tiny.write_kohya_lora(folder / "ink.safetensors", pipe)
    return folder


@pytest.fixture
def plan(command: Command, model: Path, loras: Path) -> Callable[..., Result]:
    def plan(*arguments: object, prompt: str = "a <lora:ink:0.7>") -> Result:
        return command("plan", "--model", model, "--loras", loras, "--prompt", prompt, *arguments)

    return plan


def found_by(result: Result) -> dict[str, Any]:
    assert result.status == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    found["components"] = {one["name"]: one for one in found["components"]}
    return found


def size_of(root: Any, size: int) -> int:
    return sum(parameter.numel() for parameter in root.parameters()) * size


def test_a_file_anywhere_may_be_given_a_name(plan: Callable[..., Result], loras: Path) -> None:
    named = plan("--json", "--loras", f"mine={loras / 'ink.safetensors'}", prompt="a <lora:mine:0.7>")
    assert found_by(named) == found_by(plan("--json"))
    missing = plan("--loras", "mine=gone.safetensors", prompt="a <lora:mine:0.7>")
    assert missing.status == 2
    assert "there is no such file; correct the path" in missing.err


def test_a_set_is_planned_as_its_tags(plan: Callable[..., Result], loras: Path) -> None:
    (loras / "all.set.txt").write_text("<lora:ink:0.7>", encoding="utf-8")
    assert found_by(plan("--json", prompt="a <set:all>")) == found_by(plan("--json"))


def test_counts_and_bytes_are_those_of_the_real_apply(plan: Callable[..., Result], pipe: Any, loras: Path) -> None:
    found = found_by(plan("--json", "--dtype", "fp32"))
    with lora_runtime.apply(pipe, "a <lora:ink:0.7>", loras=loras, strict=True) as applied:
        (report,) = applied.report.loras
        touched = applied.report.bytes
    parts = found["components"]
    assert {name: parts[name]["merged"] for name in parts} == dict(report.targets)
    assert sum(one["merged"] for one in parts.values()) == report.merged
    assert all(one["acting"] == 0 and one["step"] == "device" for one in parts.values())
    # An allocator gives each weight a multiple of 512 bytes.
    kept = sum(one["device_kept"] for one in parts.values())
    assert touched <= kept < touched + 512 * report.merged
    assert all(one["device_peak"] >= one["device_kept"] for one in parts.values())
    assert found["files"] == (loras / "ink.safetensors").stat().st_size
    assert parts["unet"]["size"] == size_of(pipe.unet, 4)
    assert found["size"] == sum(size_of(root, 4) for root in (pipe.unet, pipe.text_encoder, pipe.vae))


def test_the_dtype_decides_what_the_model_and_its_copies_take(plan: Callable[..., Result], pipe: Any) -> None:
    found = found_by(plan("--json"))
    assert found["components"]["unet"]["size"] == size_of(pipe.unet, 2)


def test_factors_are_copied_at_the_first_apply_and_stay_where_there_is_room(
    plan: Callable[..., Result], loras: Path
) -> None:
    found = found_by(plan("--json"))
    with safe_open(loras / "ink.safetensors", framework="pt") as file:
        factors = [file.get_tensor(key) for key in file.keys() if key.endswith(".weight")]  # noqa: SIM118
    size = sum(factor.numel() * factor.element_size() for factor in factors)
    first = sum(one["first_copies"] for one in found["components"].values())
    assert size <= first < size + 64 * len(factors)  # in a copy each tensor begins at a multiple of 64 bytes
    kept = sum(one["factor_bytes"] for one in found["components"].values())
    assert first <= kept < first + 512 * sum(one["merged"] for one in found["components"].values())
    assert all(one["switch_copies"] == 0 for one in found["components"].values())
    # Of a card that the model and W′ leave hardly anything of, factors get a quarter of that.
    touched = sum(one["device_kept"] for one in found["components"].values())
    card = ("--device-memory", found["size"] + touched + 4000, "--originals", "device")
    tight = found_by(plan("--json", *card))["components"].values()
    kept = sum(one["factor_bytes"] for one in tight)
    again = sum(one["switch_copies"] for one in tight)
    assert 0 < kept <= 2000
    assert first - kept <= again < first


def test_weights_in_8_bits_are_acted_beside_as_on_the_real_model(plan: Callable[..., Result], loras: Path) -> None:
    real = tiny.pipeline()
    real.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    with lora_runtime.apply(real, "a <lora:ink:0.7>", loras=loras, strict=True) as applied:
        (report,) = applied.report.loras
    found = found_by(plan("--json", "--dtype", "fp8"))
    unet = found["components"]["unet"]
    assert unet["beside"] == dict(report.beside) == {"stored as float8_e4m3fn": sum(report.beside.values())}
    assert sum(one["merged"] for one in found["components"].values()) == report.merged
    real_sizes = (parameter.numel() * min(parameter.element_size(), 2) for parameter in real.unet.parameters())
    assert unet["size"] == sum(real_sizes)


def test_4_bits_take_half_a_byte_and_a_scale_for_64(plan: Callable[..., Result], pipe: Any) -> None:
    unet = found_by(plan("--json", "--dtype", "nf4"))["components"]["unet"]
    linears = [module.weight for module in pipe.unet.modules() if isinstance(module, torch.nn.Linear)]
    counts = [weight.numel() for weight in linears]
    in_4_bits = sum(-(-count // 2) + 4 * -(-count // 64) for count in counts)
    assert unet["size"] == size_of(pipe.unet, 2) - 2 * sum(counts) + in_4_bits
    assert list(unet["beside"]) == ["stored as Params4bit"]


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "stored as Int8Params"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "stored as Params4bit"),
        ({"quant_method": "quark"}, ""),
    ],
    ids=["8 bits", "4 bits", "unknown"],
)
def test_a_config_that_says_how_it_is_quantised_counts(
    command: Command, model: Path, loras: Path, tmp_path: Path, component: str, given: dict[str, Any], said: str
) -> None:
    folder = tmp_path / "quantised"
    shutil.copytree(model, folder)
    path = folder / component / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "quantization_config": given}), encoding="utf-8")
    found = found_by(command("plan", "--model", folder, "--loras", loras, "--prompt", "a <lora:ink>", "--json"))
    assert list(found["components"][component]["beside"]) == ([said] if said else [])
    notes = [note for note in found["notes"] if "is quantised by quark, of which no outline can be made" in note]
    assert len(notes) == (not said)


def test_memory_that_is_short_takes_the_next_step(plan: Callable[..., Result], pipe: Any) -> None:
    size = found_by(plan("--json"))["size"]
    plenty = found_by(plan("--json", "--device-memory", 100 * size))
    assert {one["step"] for one in plenty["components"].values() if one["weights"]} == {"device"}
    short = found_by(plan("--json", "--device-memory", size + 60_000, "--host-memory", 100 * size))
    unet = short["components"]["unet"]
    assert (unet["step"], unet["device_kept"]) == ("host", 0)
    assert unet["host_kept"] > 0
    assert "free on cuda:0" in short["why"][0]
    both = found_by(plan("--json", "--device-memory", size + 60_000, "--host-memory", 1000))
    assert both["components"]["unet"]["moved"] > 0
    assert "moved" not in plan("--device-memory", "24GB").out
    assert "for want of memory" in plan("--device-memory", size + 60_000, "--host-memory", "1kB").out


def test_a_model_that_does_not_fit_by_itself_is_said(plan: Callable[..., Result]) -> None:
    result = plan("--device-memory", "100kB")
    assert result.status == 0
    assert "the model alone takes" in result.out
    assert "of the device's 100.0 kB: offload it" in result.out


def test_offloaded_components_are_summed_in_host_memory_or_acted_beside(plan: Callable[..., Result]) -> None:
    whole = found_by(plan("--json"))["components"]["unet"]
    unet = found_by(plan("--json", "--offload", "model"))["components"]["unet"]
    assert (unet["step"], unet["device_kept"], unet["switch_copies"]) == ("device", 0, 0)
    assert unet["host_kept"] == whole["device_kept"]
    unet = found_by(plan("--json", "--offload", "group"))["components"]["unet"]
    assert (unet["step"], unet["merged"], unet["acting"]) == ("beside", 0, unet["weights"])
    assert list(unet["beside"]) == ["kept elsewhere between two calls by an offloader"]
    assert unet["device_kept"] > 0


def test_people_read_a_table_with_the_reasons(plan: Callable[..., Result], loras: Path, pipe: Any) -> None:
    save_file({"lora_unet_nowhere.diff": torch.zeros(3, 3)}, loras / "odd.safetensors")
    result = plan("--device-memory", "24GB", prompt="a <lora:ink:0.7> <lora:odd>")
    lines = result.out.splitlines()
    assert lines[0].startswith("StableDiffusionPipeline (")
    assert "device 24.0 GB, host no limit" in lines[1]
    assert lines[2].split() == [
        "component", "size", "weights", "merged", "beside", "originals",
        "device", "factors", "peak", "host", "first", "switch",
    ]  # fmt: skip
    assert any(line.split()[0] == "unet" for line in lines[3:])
    assert "  originals: device (there is room)" in lines
    assert any(line.startswith("  1 key unused: ") for line in lines)


def test_a_prompt_without_tags_takes_nothing(plan: Callable[..., Result]) -> None:
    found = found_by(plan("--json", prompt="a boat"))
    assert all(one["weights"] == one["device_kept"] == 0 for one in found["components"].values())
    assert "originals" not in plan(prompt="a boat").out.split("switch", 1)[1]


def test_what_is_no_pipeline_and_what_is_no_file_is_one_line(
    command: Command, plan: Callable[..., Result], model: Path, tmp_path: Path
) -> None:
    def failing(result: Result) -> str:
        assert (result.status, result.out) == (2, "")
        assert len(result.err.splitlines()) == 1
        return result.err

    arguments = ("--prompt", "a")
    assert "does not exist" in failing(command("plan", "--model", tmp_path / "none", *arguments))
    (tmp_path / "a.safetensors").write_bytes(b"")
    assert "is a file: give the folder" in failing(command("plan", "--model", tmp_path / "a.safetensors", *arguments))
    assert "has no model_index.json" in failing(command("plan", "--model", tmp_path, *arguments))
    (tmp_path / "model_index.json").write_text("[]", encoding="utf-8")
    assert "is no table of components" in failing(command("plan", "--model", tmp_path, *arguments))
    (tmp_path / "model_index.json").write_text("{", encoding="utf-8")
    assert "is no JSON" in failing(command("plan", "--model", tmp_path, *arguments))
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "X"]}', encoding="utf-8")
    assert "has no component" in failing(command("plan", "--model", tmp_path, *arguments))
    assert 'no LoRA named "inc"' in failing(plan(prompt="a <lora:inc>"))
    assert '"24GB"' in failing(plan("--device-memory", "lots"))


def test_what_apply_warns_of_is_in_the_notes(plan: Callable[..., Result], pipe: Any, loras: Path) -> None:
    prompt = "a <lora:ink:0.7:NOSUCH=0:D00=0:low>"
    with lora_runtime.apply(pipe, prompt, loras=loras) as applied:
        warned = [f"{each.message} ({each.hint})" for each in applied.diagnostics if each.severity == "warning"]
    result = plan("--json", prompt=prompt)
    notes = found_by(result)["notes"]
    assert len(notes) == len(warned) == 3
    assert sorted(note[:24] for note in notes) == sorted(warning[:24] for warning in warned)
    assert not result.err


def test_a_component_that_cannot_be_made_is_left_out_and_said(
    command: Command, model: Path, loras: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(model, folder)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index["vae"] = ["diffusers", "NoSuchClass"]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    result = command("plan", "--model", folder, "--loras", loras, "--prompt", "a <lora:ink>")
    assert result.status == 0
    assert "  note: vae is left out, as NoSuchClass cannot be made from its config" in result.out

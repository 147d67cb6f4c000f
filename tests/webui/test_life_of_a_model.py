"""Whatever happens to a checkpoint while it is patched: without tags, its weights are its file's, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import loras
import program
import pytest

PLAIN, WITH = "a cat", "a cat <lora:sd1:0.7>"
HIRES: dict[str, Any] = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7}


@pytest.fixture(scope="module")
def digests(run: program.WebUI) -> dict[str, str]:
    """Return the digest of each checkpoint's weights, as loaded by the program before any LoRA."""
    found = {}
    run.write_sd3()
    for name in ("sd3", "sdxl", "sd2", "sd1-inpainting", "sd1-b", "sd1-a"):
        run.set_options(sd_model_checkpoint=f"{name}.safetensors")
        found[name] = run.digest()
    return found


@pytest.fixture(autouse=True)
def _start_clean(run: program.WebUI, digests: dict[str, str]) -> None:
    """Begin each test with sd1-a, whole."""
    run.set_options(sd_model_checkpoint="sd1-a.safetensors", sd_checkpoints_limit=1)
    run.txt2img(PLAIN, steps=1)
    assert run.digest() == digests["sd1-a"]


def is_whole(run: program.WebUI, digests: dict[str, str]) -> None:
    """Paint without tags; every checkpoint in memory must then be as its file."""
    run.txt2img(PLAIN, steps=1)
    state = run.state()
    assert state["digest"] == digests[state["checkpoint"]]
    for name, digest in zip(state["loaded"], state["loaded_digests"], strict=True):
        assert digest == digests[name], f"{name} is not whole"


def patched(run: program.WebUI, digests: dict[str, str]) -> program.Picture:
    """Paint with a LoRA and leave it so."""
    picture = run.txt2img(WITH)
    state = run.state()
    assert state["digest"] != digests[state["checkpoint"]]
    return picture


def test_a_tag_patches_and_its_absence_restores(run: program.WebUI, digests: dict[str, str]) -> None:
    before = run.txt2img(PLAIN)
    patched(run, digests)
    assert run.txt2img(PLAIN).difference(before) == 0
    is_whole(run, digests)


@pytest.mark.parametrize(
    "job",
    [
        {**HIRES, "hr_prompt": "a dog <lora:second:0.6>"},
        {**HIRES, "hr_prompt": "a dog"},
        {**HIRES, "hr_checkpoint_name": "sd1-b.safetensors"},
        {"refiner_checkpoint": "sd1-b.safetensors", "refiner_switch_at": 0.5},
        {"refiner_checkpoint": "sd1-b.safetensors", "refiner_switch_at": 0.5, "n_iter": 2, **HIRES},
        {"refiner_checkpoint": "sdxl.safetensors", "refiner_switch_at": 0.5},
    ],
    ids=["hires", "hires without", "hires checkpoint", "refiner", "refiner and hires", "refiner of another family"],
)
@pytest.mark.parametrize("limit", [1, 2])
def test_passes_with_other_tags_and_checkpoints(
    run: program.WebUI, digests: dict[str, str], job: dict[str, Any], limit: int
) -> None:
    run.set_options(sd_checkpoints_limit=limit)
    try:
        run.txt2img(WITH, **job)
    except OSError:  # the program itself cannot mix these families; what counts is the weights
        assert job["refiner_checkpoint"] == "sdxl.safetensors"
    is_whole(run, digests)


def test_the_refiner_is_patched_too(run: program.WebUI, digests: dict[str, str]) -> None:
    job = {"refiner_checkpoint": "sd1-b.safetensors", "refiner_switch_at": 0.5}
    run.txt2img(WITH, **job)
    state = run.state()
    assert state["checkpoint"] == "sd1-b"
    assert state["digest"] != digests["sd1-b"]
    is_whole(run, digests)


@pytest.mark.parametrize("other", ["sd1-b", "sd2", "sdxl", "sd3", "sd1-inpainting"])
@pytest.mark.parametrize("limit", [1, 2])
def test_another_checkpoint_is_chosen_while_patched(
    run: program.WebUI, digests: dict[str, str], other: str, limit: int
) -> None:
    run.set_options(sd_checkpoints_limit=limit)
    patched(run, digests)
    run.set_options(sd_model_checkpoint=f"{other}.safetensors")
    is_whole(run, digests)
    assert run.state()["checkpoint"] == other
    run.set_options(sd_model_checkpoint="sd1-a.safetensors")
    is_whole(run, digests)


def test_a_checkpoint_that_cannot_be_loaded(run: program.WebUI, data: Path, digests: dict[str, str]) -> None:
    broken = data / "models" / "Stable-diffusion" / "broken.safetensors"
    broken.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    broken.with_suffix(".yaml").write_text((broken.parent / "sd1-a.yaml").read_text())
    run.post("/sdapi/v1/refresh-checkpoints")
    patched(run, digests)
    try:
        run.txt2img(WITH, override_settings={"sd_model_checkpoint": "broken.safetensors"})
    except OSError:
        pass
    finally:
        broken.unlink()
        run.post("/sdapi/v1/refresh-checkpoints")
    run.set_options(sd_model_checkpoint="sd1-a.safetensors")
    is_whole(run, digests)


@pytest.mark.parametrize("where", ["process_batch", "model", "interrupt"])
def test_a_generation_that_ends_early(run: program.WebUI, digests: dict[str, str], where: str) -> None:
    run.post("/probe/fail", where=where)
    try:
        run.txt2img(WITH)
    except OSError:
        assert where != "interrupt"
    is_whole(run, digests)


def test_unloading_and_reloading_the_checkpoint(run: program.WebUI, digests: dict[str, str]) -> None:
    first = patched(run, digests)
    run.post("/sdapi/v1/unload-checkpoint")
    run.post("/sdapi/v1/reload-checkpoint")
    assert run.txt2img(WITH).difference(first) == 0
    is_whole(run, digests)


def test_another_vae(run: program.WebUI, data: Path, digests: dict[str, str]) -> None:
    from safetensors.torch import load_file, save_file

    folder = data / "models"
    tensors = load_file(folder / "Stable-diffusion" / "sd1-b.safetensors")
    vae = {k.removeprefix("first_stage_model."): v for k, v in tensors.items() if k.startswith("first_stage_model.")}
    (folder / "VAE").mkdir(exist_ok=True)
    save_file(vae, folder / "VAE" / "other.vae.safetensors")
    run.post("/sdapi/v1/refresh-vae")
    first = patched(run, digests)
    run.set_options(sd_vae="other.vae.safetensors")
    other = run.txt2img(WITH)
    assert other.difference(first) > 0
    run.set_options(sd_vae="Automatic")
    assert run.txt2img(WITH).difference(first) == 0
    is_whole(run, digests)


def test_a_file_trained_anew_takes_effect_at_once(run: program.WebUI, data: Path, digests: dict[str, str]) -> None:
    """In the text encoder as well, whose output the program keeps by the text of the tags."""
    files, checkpoint = data / "models" / "Lora", data / "models" / "Stable-diffusion" / "sd1-a.safetensors"
    for only in ("lora_te_", "lora_unet_"):
        path = loras.write(files / "fresh.safetensors", checkpoint, seed=2, only=only)
        run.post("/sdapi/v1/refresh-loras")
        first = run.txt2img("a cat <lora:fresh:1>")
        loras.write(path, checkpoint, seed=3, only=only)
        second = run.txt2img("a cat <lora:fresh:1>")
        assert second.difference(first) > 0
        loras.write(path, checkpoint, seed=2, only=only)
        assert run.txt2img("a cat <lora:fresh:1>").difference(first) == 0
        path.unlink()
    is_whole(run, digests)


def test_reload_ui_while_patched(run: program.WebUI, digests: dict[str, str]) -> None:
    first = patched(run, digests)
    run.reload_ui()
    assert run.digest() == digests["sd1-a"]
    assert run.get("/probe/owner")["wrapped"]
    assert run.txt2img(WITH).difference(first) == 0
    is_whole(run, digests)


MODES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "lowvram": ((*program.FULL, "--lowvram"), {}),
    "medvram": ((*program.FULL, "--medvram"), {}),
    "half": (("--precision", "half"), {}),
    "fp8": (program.FULL, {"fp8_storage": "Enable"}),
    "fp8 with fp16 beside it": (program.FULL, {"fp8_storage": "Enable", "cache_fp16_weight": True}),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_memory_and_precision(webui: Path, data: Path, mode: str) -> None:
    arguments, options = MODES[mode]
    with program.WebUI(webui, data, arguments=arguments, options=options) as run:
        plain = run.txt2img(PLAIN)
        digest = run.digest()
        first = run.txt2img(WITH)
        assert first.difference(plain) > 0
        assert first.notices == []
        assert run.txt2img(WITH).difference(first) == 0
        both = run.txt2img(f"{WITH} <lora:second:0.5>")
        assert both.difference(first) > 0
        run.txt2img(WITH, **HIRES, hr_prompt="a dog <lora:second:0.6>")
        assert run.txt2img(PLAIN).difference(plain) == 0
        assert run.digest() == digest


@pytest.mark.parametrize(
    ("folder", "builtin"),
    [("lora_runtime", False), ("0-first", True), ("zzz last", True), ("Lora runtime (copy)", True)],
)
def test_any_folder_name_with_and_without_the_builtin(webui: Path, data: Path, folder: str, builtin: bool) -> None:
    with program.WebUI(webui, data, folder=folder, builtin=builtin) as run:
        owner = run.get("/probe/owner")
        assert "lora_runtime" in owner["lora"]
        assert "lora_runtime" in owner["lyco"]
        assert [name for name, _ in owner["pages"]].count("lora") == 1
        assert owner["routes"].count("/sdapi/v1/loras") == 1
        plain = run.txt2img(PLAIN)
        digest = run.digest()
        assert run.txt2img(WITH).difference(plain) > 0
        run.reload_ui()
        assert run.digest() == digest
        assert run.txt2img(PLAIN).difference(plain) == 0


def test_disabling_and_enabling_the_extension_leaves_clean_weights(webui: Path, data: Path) -> None:
    """Each time with a LoRA patched by the one that goes, and Reload UI."""
    with program.WebUI(webui, data, options={"disabled_extensions": ["lora_runtime"]}) as run:
        assert run.get("/probe/owner")["lora"] == "extra_networks_lora"
        plain, digest = run.txt2img(PLAIN), run.digest()
        by_builtin = run.txt2img(WITH)
        for disabled, owner in (([], "lora_runtime"), (["lora_runtime"], "extra_networks_lora"), ([], "lora_runtime")):
            run.set_options(disabled_extensions=disabled)
            run.reload_ui()
            assert owner in run.get("/probe/owner")["lora"]
            if owner == "lora_runtime":
                assert run.digest() == digest
            assert run.txt2img(WITH).difference(by_builtin) < 1
            assert run.txt2img(PLAIN).difference(plain) == 0
            assert run.digest() == digest
            run.txt2img(WITH)

"""`lora-runtime run` on a pipeline with the structure of SD1 and a few thousand parameters, and `demo`."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
from commands import Command, Result

from lora_runtime.pipelines import saved

PIL_Image = pytest.importorskip("PIL.Image")
PIL_ImageChops = pytest.importorskip("PIL.ImageChops")
pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline as diffusers saves it."""
    folder = tmp_path_factory.mktemp("model")
    tiny.pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a strong LoRA named ink."""
    folder = tmp_path_factory.mktemp("loras")
    tiny.write_kohya_lora(folder / "ink.safetensors", tiny.pipeline(), std=0.5)
    return folder


@pytest.fixture
def paint(command: Command, model: Path, loras: Path, tmp_path: Path) -> Callable[..., Result]:
    """`paint(prompt, …)` paints two steps on the CPU into out.png."""

    def paint(prompt: str, *arguments: object, out: str = "out.png") -> Result:
        given = ("--model", model, "--loras", loras, "--prompt", prompt, "--out", tmp_path / out)
        return command("run", *given, "--steps", 2, "--seed", 1, "--device", "cpu", *arguments)

    return paint


def test_it_saves_the_picture_and_prints_the_report_and_the_path(paint: Callable[..., Result], tmp_path: Path) -> None:
    result = paint("a red circle <lora:ink:0.7>", "--width", 32, "--height", 32, "--guidance-scale", 5)
    assert result.status == 0
    lines = result.out.splitlines()
    assert any("ink × 0.7" in line for line in lines)
    assert lines[-1] == str(tmp_path / "out.png")
    with PIL_Image.open(tmp_path / "out.png") as image:
        assert image.size == (32, 32)


def test_the_tag_changes_the_picture_and_a_seed_repeats_it(paint: Callable[..., Result], tmp_path: Path) -> None:
    for name, prompt in {"plain": "a", "ink": "a<lora:ink:1>", "again": "a<lora:ink:1>"}.items():
        assert paint(prompt, out=f"{name}.png").status == 0
    plain, ink, again = (PIL_Image.open(tmp_path / f"{name}.png").tobytes() for name in ("plain", "ink", "again"))
    assert ink == again != plain


def test_problems_with_single_tags_go_to_stderr_and_the_picture_is_painted(
    paint: Callable[..., Result], tmp_path: Path
) -> None:
    result = paint("a <lora:inc>", "--negative-prompt", "bad <lora:ink>")
    assert result.status == 0
    assert 'Did you mean "ink"?' in result.err
    assert "\n    a <lora:inc>\n      ^^^^^^^^^^\n" in result.err
    # What has no place in the prompt is shown without one.
    assert "\nwarning: " in f"\n{result.err}"
    assert (tmp_path / "out.png").exists()


def test_several_prompts_are_one_batch_with_a_file_and_a_seed_for_each(
    paint: Callable[..., Result], tmp_path: Path
) -> None:
    result = paint("a<lora:ink:1>", "--prompt", "b", out="batch.png")
    assert result.status == 0
    assert result.out.splitlines()[-2:] == [str(tmp_path / "batch-1.png"), str(tmp_path / "batch-2.png")]
    paint("a<lora:ink:1>", out="first.png")
    paint("b", "--seed", 2, out="second.png")
    for number, alone in enumerate(("first", "second"), start=1):
        ours, theirs = (PIL_Image.open(tmp_path / f"{name}.png").convert("RGB") for name in (f"batch-{number}", alone))
        # In a batch the change acts beside the weights, alone it is in them: equal up to the rounding of a pixel.
        assert max(high for _, high in PIL_ImageChops.difference(ours, theirs).getextrema()) <= 1


def test_tags_of_the_negative_prompt_act_where_that_is_asked_for(paint: Callable[..., Result], tmp_path: Path) -> None:
    for name, arguments in {"plain": ("x",), "words": ("x<lora:ink:1>",)}.items():
        assert paint("a", "--negative-prompt", *arguments, out=f"{name}.png").status == 0
    result = paint("a", "--negative-prompt", "x<lora:ink:1>", "--negative-tags", "apply", out="apply.png")
    assert (result.status, result.err.count("warning")) == (0, 0)
    assert "ink × 1" in result.out
    plain, words, applied = (PIL_Image.open(tmp_path / f"{name}.png").tobytes() for name in ("plain", "words", "apply"))
    assert len({plain, words, applied}) == 3


def test_brackets_switch_tags_in_the_scope_of_prompt_editing(paint: Callable[..., Result], tmp_path: Path) -> None:
    for name, arguments in {"never": ("[<lora:ink:1>:9]", "--scope", "edit"), "plain": ("[:9]",)}.items():
        assert paint(*arguments, out=f"{name}.png").status == 0
    # The LoRA changes the text encoder as well, which runs before the first step and heeds no step.
    assert paint("[<lora:ink:te=0:unet=1>:9]", "--scope", "edit", out="unet.png").status == 0
    never, plain, unet = (PIL_Image.open(tmp_path / f"{name}.png").tobytes() for name in ("never", "plain", "unet"))
    assert unet == plain != never


def test_the_order_of_strengths_is_the_dialects(paint: Callable[..., Result]) -> None:
    assert "ink × te 0.5, unet 0.9" in paint("<lora:ink:0.5:0.9>").out
    assert "ink × te 0.9, unet 0.5" in paint("<lora:ink:0.5:0.9>", "--dialect", "comfy").out


def test_strict_fails_before_painting(paint: Callable[..., Result], tmp_path: Path) -> None:
    result = paint("a <lora:inc>", "--strict")
    assert result.status == 2
    assert result.err.splitlines()[-1].startswith('lora-runtime: error: no LoRA named "inc"')
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("nowhere/a.png", "the folder "),
        ("a.zip", "give a name that ends in .png, .jpg, .jpeg or .webp"),
        ("folder.png", "this is a folder"),
    ],
)
def test_the_place_of_the_picture_is_checked_first(
    paint: Callable[..., Result], tmp_path: Path, out: str, reason: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    result = paint("a", out=out)
    assert result.status == 2
    assert result.err.startswith(f"lora-runtime: error: --out {tmp_path / out}: {reason}")
    assert result.err.count("\n") == 1


def test_a_folder_without_a_model_is_named(command: Command, loras: Path) -> None:
    result = command("run", "--model", loras, "--prompt", "a", "--out", loras / "a.png")
    assert result.status == 2
    assert result.err.splitlines()[-1].startswith(f"lora-runtime: error: {loras} cannot be loaded: ")


def test_a_device_that_is_not_there_is_named(paint: Callable[..., Result]) -> None:
    assert "cannot use the device nonsense: " in paint("a", "--device", "nonsense").err.splitlines()[-1]


def test_a_folder_of_loras_that_is_not_there_is_named(command: Command, model: Path, tmp_path: Path) -> None:
    result = command("run", "--model", model, "--prompt", "a", "--out", tmp_path / "a.png", "--loras", "/nowhere")
    assert (result.status, result.err.splitlines()[-1]) == (
        2,
        f"lora-runtime: error: the LoRA folder {Path('/nowhere')} does not exist",
    )


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_size_is_a_whole_number_from_1(command: Command, value: str) -> None:
    result = command("run", "--model", "m", "--prompt", "a", "--out", "a.png", f"--width={value}")
    assert result.err.endswith(f"argument --width: {value!r} is not a whole number from 1\n")


def test_without_the_extra_it_says_what_to_install(
    paint: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert paint("a").err.endswith(
        "lora-runtime: error: diffusers is not installed; run, in a copy of the project: "
        'python -m pip install ".[demo]"\n'
    )


def test_the_first_device_that_is_there_is_taken() -> None:
    class Torch:
        def __init__(self, *, cuda: bool, mps: bool) -> None:
            def answer(value: bool) -> Any:
                return type("Device", (), {"is_available": staticmethod(lambda: value)})

            self.cuda = answer(cuda)
            self.backends = type("Backends", (), {"mps": answer(mps)})

    assert saved.best_device(Torch(cuda=True, mps=True)) == "cuda"
    assert saved.best_device(Torch(cuda=False, mps=True)) == "mps"
    assert saved.best_device(Torch(cuda=False, mps=False)) == "cpu"


@pytest.mark.parametrize(
    ("version", "name"),
    [("0.27.2", "torch_dtype"), ("0.42.0", "dtype"), ("1.0.0.dev0", "dtype"), ("0.9", "torch_dtype")],
)
def test_the_dtype_is_given_under_the_name_that_diffusers_has_for_it(version: str, name: str) -> None:
    assert saved.dtype_argument(version, "x") == {name: "x"}


class TestDemo:
    @staticmethod
    def replace_sheet(monkeypatch: pytest.MonkeyPatch, main: Callable[..., object]) -> None:
        """Put `main` in the place of the real sheet, which takes a minute."""
        sheet = ModuleType("lora_runtime.demo.sheet")
        sheet.main = main  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "lora_runtime.demo.sheet", sheet)

    def test_it_paints_the_sheet(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str | None] = []
        self.replace_sheet(monkeypatch, lambda *, out: asked.append(out))
        assert command("demo").status == 0
        assert command("demo", "--out", "a.png").status == 0
        assert asked == [None, "a.png"]

    def test_without_the_extra_it_says_what_to_install(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        def main(*, out: str | None) -> None:
            builtins.__import__("a_package_that_nobody_has")

        self.replace_sheet(monkeypatch, main)
        assert (
            "a_package_that_nobody_has is not installed; run, in a copy of the project: python -m pip install"
            in command("demo").err
        )

    def test_a_missing_part_of_the_library_itself_is_a_bug_and_not_hidden(
        self, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def main(*, out: str | None) -> None:
            builtins.__import__("lora_runtime.no_such_room")

        self.replace_sheet(monkeypatch, main)
        with pytest.raises(ModuleNotFoundError):
            command("demo")

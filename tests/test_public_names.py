"""What the library promises: its public names, and that the examples in its README run."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lora_runtime
from lora_runtime import errors

ROOT = Path(__file__).resolve().parent.parent
STRENGTH = ROOT / "docs" / "strength.md"
PAGES = (ROOT / "README.md", STRENGTH)
TAG = re.compile(r"<lora:[^>]+>")

ERRORS = {
    "LoraError",
    "TagSyntaxError",
    "CatalogError",
    "UnknownLoraError",
    "AmbiguousLoraError",
    "LoraFileError",
    "RefusedFileError",
    "CorruptFileError",
    "MemoryBudgetError",
    "ModelBusyError",
    "ModelError",
    "NoMatchError",
    "RegionError",
    "StrengthError",
    "TrainingError",
}
NAMES = {
    "apply",
    "restore",
    "clear_cache",
    "limit_cache",
    "Applied",
    "Infotext",
    "read_infotext",
    "parse_prompt",
    "Prompt",
    "LoraTag",
    "LoraCatalog",
    "load_lora",
    "Lora",
    "Adapter",
} | ERRORS


def test_all_is_the_documented_list() -> None:
    assert set(lora_runtime.__all__) == NAMES
    assert len(lora_runtime.__all__) == len(NAMES)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_public_name_can_be_imported_and_says_what_it_is(name: str) -> None:
    thing = getattr(lora_runtime, name)
    assert name in dir(lora_runtime)
    assert inspect.getdoc(thing)


def test_star_import_gives_the_public_names() -> None:
    code = "from lora_runtime import *; print(sorted(name for name in globals() if name[0] != '_'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(sorted(NAMES))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lora_runtime' has no attribute 'aply'"):
        lora_runtime.aply  # noqa: B018


def test_every_error_class_is_public_and_below_lora_error() -> None:
    classes = {
        name: thing for name, thing in vars(errors).items() if inspect.isclass(thing) and issubclass(thing, Exception)
    }
    assert set(classes) == ERRORS
    assert all(issubclass(thing, lora_runtime.LoraError) for thing in classes.values())


def test_the_tree_in_the_docstring_of_errors_is_the_tree_of_classes() -> None:
    drawn: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"(    |[ │├└─]+)(\w+Error)\b", line)
        if match:
            drawn.append((match.start(2), match[2]))
    assert {name for _, name in drawn} == ERRORS
    for place, (indent, name) in enumerate(drawn[1:], start=1):
        parent = next(above for depth, above in reversed(drawn[:place]) if depth < indent)
        assert getattr(errors, name).__base__.__name__ == parent


def examples_of(page: Path) -> list[tuple[int, str]]:
    """Return the first line and code of each Python block of a page that follows a line `<!-- example -->`."""
    text = page.read_text(encoding="utf-8")
    blocks = re.finditer(r"<!-- example -->\s*\n```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, block.start(1)), block[1]) for block in blocks]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after another in one namespace, as a reader would type them; the embedded LoRAs are in `loras/`."""
    scene_pipeline = pytest.importorskip("lora_runtime.demo.scene_pipeline")
    examples = examples_of(page)
    assert examples, f"{page.name} has no Python block marked by a line <!-- example -->"
    shutil.copytree(scene_pipeline.LORAS, tmp_path / "loras")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for line, code in examples:
        # The blank lines make a traceback show the page's own line numbers.
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_and_links_to_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_tag_of_the_page_about_strengths_is_read() -> None:
    text = STRENGTH.read_text(encoding="utf-8")
    tags = [tag for line in re.findall(r"^    (.*<lora:.*)$", text, re.MULTILINE) for tag in TAG.findall(line)]
    assert len(tags) > 12
    for tag in tags:
        assert [d for d in lora_runtime.parse_prompt(tag).diagnostics if d.severity != "info"] == [], tag

"""What the extension may import: itself relatively, lora_runtime, and the WebUI only in hosts/."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "extension"
FILES = sorted(FOLDER.rglob("*.py"))
OF_THE_HOST = {"modules", "gradio", "fastapi", "starlette", "PIL"}
EVERYWHERE = {*sys.stdlib_module_names, "lora_runtime", "lark"}


def imports(path: Path) -> Iterator[tuple[int, int, str]]:
    """Yield (line, level, top name) of each import."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.level, (node.module or "").partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_only_hosts_know_the_webui(path: Path) -> None:
    in_hosts = "hosts" in path.relative_to(FOLDER).parts
    allowed = EVERYWHERE | OF_THE_HOST | {"torch"} if in_hosts else EVERYWHERE
    for line, level, name in imports(path):
        assert level > 0 or name in allowed, f"{path}:{line}: `{name}` may not be imported here"
        depth = len(path.relative_to(FOLDER).parts)
        assert level <= depth, f"{path}:{line}: leads out of the package, whose name is private"


def test_the_library_does_not_know_the_extension() -> None:
    for path in (ROOT / "lora_runtime").rglob("*.py"):
        assert not {name for _, _, name in imports(path)} & {"extension", "modules", "gradio"}


def test_the_shim_is_a_few_lines_that_run_without_the_repository_on_the_path(tmp_path: Path) -> None:
    shim = ROOT / "scripts" / "lora_runtime_webui.py"
    assert len(shim.read_text(encoding="utf-8").splitlines()) < 40
    code = f"import runpy; runpy.run_path({str(shim)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    # Outside of a WebUI it says so in one line, and raises nothing.
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("[lora-runtime] not started, the built-in Lora extension stays: ")


def test_installing_where_all_is_there_runs_nothing(tmp_path: Path) -> None:
    code = (
        "import runpy, subprocess; subprocess.run = None\n"
        f"runpy.run_path({str(ROOT / 'install.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""

"""The rooms of the extension: each imports only from those above it, and what is not ours only where it belongs."""

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

# From the top down, with what a room may import beside the library and the rooms above. A host is a room of its own
# under `hosts`; it may use `hosts/sdwebui`, and no other host.
ROOMS: dict[str, set[str]] = {
    "console": set(),
    "whole": set(),
    "library": set(),
    "prompts": set(),
    "engine": {"torch"},
    "panel": {"fastapi"},
    "hosts/sdwebui": {"fastapi", "gradio", "modules"},
    "hosts": {"backend", "comfy", "fastapi", "folder_paths", "gradio", "modules", "torch"},
}
EVERYWHERE = {*sys.stdlib_module_names, "lora_runtime", "lark"}
# Loading the library's part below the catalog loads torch.
WITHOUT_TORCH = ("console", "whole", "library", "prompts")


def room_of(parts: tuple[str, ...]) -> str:
    """Return the room that a module is in: its path within the package, without its suffix."""
    return "hosts/sdwebui" if parts[:2] == ("hosts", "sdwebui") else parts[0]


def imports(path: Path) -> Iterator[tuple[int, int, str]]:
    """Yield (line, level, dotted name) of each import; of `from . import a` the name is `a`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((node.lineno, node.level, name) for name in names)


def ours(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield line and path within the package of each of the extension's modules that a file imports."""
    here = path.relative_to(FOLDER).parts
    for line, level, name in imports(path):
        if level:
            assert level <= len(here), f"{path}:{line}: leads out of the package, whose name is private"
            yield line, (*here[: len(here) - level], *name.split("."))


INSIDE = [path for path in FILES if path.parent != FOLDER or path.stem != "__init__"]


@pytest.mark.parametrize("path", INSIDE, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_no_import_points_up_the_ladder(path: Path) -> None:
    here = path.relative_to(FOLDER).with_suffix("").parts
    room, order = room_of(here), list(ROOMS)
    assert room in ROOMS, f"a new room; give `{room}` its place in ROOMS and in docs/architecture.md"
    for line, there in ours(path):
        assert order.index(room_of(there)) <= order.index(room), f"{path}:{line}: {room} imports {'/'.join(there)}"
        if room == room_of(there) == "hosts" and len(here) > 2:
            assert there[1] == here[1], f"{path}:{line}: one host knows another"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_only_hosts_know_the_webui(path: Path) -> None:
    parts = path.relative_to(FOLDER).with_suffix("").parts
    allowed = EVERYWHERE | ROOMS.get(room_of(parts), set())
    for line, level, name in imports(path):
        assert level > 0 or name.partition(".")[0] in allowed, f"{path}:{line}: `{name}` may not be imported here"


def test_library_and_prompts_are_loaded_without_torch() -> None:
    modules = [
        ".".join(parts)
        for path in INSIDE
        for parts in [path.relative_to(FOLDER).with_suffix("").parts]
        if room_of(parts) in WITHOUT_TORCH and parts[-1] != "__init__"
    ]
    assert {"library.shelf", "prompts.notices"} <= set(modules)
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        f"from extension_package import module\nfor name in {modules!r}: module(name)\n"
        "print({'torch', 'numpy', 'safetensors', 'gradio', 'fastapi'} & {n.partition('.')[0] for n in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_library_does_not_know_the_extension() -> None:
    for path in (ROOT / "lora_runtime").rglob("*.py"):
        # The studio is a page of gradio's own, a newer one than the programs have.
        foreign = {"extension", "modules", *([] if "studio" in path.with_suffix("").parts else ["gradio"])}
        assert not {name.partition(".")[0] for _, _, name in imports(path)} & foreign, path


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

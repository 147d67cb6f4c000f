"""The rooms of the library: each imports only from those above it, and what is heavy only where it is used."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_runtime

PACKAGE = Path(lora_runtime.__file__).parent

# From the top down. A new room is one line here and one in docs/architecture.md.
LADDER = (
    "errors",
    "whole_files",
    "blocks",
    "families",
    "prompt",
    "sets",
    "wildcards",
    "foreign",
    "header",
    "key_endings",
    "metadata",
    "file_index",
    "folder",
    "named_files",
    "expert_pairs",
    "catalog",
    "tag_files",
    "panel",
    "adapters",
    "dialects",
    "tensors",
    "lora",
    "lora_cache",
    "odd_strengths",
    "footprint",
    "memory",
    "uploads",
    "hooks",
    "pipelines",
    "routes",
    "targets",
    "precision",
    "products",
    "merge",
    "regions",
    "stage",
    "sides",
    "limits",
    "texts",
    "prompt_embeds",
    "beside",
    "requests",
    "report",
    "placement",
    "plan",
    "step_beside",
    "forecast",
    "hosted",
    "memory_policy",
    "weights",
    "copies",
    "weight_table",
    "settling",
    "factors",
    "patcher",
    "clock",
    "scopes",
    "optimizers",
    "ownership",
    "owners",
    "shown",
    "held",
    "embeddings",
    "problems",
    "idle_blocks",
    "lookup",
    "infotext",
    "asked",
    "applied",
    "runtime",
    "workbench",
    "train",
    "batching",
    "sweep",
    "serve",
    "demo",
    "studio",
    "cli",
    "__main__",
)
WITHOUT_TORCH = LADDER[: LADDER.index("adapters")]
EXTRAS = {"diffusers", "transformers", "accelerate", "peft", "PIL", "matplotlib", "ray", "starlette", "uvicorn"}

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    """Return the room that a file belongs to: the first part of its path inside the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, at_import_time: bool = False) -> Iterator[tuple[int, str]]:
    """Yield the line and dotted name of each import, those for type checkers left out.

    `at_import_time` leaves out those inside of functions too.
    """
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports in this library are absolute"
            # `from lora_runtime import merge` names a room in its second half.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name) for name in names)
        elif not (at_import_time and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            pending += ast.iter_child_nodes(node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_points_up_the_ladder(path: Path) -> None:
    room = room_of(path)
    assert room in LADDER, f"{path.name}: a new room; give `{room}` its place in LADDER and in docs/architecture.md"
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] != "lora_runtime" or parts[1].startswith("__version"):
            continue
        assert parts[1] in LADDER, f"{path}:{line}: `{name}` is in no room of LADDER"
        assert LADDER.index(parts[1]) <= LADDER.index(room), (
            f"{path}:{line}: {room} imports {parts[1]}, a room below it"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_extras_are_imported_only_inside_the_functions_that_use_them(path: Path) -> None:
    found = [
        (line, name) for line, name in imports(path, at_import_time=True) if name.split(".")[0] in {*EXTRAS, "tqdm"}
    ]
    assert not found, f"{path}: {found} at import time"


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in WITHOUT_TORCH], ids=lambda path: path.name)
def test_the_rooms_above_adapters_never_import_torch(path: Path) -> None:
    assert not [name for _, name in imports(path) if name.split(".")[0] in {"torch", "numpy", "safetensors"}]


def loaded_by(code: str) -> set[str]:
    """Return the top-level names of the modules that a fresh interpreter holds after running `code`."""
    code += "; import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_parsing_and_the_catalog_work_without_importing_torch() -> None:
    loaded = loaded_by(
        "import lora_runtime; lora_runtime.parse_prompt('a <lora:b:0.7>'); lora_runtime.LoraCatalog; dir(lora_runtime)"
    )
    assert not loaded & {"torch", "numpy", "safetensors", *EXTRAS}


def test_patching_imports_none_of_the_extras() -> None:
    loaded = loaded_by("import lora_runtime.runtime; lora_runtime.apply; lora_runtime.load_lora")
    assert "torch" in loaded
    assert not loaded & EXTRAS


def test_the_command_line_starts_without_importing_torch() -> None:
    loaded = loaded_by("import lora_runtime.cli")
    assert not loaded & {"torch", "numpy", "safetensors", *EXTRAS}

"""tools/release.py: what keeps a version from being released, and that a dry run changes nothing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "release.py"

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")

CHANGELOG = """# Changelog

## [Unreleased]

## [1.2.0] - 2026-12-01

### Added

- A thing.

## [1.1.0] - 2026-11-01

- Another.
"""


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Make a project of version 1.2.0 whose tree is clean; give the function that asks its git."""
    for name, value in {"GIT_CONFIG_GLOBAL": "none", "GIT_CONFIG_NOSYSTEM": "1"}.items():
        monkeypatch.setenv(name, value)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "Ann")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "ann@example.org")

    def run(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.strip()

    (tmp_path / "lora_runtime").mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.0"\n')
    (tmp_path / "lora_runtime" / "__init__.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "CITATION.cff").write_text("title: x\nversion: 1.2.0\n")
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    (tmp_path / ".gitignore").write_text("dist/\n")
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "lora_runtime-1.2.0.tar.gz").touch()
    run("init", "--quiet")
    run("add", ".")
    run("commit", "--quiet", "--message", "All")
    return run


def test_a_dry_run_writes_the_notes_and_no_tag(
    release: ModuleType, git: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release.main(["check"], tmp_path) == 0
    assert release.main(["finish"], tmp_path) == 0
    assert (tmp_path / "dist" / "notes-1.2.0.md").read_text() == "### Added\n\n- A thing.\n"
    assert git("tag") == ""
    assert "A dry run" in capsys.readouterr().out


def test_the_tag_has_the_notes_with_their_headings(
    release: ModuleType, git: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release.main(["finish", "--tag"], tmp_path) == 0
    message = git("tag", "--list", "v1.2.0", "--format=%(contents)")
    assert message == "lora_runtime 1.2.0\n\n### Added\n\n- A thing."
    assert "twine upload dist/lora_runtime-1.2.0.tar.gz\n" in capsys.readouterr().out
    assert release.main(["check"], tmp_path) == 1
    assert "the tag v1.2.0 is there already" in capsys.readouterr().out


def test_what_is_in_the_way_is_said_all_at_once(
    release: ModuleType, git: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.3.0"\n')
    (tmp_path / "new.py").touch()
    assert release.main(["check"], tmp_path) == 1
    assert capsys.readouterr().out.splitlines() == [
        "Not yet: lora_runtime/__init__.py has version 1.2.0, pyproject.toml has 1.3.0: make them agree",
        "Not yet: CITATION.cff has version 1.2.0, pyproject.toml has 1.3.0: make them agree",
        "Not yet: CHANGELOG.md has nothing under ## [1.3.0]: give [Unreleased] that name and a date",
        "Not yet: 2 files are changed or unknown to git: commit them, or put them away",
    ]
    assert git("tag") == ""


def test_the_project_itself_agrees_on_its_version(release: ModuleType) -> None:
    assert len(set(release.versions(release.ROOT).values())) == 1

"""Builds wheel and sdist into dist/, checks them, and uses the wheel as a stranger would: `make wheel`.

1. The sdist is built from the tree and the wheel from the sdist, so that both are whole.
2. twine reads their metadata, check-wheel-contents what lies in the wheel.
3. The wheel is installed in a new environment outside the repository. What it needs is lent by `.venv`: only the
   project itself comes from the wheel. With `--empty` nothing is lent: pip installs all of it, as a user's would.
4. There `lora-runtime demo` paints, and mypy and pyright check a program that uses the public names, by the types of
   the wheel.

Runs in `.venv-wheel`, which has the tools. The last lines say how large the wheel is, and what of it is what.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
PROGRAM = ROOT / "tests" / "typed_program.py"
_LARGEST = 9_000_000  # bytes: the embedded pipeline, and nothing that grows beside it unseen


def main() -> None:
    """Do all steps; the first that fails ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--borrow", metavar="PYTHON", type=Path, required=True, help="whose packages are lent")
    parser.add_argument("--empty", action="store_true", help="lend nothing: pip installs what the wheel asks for")
    asked = parser.parse_args()
    wheel = build()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        python = install(wheel, folder / "venv", None if asked.empty else asked.borrow)
        use(python, folder)
        check_types(python, folder)
    for line in size(wheel):
        print(line)


def build() -> Path:
    """Build and judge both files; return the wheel."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST, ROOT)
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(DIST.iterdir()))
    [wheel] = DIST.glob("*.whl")
    # W004 asks that each file can be imported by its name: the embedded pipeline's are data.
    run(sys.executable, "-m", "check_wheel_contents", "--ignore", "W004", wheel)
    return wheel


def install(wheel: Path, folder: Path, lender: Path | None) -> Path:
    """Install the wheel in a new environment; return its interpreter."""
    owner = sys.executable if lender is None else lender
    run(owner, "-m", "venv", folder)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if lender is None:
        run(python, "-m", "pip", "install", f"{wheel}[demo]")
        return python
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    lent, own = (output(each, "-c", code) for each in (lender, python))
    # A plain line is put behind the environment's own packages, and no .pth file in it is read: not the one by which
    # the project itself is installed in place there.
    (Path(own) / "lent.pth").write_text(f"{lent}\n", encoding="utf-8")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    return python


def use(python: Path, folder: Path) -> None:
    """Paint with the installed program, outside of the repository."""
    found = Path(output(python, "-c", "import lora_runtime; print(lora_runtime.__file__)", cwd=folder))
    if not found.is_relative_to(folder):
        sys.exit(f"lora_runtime was imported from {found}, not from the wheel in {folder}")
    program = python.with_name("lora-runtime.exe" if os.name == "nt" else "lora-runtime")
    run(program, "demo", "--out", "demo.png", cwd=folder)
    if not (folder / "demo.png").read_bytes().startswith(b"\x89PNG"):
        sys.exit("lora-runtime demo wrote no picture")


def check_types(python: Path, folder: Path) -> None:
    """Check a program of a user's by mypy and, where there is Node, by pyright, against the installed wheel."""
    program = shutil.copy(PROGRAM, folder / PROGRAM.name)
    cache = f"--cache-dir={ROOT / '.mypy_cache' / 'wheel'}"  # what it learnt of torch, which takes a minute
    run(sys.executable, "-m", "mypy", "--strict", cache, "--python-executable", python, program, cwd=folder)
    if shutil.which("node") is None:
        print("Left out: pyright, which runs on Node, and there is none here")
        return
    run(sys.executable, "-m", "pyright", "--pythonpath", python, program, cwd=folder)


def size(wheel: Path) -> list[str]:
    """Return lines about the wheel's size; too large a wheel is an error."""
    parts: Counter[str] = Counter()
    with zipfile.ZipFile(wheel) as file:
        for info in file.infolist():
            demo = info.filename.startswith("lora_runtime/demo/")
            parts["the embedded pipeline and its LoRAs" if demo else "code"] += info.compress_size
    total = wheel.stat().st_size
    if total > _LARGEST:
        sys.exit(f"{wheel.name} has {total / 1e6:.1f} MB, more than {_LARGEST / 1e6:.0f}: what has come into it?")
    said = ", ".join(f"{count / 1e6:.1f} MB {what}" for what, count in parts.most_common())
    return [f"{wheel.name}: {total / 1e6:.1f} MB, of it {said}"]


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a command in view; its failure ends this program."""
    print("$", " ".join(Path(word).name if Path(word).is_absolute() else str(word) for word in command), flush=True)
    status = subprocess.run(command, cwd=cwd, env=_environment()).returncode
    if status:
        sys.exit(status)


def output(*command: str | Path, cwd: Path = ROOT) -> str:
    """Return what a command prints."""
    done = subprocess.run(command, cwd=cwd, env=_environment(), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def _environment() -> dict[str, str]:
    """Return the environment without what would put the repository's own folder on a path."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


if __name__ == "__main__":
    main()

"""Makes `.venv` and runs the project's commands: `python tools/bootstrap.py demo|test|bench|train|format|venv|clean`.

Needs Python 3.10 or newer and nothing else. Safe to repeat: what is there is kept, what is missing or broken is made,
and a command starts at once when `pyproject.toml` has not changed since the last install. The Makefile calls this file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "lora-runtime-install.json"  # what was installed, and from which pyproject.toml
CONSTRAINTS = VENV / "lora-runtime-constraints.txt"

TORCH = "2.13.0"  # the CPU build of this version is taken where there is no GPU: 0.2 GB instead of several
TORCH_OLDEST = (2, 1)
PIP_OLDEST = (22, 0)  # before 21.3 pip cannot install a pyproject-only project in place

# Each set of extras names those whose packages it brings along, so that `make demo` after `make test` installs nothing.
EXTRAS = {"demo": ("demo",), "test": ("test", "demo"), "bench": ("bench", "demo"), "all": ("test", "bench", "demo")}
# What must be importable after an install, and the package that has it.
IMPORTS = {"torch": "torch", "numpy": "numpy", "safetensors": "safetensors", "lark": "lark"}
IMPORTS.update({"transformers": "transformers", "diffusers": "diffusers", "PIL.Image": "Pillow"})


class Failed(Exception):
    """A step that did not work; the message is for the person at the terminal."""


def main(arguments: list[str]) -> int:
    """Run the command named first, the rest being its own arguments, and return the exit status."""
    commands = {
        "demo": demo,
        "test": test,
        "bench": bench,
        "train": train,
        "format": reformat,
        "venv": venv,
        "clean": clean,
    }
    if not arguments or arguments[0] not in commands:
        print(__doc__)
        return 2
    if sys.version_info < (3, 10):  # noqa: UP036 - any Python may be asked to run this file
        say(f"This is Python {sys.version.split()[0]}; the project needs 3.10 or newer.")
        return 1
    os.chdir(ROOT)
    os.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    try:
        commands[arguments[0]](arguments[1:])
    except Failed as error:
        if str(error):
            say(str(error))
        return 1
    except KeyboardInterrupt:
        say("Stopped. The same command goes on from here.")
        return 130
    return 0


# Commands


def demo(arguments: list[str]) -> None:
    """Paint the contact sheet."""
    install("demo")
    run(PYTHON, "-m", "lora_runtime", "demo", *(arguments or ["--out", "out/demo.png"]))


def test(arguments: list[str]) -> None:
    """Lint, types, tests; stops at the first that fails, and pytest's summary is the last line."""
    install("test")
    run(PYTHON, "-m", "ruff", "check", ".")
    run(PYTHON, "-m", "ruff", "format", "--check", ".")
    run(PYTHON, "-m", "mypy")
    run(PYTHON, "-m", "pytest", "--cov", "--cov-branch", "--cov-fail-under=95", *arguments)


def bench(arguments: list[str]) -> None:
    """Measure, print the table and write bench.json."""
    install("bench")
    run(PYTHON, "-m", "benchmarks.bench", *arguments)


def train(arguments: list[str]) -> None:
    """Train the embedded pipeline, then its LoRAs."""
    install("demo")
    for script in ("training/train_pipeline.py", "training/train_loras.py"):
        run(PYTHON, script, *arguments)


def reformat(arguments: list[str]) -> None:
    """Format the code and correct what ruff can correct."""
    install("test")
    run(PYTHON, "-m", "ruff", "check", "--fix", *(arguments or ["."]))
    run(PYTHON, "-m", "ruff", "format", *(arguments or ["."]))


def venv(arguments: list[str]) -> None:
    """Make .venv with everything in it."""
    install("all")
    say(f"Ready: {PYTHON.relative_to(ROOT)}")


def clean(arguments: list[str]) -> None:
    """Remove .venv, caches and what the commands wrote; sources and trained weights stay."""
    names = (".venv", "out", "dist", "build", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis")
    for path in [ROOT / name for name in names]:
        if path.is_dir():
            say(f"Removing {path.name}/")
            shutil.rmtree(path)
    for name in (".coverage", "bench.json"):
        (ROOT / name).unlink(missing_ok=True)


# Installing


def install(extra: str) -> None:
    """Leave `.venv` with the project and the packages of `extra` in it; returns at once if they are there."""
    stamp = read_stamp()
    wanted = EXTRAS[extra]
    if PYTHON.exists() and stamp.get("key") == stamp_key() and set(wanted) <= set(stamp.get("extras", ())):
        return
    started = time.monotonic()
    STAMP.unlink(missing_ok=True)
    if not working_venv():
        make_venv()
    if not working_torch():
        install_torch()
    # Without the constraint pip could exchange a CPU or a hand-built torch for the registry's.
    CONSTRAINTS.write_text(f"torch=={probe()['torch']}\n", encoding="utf-8")
    say(f"Installing the project with its {' and '.join(wanted)} packages")
    pip("install", "--editable", f".[{','.join(wanted)}]", "--constraint", CONSTRAINTS)
    check_imports()
    before = set(stamp["extras"]) if stamp.get("key") == stamp_key() else set()
    STAMP.write_text(json.dumps({"key": stamp_key(), "extras": sorted(before | set(wanted))}), encoding="utf-8")
    say(f"Installed in {time.monotonic() - started:.0f} s")


def working_venv() -> bool:
    """Return whether `.venv` starts, is new enough and has a pip that can install this project."""
    if not VENV.exists():
        return False
    found = probe()
    if version(found.get("python", "")) < (3, 10):
        say(".venv does not start, or its Python is older than 3.10: making it anew")
        return False
    if not found["pip"]:
        try_run(PYTHON, "-m", "ensurepip")  # half made, or made by a tool that puts no pip in
    bring_pip_up_to_date()
    return version(probe()["pip"]) >= PIP_OLDEST


def make_venv() -> None:
    """Make `.venv` from nothing with the Python that runs this file."""
    say(f"Making .venv with Python {sys.version.split()[0]}")
    if try_run(sys.executable, "-m", "venv", "--clear", VENV):
        raise Failed(
            "Python could not make a virtual environment (see above). On Debian and Ubuntu the part that does so is a "
            "package of its own: apt install python3-venv. Then run the same command again."
        )
    bring_pip_up_to_date()


def bring_pip_up_to_date() -> None:
    """Exchange a pip that is too old for a new one."""
    if () < version(probe()["pip"]) < PIP_OLDEST:
        say("The pip that came with this Python is too old: taking a newer one")
        pip("install", "--upgrade", "pip")


def working_torch() -> bool:
    """Return whether `.venv` holds a torch that is new enough and can be imported: that one is kept."""
    found = probe()
    if not found["torch"]:
        return False
    if version(found["torch"]) < TORCH_OLDEST:
        say(f"torch {found['torch']} is older than 2.1")
        return False
    if try_run(PYTHON, "-c", "import torch", quiet=True):
        say(f"torch {found['torch']} in .venv cannot be imported (a broken install?): taking it out")
        pip("uninstall", "--yes", "torch")
        return False
    say(f"Keeping torch {found['torch']}")
    return True


def install_torch() -> None:
    """Put torch into `.venv`: the CPU build on Linux without a GPU, else the one the registry has for this machine."""
    if not sys.platform.startswith("linux") or has_gpu():
        say("Installing torch")
        pip("install", f"torch>={'.'.join(map(str, TORCH_OLDEST))}")
        return
    say(f"No GPU found: installing the CPU build of torch {TORCH}")
    # Where pip's sources carry the CPU build under its own name, pip takes it; where they do not, this fails before
    # anything is downloaded. uv knows where the CPU builds are.
    if try_run(PYTHON, "-m", "pip", "install", f"torch=={TORCH}+cpu", expect="No matching distribution") == 0:
        return
    say("The CPU build is not among pip's own sources: asking uv for it")
    if try_run(PYTHON, "-m", "pip", "install", "uv") == 0:
        for wanted in (f"torch=={TORCH}", "torch>=2.1"):  # the second for a Python that this version was not built for
            if try_run(PYTHON, "-m", "uv", "pip", "install", "--python", PYTHON, "--torch-backend=cpu", wanted) == 0:
                return
    say("No CPU build could be had: installing the ordinary build. On Linux this is a download of several gigabytes.")
    pip("install", "torch>=2.1")


def has_gpu() -> bool:
    """Return whether this machine shows an NVIDIA or AMD accelerator that torch could use."""
    nodes = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")  # dxg: a GPU seen from WSL, kfd: ROCm
    return shutil.which("nvidia-smi") is not None or any(Path(node).exists() for node in nodes)


def check_imports() -> None:
    """Import what the commands need, once, here, and install again what an interrupted install left unusable."""
    say("Checking that everything can be imported")
    if not try_run(PYTHON, "-W", "ignore", "-c", f"import {', '.join(IMPORTS)}", quiet=True):
        return
    broken = [name for name in IMPORTS if try_run(PYTHON, "-c", f"import {name}", quiet=True)]
    say(f"Installing again, as they cannot be imported: {', '.join(broken)}")
    pip("install", "--force-reinstall", "--no-deps", *(IMPORTS[name] for name in broken), "--constraint", CONSTRAINTS)
    for name in broken:
        if try_run(PYTHON, "-c", f"import {name}"):
            raise Failed(f"{name} cannot be imported (see above). Remove .venv and run the same command again.")


# What is there


def probe() -> dict[str, str]:
    """Return the versions of python, pip and torch in `.venv`, "" for one that is missing, {} if it does not start."""
    code = """
import json, platform
from importlib.metadata import PackageNotFoundError, version
def get(name):
    try:
        return version(name) or ""
    except PackageNotFoundError:
        return ""
print(json.dumps({"python": platform.python_version(), "pip": get("pip"), "torch": get("torch")}))
"""
    try:
        done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True, cwd=VENV)
        return dict(json.loads(done.stdout))
    except (OSError, subprocess.CalledProcessError, json.JSONDecodeError):
        return {}


def version(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: "2.13.0+cpu" gives (2, 13, 0), "" gives ()."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def stamp_key() -> str:
    """Return what an install depends on: the project's file, this file, and where they lie (installs are in place)."""
    parts = [(ROOT / "pyproject.toml").read_bytes(), Path(__file__).read_bytes(), str(ROOT).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def read_stamp() -> dict[str, Any]:
    """Return what the last install wrote, {} if there was none or it cannot be read."""
    try:
        return dict(json.loads(STAMP.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


# Running


def say(text: str) -> None:
    """Print a line of this file's own."""
    print(f"== {text}", flush=True)


def pip(*arguments: str | Path) -> None:
    """Run pip in `.venv`, its progress in view."""
    run(PYTHON, "-m", "pip", *arguments)


def run(*command: str | Path) -> None:
    """Run a command in view; its failure ends this one, which has nothing to add."""
    status = try_run(*command)
    if status:
        raise Failed("")


def try_run(*command: str | Path, quiet: bool = False, expect: str = "") -> int:
    """Run a command, say which, and return its exit status; a foreseen error, with `expect` in it, is not shown."""
    words = ["python" if word in (PYTHON, sys.executable) else str(word) for word in command]
    if quiet:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    print("$", " ".join(words), flush=True)
    if not expect:
        return subprocess.run(command).returncode
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    if expect not in done.stderr:
        print(done.stderr, end="", file=sys.stderr, flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

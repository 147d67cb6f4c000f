"""Makes `.venv` and runs the project's commands: `python tools/bootstrap.py COMMAND`.

Commands: demo, test, test-webui, bench, train, format, venv, clean.

A second one, `.venv-webui`, has the versions that the AUTOMATIC1111 WebUI pins: the tests of its extension run there.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Environment:
    """A virtual environment: its folder, and what must be importable there with the package that has it."""

    folder: Path
    imports: dict[str, str]

    @property
    def name(self) -> str:
        """Its folder's name, for messages."""
        return self.folder.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def stamp(self) -> Path:
        """What was installed, and from which pyproject.toml."""
        return self.folder / "lora-runtime-install.json"

    @property
    def constraints(self) -> Path:
        """What pip must keep as it is."""
        return self.folder / "lora-runtime-constraints.txt"


_IMPORTS = {
    "torch": "torch",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "lark": "lark",
    "transformers": "transformers",
    "PIL.Image": "Pillow",
}
MAIN = Environment(ROOT / ".venv", {**_IMPORTS, "diffusers": "diffusers"})
WEBUI = Environment(ROOT / ".venv-webui", {**_IMPORTS, "gradio": "gradio", "fastapi": "fastapi"})
WEBUI_PYTHONS = ((3, 10), (3, 11))  # those for which the WebUI's versions of numpy, Pillow and tokenizers were built

TORCH = "2.13.0"  # the CPU build of this version is taken where there is no GPU: 0.2 GB instead of several
TORCH_OLDEST = (2, 1)
PIP_OLDEST = (22, 0)  # before 21.3 pip cannot install a pyproject-only project in place

# Each set of extras names those whose packages it brings along, so that `make demo` after `make test` installs nothing.
EXTRAS = {"demo": ("demo",), "test": ("test", "demo"), "bench": ("bench", "demo"), "all": ("test", "bench", "demo")}
EXTRAS["webui"] = ("webui",)


class Failed(Exception):
    """A step that did not work; the message is for the person at the terminal."""


def main(arguments: list[str]) -> int:
    """Run the command named first, the rest being its own arguments, and return the exit status."""
    commands = {
        "demo": demo,
        "test": test,
        "test-webui": test_webui,
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
    run(MAIN.python, "-m", "lora_runtime", "demo", *(arguments or ["--out", "out/demo.png"]))


def test(arguments: list[str]) -> None:
    """Lint, types, tests, then the extension's tests with the WebUI's versions; stops at the first that fails.

    pytest's summary is the last line. With arguments for pytest, only the tests in `.venv` are run.
    """
    install("test")
    run(MAIN.python, "-m", "ruff", "check", ".")
    run(MAIN.python, "-m", "ruff", "format", "--check", ".")
    run(MAIN.python, "-m", "mypy")
    run(MAIN.python, "-m", "pytest", "--cov", "--cov-branch", "--cov-fail-under=95", *arguments)
    if not arguments:
        test_extension()


def test_extension() -> None:
    """Run the tests of the WebUI's extension with the WebUI's versions, where these can be had."""
    if sys.version_info[:2] not in WEBUI_PYTHONS:
        say("Left out: the extension with the WebUI's own versions, which need Python 3.10 or 3.11")
        return
    # Half a minute less, as few of the modules are ever imported here; pip wants a falsy value to switch this on.
    os.environ["PIP_NO_COMPILE"] = "0"
    install("webui", WEBUI)
    run(WEBUI.python, "-m", "pytest", "tests/extension")


def test_webui(arguments: list[str]) -> None:
    """Run the extension in the installed WebUI that SD_WEBUI_DIR names; see docs/webui-compat.md."""
    if not os.environ.get("SD_WEBUI_DIR"):
        raise Failed(
            "SD_WEBUI_DIR names no installed WebUI: SD_WEBUI_DIR=/path/to/stable-diffusion-webui make test-webui"
        )
    install("test")
    run(MAIN.python, "-m", "pytest", "tests/webui", *arguments)


def bench(arguments: list[str]) -> None:
    """Measure, print the table and write bench.json."""
    install("bench")
    run(MAIN.python, "-m", "benchmarks.bench", *arguments)


def train(arguments: list[str]) -> None:
    """Train the embedded pipeline, then its LoRAs."""
    install("demo")
    for script in ("training/train_pipeline.py", "training/train_loras.py"):
        run(MAIN.python, script, *arguments)


def reformat(arguments: list[str]) -> None:
    """Format the code and correct what ruff can correct."""
    install("test")
    run(MAIN.python, "-m", "ruff", "check", "--fix", *(arguments or ["."]))
    run(MAIN.python, "-m", "ruff", "format", *(arguments or ["."]))


def venv(arguments: list[str]) -> None:
    """Make .venv with everything in it."""
    install("all")
    say(f"Ready: {MAIN.python.relative_to(ROOT)}")


def clean(arguments: list[str]) -> None:
    """Remove both environments, caches and what the commands wrote; sources and trained weights stay."""
    names = ("out", "dist", "build", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis")
    for path in [MAIN.folder, WEBUI.folder, *(ROOT / name for name in names)]:
        if path.is_dir():
            say(f"Removing {path.name}/")
            shutil.rmtree(path)
    for name in (".coverage", "bench.json"):
        (ROOT / name).unlink(missing_ok=True)


# Installing


def install(extra: str, env: Environment = MAIN) -> None:
    """Leave an environment with the project and the packages of `extra` in it; returns at once if they are there."""
    stamp = read_stamp(env)
    wanted = EXTRAS[extra]
    if env.python.exists() and stamp.get("key") == stamp_key() and set(wanted) <= set(stamp.get("extras", ())):
        return
    started = time.monotonic()
    env.stamp.unlink(missing_ok=True)
    if not working_venv(env):
        make_venv(env)
    if not working_torch(env):
        install_torch(env)
    # Without the constraint pip could exchange a CPU or a hand-built torch for the registry's.
    # And what a repair below takes must be the version that is wanted here: exact ones are only the WebUI's.
    pins = re.findall(r'"([\w-]+==[\w.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    fixed = [f"torch=={probe(env)['torch']}", *(pins if env is WEBUI else ())]
    env.constraints.write_text("".join(f"{pin}\n" for pin in fixed), encoding="utf-8")
    say(f"Installing the project with its {' and '.join(wanted)} packages")
    pip(env, "install", "--editable", f".[{','.join(wanted)}]", "--constraint", env.constraints)
    check_imports(env)
    before = set(stamp["extras"]) if stamp.get("key") == stamp_key() else set()
    env.stamp.write_text(json.dumps({"key": stamp_key(), "extras": sorted(before | set(wanted))}), encoding="utf-8")
    say(f"Installed in {time.monotonic() - started:.0f} s")


def working_venv(env: Environment) -> bool:
    """Return whether it starts, is new enough and has a pip that can install this project."""
    if not env.folder.exists():
        return False
    found = probe(env)
    if version(found.get("python", "")) < (3, 10):
        say(f"{env.name} does not start, or its Python is older than 3.10: making it anew")
        return False
    if not found["pip"]:
        try_run(env.python, "-m", "ensurepip")  # half made, or made by a tool that puts no pip in
    bring_pip_up_to_date(env)
    return version(probe(env)["pip"]) >= PIP_OLDEST


def make_venv(env: Environment) -> None:
    """Make it from nothing with the Python that runs this file."""
    say(f"Making {env.name} with Python {sys.version.split()[0]}")
    if try_run(sys.executable, "-m", "venv", "--clear", env.folder):
        raise Failed(
            "Python could not make a virtual environment (see above). On Debian and Ubuntu the part that does so is a "
            "package of its own: apt install python3-venv. Then run the same command again."
        )
    bring_pip_up_to_date(env)


def bring_pip_up_to_date(env: Environment) -> None:
    """Exchange a pip that is too old for a new one."""
    if () < version(probe(env)["pip"]) < PIP_OLDEST:
        say("The pip that came with this Python is too old: taking a newer one")
        pip(env, "install", "--upgrade", "pip")


def working_torch(env: Environment) -> bool:
    """Return whether it holds a torch that is new enough and can be imported: that one is kept."""
    found = probe(env)
    if not found["torch"]:
        return False
    if version(found["torch"]) < TORCH_OLDEST:
        say(f"torch {found['torch']} is older than 2.1")
        return False
    if try_run(env.python, "-c", "import torch", quiet=True):
        say(f"torch {found['torch']} in {env.name} cannot be imported (a broken install?): taking it out")
        pip(env, "uninstall", "--yes", "torch")
        return False
    say(f"Keeping torch {found['torch']}")
    return True


def install_torch(env: Environment) -> None:
    """Put torch in: the CPU build on Linux without a GPU, else the one the registry has for this machine."""
    if not sys.platform.startswith("linux") or has_gpu():
        say("Installing torch")
        pip(env, "install", f"torch>={'.'.join(map(str, TORCH_OLDEST))}")
        return
    say(f"No GPU found: installing the CPU build of torch {TORCH}")
    # Where pip's sources carry the CPU build under its own name, pip takes it; where they do not, this fails before
    # anything is downloaded. uv knows where the CPU builds are.
    if try_run(env.python, "-m", "pip", "install", f"torch=={TORCH}+cpu", expect="No matching distribution") == 0:
        return
    say("The CPU build is not among pip's own sources: asking uv for it")
    if try_run(env.python, "-m", "pip", "install", "uv") == 0:
        for wanted in (f"torch=={TORCH}", "torch>=2.1"):  # the second for a Python that this version was not built for
            command = ("uv", "pip", "install", "--python", env.python, "--torch-backend=cpu", wanted)
            if try_run(env.python, "-m", *command) == 0:
                return
    say("No CPU build could be had: installing the ordinary build. On Linux this is a download of several gigabytes.")
    pip(env, "install", "torch>=2.1")


def has_gpu() -> bool:
    """Return whether this machine shows an NVIDIA or AMD accelerator that torch could use."""
    nodes = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")  # dxg: a GPU seen from WSL, kfd: ROCm
    return shutil.which("nvidia-smi") is not None or any(Path(node).exists() for node in nodes)


def check_imports(env: Environment) -> None:
    """Import what the commands need, once, here, and install again what an interrupted install left unusable."""
    say("Checking that everything can be imported")
    python, imports = env.python, env.imports
    if not try_run(python, "-W", "ignore", "-c", f"import {', '.join(imports)}", quiet=True):
        return
    broken = [name for name in imports if try_run(python, "-W", "ignore", "-c", f"import {name}", quiet=True)]
    say(f"Installing again, as they cannot be imported: {', '.join(broken)}")
    packages = [imports[name] for name in broken]
    pip(env, "install", "--force-reinstall", "--no-deps", *packages, "--constraint", env.constraints)
    for name in broken:
        if try_run(python, "-c", f"import {name}"):
            raise Failed(f"{name} cannot be imported (see above). Remove {env.name} and run the same command again.")


# What is there


def probe(env: Environment) -> dict[str, str]:
    """Return the versions of python, pip and torch there, "" for one that is missing, {} if it does not start."""
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
        done = subprocess.run([env.python, "-c", code], capture_output=True, text=True, check=True, cwd=env.folder)
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


def read_stamp(env: Environment) -> dict[str, Any]:
    """Return what the last install wrote, {} if there was none or it cannot be read."""
    try:
        return dict(json.loads(env.stamp.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


# Running


def say(text: str) -> None:
    """Print a line of this file's own."""
    print(f"== {text}", flush=True)


def pip(env: Environment, *arguments: str | Path) -> None:
    """Run an environment's pip, its progress in view."""
    run(env.python, "-m", "pip", *arguments)


def run(*command: str | Path) -> None:
    """Run a command in view; its failure ends this one, which has nothing to add."""
    status = try_run(*command)
    if status:
        raise Failed("")


def try_run(*command: str | Path, quiet: bool = False, expect: str = "") -> int:
    """Run a command, say which, and return its exit status; a foreseen error, with `expect` in it, is not shown."""
    words = ["python" if word in (MAIN.python, WEBUI.python, sys.executable) else str(word) for word in command]
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

"""Makes `.venv` and runs the project's commands: `python tools/bootstrap.py COMMAND`.

Commands: demo, studio, test, test-all, test-oldest, test-newest, test-webui, test-hosts, bench, matrix, soak, train,
train-demo, docs, wheel, release, format, lock, venv, clean.

What is installed stands in `locks/`, version by version; `lock` writes these files from the ranges in `pyproject.toml`.
Only torch is chosen here, by the machine. Further environments: `.venv-webui` has the versions that the AUTOMATIC1111
WebUI pins, for the tests of its extension; `.venv-oldest` has these with the WebUI's own Python and torch;
`.venv-newest` has the newest versions within the ranges. `.venv-docs` and `.venv-wheel` have tools that only read the
project.

Needs Python 3.10 or newer and nothing else. Safe to repeat: what is there is kept, what is missing or broken is made,
and a command starts at once when neither `pyproject.toml` nor the lock has changed since the last install. Where all is
installed, no network is needed. The Makefile calls this file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Environment:
    """A virtual environment: its folder, its locks, and what must be importable there with the package that has it."""

    folder: Path
    locks: tuple[str, ...]
    imports: dict[str, str]
    pythons: tuple[tuple[int, int], ...] = ()  # none: each from 3.10 on
    torch: str = ""  # the only version that will do
    bare: bool = False  # tools that read the project's files: neither torch nor the project is put in

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
        """What was installed, and from which pyproject.toml and locks."""
        return self.folder / "lora-runtime-install.json"

    @property
    def requirements(self) -> Path:
        """What pip was last asked for: the lines of a lock that were missing."""
        return self.folder / "lora-runtime-requirements.txt"

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
MAIN = Environment(ROOT / ".venv", ("demo", "studio", "train", "test", "bench"), {**_IMPORTS, "diffusers": "diffusers"})
NEWEST = Environment(ROOT / ".venv-newest", ("test",), MAIN.imports)
# numpy, Pillow and tokenizers were built for these Pythons, in the versions that the WebUI has.
WEBUI = Environment(
    ROOT / ".venv-webui",
    ("webui",),
    {**_IMPORTS, "gradio": "gradio", "fastapi": "fastapi"},
    ((3, 10), (3, 11)),
)
OLDEST = Environment(ROOT / ".venv-oldest", ("oldest",), WEBUI.imports, ((3, 10),), torch="2.1.2")
DOCS = Environment(
    ROOT / ".venv-docs",
    ("docs",),
    {"zensical": "zensical", "mkdocstrings_handlers.python": "mkdocstrings-python"},
    ((3, 11), (3, 12), (3, 13), (3, 14)),  # Zensical's own
    bare=True,
)
WHEEL = Environment(
    ROOT / ".venv-wheel",
    ("wheel",),
    {"build": "build", "hatchling": "hatchling", "twine": "twine", "check_wheel_contents": "check-wheel-contents"},
    bare=True,
)
ENVIRONMENTS = (MAIN, NEWEST, WEBUI, OLDEST, DOCS, WHEEL)

TORCH = "2.13.0"  # the CPU build is taken where there is no GPU: 0.2 GB instead of several
TORCH_OLDEST = "2.1"
PIP_OLDEST = (22, 0)  # before 21.3 pip cannot install a pyproject-only project in place

# Each names the locks that it needs and those that these bring along: `make demo` after `make test` installs nothing.
NEEDS = {"demo": ("demo",), "train": ("train", "demo"), "bench": ("bench", "demo")}
NEEDS |= {"test": ("test", "studio", "train", "demo")}
NEEDS |= {"studio": ("studio", "demo"), "all": ("test", "studio", "train", "bench", "demo")}
NEEDS |= {"webui": ("webui",), "oldest": ("oldest",), "docs": ("docs",), "wheel": ("wheel",)}

# What each lock is made from, by uv: the project's extras and the files locks/*.in.
LOCKS = {"demo": ("demo",), "studio": ("studio",), "train": ("train",), "test": ("test",), "bench": ("bench",)}
LOCKS |= {"webui": ("webui.in",), "oldest": ("oldest.in",)}
LOCKS |= {"docs": ("docs.in",), "wheel": ("wheel.in",)}
# torch and what belongs to its builds for GPUs stay out of the locks.
NOT_LOCKED = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")

# The tests run in as many processes as there are cores, each with 1 to 2 GB.
WORKERS = ("-n", "auto", "--maxprocesses=4", "--dist=worksteal")

# What is left out of `test`: tests of seconds whose subject others hold too, in every run of `test-all`.
QUICK = ["-m", "not slow"]

# What pip says where its sources do not have a version, or a constraint of the user's own forbids it.
NOT_THERE = ("No matching distribution", "ResolutionImpossible")


class Failed(Exception):
    """A step that did not work; the message is for the person at the terminal."""


def main(arguments: list[str]) -> int:
    """Run the command named first, the rest being its own arguments, and return the exit status."""
    commands = {
        "demo": demo,
        "studio": studio,
        "test": test,
        "test-all": test_all,
        "test-oldest": test_oldest,
        "test-newest": test_newest,
        "test-webui": test_webui,
        "test-hosts": test_hosts,
        "bench": bench,
        "matrix": matrix,
        "soak": soak,
        "train": train,
        "train-demo": train_demo,
        "docs": docs,
        "wheel": wheel,
        "release": release,
        "format": reformat,
        "lock": lock,
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


def studio(arguments: list[str]) -> None:
    """Serve the page that paints, with the embedded pipeline unless told otherwise."""
    install("studio")
    run(MAIN.python, "-m", "lora_runtime", "studio", *arguments)


def test(arguments: list[str]) -> None:
    """Lint, types, tests, then those of the WebUI's own stack; stops at the first that fails.

    pytest's summary is the last line. Tests that are marked as slow are left out. With arguments for pytest, only the
    tests in `.venv` are run, slow ones too.
    """
    test_in_main(arguments or QUICK)
    if arguments:
        return
    if find_python(OLDEST.pythons[0]):
        test_oldest([])
    else:
        say("No Python 3.10, which the WebUI has: its extension is tested with the WebUI's libraries on this Python")
        test_extension(QUICK)


def test_all(arguments: list[str]) -> None:
    """Do what `test` does, slow tests included, and test the extension on this Python and torch too."""
    test_in_main(arguments)
    test_extension(arguments)
    test_oldest(arguments or ["-m", "slow or not slow"])


def test_in_main(arguments: Sequence[str]) -> None:
    """Lint, types, and the tests in `.venv`."""
    install("test")
    run(MAIN.python, "-m", "ruff", "check", ".")
    run(MAIN.python, "-m", "ruff", "format", "--check", ".")
    run(MAIN.python, "-m", "mypy")
    run(*(MAIN.python, "-m", "pytest", *WORKERS, "--cov", "--cov-branch", "--cov-fail-under=95"), *arguments)


# The tests of the WebUI's extension, with a gate of their own.
EXTENSION = ("tests/extension", "--cov", "--cov-config=tests/extension/coverage.ini", "--cov-fail-under=95")


def test_extension(arguments: Sequence[str]) -> None:
    """Run the tests of the WebUI's extension with the WebUI's versions, where these can be had."""
    if sys.version_info[:2] not in WEBUI.pythons:
        say("Left out: the extension with the WebUI's own versions, which need Python 3.10 or 3.11")
        return
    # Half a minute less, as few of the modules are ever imported here; pip wants a falsy value to switch this on.
    os.environ["PIP_NO_COMPILE"] = "0"
    install("webui", WEBUI)
    run(WEBUI.python, "-m", "pytest", *WORKERS, *EXTENSION, *arguments)


def test_oldest(arguments: list[str]) -> None:
    """Run the tests on the oldest stack that is supported, those whose judges are there; needs a Python 3.10.

    It is the WebUI's own. Those of the extension come first, with their gate; with arguments for pytest, which say
    themselves what is run, there is none.
    """
    python = find_python(OLDEST.pythons[0])
    if python is None:
        lacking = "the tests on the oldest stack need a Python 3.10. PYTHON310=/path/to/python3.10 names one"
        if os.environ.get("CI"):
            raise Failed(f"None found, but {lacking}")
        say(f"Left out: {lacking}")
        return
    os.environ["PIP_NO_COMPILE"] = "0"  # as in test_extension
    install("oldest", OLDEST, python)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    pytest = (OLDEST.python, "-m", "pytest", *WORKERS, "-p", "oldest")
    if arguments:
        run(*pytest, *arguments)
    else:
        run(*pytest, *EXTENSION, *QUICK)
        run(*pytest, "--ignore=tests/extension", *QUICK)


def find_python(wanted: tuple[int, int]) -> str | None:
    """Return a Python of this version that starts: named in the environment, this one, on PATH, one of pyenv's."""
    name = "python" + ".".join(map(str, wanted))
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [
        os.environ.get("PYTHON" + "".join(map(str, wanted))),
        sys.executable,
        shutil.which(name),  # a version manager leaves names on PATH that do not start
        *(str(path) for path in sorted(pyenv.glob(f"{name[6:]}.*/bin/{name}"), reverse=True)),
    ]
    for candidate in filter(None, candidates):
        try:
            code = "import sys; print(*sys.version_info[:2])"
            done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        if done.stdout.split() == [str(part) for part in wanted]:
            return candidate
    return None


def test_newest(arguments: list[str]) -> None:
    """Install what is newest within the ranges, run lint, types and tests, and say what differs and what broke."""
    install_newest()
    results = NEWEST.folder / "results.xml"
    results.unlink(missing_ok=True)
    broken = [
        name
        for name, *command in (("lint", "ruff", "check", "."), ("types", "mypy"))
        if try_run(NEWEST.python, "-m", *command)
    ]
    status = try_run(NEWEST.python, "-m", "pytest", *WORKERS, f"--junit-xml={results}", *arguments)
    failed = failed_tests(results)
    if status and not failed:
        broken.append("pytest itself (see above)")
    say(f"torch {probe(NEWEST)['torch']}; what else differs from the lock:")
    for name, locked, newest in differences(NEWEST, NEWEST.locks):
        if newest:
            say(f"    {name} {newest} (locked: {locked})")
    if failed:
        broken.append(f"{len(failed)} tests")
    say(f"Broken: {', '.join(broken) or 'nothing'}")
    for line in failed:
        say(f"    {line}")
    if broken:
        raise Failed("")


def failed_tests(results: Path) -> list[str]:
    """Return the tests that failed or broke, one line each, from pytest's file of results."""
    if not results.exists():
        return []
    return [
        f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        for case in xml.etree.ElementTree.parse(results).iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]


def test_webui(arguments: list[str]) -> None:
    """Run the extension in the installed WebUI that SD_WEBUI_DIR names; see docs/webui-compat.md."""
    if not os.environ.get("SD_WEBUI_DIR"):
        raise Failed(
            "SD_WEBUI_DIR names no installed WebUI: SD_WEBUI_DIR=/path/to/stable-diffusion-webui make test-webui"
        )
    install("test")
    run(MAIN.python, "-m", "pytest", "tests/webui", *arguments)


# The variables that name other programs that the extension lives in, each installed by a person.
HOSTS = ("FORGE_NEO_DIR", "SDNEXT_DIR", "COMFYUI_DIR")


def test_hosts(arguments: list[str]) -> None:
    """Run the extension in the installed programs that are named; see docs/hosts-compat.md."""
    if not any(os.environ.get(name) for name in HOSTS):
        raise Failed(f"{' or '.join(HOSTS)} names no installed program: {HOSTS[0]}=/path/to/it make test-hosts")
    install("test")
    run(MAIN.python, "-m", "pytest", "tests/hosts", *arguments)


def bench(arguments: list[str]) -> None:
    """Measure, print the table and write bench.json; with `--gpu` what matters on one GPU, and write gpu.json."""
    install("bench")
    on_gpu = "--gpu" in arguments
    arguments = [argument for argument in arguments if argument != "--gpu"]
    run(MAIN.python, "-m", "benchmarks.gpu" if on_gpu else "benchmarks.bench", *arguments)


def matrix(arguments: list[str]) -> None:
    """Measure where a LoRA acts, cell by cell; `--write` makes docs/where-it-acts.md of it."""
    install("test")
    run_of_tests("matrix", arguments)


def soak(arguments: list[str]) -> None:
    """Run random sequences of what people do with a model, and look that no bit is wrong."""
    install("test")
    run_of_tests("soak", arguments)


def run_of_tests(package: str, arguments: list[str]) -> None:
    """Run a package of tests/ that is a program."""
    os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    run(MAIN.python, "-m", package, *arguments)


def train(arguments: list[str]) -> None:
    """Train the embedded pipeline, then its LoRAs."""
    install("demo")
    for script in ("training/train_pipeline.py", "training/train_loras.py"):
        run(MAIN.python, script, *arguments)


def train_demo(arguments: list[str]) -> None:
    """Train a LoRA on the folder training/pictures, and paint without and with its tag."""
    install("train")
    run(MAIN.python, "training/train_demo.py", *arguments)


def docs(arguments: list[str]) -> None:
    """Build the site from docs/ into site/, strictly: a link to a page or heading that is not there fails."""
    python = next(filter(None, map(find_python, reversed(DOCS.pythons))), None)
    if python is None:
        raise Failed("The site needs a Python 3.11 or newer. PYTHON311=/path/to/python3.11 names one.")
    install("docs", DOCS, python)
    run(DOCS.python, "-m", "zensical", *(arguments or ["build", "--strict", "--clean"]))
    if not arguments:
        say("site/index.html is the first page. make docs ARGS=serve shows it while you write")


def wheel(arguments: list[str]) -> None:
    """Build wheel and sdist into dist/, check them, and use the wheel as a stranger would; see tools/wheel.py."""
    install("demo")
    install("wheel", WHEEL)
    run(WHEEL.python, "tools/wheel.py", "--borrow", MAIN.python, *arguments)


def release(arguments: list[str]) -> None:
    """Say what a release of this version would do; with --tag, do it. See tools/release.py."""
    run(sys.executable, "tools/release.py", "check")
    wheel([])
    run(sys.executable, "tools/release.py", "finish", *arguments)


def reformat(arguments: list[str]) -> None:
    """Format the code and correct what ruff can correct."""
    install("test")
    run(MAIN.python, "-m", "ruff", "check", "--fix", *(arguments or ["."]))
    run(MAIN.python, "-m", "ruff", "format", *(arguments or ["."]))


def lock(arguments: list[str]) -> None:
    """Write the locks: versions that still fit are kept, except with --upgrade, or --upgrade-package NAME."""
    folder = ROOT / "locks"
    with tempfile.TemporaryDirectory() as temporary:
        env = Environment(Path(temporary) / "venv", (), {})
        make_venv(env)
        pip(env, "install", "--quiet", "uv")

        def solve(output: Path, sources: Sequence[str], *more: str, of: Environment = MAIN) -> None:
            inputs = [f"locks/{name}" for name in sources if name.endswith(".in")]
            extras = [f"--extra={name}" for name in sources if not name.endswith(".in")]
            project = () if of.bare else ("pyproject.toml", "locks/build.in")
            oldest = ".".join(map(str, min(of.pythons, default=(3, 10))))
            run(
                *(env.python, "-m", "uv", "pip", "compile", "--quiet", "--universal", f"--python-version={oldest}"),
                *("--no-config", "--no-header", "--no-annotate", f"--output-file={output}"),
                *(*project, *inputs, *extras, "--constraint=locks/held-back.in", *more, *arguments),
            )

        def torch(of: Environment) -> str:
            path = Path(temporary) / f"torch{of.name}.in"
            path.write_text(f"torch=={of.torch or TORCH}\n", encoding="utf-8")
            return f"--constraint={path}"

        # The environments that share .venv must agree: they are solved as one first.
        together = Path(temporary) / "together.txt"
        known = {line for name in MAIN.locks for line in lock_lines(name)}
        together.write_text("".join(f"{line}\n" for line in sorted(known)), encoding="utf-8")
        solve(together, [source for name in MAIN.locks for source in LOCKS[name]], torch(MAIN))
        apart = {"webui": WEBUI, "oldest": OLDEST, "docs": DOCS, "wheel": WHEEL}
        for name, sources in LOCKS.items():
            output = folder / f"{name}.txt"
            of = apart.get(name, MAIN)
            agreed = () if of.bare else (torch(of) if of is not MAIN else f"--constraint={together}",)
            solve(output, sources, *agreed, of=of)
            lines = [line for line in output.read_text(encoding="utf-8").splitlines() if not NOT_LOCKED.match(line)]
            header = "# Written by `make lock`. torch and what comes with its GPU builds: see tools/bootstrap.py."
            output.write_text("\n".join([header, *lines, ""]), encoding="utf-8")
            say(f"locks/{name}.txt: {len(lines)} lines")


def venv(arguments: list[str]) -> None:
    """Make .venv with everything in it."""
    install("all")
    say(f"Ready: {MAIN.python.relative_to(ROOT)}")


def clean(arguments: list[str]) -> None:
    """Remove the environments, caches and what the commands wrote; sources and trained weights stay."""
    names = ("out", "dist", "build", "site", ".cache", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis")
    for path in [*(env.folder for env in ENVIRONMENTS), *(ROOT / name for name in names)]:
        if path.is_dir():
            say(f"Removing {path.name}/")
            shutil.rmtree(path)
    for name in (".coverage", "bench.json", "gpu.json", "gpu.md"):
        (ROOT / name).unlink(missing_ok=True)


# Installing


def install(what: str, env: Environment = MAIN, python: str = sys.executable) -> None:
    """Leave an environment with the project and what the lock `what` has in it; returns at once if all is there."""
    stamp = read_stamp(env)
    wanted = NEEDS[what]
    key = stamp_key(env)
    if env.python.exists() and stamp.get("key") == key and set(wanted) <= set(stamp.get("locks", ())):
        return
    started = time.monotonic()
    prepare(env, python)
    say(f"Installing {'' if env.bare else 'the project and '}the versions in locks/{wanted[0]}.txt")
    # A lock is whole, so pip has nothing to look up: what is there already is not asked for, and the build, with the
    # builder from the lock, is not isolated. Where nothing is missing, this works without a network.
    lacking = [f"{name}=={locked}" for name, locked, _ in differences(env, wanted)]
    if lacking:
        install_versions(env, lacking)
    if not env.bare:
        pip(env, "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ".")
    check_imports(env)
    before = set(stamp["locks"]) if stamp.get("key") == key else set()
    env.stamp.write_text(json.dumps({"key": key, "locks": sorted(before | set(wanted))}), encoding="utf-8")
    say(f"Installed in {time.monotonic() - started:.0f} s")


def install_versions(env: Environment, lines: Sequence[str]) -> None:
    """Install exact versions, and nothing that these need: with uv, which takes an eighth of pip's time, else with pip.

    uv reads none of pip's settings: where these name an index, or forbid all, pip alone is asked.
    """
    env.requirements.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    locked = [line for name in env.locks for line in lock_lines(name)]
    if any(line.startswith("uv==") for line in locked) and not has_own_index(env):
        uv = [line for line in lines if line.startswith("uv==")]
        if not uv or try_run(env.python, "-m", "pip", "install", "--no-deps", *uv) == 0:
            # As pip does: what Python has to say of a package's code must not fail the test that imports it first.
            compiled = () if "PIP_NO_COMPILE" in os.environ else ("--compile-bytecode",)
            if with_uv(env, *compiled, "--no-deps", "--requirement", env.requirements):
                return
            say("uv could not install them: asking pip")
    pip(env, "install", "--no-deps", "--requirement", env.requirements, "--constraint", env.constraints)


def has_own_index(env: Environment) -> bool:
    """Return whether pip is told to take packages from elsewhere than everybody does."""
    return re.search(r"\.(index-url|no-index)=", pip_settings(env)) is not None


def pip_settings(env: Environment) -> str:
    """Return pip's settings, from wherever it has them, a line each: `global.index-url='…'`."""
    return subprocess.run([env.python, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout


def install_newest() -> None:
    """Leave .venv-newest with the newest versions that the ranges in pyproject.toml allow."""
    prepare(NEWEST)
    newest_torch = ("install", "--upgrade", f"torch>={TORCH_OLDEST}")
    command: tuple[str | Path, ...] = ("pip", *newest_torch)
    if sys.platform.startswith("linux") and not has_gpu():
        pip(NEWEST, "install", "uv")
        command = ("uv", "pip", *newest_torch, "--python", NEWEST.python, "--torch-backend=cpu")
    if try_run(NEWEST.python, "-m", *command):
        say("The newest torch could not be had: the one that is there is kept")
    pin_torch(NEWEST)
    say("Installing the newest versions within the ranges of pyproject.toml")
    newest = ("--upgrade", "--upgrade-strategy=eager")
    pip(NEWEST, "install", *newest, "--editable", ".[test]", "--constraint", NEWEST.constraints)
    check_imports(NEWEST)


def prepare(env: Environment, python: str = sys.executable) -> None:
    """Leave an environment with pip, and torch unless it is bare, and a file of constraints that keeps this torch."""
    if env.folder.exists():
        env.stamp.unlink(missing_ok=True)
    if not working_venv(env):
        make_venv(env, python)
    if not env.bare and not working_torch(env):
        install_torch(env)
    pin_torch(env)


def pin_torch(env: Environment) -> None:
    """Write the constraint without which pip could exchange a CPU or a hand-built torch for the registry's."""
    constraint = "" if env.bare else f"torch=={probe(env)['torch']}\n"
    env.constraints.write_text(constraint, encoding="utf-8")


def working_venv(env: Environment) -> bool:
    """Return whether it starts, is new enough and has a pip that can install this project."""
    if not env.folder.exists():
        return False
    found = probe(env)
    has = version(found.get("python", ""))[:2]
    if has < (3, 10) or (env.pythons and has not in env.pythons):
        say(f"{env.name} does not start, or with a Python that will not do: making it anew")
        return False
    if not found["pip"]:
        try_run(env.python, "-m", "ensurepip")  # half made, or made by a tool that puts no pip in
    bring_pip_up_to_date(env)
    return version(probe(env)["pip"]) >= PIP_OLDEST


def make_venv(env: Environment, python: str = sys.executable) -> None:
    """Make it from nothing."""
    found = sys.version.split()[0] if python == sys.executable else ".".join(map(str, env.pythons[0]))
    say(f"Making {env.name} with Python {found}")
    if try_run(python, "-m", "venv", "--clear", env.folder):
        raise Failed(f"Python could not make a virtual environment (see above). {venv_advice(env)}".rstrip())
    bring_pip_up_to_date(env)


def venv_advice(env: Environment) -> str:
    """Return what helps where no virtual environment can be made, "" if that is not known."""
    if not os.access(env.folder if env.folder.exists() else env.folder.parent, os.W_OK):
        return "This folder cannot be written to: copy the project to one of your own, and run the same command there."
    if importlib.util.find_spec("ensurepip") is None:
        return (
            "On Debian and Ubuntu the part that does so is a package of its own: apt install python3-venv. "
            "Then run the same command again."
        )
    return ""


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
    if env.torch and version(found["torch"]) != version(env.torch):
        say(f"torch {found['torch']} is not {env.torch}")
        return False
    if version(found["torch"]) < version(TORCH_OLDEST):
        say(f"torch {found['torch']} is older than {TORCH_OLDEST}")
        return False
    if try_run(env.python, "-c", "import torch", quiet=True):
        say(f"torch {found['torch']} in {env.name} cannot be imported (a broken install?): taking it out")
        pip(env, "uninstall", "--yes", "torch")
        return False
    say(f"Keeping torch {found['torch']}")
    return True


def install_torch(env: Environment) -> None:
    """Put torch in: the CPU build on Linux without a GPU, else the one the registry has for this machine."""
    lock = f"--constraint=locks/{env.locks[-1]}.txt"  # for what torch needs, so that nothing is installed twice
    exact = f"torch=={env.torch or TORCH}"
    others = () if env.torch else (f"torch>={TORCH_OLDEST}",)  # where the exact one was not built for this machine

    def ordinary() -> None:
        if try_run(env.python, "-m", "pip", "install", exact, lock, expect=NOT_THERE if others else ()):
            if not others:
                raise Failed("")
            pip(env, "install", *others)

    if not sys.platform.startswith("linux") or has_gpu():
        say("Installing torch")
        ordinary()
        return
    say(f"No GPU found: installing the CPU build of {exact.replace('==', ' ')}")
    # Where pip's sources carry the CPU build under its own name, pip takes it; where they do not, this fails before
    # anything is downloaded. uv knows where the CPU builds are.
    if try_run(env.python, "-m", "pip", "install", f"{exact}+cpu", lock, expect=NOT_THERE) == 0:
        return
    say("The CPU build is not among pip's own sources: asking uv for it")
    uv = try_run(env.python, "-m", "pip", "install", "uv", lock) == 0
    if uv and any(wanted and with_uv(env, "--torch-backend=cpu", *wanted) for wanted in ((exact, lock), others)):
        return
    say("No CPU build could be had: installing the ordinary build. On Linux this is a download of several gigabytes.")
    if not (uv and not has_own_index(env) and with_uv(env, exact, lock)):  # it fetches several at a time
        ordinary()


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
    locks = [] if env is NEWEST else [f"--constraint=locks/{name}.txt" for name in env.locks]
    pip(env, "install", "--force-reinstall", "--no-deps", *packages, *locks, "--constraint", env.constraints)
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


def differences(env: Environment, locks: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return name, locked version and installed version, "" if none, of each package that is not as the locks say."""
    code = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
from pip._vendor.packaging.requirements import Requirement
found = {}
for line in sys.stdin.read().splitlines():
    wanted = Requirement(line)
    if wanted.marker is None or wanted.marker.evaluate():
        try:
            there = version(wanted.name) or ""
        except PackageNotFoundError:
            there = ""
        if not there or not wanted.specifier.contains(there, prereleases=True):
            found[wanted.name] = (str(wanted.specifier)[2:], there)
print(json.dumps([(name, *versions) for name, versions in found.items()]))
"""
    lines = "\n".join(line for name in locks for line in lock_lines(name))
    done = subprocess.run([env.python, "-c", code], input=lines, capture_output=True, text=True, check=True)
    return [(name, locked, there) for name, locked, there in json.loads(done.stdout)]


def lock_lines(name: str) -> list[str]:
    """Return the requirements in a lock, none if there is no such file yet."""
    path = ROOT / "locks" / f"{name}.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line for line in lines if line and not line.startswith("#")]


def stamp_key(env: Environment) -> str:
    """Return what an install depends on: the project's file, the locks, this file, and where they lie."""
    files = [ROOT / "pyproject.toml", *(ROOT / "locks" / f"{name}.txt" for name in env.locks), Path(__file__)]
    there = (path.read_bytes() for path in files if path.exists())
    parts = [*there, str(ROOT).encode()]  # the project is installed in place
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


def with_uv(env: Environment, *wanted: str | Path) -> bool:
    """Return whether uv, which is in the environment, could install something there."""
    return try_run(env.python, "-m", "uv", "pip", "install", "--python", env.python, *wanted) == 0


def run(*command: str | Path) -> None:
    """Run a command in view; its failure ends this one, which has nothing to add."""
    status = try_run(*command)
    if status:
        raise Failed("")


def try_run(*command: str | Path, quiet: bool = False, expect: Sequence[str] = ()) -> int:
    """Run a command, say which, and return its exit status; a foreseen error, with one of `expect`, is not shown."""
    if quiet:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    print("$", " ".join(shown(word) for word in command), flush=True)
    if not expect:
        return subprocess.run(command).returncode
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    if not any(text in done.stderr for text in expect):
        print(done.stderr, end="", file=sys.stderr, flush=True)
    return done.returncode


def shown(word: str | Path) -> str:
    """Return a word of a command as a person would type it in the project's folder."""
    if word == sys.executable or Path(word).name in ("python", "python.exe"):
        return "python"
    return str(word).replace(f"{ROOT}{os.sep}", "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

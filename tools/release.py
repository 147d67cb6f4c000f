"""A release: a clean tree whose files agree on the version, its notes, a checked wheel, and a tag. `make release`.

`check` says what is still in the way, `finish` writes the notes and, with `--tag`, makes the tag; between the two
`make release` builds and checks the wheel. Nothing leaves this machine: the last line says which two commands would
publish it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Where the version stands.
PLACES = {
    "pyproject.toml": r'^version = "(.*)"$',
    "lora_runtime/__init__.py": r'^__version__ = "(.*)"$',
    "CITATION.cff": r"^version: (.*)$",
}


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Run one of the two steps; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("check", "finish"))
    parser.add_argument("--tag", action="store_true", help="make the tag; without it nothing is changed")
    asked = parser.parse_args(arguments)
    version = versions(root)["pyproject.toml"]
    in_the_way = list(problems(root, version))
    for problem in in_the_way:
        print(f"Not yet: {problem}")
    if in_the_way:
        return 1
    if asked.step == "finish":
        finish(root, version, tag=asked.tag)
    return 0


def versions(root: Path) -> dict[str, str]:
    """Return the version as each file has it, "" where it has none."""
    found = {}
    for name, pattern in PLACES.items():
        match = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        found[name] = match[1] if match else ""
    return found


def problems(root: Path, version: str) -> Iterator[str]:
    """Yield what keeps this version from being released, each with what to do."""
    for name, said in versions(root).items():
        if said != version:
            yield f"{name} has version {said or 'none'}, pyproject.toml has {version}: make them agree"
    if not notes(root, version):
        yield f"CHANGELOG.md has nothing under ## [{version}]: give [Unreleased] that name and a date"
    if changed := git(root, "status", "--porcelain"):
        yield f"{len(changed.splitlines())} files are changed or unknown to git: commit them, or put them away"
    if git(root, "tag", "--list", f"v{version}"):
        yield f"the tag v{version} is there already: a released version stays as it is, so take the next one"


def notes(root: Path, version: str) -> str:
    """Return what the changelog says of a version, "" if nothing."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    match = re.search(
        rf"^## \[{re.escape(version)}\].*?\n(.*?)(?=^## |^\[[^]]+\]: |\Z)", text, re.DOTALL | re.MULTILINE
    )
    return match[1].strip() if match else ""


def finish(root: Path, version: str, *, tag: bool) -> None:
    """Write the notes beside the wheel; make the tag where that is asked for, and say what is left to a person."""
    dist = root / "dist"
    written = dist / f"notes-{version}.md"
    written.write_text(notes(root, version) + "\n", encoding="utf-8")
    files = " ".join(path.relative_to(root).as_posix() for path in sorted(dist.glob(f"*{version}*")) if path != written)
    print(f"Notes: {written.relative_to(root).as_posix()}; files: {files}")
    if not tag:
        print(f"A dry run: nothing was tagged. ARGS=--tag makes the tag v{version}")
        return
    # Verbatim: lines that begin with # are headings here, not comments.
    title = f"lora_runtime {version}\n\n"
    git(root, "tag", "--annotate", "--cleanup=verbatim", f"v{version}", "--message", title + notes(root, version))
    print(f"Tagged v{version}. To publish it: git push origin v{version}; python -m twine upload {files}")


def git(root: Path, *arguments: str) -> str:
    """Return what a command of git prints; its failure ends this program with git's own message."""
    done = subprocess.run(["git", *arguments], cwd=root, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

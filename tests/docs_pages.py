"""Pages of docs/ whose examples run: what is in them, and the folders that they speak of."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"

_EXAMPLE = re.compile(
    r"<!-- example -->\s*\n```python\n(.*?)^```(?:\s*\n```text\n(.*?)^```)?", re.DOTALL | re.MULTILINE
)
_COMMAND = re.compile(r"^    \$ lora-runtime (.*)$", re.MULTILINE)
_TAGGED = re.compile(r"^    (?!\$)(.*<lora:.*)$", re.MULTILINE)


def text_of(name: str) -> str:
    """Return a page's text."""
    return (DOCS / name).read_text(encoding="utf-8")


def commands_of(name: str) -> list[str]:
    """Return the page's commands of `lora-runtime`, in order, without the program's name."""
    return _COMMAND.findall(text_of(name))


def prompts_of(name: str) -> list[str]:
    """Return the prompts with tags that stand on lines of their own, or in a cell of a table."""
    text = text_of(name)
    cells = re.findall(r"^\| `([^`]*<lora:[^`]*)` \|", text, re.MULTILINE)
    return [*_TAGGED.findall(text), *cells]


def run_examples(name: str) -> dict[str, object]:
    """Run a page's examples in one namespace, in the current folder; each must print what the page shows below it.

    There "…" stands for any text, a line of it alone for any lines.
    """
    text = text_of(name)
    namespace: dict[str, object] = {"__name__": "page"}
    examples = list(_EXAMPLE.finditer(text))
    assert examples, f"{name} has no example"
    for example in examples:
        line = text.count("\n", 0, example.start(1))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # The blank lines make a traceback show the page's own line numbers.
            exec(compile("\n" * line + example[1], name, "exec"), namespace)
        shown = example[2] or ""
        pattern = ".*?".join(map(re.escape, shown.strip().split("…")))
        assert re.fullmatch(pattern, printed.getvalue().strip(), re.DOTALL), (
            f"{name}:{line + 1} prints\n{printed.getvalue()}and the page shows\n{shown}"
        )
    return namespace

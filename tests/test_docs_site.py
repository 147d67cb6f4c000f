"""The site of docs/: each page has its place in it, and no page or the README leads nowhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from docs_pages import DOCS, text_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = DOCS.parent
PAGES = [*sorted(DOCS.glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))]


def paths_in(nav: object) -> list[str]:
    """Return the pages of a part of the navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav
    return [path for value in values for path in paths_in(value)]  # type: ignore[union-attr]


def anchor_of(heading: str) -> str:
    """Return a heading's anchor: GitHub's rule, which is the site's for the headings of these pages."""
    plain = re.sub(r"`|\*|\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w -]", "", plain.lower()).strip().replace(" ", "-")


def test_the_navigation_has_each_page_once() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(paths_in(site["nav"])) == sorted(path.name for path in DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        target = (page.parent / link).resolve() if link else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(anchor_of, headings), f"{link}#{anchor}"


def test_the_page_of_python_has_each_public_name() -> None:
    import lora_runtime
    from lora_runtime import errors

    shown = re.findall(r"^::: lora_runtime\.(\S+)$", text_of("api.md"), re.MULTILINE)
    assert {name for name in lora_runtime.__all__ if name not in errors.__all__} <= set(shown)
    assert "errors" in shown  # all classes, with their tree

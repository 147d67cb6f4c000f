"""The style sheet against what the program's page has already; this needs no program."""

from __future__ import annotations

import re

import program

# `.gradio-container-3-41-2 .prose *`, and the same in gradio 4: the colour of all text in a component of HTML.
GRADIO = (2, 0)


def test_colours_of_text_outweigh_the_one_that_gradio_gives_all() -> None:
    style = re.sub(r"/\*.*?\*/", "", (program.REPOSITORY / "style.css").read_text("utf-8"), flags=re.DOTALL)
    coloured = [
        selector.strip()
        for selectors, rules in re.findall(r"([^{}]+)\{([^}]*)\}", style)
        if re.search(r"(?:^|;)\s*color:", rules)
        for selector in selectors.split(",")
    ]
    assert len(coloured) >= 7
    light = {selector: weight for selector in coloured if (weight := specificity(selector)) <= GRADIO}
    assert light == {}


def specificity(selector: str) -> tuple[int, int]:
    """Return how many classes and pseudo-classes a selector has, and how many elements."""
    classes = re.findall(r"\.[\w-]+|(?<!:):[\w-]+", selector)
    elements = re.findall(r"(?:^|\s)[a-z][\w-]*", selector)
    return len(classes), len(elements)

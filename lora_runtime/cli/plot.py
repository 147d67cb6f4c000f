"""Plot the strength of each tag over the steps of a picture, or print it as a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lora_runtime.blocks import FLUX, UNET
from lora_runtime.cli.console import CommandError, checked_out, needs_extra, printable, reading_arguments, table, whole
from lora_runtime.prompt.over_steps import over_steps

if TYPE_CHECKING:
    from lora_runtime.prompt import BlockWeights, LoraTag

__all__ = ["add_arguments", "label", "run"]

_MOST_STEPS = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `plot`."""
    parser.add_argument("prompt", metavar="PROMPT", help="the prompt, in quotes; - reads it from standard input")
    parser.add_argument("--steps", metavar="N", type=_steps, default=20, help="how many a picture has (default: 20)")
    parser.add_argument("--out", metavar="PNG", default="plot.png", help="where to write the plot (default: plot.png)")
    parser.add_argument("--text", action="store_true", help="print tables instead; needs no matplotlib")
    parser.add_argument("--seed", metavar="N", type=int, help="of the picture, for random block weights")
    reading_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the plot and print its path, or print the tables; what is wrong with the prompt goes to stderr."""
    from lora_runtime.prompt import parse_prompt

    out = None if arguments.text else checked_out(arguments.out, (".png", ".svg", ".pdf"))
    source = sys.stdin.read().rstrip("\r\n") if arguments.prompt == "-" else arguments.prompt
    prompt = parse_prompt(source, dialect=arguments.dialect, scope=arguments.scope)
    for diagnostic in prompt.diagnostics:
        print(diagnostic.format(source), file=sys.stderr)
    if not prompt.tags:
        raise CommandError("there is no LoRA tag in the prompt to plot")
    if out is None:
        print("\n\n".join(_shown(prompt.tags, arguments.steps, arguments.seed)))
        return 0
    with needs_extra("plot"):
        _figure(prompt.tags, arguments.steps, arguments.seed).savefig(out)
    print(out)
    return 0


# ---- values ---------------------------------------------------------------------------------------------------------


def _name(tag: LoraTag) -> str:
    """Return what a tag is called: its LoRA, and the one denoiser of several that is meant."""
    expert = tag.conditions.expert
    return printable(tag.name if expert is None else f"{tag.name} ({expert})")


def _passes(tags: Sequence[LoraTag]) -> list[tuple[str, bool]]:
    """Return the titles of the passes, and whether each is the second: it is shown where a tag differs in it."""
    second = [("second pass (hires)", True)] if any(tag.conditions.hires_unet is not None for tag in tags) else []
    return [("first pass" if second else "", False), *second]


def _of_blocks(tag: LoraTag, seed: int | None) -> Iterator[tuple[str, str]]:
    """Yield what blocks get, neighbours with the same together, and what modules get whose path fits a pattern."""
    from lora_runtime.prompt.block_weights import Draw, selection

    blocks = tag.conditions.blocks
    if blocks is None:
        return
    values = [(name, _in_block(tag, blocks, name, seed)) for name in _names(blocks)]
    for value, group in groupby(values, key=lambda pair: pair[1]):
        names = [name for name, _ in group]
        yield (names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"), value
    for rule in blocks.rules:
        if selection(rule.where)[1]:
            yield rule.where, f"× {rule.ratio}" if isinstance(rule.ratio, Draw) else f"× {rule.ratio:g}"


def _names(blocks: BlockWeights) -> tuple[str, ...]:
    """Return the blocks of Flux where a rule names one that only Flux has, else those of a UNet."""
    words = [word for rule in blocks.rules if not rule.where.startswith("NOT") for word in rule.where.split()]
    return FLUX if any(word[0] in "DST" for word in words if "*" not in word) else UNET


def _in_block(tag: LoraTag, blocks: BlockWeights, name: str, seed: int | None) -> str:
    """Return what the modules of a block get that fit no pattern: "0.35", or "0.7 × 1@0,0@1" where it varies."""
    component, path = _module(name)
    instead = blocks.strength(component, path)
    strength = (tag.te if component.startswith("text") else tag.unet) if instead is None else instead
    ratio = blocks.ratio(component, path, seed)
    if isinstance(strength, float) and isinstance(ratio, float):
        return f"{strength * ratio:g}"
    return f"{strength:g} × {ratio:g}"


def _module(name: str) -> tuple[str, str]:
    """Return the component and the path of a module in a block, as `block_of` knows them."""
    word, number = name.rstrip("0123456789"), name[len(name.rstrip("0123456789")) :]
    if word in ("BASE", "CLIP"):
        return "text_encoder", ""
    if word == "T":
        return "text_encoder_2", "shared"
    if not number:
        return "transformer", {"IN": "x_embedder", "OUT": "proj_out"}[word]
    if word in ("D", "S"):
        return "transformer", f"{'' if word == 'D' else 'single_'}transformer_blocks.{int(number)}"
    return "unet", {"IN": f"input_blocks.{int(number)}", "OUT": f"output_blocks.{int(number)}"}.get(
        word, "middle_block"
    )


# ---- tables ---------------------------------------------------------------------------------------------------------


def _shown(tags: Sequence[LoraTag], steps: int, seed: int | None) -> Iterator[str]:
    for title, hires in _passes(tags):
        columns = [over_steps(tag, steps, hires=hires) for tag in tags]
        rows = [
            [str(step), *("?" if column is None else f"{column[step]:g}" for column in columns)]
            for step in range(steps)
        ]
        shown = table(["step", *map(_name, tags)], rows)
        yield f"{title}\n{shown}" if title else shown
    for tag in tags:
        if any(over_steps(tag, 1, hires=hires) is None for _, hires in _passes(tags)):
            yield f"{_name(tag)}: depends on noise levels, which only a sampler knows"
        rows = [[where, value] for where, value in _of_blocks(tag, seed)]
        if rows:
            yield f"{_name(tag)}\n{table(['blocks', 'strength'], rows)}"


# ---- plots ----------------------------------------------------------------------------------------------------------


def _figure(tags: Sequence[LoraTag], steps: int, seed: int | None) -> Any:
    """Return matplotlib's Figure: a panel for each pass, and a table of blocks for each tag that has some."""
    from matplotlib.figure import Figure

    passes = _passes(tags)
    tables = [(tag, rows) for tag in tags if (rows := list(_of_blocks(tag, seed)))]
    heights = [3.0] * len(passes) + [0.6 + 0.25 * len(rows) for _, rows in tables]
    figure = Figure(figsize=(8.0, sum(heights) + 0.5), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (title, hires) in zip(panels, passes, strict=False):
        for tag in tags:
            values = over_steps(tag, steps, hires=hires)
            if values is None:
                panel.plot([], [], label=label(f"{_name(tag)} (by noise level: not drawn)"))
            else:  # each value holds until the next step
                panel.step(range(steps + 1), [*values, values[-1]], where="post", label=label(_name(tag)))
        panel.set(title=title, xlabel="steps done", ylabel="strength of the denoiser", xlim=(0, steps))
        panel.legend()
    for panel, (tag, rows) in zip(panels[len(passes) :], tables, strict=True):
        panel.axis("off")
        panel.set_title(label(_name(tag)))
        panel.table(
            cellText=[[label(cell) for cell in row] for row in rows], colLabels=["blocks", "strength"], loc="center"
        )
    return figure


def label(text: str) -> str:
    """Return a text that matplotlib shows as it is: "$" would begin a formula, "_" at the start hide a line's label."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _steps(text: str) -> int:
    count = whole(text)
    if count > _MOST_STEPS:
        raise argparse.ArgumentTypeError(f"{text} steps are more than {_MOST_STEPS:,}")
    return count

"""What the page says, as HTML; all that comes from a person or a file is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, TypeVar

from lora_runtime.batching.halving import reason_of
from lora_runtime.prompt.tags import Diagnostic

if TYPE_CHECKING:
    from lora_runtime.report import LoraReport
    from lora_runtime.studio.canvas import Step
    from lora_runtime.studio.painting import Painted

__all__ = ["notices", "progress", "report", "status"]

Said = TypeVar("Said")

_MARKS = {"error": "✖", "warning": "⚠", "info": "ℹ"}


def progress(step: Step) -> str:
    """Return how far the pictures are that somebody waits for."""
    whole = step.steps * step.total
    done = step.steps * step.done + step.step * step.now
    first, last = step.done + 1, step.done + step.now
    which = f"picture {first}" if step.now == 1 else f"pictures {first} to {last}"
    text = f"{which} of {step.total}, " if step.total > 1 else ""
    text += f"step {step.step} of {step.steps}"
    if step.others:
        text += f", together with {step.others} of others"
    return (
        f'<div class="lr-status"><progress max="{whole}" value="{done}" aria-label="Progress"></progress>'
        f"<span>{text}</span></div>"
    )


def status(text: str, kind: str = "info") -> str:
    """Return a line about what happens now; `kind` as the severity of a diagnostic."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="lr-status lr-{kind}" role="{role}"><span>{escape(text)}</span></div>' if text else ""


def notices(diagnostics: Iterable[Diagnostic]) -> str:
    """Return what is wrong with a prompt, each said once."""
    said = dict.fromkeys((each.severity, each.message, each.hint) for each in diagnostics)
    lines = [
        f'<li class="lr-{severity}"><span aria-hidden="true">{_MARKS[severity]}</span> {escape(message)}'
        + (f" <em>{escape(hint)}</em>" if hint else "")
        + "</li>"
        for severity, message, hint in said
    ]
    return f'<ul class="lr-notices" aria-live="polite">{"".join(lines)}</ul>' if lines else ""


def report(painted: Painted) -> str:
    """Return what acted on the pictures of some settings, where, and at which strength, and what did not."""
    pictures = painted.pictures
    count = len(pictures)
    parts = [
        f"<p>{count} {'picture' if count == 1 else 'pictures'} in {painted.seconds:.1f} s, "
        f"{'seed' if count == 1 else 'seeds from'} {painted.settings.seed}</p>"
    ]
    rows = _by_picture((number, _cells(lora)) for number, each in enumerate(pictures) for lora in each.report.loras)
    if rows:
        head = "".join(f'<th scope="col">{title}</th>' for title in ("LoRA", "strength", "acts on", "keys used"))
        body = "".join(_row(*cells, of=_which(numbers, count)) for cells, numbers in rows.items())
        parts.append(f'<div class="lr-scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')
        reports = _by_picture((number, str(each.report)) for number, each in enumerate(pictures))
        full = "\n\n".join(
            f"{_which(numbers, count)}:\n{text}" if len(reports) > 1 else text for text, numbers in reports.items()
        )
        parts.append(f"<details><summary>In full</summary><pre>{escape(full)}</pre></details>")
    else:
        parts.append("<p>No LoRA acted.</p>")
    lost = [
        Diagnostic("error", (0, 0), f"no picture of seed {seed}: {reason_of(error)}")
        for seed, error in painted.faults.items()
    ]
    return f'<div class="lr-report">{"".join(parts)}{notices([*lost, *painted.diagnostics])}</div>'


def _by_picture(said: Iterable[tuple[int, Said]]) -> dict[Said, list[int]]:
    """Return what is said of pictures, each once, with the numbers of the pictures, from 0."""
    found: dict[Said, list[int]] = {}
    for number, what in said:
        found.setdefault(what, []).append(number)
    return found


def _which(numbers: Sequence[int], count: int) -> str:
    """Return which of the pictures these are, counted from 1, "" for all of them."""
    own = sorted(set(numbers))
    if len(own) == count:
        return ""
    return f"{'picture' if len(own) == 1 else 'pictures'} {', '.join(str(number + 1) for number in own)}"


def _cells(lora: LoraReport) -> tuple[str, str, str, str]:
    """Return what the table says of a LoRA."""
    strength = f"{lora.te:g}" if lora.te == lora.unet else f"text {lora.te:g}, picture {lora.unet:g}"
    where = ", ".join(f"{count} weights of {name}" for name, count in lora.targets.items()) or "nothing"
    if lora.live:
        where += f", {lora.live} of them beside their layers"
    return lora.name, strength, where, f"{lora.used} of {lora.keys}"


def _row(name: str, *others: str, of: str) -> str:
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
    which = f" ({escape(of)})" if of else ""
    return f'<tr><th scope="row">{escape(name)}{which}</th>{cells}</tr>'

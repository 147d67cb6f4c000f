"""What the page says, as HTML; all that comes from a person or a file is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from lora_runtime.prompt.tags import Diagnostic

if TYPE_CHECKING:
    from lora_runtime.report import LoraReport
    from lora_runtime.studio.painting import Painted, Step

__all__ = ["notices", "progress", "report", "status"]

_MARKS = {"error": "✖", "warning": "⚠", "info": "ℹ"}


def progress(step: Step) -> str:
    """Return how far a painting is."""
    whole = step.steps * step.pictures
    done = step.steps * (step.picture - 1) + step.step
    of = f"picture {step.picture} of {step.pictures}, " if step.pictures > 1 else ""
    text = f"{of}step {step.step} of {step.steps}"
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
    """Return what acted, where, and at which strength, and what did not."""
    count = len(painted.pictures)
    parts = [
        f"<p>{count} {'picture' if count == 1 else 'pictures'} in {painted.seconds:.1f} s, "
        f"{'seed' if count == 1 else 'seeds from'} {painted.settings.seed}</p>"
    ]
    loras = painted.report.loras
    if loras:
        head = "".join(f'<th scope="col">{title}</th>' for title in ("LoRA", "strength", "acts on", "keys used"))
        parts.append(
            f'<div class="lr-scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(map(_row, loras))}</tbody></table></div>"
        )
        parts.append(f"<details><summary>In full</summary><pre>{escape(str(painted.report))}</pre></details>")
    else:
        parts.append("<p>No LoRA acted.</p>")
    return f'<div class="lr-report">{"".join(parts)}{notices(painted.diagnostics)}</div>'


def _row(lora: LoraReport) -> str:
    strength = f"{lora.te:g}" if lora.te == lora.unet else f"text {lora.te:g}, picture {lora.unet:g}"
    where = ", ".join(f"{count} weights of {name}" for name, count in lora.targets.items()) or "nothing"
    if lora.live:
        where += f", {lora.live} of them beside their layers"
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in (strength, where, f"{lora.used} of {lora.keys}"))
    return f'<tr><th scope="row">{escape(lora.name)}</th>{cells}</tr>'

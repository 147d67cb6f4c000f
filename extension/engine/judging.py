"""What there is to say about LoRAs on a model: what does not fit, cannot vary, or failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from lora_runtime.errors import LoraError
from lora_runtime.pipelines import ModelView
from lora_runtime.problems import judge, uncut
from lora_runtime.prompt import Diagnostic
from lora_runtime.report import LoraReport, Report
from lora_runtime.requests import Request

from ..prompts.notices import Notice, notice_of

__all__ = ["Source", "cannot", "judged", "nowhere", "told"]

# The prompt in which the span of a request's tag is.
Source = Callable[[Request], str]


def nowhere(request: Request) -> str:
    """Return the prompt of a request where none is known."""
    return ""


def judged(report: Report, requests: Sequence[Request], model: ModelView, source: Source) -> list[Notice]:
    """Return what there is to say about files that do not fit the model, in part or at all, or cannot vary there."""
    notices: list[Notice] = []
    for request in requests:
        if (said := uncut(request)) is not None:
            notices.append(notice_of(said, source(request)))
        for lora in report.loras:
            if lora.sha256 == request.lora.sha256:
                diagnostic = judge(lora, request, model)
                if diagnostic is not None:
                    notices.append(notice_of(diagnostic, source(request)))
                elif lora.used < lora.keys:
                    notices.append(Notice("note", _in_part(lora)))
                notices += _fixed(lora)
    return notices


def cannot(request: Request, message: str, source: Source) -> Notice:
    """Return the notice that the tag of a request does nothing."""
    return notice_of(Diagnostic("error", request.span, message), source(request))


def _fixed(lora: LoraReport) -> Iterator[Notice]:
    """Yield what to say about strengths that should vary and cannot."""
    for reason, count in lora.fixed.items():
        weights = "1 weight" if count == 1 else f"{count} weights"
        yield Notice("note", f'"{lora.name}" cannot vary on {weights}: {reason}')


def _in_part(lora: LoraReport) -> str:
    """Return how much of a file is applied, and what is most often the reason for the rest."""
    (reason, count), *others = Counter(lora.unused.values()).most_common()
    rest = lora.keys - lora.used
    most = "the others are" if not others else f"{count} of the {rest} others are"
    return f'{lora.used} of the {lora.keys} keys of "{lora.name}" are applied; {most} {_as_predicate(reason)}'


def _as_predicate(reason: str) -> str:
    return reason if reason.startswith(("for ", "made for ")) else f"unused: {reason}"


def told(error: Exception) -> str:
    """Return what an error says; its kind too where it is none of ours, whose messages speak for themselves."""
    return str(error) if isinstance(error, LoraError) else f"{type(error).__name__}: {error}"

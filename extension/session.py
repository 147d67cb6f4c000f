"""What the host's model shows now: the one state of the extension.

Nothing here knows the WebUI. The host says which model and which tags; weights are patched until it says otherwise, so
that the next picture with the same tags has nothing to do.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lora_runtime.beside import Live
from lora_runtime.catalog import Entry
from lora_runtime.errors import LoraError
from lora_runtime.limits import Limits
from lora_runtime.lora import Lora, outline
from lora_runtime.lora_cache import LoraCache
from lora_runtime.pipelines import ModelView, WeakView, view
from lora_runtime.plan import Plan, make_plan
from lora_runtime.problems import judge, show_what_can_be
from lora_runtime.prompt import Diagnostic, LoraTag
from lora_runtime.prompt.strength import Curve
from lora_runtime.prompt.tags import Severity
from lora_runtime.regions import Place, find_place
from lora_runtime.report import LoraReport, Report
from lora_runtime.requests import Request, request_of
from lora_runtime.shown import ModelState, Owner, owned
from lora_runtime.stage import Row, Side
from lora_runtime.targets import Targets

from .denoising import Denoising
from .notices import Notice, notice_of
from .rows import seen_by
from .shelf import Patience, Shelf

_log = logging.getLogger("lora_runtime")

# The prompt in which the span of a request's tag is.
Source = Callable[[Request], str]


_USUAL_STRENGTH = 4.0  # files that are made to be pushed go to 3
_MOST_STRENGTH = 100.0
_MOST_FILES = 50  # that a prompt which is only asked about may name: a header can have 100 MB
_UNREAD = "not read: "


def _nowhere(request: Request) -> str:
    return ""


def sha256_of(lora: Lora) -> str | None:
    """Return the hash of a file, None for one of `Session.read` that is not known."""
    return None if lora.sha256.startswith(_UNREAD) else lora.sha256


class Session:
    """The LoRAs that are wanted, and the model that shows them. Safe to use from several threads."""

    def __init__(self, shelf: Shelf) -> None:
        """Show nothing."""
        self.shelf = shelf
        self.cache = LoraCache()
        self.denoising = Denoising()
        self._lock = threading.RLock()
        self._model: weakref.ref[Any] | None = None  # weak: the host decides how long a model lives
        self._wanted: tuple[Request, ...] = ()
        self._planned: _Planned | None = None
        self._owner = Owner()
        self._unencoded: tuple[str, list[Notice]] = "", []  # what is wanted, and what of it could not be encoded
        self._coverage: tuple[Targets | None, dict[Any, str | None]] = None, {}

    @property
    def wanted(self) -> tuple[Request, ...]:
        """What was asked for last, also while it is hidden."""
        return self._wanted

    # --- tags to files ---

    def load(
        self,
        tags: Iterable[LoraTag],
        source: str = "",
        *,
        hires: bool = False,
        seed: int | None = None,
        side: Side | None = None,
        patience: Patience | None = None,
    ) -> tuple[list[Request], list[Notice]]:
        """Return a request for each tag whose files are found and can be read, and what there is to say.

        `source` is the prompt in which the spans of the tags are; `hires` asks for the strengths of the second pass.
        Masks lie in the folders of the LoRA files. Whatever goes wrong with a tag costs that one alone.
        """
        patience = patience or Patience()

        def request_for(tag: LoraTag, entry: Entry) -> Request:
            lora = self.cache.load(entry.path, name=self.shelf.name_of(entry))
            return request_of(tag, lora, hires=hires, seed=seed, side=side, place=self._place(tag))

        return self._each(tags, source, patience, request_for)

    def read(self, tags: Iterable[LoraTag], source: str, patience: Patience) -> tuple[list[Request], list[Notice]]:
        """Return what `load` does, with files of which only the headers are read: for `explain`.

        Their `sha256` is "" or, where it is known or there is patience to find out, that of the file; what stands for
        different files is different all the same.
        """
        outlines: dict[Path, Lora] = {}

        def request_for(tag: LoraTag, entry: Entry) -> Request:
            if entry.path not in outlines:
                if len(outlines) == _MOST_FILES:
                    raise LoraError(f"not looked at: only the first {_MOST_FILES} files of a prompt are")
                lora = outline(entry.path)
                sha256 = self.shelf.known_sha256(entry, patience) or f"{_UNREAD}{entry.path}"
                outlines[entry.path] = replace(lora, name=self.shelf.name_of(entry), sha256=sha256)
            return request_of(tag, outlines[entry.path], place=self._place(tag))

        return self._each(tags, source, patience, request_for)

    def _each(
        self,
        tags: Iterable[LoraTag],
        source: str,
        patience: Patience,
        request_for: Callable[[LoraTag, Entry], Request],
    ) -> tuple[list[Request], list[Notice]]:
        requests: list[Request] = []
        notices: list[Notice] = []
        for tag in tags:
            try:
                entry, remark = self.shelf.find(tag.name, patience)
                largest = _largest_strength(tag)
                if largest > _MOST_STRENGTH:
                    raise LoraError(
                        f"a strength of {largest:g} is not applied: the picture would be of no numbers at all. "
                        f"Up to {_MOST_STRENGTH:g} is"
                    )
                requests.append(request_for(tag, entry))
                if largest > _USUAL_STRENGTH:
                    said = f"a strength of {largest:g} is unusually high; is a point missing?"
                    notices.append(_notice("note", said, tag, source))
            except LoraError as error:
                notices.append(_notice("error", str(error), tag, source))
                continue
            except Exception as error:  # what nobody foresaw is no reason to lose the other tags
                notices.append(_notice("error", f'"{tag.name}" cannot be used: {_told(error)}', tag, source))
                _log.error("a LoRA cannot be used", exc_info=True)
                continue
            if remark:
                notices.append(_notice("warning", remark, tag, source))
        return requests, notices

    def _place(self, tag: LoraTag) -> Place | None:
        region = tag.conditions.region
        return None if region is None else find_place(region, self.shelf.folders)

    # --- files to weights ---

    def show(self, model: Any, requests: Sequence[Request], source: Source = _nowhere) -> tuple[Report, list[Notice]]:
        """Make the model show just these, whatever it or another model showed before.

        Those that cannot be shown are left out of `wanted`, each with a notice. If it fails altogether, no weight is
        patched. What is shown already costs a look at each weight: 0.8 ms for the 741 of an SDXL UNet, where planning
        and patching anew would take 6 ms before the first product. Where the prompts of a batch ask for different
        weights of the text encoders, these are the first prompt's; see `encode_for`.
        """
        with self._lock:
            self._wanted = tuple(requests)
            shown = self._model and self._model()
            if shown is not None and (shown is not model or not requests):
                # The memory too: a host needs it more than a later switch does, and the next model is another one.
                self._restore(shown)
            if not requests:
                return Report(), []
            looked_at = view(model)
            notices: list[Notice] = []

            def present(asked: tuple[Request, ...]) -> Report:
                self._wanted = asked
                return self._present(model, looked_at, Row())

            def leave_out(error: LoraError, request: Request) -> None:
                notices.append(_cannot(request, str(error), source))

            try:
                _, report = show_what_can_be(requests, present, leave_out)
            except Exception as error:
                _log.error("LoRAs cannot be applied together", exc_info=True)
                report, more = self._show_one_by_one(model, looked_at, self._wanted, error, source)
                notices += more
            notices += _judged(report, self._wanted, looked_at, source)
            return report, notices + self._unencoded_for(self._wanted)

    def _show_one_by_one(
        self, model: Any, looked_at: ModelView, requests: tuple[Request, ...], error: Exception, source: Source
    ) -> tuple[Report, list[Notice]]:
        """Show those of the requests with which it works, the first ones first; say of each other why it does not."""
        failed: list[tuple[Request, Exception]] = []
        kept: tuple[Request, ...] = ()
        report = Report()
        for request in requests if len(requests) > 1 else ():
            self._wanted = (*kept, request)
            try:
                report = self._present(model, looked_at, Row())
                kept = self._wanted
            except Exception as reason:
                failed.append((request, reason))
        self._wanted = kept
        if not kept:
            return Report(), [Notice("error", f"no LoRA is applied: {_told(error)}")]
        report = self._present(model, looked_at, Row())
        return report, [
            _cannot(request, f'"{request.lora.name}" cannot be applied: {_told(reason)}', source)
            for request, reason in failed
        ]

    def encode_for(self, model: Any, row: Row) -> list[Notice]:
        """Make the text encoders show what one row of the batch asks for, until `show_again`.

        What cannot be shown there is left out of this row's text encoders, and said; `show` says it again as long as
        the same is wanted, since what was encoded may be kept.
        """
        notices: list[Notice] = []
        with self._lock:
            looked_at = view(model)

            def present(asked: tuple[Request, ...]) -> Report:
                return self._present_all(model, looked_at, asked)

            def leave_out(error: LoraError, request: Request) -> None:
                message = f"{error}; left out of the text of picture {row.image + 1} alone"
                notices.append(Notice("error", message))

            if self._wanted:
                show_what_can_be(seen_by(self._wanted, row), present, leave_out)
                notices = list(dict.fromkeys(notices))
                said = dict.fromkeys((*self._unencoded_for(self._wanted), *notices))
                self._unencoded = identity(self._wanted), list(said)
        return notices

    def _unencoded_for(self, requests: Sequence[Request]) -> list[Notice]:
        return list(self._unencoded[1]) if self._unencoded[0] == identity(requests) else []

    def _present(self, model: Any, looked_at: ModelView, row: Row) -> Report:
        """Make the model show what is wanted, the text encoders for one row, unless it does."""
        return self._present_all(model, looked_at, seen_by(self._wanted, row))

    def _present_all(self, model: Any, looked_at: ModelView, requests: Sequence[Request]) -> Report:
        with owned(looked_at) as state:
            key, planned = identity(requests), self._planned
            if planned is None or not planned.is_shown(key, looked_at, state, self._owner):
                self._model = weakref.ref(model)
                self._planned = None
                plan = make_plan(requests, state.targets, looked_at.description, Limits(looked_at, told=True))
                plan = state.show(self._owner, plan, compiled=looked_at.compiled, began=self._watched(looked_at))
                planned = self._planned = _Planned(key, looked_at, plan)
        return planned.report

    def _watched(self, looked_at: ModelView) -> Callable[[Live], None]:
        """Return what follows the steps of a model while something acts beside it; it keeps no model."""
        weakly = WeakView(looked_at)

        def began(live: Live) -> None:
            components = weakly.view().components
            for name, stage in live.stages.items():
                live.until_then(self.denoising.watch(components[name], stage))

        return began

    def hide(self) -> None:
        """Give all weights back; what was wanted is remembered."""
        with self._lock:
            shown = self._model and self._model()
            if shown is not None:
                self._restore(shown)

    def forget(self) -> None:
        """Give all weights back, and everything that is held in memory."""
        with self._lock:
            self.hide()
            self._wanted = ()
            self.cache = LoraCache()

    def show_again(self, model: Any) -> None:
        """Make a model show what was wanted before `hide`: after another checkpoint was loaded."""
        self.show(model, self._wanted)

    def explain(
        self, model: Any, requests: Sequence[Request], source: Source = _nowhere
    ) -> tuple[Report, list[Notice]]:
        """Return what `show` would do, and change nothing; `requests` are those of `read`."""
        looked_at = view(model)
        with owned(looked_at) as state:
            targets = state.targets
        # Outside of the lock: who asks about a prompt must not hold up a picture.
        report = make_plan(requests, targets, looked_at.description, Limits(looked_at, told=True)).report
        return report, _judged(report, requests, looked_at, source)

    def coverage(self, model: Any, entry: Entry) -> str | None:
        """Return how much of a file fits a model ("812 of 844 keys, made for SDXL"), or None where it is made for it.

        Only its header is read, and that once for a model: 20 ms for a file with 800 keys.
        """
        looked_at = view(model)
        if entry.family == looked_at.family != "unknown":
            return None
        with owned(looked_at) as state:
            targets = state.targets
        # Outside of the lock: a page of cards must not hold up a picture.
        if self._coverage[0] is not targets:
            self._coverage = targets, {}
        known, key = self._coverage[1], (entry.path, entry.stamp)
        if key not in known:
            known[key] = _coverage_of(entry, targets, looked_at.family)
        return known[key]

    def _restore(self, model: Any) -> None:
        """Give a model its weights back, and the memory; keep nothing that would keep its parameters."""
        with owned(view(model)) as state:
            state.restore(release=True)
        self._model = self._planned = None


class _Planned:
    """What is shown, and how to tell in a moment that it still is."""

    def __init__(self, key: str, model: ModelView, plan: Plan) -> None:
        self.report = plan.report
        self._key = key
        self._components = [weakref.ref(component) for component in model.components.values()]
        self._lives = len(plan.lives)
        # The table of parameters of each module, the name and the parameter: hosts replace parameters.
        self._places = [
            (table, name, assignment.parameter)
            for assignment in plan.assignments
            for table in [assignment.target.module._parameters]
            for name in [next(name for name, own in table.items() if own is assignment.parameter)]
        ]
        self._places += [
            (live.module._parameters, name, parameter)
            for live in plan.lives
            for name in live.terms
            for parameter in [live.module._parameters[name]]
            if parameter is not None
        ]

    def is_shown(self, key: str, model: ModelView, state: ModelState, owner: Owner) -> bool:
        """Return whether the model shows this: the same files and strengths, modules, parameters and values."""
        return (
            key == self._key
            and [component() for component in self._components] == list(model.components.values())
            and all(table.get(name) is parameter for table, name, parameter in self._places)
            and state.is_shown(owner)
            and owner.live.count == self._lives
        )


def _coverage_of(entry: Entry, targets: Targets, family: str) -> str | None:
    try:
        lora = outline(entry.path)
    except LoraError as error:
        return str(error)
    (report,) = make_plan([Request(lora, 1.0, 1.0)], targets).report.loras
    if report.used == report.keys:
        return None
    made_for = "" if lora.family in ("unknown", family) else f", made for {lora.family}"
    return f"{report.used} of {report.keys} keys{made_for}"


def identity(requests: Iterable[Request]) -> str:
    """Return a text that is equal only for the same file contents at the same strengths; "" for none."""
    parts = sorted(map(_identity, requests))
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest() if parts else ""


def _identity(request: Request) -> str:
    images = None if request.images is None else sorted(request.images)
    constant = f"{request.lora.sha256}:{request.te!r}:{request.unet!r}:{request.dyn}"
    return f"{constant}:{request.conditions!r}:{images}:{request.side}:{request.place!r}:{request.seed}"


def _judged(report: Report, requests: Sequence[Request], model: ModelView, source: Source) -> list[Notice]:
    """Return what there is to say about files that do not fit the model, in part or at all, or cannot vary there."""
    notices: list[Notice] = []
    for request in requests:
        for lora in report.loras:
            if lora.sha256 == request.lora.sha256:
                diagnostic = judge(lora, request, model)
                if diagnostic is not None:
                    notices.append(notice_of(diagnostic, source(request)))
                elif lora.used < lora.keys:
                    notices.append(Notice("note", _in_part(lora)))
                notices += _fixed(lora)
    return notices


def _cannot(request: Request, message: str, source: Source) -> Notice:
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


def _largest_strength(tag: LoraTag) -> float:
    """Return how far the tag's strengths go from 0, of both passes and at every step."""
    given = (tag.te, tag.unet, tag.conditions.hires_te, tag.conditions.hires_unet)
    numbers: list[float] = []
    for strength in given:
        if strength is not None:
            numbers += [key.value for key in strength.keys] if isinstance(strength, Curve) else [strength]
    return max(map(abs, numbers))


def _told(error: Exception) -> str:
    """Return what an error says; its kind too where it is none of ours, whose messages speak for themselves."""
    return str(error) if isinstance(error, LoraError) else f"{type(error).__name__}: {error}"


def _notice(severity: Severity | Literal["note"], message: str, tag: LoraTag, source: str) -> Notice:
    said = notice_of(Diagnostic("info" if severity == "note" else severity, tag.span, message), source)
    return replace(said, severity=severity)

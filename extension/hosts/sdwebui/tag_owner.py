"""The owner of `<lora:…>`: from what the WebUI hands over to what a model is asked to show, and what is said of it."""

from __future__ import annotations

import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from modules import errors, extra_networks

from lora_runtime.blocks import blocks_in
from lora_runtime.errors import LoraError
from lora_runtime.infotext import HASHES_FIELD, format_hashes
from lora_runtime.panel import PromptFacts
from lora_runtime.prompt import Diagnostic, Prompt, parse_prompt
from lora_runtime.report import Report
from lora_runtime.requests import Request, of_batch
from lora_runtime.stage import Side
from lora_runtime.wildcards import is_wildcard
from lora_runtime.workbench import Reported
from lora_runtime.workbench.conflicts import MOST_FILES, Remembered

from ...console import say
from ...engine.explaining import explain
from ...engine.judging import Source
from ...engine.loading import Loader, sha256_of
from ...engine.models import OWN_WEIGHTS, Models
from ...engine.reporting import reported
from ...engine.shown import identity
from ...library.patience import Patience
from ...prompts.always_on import add_always_on
from ...prompts.notices import Notice, Notices, notice_of
from . import batch as batches
from . import takeover
from .settings import Settings

# Beside the tags in what the WebUI keeps encoded prompts by, so that they are encoded anew when a file has changed.
_CONTENT_KEY = "lora_runtime_content"
_SECONDS_A_LOOK_LASTS = 5.0


class TagOwner(extra_networks.ExtraNetwork):
    """What the WebUI calls at every pass of every batch, with the tags of its first prompt.

    How a model is made to show LoRAs each host's own subclass knows.
    """

    models: Models = OWN_WEIGHTS  # how this host's are looked at

    def __init__(self, loader: Loader, settings: Settings, presets: Callable[[], Mapping[str, str]]) -> None:
        super().__init__("lora")
        self.loader = loader
        self.settings = settings
        self._presets = presets
        self._told_of_loractl = self._told_of_marks = False
        self._stopped = False
        self._job: weakref.ref[Any] | None = None  # whose tags are shown
        self._reports: Remembered[tuple[Reported | None, list[Notice]]] = Remembered()

    # --- what a host knows ---

    @abstractmethod
    def show(self, p: Any, requests: Sequence[Request], source: Source) -> tuple[Sequence[Request], list[Notice]]:
        """Make the model that paints show just these; return those that could be shown, and what there is to say.

        `source` gives the prompt in which a request's tag is. Where it raises, `show_nothing` is called.
        """

    @abstractmethod
    def show_nothing(self) -> None:
        """Give the model back its own weights."""

    @abstractmethod
    def loaded_model(self) -> Any | None:
        """Return the model that is loaded, None while there is none; it loads none."""

    @abstractmethod
    def give_up(self) -> None:
        """Give everything back: the extension is being unloaded."""

    def read_batch(self, p: Any, params_list: Sequence[Any], hires: bool) -> batches.BatchPrompts:
        """Return the prompts of this batch, with the tags that this host has handed over."""
        acting, added = self.settings.negative_tags_act, getattr(p, "lora_runtime_added", "")
        return batches.read_batch(p, params_list, hires, self._parse, negatives=acting, added=added)

    def about_texts(self, p: Any, batch: batches.BatchPrompts, hires: bool) -> list[Notice]:
        """Return what there is to say of this host's way with these texts."""
        acting = self.settings.negative_tags_act
        notices = batches.about_changed_prompts(p, batch, hires)
        notices += [] if acting else batches.about_negative_tags(p, hires)
        if self.settings.comments:
            names = ("prompt", "hr_prompt", *(("negative_prompt", "hr_negative_prompt") if acting else ()))
            notices += batches.about_comments(getattr(p, name, "") for name in names)
        return notices

    def tell(self, p: Any, notice: Notice) -> None:
        """Put one notice where this host's users read."""
        p.comment(str(notice))
        if self.settings.warn_in_console:
            say(str(notice))
        if self.settings.warn_in_popup and notice.severity == "error":
            import gradio

            gradio.Warning(str(notice))

    def report(self, what: str) -> None:
        """Print the error that is being handled, for those who look into the console."""
        errors.report(f"[lora-runtime] {what}", exc_info=True)

    def lost_tags(self) -> None:
        """Give the model back its own weights: for this picture the tags are somebody else's."""
        self.show_nothing()

    # --- what the WebUI calls ---

    def activate(self, p: Any, params_list: list[Any]) -> None:
        """Show what the tags ask for, and nothing else; `params_list` is empty where there are none.

        A problem with one tag costs only that tag, and is said under the picture.
        """
        if getattr(p, "all_prompts", None) is None:
            return  # the empty prompt of a checkpoint that is being loaded, also in the middle of somebody's picture
        data = _data_of(p, params_list)
        hires = data is not None and data is getattr(p, "hr_extra_network_data", None)
        requests, notices = self.act(p, params_list, hires)
        if data is not None:
            content = identity(requests)
            data.pop(_CONTENT_KEY, None)
            if content:
                data[_CONTENT_KEY] = [extra_networks.ExtraNetworkParams(items=[content])]
        self.say(p, notices)

    def act(self, p: Any, params_list: Sequence[Any], hires: bool) -> tuple[list[Request], list[Notice]]:
        """Show what the tags of a pass ask for, nothing if that fails; return what is shown, and what to say."""
        notices: list[Notice] = []
        self._job = None
        try:
            requests = self._show(p, params_list, hires, notices)
            self._job = weakref.ref(p)
        except Exception as error:
            self.report("LoRAs could not be applied")
            self.show_nothing()
            notices.append(Notice("error", f"no LoRA is applied: {type(error).__name__}: {error}"))
            requests = []
        return requests, notices

    def deactivate(self, p: Any) -> None:
        """Nothing: the weights stay until the next picture's tags are known, which are mostly the same."""

    def is_shown_for(self, p: Any) -> bool:
        """Return whether what the model shows is what this job's tags ask for."""
        return self._job is not None and self._job() is p

    # --- what our script calls ---

    def before_batch(self, p: Any) -> None:
        """Hide what a picture before this one showed, where the WebUI will not call our `activate`."""
        if self._stopped:
            return
        if not self.settings.stand_back_for_loractl and takeover.takes_back(self) and not self._told_of_loractl:
            self._told_of_loractl = True
            note = "loractl is installed too; LoRA Runtime reads its syntax and applies the LoRAs"
            self.say(p, [Notice("note", note, "to leave them to loractl, change the setting")])
        if not takeover.owns_tags(self):
            self.lost_tags()
            taken = f"{takeover.owner_of_tags()} has taken the tag <lora:…> for this picture; LoRA Runtime is idle"
            self.say(p, [Notice("note", taken)])
        elif getattr(p, "disable_extra_networks", False):
            self.show_nothing()
        elif self.settings.negative_tags_act:
            p.negative_prompts = list(map(batches.without_tags, p.negative_prompts))

    def before_conditioning(self, p: Any) -> None:
        """Take the tags out of the hires pass's negative prompts too; before the batch they are not there yet."""
        if self._stopped or not self.settings.negative_tags_act or getattr(p, "disable_extra_networks", False):
            return
        if getattr(p, "hr_negative_prompts", None) and takeover.owns_tags(self):
            p.hr_negative_prompts = list(map(batches.without_tags, p.hr_negative_prompts))

    def notices(self, p: Any) -> list[Notice]:
        """Return what was said about this generation."""
        return list(getattr(p, "lora_runtime_notices", ()))

    def stop(self) -> None:
        """Do nothing from now on, and give everything back: the extension is being unloaded."""
        self._stopped = True
        self.give_up()
        self.loader.forget()

    # --- for the page and the API ---

    def explain(self, text: str) -> tuple[Prompt, list[Request], Report, list[Notice]]:
        """Return how a prompt is read, which files it means and what they would do to the checkpoint that is loaded."""
        prompt = self._parse(text)
        notices = [notice_of(diagnostic, text) for diagnostic in _worth_saying(prompt)]
        notices += batches.about_comments([text]) if self.settings.comments else []
        # Folders that were looked at a moment ago are good enough, and nobody waits for hashes: anybody may ask this
        # as often as they like, while somebody else paints.
        patience = Patience(time.monotonic() - _SECONDS_A_LOOK_LASTS, seconds_to_hash=1.0, suggestions=3)
        requests, more = self.loader.read(prompt.tags, text, patience)
        notices += more
        model = self.loaded_model()
        if model is None:
            return prompt, requests, Report(), [*notices, Notice("warning", "no checkpoint is loaded yet")]
        report, more = explain(model, requests, lambda _: text, self.models)
        return prompt, requests, report, notices + more

    def reported(self, text: str) -> tuple[Prompt, Reported | None, list[Notice]]:
        """Return how a prompt is read, and what its files do together to the checkpoint that is loaded."""
        prompt = self._parse(text)
        notices = [notice_of(diagnostic, text) for diagnostic in _worth_saying(prompt)]
        model = self.loaded_model()
        if model is None:
            return prompt, None, [*notices, Notice("warning", "no checkpoint is loaded yet")]
        tags = prompt.tags[:MOST_FILES]
        if len(tags) < len(prompt.tags):
            notices.append(Notice("note", f"only the first {MOST_FILES} tags are in the report"))
        patience = Patience(time.monotonic() - _SECONDS_A_LOOK_LASTS, seconds_to_hash=1.0, suggestions=3)
        requests, more = self.loader.load(tags, text, patience=patience)
        # A checkpoint may be loaded into the very tensors of the one before.
        about = (id(model), getattr(model, "sd_model_hash", ""), getattr(model, "sd_model_checkpoint", ""), text)
        found, said = self._reports.of(
            requests,
            tuple(map(str, about)),
            lambda: reported(model, requests, lambda _: text, self.models),
            keep=lambda made: made[0] is not None,
        )
        return prompt, found, [*notices, *more, *said]

    def prompt_facts(self) -> PromptFacts:
        """Return how prompts are read now, for the panel; no blocks where no checkpoint is loaded."""
        return PromptFacts(self._presets(), self.settings.scope, self._blocks())

    def _blocks(self) -> list[str]:
        model = self.loaded_model()
        if model is None:
            return []
        try:
            components = self.models.view(model).components
        except LoraError:  # who paints with it is told
            return []
        return blocks_in((name, path) for name, part in components.items() for path, _ in part.named_modules() if path)

    # --- the way of a prompt ---

    def _show(self, p: Any, params_list: Sequence[Any], hires: bool, notices: list[Notice]) -> list[Request]:
        batch = self.read_batch(p, params_list, hires)
        for prompt in dict.fromkeys((*batch.prompts, *batch.negatives)):
            source = "" if batch.changed and prompt in batch.prompts else prompt.source
            notices += [notice_of(diagnostic, source) for diagnostic in _worth_saying(prompt)]
        notices += self.about_texts(p, batch, hires)
        patience = _patience_of(p)
        batch = replace(batch, prompts=self._with_always_on(p, batch, notices, patience))
        tags = [tag for prompt in dict.fromkeys((*batch.prompts, *batch.negatives)) for tag in prompt.tags]
        limit = self.settings.files_in_memory
        self.loader.cache.files = max(limit, len(tags)) if limit else None
        seeds = batches.seeds_of(p, len(batch.prompts))
        requests = [
            *self._load(batch.prompts, seeds, hires, None, notices, patience, known="" if batch.changed else None),
            *self._load(batch.negatives, seeds, hires, "negative", notices, patience),
        ]
        # Without those that could not be shown: what is encoded now must not be kept as if they had been.
        shown, said = self.show(p, requests, batch.text_of)
        notices += said
        self._note_use(shown)
        names = [*self._names(batch.prompts, seeds), *self._names(batch.negatives, seeds)]
        self._write_hashes(p, dict.fromkeys(names), hires, patience)
        if tags or batches.has_tags(p, hires):
            p.extra_generation_params.update(self.settings.in_infotext())
        return list(shown)

    def _parse(self, text: str) -> Prompt:
        return parse_prompt(text, scope=self.settings.scope, presets=self._presets())

    def _load(
        self,
        batch: Sequence[Prompt],
        seeds: Sequence[int | None],
        hires: bool,
        side: Side | None,
        notices: list[Notice],
        patience: Patience,
        *,
        known: str | None = None,
    ) -> tuple[Request, ...]:
        """Return what the prompts of a batch ask for; equal ones are looked up once. `known` stands for their texts."""
        loaded: dict[tuple[Prompt, int | None], list[Request]] = {}
        asked = []
        for prompt, seed in zip(batch, seeds, strict=False):
            drawn = any(
                is_wildcard(tag.name) or (tag.conditions.blocks is not None and tag.conditions.blocks.random)
                for tag in prompt.tags
            )
            key = prompt, seed if drawn else None
            if key not in loaded:
                source = prompt.source if known is None else known
                loaded[key], said = self.loader.load(
                    prompt.tags, source, hires=hires, seed=seed, side=side, patience=patience
                )
                notices += said
            asked.append(loaded[key])
        return of_batch(asked)

    def _with_always_on(
        self, p: Any, batch: batches.BatchPrompts, notices: list[Notice], patience: Patience
    ) -> tuple[Prompt, ...]:
        """Give each prompt the LoRA that every prompt gets, unless it has it; the texts then show it too."""
        name, strength = self.settings.always_on, self.settings.default_strength
        if name is None:
            return batch.prompts
        path = self._file(name, patience)
        if path is None:
            notices.append(Notice("error", f'there is no file for the always-on LoRA "{name}"', "change the setting"))
            return batch.prompts

        given = add_always_on(batch.prompts, name, strength, lambda other: self._file(other, patience) == path)
        for texts in (p.all_prompts, getattr(p, "all_hr_prompts", None)):
            if texts and given.lacking:
                p.lora_runtime_added = given.written
                given.write_into(texts, all_alike=batch.changed)
        return given.prompts

    def _file(self, name: str, patience: Patience) -> Path | None:
        """Return the file that a name means, or None."""
        try:
            return self.loader.shelf.find(name, patience)[0].path
        except LoraError:
            return None

    def _note_use(self, shown: Iterable[Request]) -> None:
        """Write down that these files are used now, for the order of the cards."""
        files = {request.lora.path: sha256_of(request.lora) or "" for request in shown}
        try:
            self.loader.shelf.marks.use(files.items())
        except OSError as error:
            if not self._told_of_marks:
                self._told_of_marks = True
                say(f"when LoRAs were used last is not kept: {error}")

    def _names(self, prompts: Sequence[Prompt], seeds: Sequence[int | None]) -> Iterator[str]:
        """Yield the names of the files that the tags of a batch mean; of a wildcard those that its seeds have drawn."""
        for prompt, seed in zip(prompts, seeds, strict=False):
            for tag in prompt.tags:
                try:
                    yield self.loader.shelf.drawn(tag.name, seed) if is_wildcard(tag.name) else tag.name
                except LoraError:
                    continue  # said already

    def _write_hashes(self, p: Any, names: Iterable[str], hires: bool, patience: Patience) -> None:
        """Write name and hash of each file that is used into the picture's parameters."""
        if not self.settings.hashes_in_infotext:
            return
        if not (hires and hasattr(p, "lora_hashes")):
            p.lora_hashes = {}  # of this batch: both its passes add to it
        for name in names:
            try:
                entry, _ = self.loader.shelf.find(name, patience)
                p.lora_hashes[name] = self.loader.shelf.hashes.short(entry)
            except LoraError:
                continue  # said already
            except Exception:  # the picture has its LoRAs, and is worth more than this line
                self.report(f'no hash of "{name}" for the infotext')
        p.extra_generation_params.pop(HASHES_FIELD, None)
        if p.lora_hashes:
            p.extra_generation_params[HASHES_FIELD] = format_hashes(p.lora_hashes)

    def say(self, p: Any, notices: Iterable[Notice]) -> None:
        """Say what is new of this generation: under the picture, and where the settings ask for it."""
        said = getattr(p, "lora_runtime_notices", None)
        if said is None:
            said = p.lora_runtime_notices = Notices()
        # In the order of the prompt; what is about no one place comes last.
        for notice in sorted(said.add(notices), key=lambda new: (not new.column, new.line, new.column)):
            self.tell(p, notice)


def _patience_of(p: Any) -> Patience:
    """Return what this job's names may cost: the folders are looked through once for all its passes and batches."""
    patience: Patience | None = getattr(p, "lora_runtime_patience", None)
    if patience is None:
        patience = p.lora_runtime_patience = Patience()
    return patience


def _data_of(p: Any, params_list: Sequence[Any]) -> dict[str, Any] | None:
    """Return which of the job's two tables of tags this call is about.

    With --medvram and --lowvram the tags of the hires pass come during the first pass too, and `is_hr_pass` does not
    tell; but they are the same objects.
    """
    tables = [getattr(p, name, None) for name in ("extra_network_data", "hr_extra_network_data")]
    for table in tables:
        if isinstance(table, dict) and params_list:
            listed = [id(params) for kind in batches.KINDS for params in table.get(kind, ())]
            if id(params_list[0]) in listed:
                return table
    table = tables[1] if getattr(p, "is_hr_pass", False) else tables[0]
    return table if isinstance(table, dict) else None


def _worth_saying(prompt: Prompt) -> Iterable[Diagnostic]:
    """Yield the diagnostics that are about something going wrong: other kinds of tag have their own owners here."""
    return (diagnostic for diagnostic in prompt.diagnostics if diagnostic.severity != "info")

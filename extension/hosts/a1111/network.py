"""The owner of `<lora:…>`: from what the WebUI hands over to what the session shows."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from modules import errors, extra_networks, shared

from lora_runtime.errors import LoraError
from lora_runtime.prompt import Diagnostic, LoraTag, Prompt, parse_prompt
from lora_runtime.report import Report
from lora_runtime.requests import Request, of_batch
from lora_runtime.stage import Side

from ...console import say
from ...infotext import HASHES_FIELD, format_hashes
from ...notices import Notice, Notices, notice_of
from ...session import Session, identity
from ...shelf import Patience
from . import prompts, takeover
from .embeddings import BundledEmbeddings
from .settings import Settings

# Beside the tags in what the WebUI keeps encoded prompts by, so that they are encoded anew when a file has changed.
_CONTENT_KEY = "lora_runtime_content"
_SECONDS_A_LOOK_LASTS = 5.0


class LoraNetwork(extra_networks.ExtraNetwork):
    """What the WebUI calls at every pass of every batch, with the tags of its first prompt."""

    def __init__(
        self,
        session: Session,
        settings: Settings,
        embeddings: BundledEmbeddings,
        presets: Callable[[], Mapping[str, str]],
    ) -> None:
        super().__init__("lora")
        self.session = session
        self.settings = settings
        self._embeddings = embeddings
        self._presets = presets
        self._builtin_may_have_patched = False
        self._told_of_loractl = False
        self._stopped = False
        self._job: weakref.ref[Any] | None = None  # whose tags are shown

    # --- what the WebUI calls ---

    def activate(self, p: Any, params_list: list[Any]) -> None:
        """Show what the tags ask for, and nothing else; `params_list` is empty where there are none.

        A problem with one tag costs only that tag, and is said under the picture.
        """
        if getattr(p, "all_prompts", None) is None:
            return  # the empty prompt of a checkpoint that is being loaded, also in the middle of somebody's picture
        data = _data_of(p, params_list)
        hires = data is not None and data is getattr(p, "hr_extra_network_data", None)
        notices: list[Notice] = []
        self._job = None
        try:
            requests = self._show(p, params_list, hires, notices)
            self._job = weakref.ref(p)
        except Exception as error:
            errors.report("[lora-runtime] LoRAs could not be applied", exc_info=True)
            self.session.hide()
            notices.append(Notice("error", f"no LoRA is applied: {type(error).__name__}: {error}"))
            requests = []
        if data is not None:
            content = identity(requests)
            data.pop(_CONTENT_KEY, None)
            if content:
                data[_CONTENT_KEY] = [extra_networks.ExtraNetworkParams(items=[content])]
        self.say(p, notices)

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
            self.session.show(None, ())
            self._builtin_may_have_patched = True
            taken = f"{takeover.owner_of_tags()} has taken the tag <lora:…> for this picture; LoRA Runtime is idle"
            self.say(p, [Notice("note", taken)])
        elif getattr(p, "disable_extra_networks", False):
            self.session.show(None, ())
        elif self.settings.negative_tags_act:
            p.negative_prompts = list(map(prompts.without_tags, p.negative_prompts))

    def before_conditioning(self, p: Any) -> None:
        """Take the tags out of the hires pass's negative prompts too; before the batch they are not there yet."""
        if self._stopped or not self.settings.negative_tags_act or getattr(p, "disable_extra_networks", False):
            return
        if getattr(p, "hr_negative_prompts", None) and takeover.owns_tags(self):
            p.hr_negative_prompts = list(map(prompts.without_tags, p.hr_negative_prompts))

    def show_again(self, model: Any) -> None:
        """Make a checkpoint that was loaded in the middle of a picture show what the one before it did."""
        self.session.show_again(model)
        self._show_embeddings(self.session.wanted, model)

    def notices(self, p: Any) -> list[Notice]:
        """Return what was said about this generation."""
        return list(getattr(p, "lora_runtime_notices", ()))

    def stop(self) -> None:
        """Give everything back: the extension is being unloaded."""
        self._stopped = True
        self.session.forget()
        self._embeddings.show((), _loaded_model())

    # --- for the page and the API ---

    def explain(self, text: str) -> tuple[Prompt, list[Request], Report, list[Notice]]:
        """Return how a prompt is read, which files it means and what they would do to the checkpoint that is loaded."""
        prompt = self._parse(text)
        notices = [notice_of(diagnostic, text) for diagnostic in _worth_saying(prompt)]
        notices += prompts.about_comments([text]) if self.settings.comments else []
        # Folders that were looked at a moment ago are good enough, and nobody waits for hashes: anybody may ask this
        # as often as they like, while somebody else paints.
        patience = Patience(time.monotonic() - _SECONDS_A_LOOK_LASTS, seconds_to_hash=1.0, suggestions=3)
        requests, more = self.session.read(prompt.tags, text, patience)
        notices += more
        model = _loaded_model()
        if model is None:
            return prompt, requests, Report(), [*notices, Notice("warning", "no checkpoint is loaded yet")]
        report, more = self.session.explain(model, requests, lambda _: text)
        return prompt, requests, report, notices + more

    def coverage(self, entry: Any) -> str | None:
        """Return how much of a file fits the checkpoint that is chosen, or None where all of it does."""
        from .page import chosen_model

        model = chosen_model()
        return None if model is None else self.session.coverage(model, entry)

    # --- the way of a prompt ---

    def _show(self, p: Any, params_list: Sequence[Any], hires: bool, notices: list[Notice]) -> list[Request]:
        acting = self.settings.negative_tags_act
        added = getattr(p, "lora_runtime_added", "")
        batch = prompts.read_batch(p, params_list, hires, self._parse, negatives=acting, added=added)
        for prompt in dict.fromkeys((*batch.prompts, *batch.negatives)):
            source = "" if batch.changed and prompt in batch.prompts else prompt.source
            notices += [notice_of(diagnostic, source) for diagnostic in _worth_saying(prompt)]
        notices += prompts.about_changed_prompts(p, batch, hires)
        notices += [] if acting else prompts.about_negative_tags(p, hires)
        if self.settings.comments:
            names = ("prompt", "hr_prompt", *(("negative_prompt", "hr_negative_prompt") if acting else ()))
            notices += prompts.about_comments(getattr(p, name, "") for name in names)
        patience = _patience_of(p)
        batch = replace(batch, prompts=self._with_always_on(p, batch, notices, patience))
        tags = [tag for prompt in dict.fromkeys((*batch.prompts, *batch.negatives)) for tag in prompt.tags]
        limit = self.settings.files_in_memory
        self.session.cache.files = max(limit, len(tags)) if limit else None
        seeds = prompts.seeds_of(p, len(batch.prompts))
        requests = [
            *self._load(batch.prompts, seeds, hires, None, notices, patience, known="" if batch.changed else None),
            *self._load(batch.negatives, seeds, hires, "negative", notices, patience),
        ]
        model = shared.sd_model
        if self._builtin_may_have_patched:
            takeover.calm_builtin([model])
            self._builtin_may_have_patched = False
        _, said = self.session.show(model, requests, batch.text_of)
        notices += said
        # Without those that could not be shown: what is encoded now must not be kept as if they had been.
        requests = list(self.session.wanted)
        notices += self._show_embeddings(requests, model)
        self._write_hashes(p, tags, hires, patience)
        if tags or prompts.has_tags(p, hires):
            p.extra_generation_params.update(self.settings.in_infotext())
        return requests

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
            drawn = any(tag.conditions.blocks is not None and tag.conditions.blocks.random for tag in prompt.tags)
            key = prompt, seed if drawn else None
            if key not in loaded:
                source = prompt.source if known is None else known
                loaded[key], said = self.session.load(
                    prompt.tags, source, hires=hires, seed=seed, side=side, patience=patience
                )
                notices += said
            asked.append(loaded[key])
        return of_batch(asked)

    def _show_embeddings(self, requests: Iterable[Request], model: Any) -> list[Notice]:
        return self._embeddings.show(requests, model, listed=self.settings.embedding_hashes_in_infotext)

    def _with_always_on(
        self, p: Any, batch: prompts.BatchPrompts, notices: list[Notice], patience: Patience
    ) -> tuple[Prompt, ...]:
        """Give each prompt the LoRA that every prompt gets, unless it has it; the texts then show it too."""
        name, strength = self.settings.always_on, self.settings.default_strength
        if name is None:
            return batch.prompts
        path = self._file(name, patience)
        if path is None:
            notices.append(Notice("error", f'there is no file for the always-on LoRA "{name}"', "change the setting"))
            return batch.prompts

        def has_it(prompt: Prompt) -> bool:
            return any(self._file(tag.name, patience) == path for tag in prompt.tags)

        written = f"<lora:{name}:{strength:g}>"
        added = LoraTag(name, strength, strength)
        given = {
            prompt: prompt if has_it(prompt) else replace(prompt, tags=(*prompt.tags, added))
            for prompt in dict.fromkeys(batch.prompts)
        }
        lacking = {prompt.source for prompt in given if given[prompt] is not prompt}
        for texts in (p.all_prompts, getattr(p, "all_hr_prompts", None)):
            if texts and lacking:
                p.lora_runtime_added = written
                texts[:] = [
                    text + written if text in lacking or (batch.changed and written not in text) else text
                    for text in texts
                ]
        return tuple(given[prompt] for prompt in batch.prompts)

    def _file(self, name: str, patience: Patience) -> Path | None:
        """Return the file that a name means, or None."""
        try:
            return self.session.shelf.find(name, patience)[0].path
        except LoraError:
            return None

    def _write_hashes(self, p: Any, tags: Iterable[LoraTag], hires: bool, patience: Patience) -> None:
        """Write name and hash of each file that is used into the picture's parameters."""
        if not self.settings.hashes_in_infotext:
            return
        if not (hires and hasattr(p, "lora_hashes")):
            p.lora_hashes = {}  # of this batch: both its passes add to it
        for tag in tags:
            try:
                entry, _ = self.session.shelf.find(tag.name, patience)
                p.lora_hashes[tag.name] = self.session.shelf.short_hash(entry)
            except LoraError:
                continue  # said already
            except Exception:  # the picture has its LoRAs, and is worth more than this line
                errors.report(f'[lora-runtime] no hash of "{tag.name}" for the infotext', exc_info=True)
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
            p.comment(str(notice))
            if self.settings.warn_in_console:
                say(str(notice))
            if self.settings.warn_in_popup and notice.severity == "error":
                gr.Warning(str(notice))


def _patience_of(p: Any) -> Patience:
    """Return what this job's names may cost: the folders are looked through once for all its passes and batches."""
    patience: Patience | None = getattr(p, "lora_runtime_patience", None)
    if patience is None:
        patience = p.lora_runtime_patience = Patience()
    return patience


def _loaded_model() -> Any | None:
    """Return the checkpoint that is loaded; asking `shared.sd_model` would load one."""
    from modules import sd_models

    return sd_models.model_data.sd_model


def _data_of(p: Any, params_list: Sequence[Any]) -> dict[str, Any] | None:
    """Return which of the job's two tables of tags this call is about.

    With --medvram and --lowvram the tags of the hires pass come during the first pass too, and `is_hr_pass` does not
    tell; but they are the same objects.
    """
    tables = [getattr(p, name, None) for name in ("extra_network_data", "hr_extra_network_data")]
    for table in tables:
        if isinstance(table, dict) and params_list:
            listed = [id(params) for kind in prompts.KINDS for params in table.get(kind, ())]
            if id(params_list[0]) in listed:
                return table
    table = tables[1] if getattr(p, "is_hr_pass", False) else tables[0]
    return table if isinstance(table, dict) else None


def _worth_saying(prompt: Prompt) -> Iterable[Diagnostic]:
    """Yield the diagnostics that are about something going wrong: other kinds of tag have their own owners here."""
    return (diagnostic for diagnostic in prompt.diagnostics if diagnostic.severity != "info")

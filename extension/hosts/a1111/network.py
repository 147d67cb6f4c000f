"""The owner of `<lora:…>`: from what the WebUI hands over to what the session shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from modules import errors, extra_networks, shared

from lora_runtime.errors import LoraError
from lora_runtime.plan import Report, Request
from lora_runtime.prompt import Diagnostic, LoraTag, Prompt, parse_prompt

from ...infotext import HASHES_FIELD, format_hashes
from ...notices import Notice, Notices, notice_of
from ...session import Session, identity
from .embeddings import BundledEmbeddings
from .settings import Settings
from .takeover import calm_builtin, owner_of_tags, owns_tags

# Beside the tags in what the WebUI keeps encoded prompts by, so that they are encoded anew when a file has changed.
_CONTENT_KEY = "lora_runtime_content"


class LoraNetwork(extra_networks.ExtraNetwork):
    """What the WebUI calls at every pass of every batch, with the tags of its first prompt."""

    def __init__(self, session: Session, settings: Settings, embeddings: BundledEmbeddings) -> None:
        super().__init__("lora")
        self.session = session
        self.settings = settings
        self._embeddings = embeddings
        self._builtin_may_have_patched = False

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
        try:
            requests = self._show(p, params_list, hires, notices)
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
        self._say(p, notices)

    def deactivate(self, p: Any) -> None:
        """Nothing: the weights stay until the next picture's tags are known, which are mostly the same."""

    # --- what our script calls ---

    def before_batch(self, p: Any) -> None:
        """Hide what a picture before this one showed, where the WebUI will not call our `activate`."""
        if not owns_tags(self):
            self.session.show(None, ())
            self._builtin_may_have_patched = True
            taken = f"{owner_of_tags()} has taken the tag <lora:…> for this picture; LoRA Runtime is idle"
            self._say(p, [Notice("note", taken)])
        elif getattr(p, "disable_extra_networks", False):
            self.session.show(None, ())

    def show_again(self, model: Any) -> None:
        """Make a checkpoint that was loaded in the middle of a picture show what the one before it did."""
        self.session.show_again(model)
        self._show_embeddings(self.session.wanted, model)

    def notices(self, p: Any) -> list[Notice]:
        """Return what was said about this generation."""
        return list(getattr(p, "lora_runtime_notices", ()))

    def stop(self) -> None:
        """Give everything back: the extension is being unloaded."""
        self.session.forget()
        self._embeddings.show((), _loaded_model())

    # --- for the page and the API ---

    def explain(self, text: str) -> tuple[Prompt, list[Request], Report, list[Notice]]:
        """Return how a prompt is read, which files it means and what they would do to the checkpoint that is loaded."""
        prompt = parse_prompt(text)
        notices = [notice_of(diagnostic, text) for diagnostic in _worth_saying(prompt)]
        requests, more = self.session.load(prompt.tags, text)
        notices += more
        model = _loaded_model()
        if model is None:
            return prompt, requests, Report(), [*notices, Notice("warning", "no checkpoint is loaded yet")]
        report, more = self.session.explain(model, requests, text)
        return prompt, requests, report, notices + more

    def coverage(self, entry: Any) -> str | None:
        """Return how much of a file fits the checkpoint that is loaded, or None where all of it does."""
        model = _loaded_model()
        return None if model is None else self.session.coverage(model, entry)

    # --- the way of a prompt ---

    def _show(self, p: Any, params_list: Sequence[Any], hires: bool, notices: list[Notice]) -> list[Request]:
        source, tags, said = _read(p, params_list, hires)
        notices += said
        tags += self._always_on(p, tags, notices)
        limit = self.settings.files_in_memory
        self.session.cache.files = max(limit, len(tags)) if limit else None
        requests, said = self.session.load(tags, source)
        notices += said
        model = shared.sd_model
        if self._builtin_may_have_patched:
            calm_builtin([model])
            self._builtin_may_have_patched = False
        _, said = self.session.show(model, requests, source)
        notices += said
        self._show_embeddings(requests, model)
        self._write_hashes(p, tags, hires)
        return requests

    def _show_embeddings(self, requests: Iterable[Request], model: Any) -> None:
        self._embeddings.show(requests, model, listed=self.settings.embedding_hashes_in_infotext)

    def _always_on(self, p: Any, tags: Sequence[LoraTag], notices: list[Notice]) -> list[LoraTag]:
        """Return a tag for the LoRA that every prompt gets, unless it has it; the prompts then show it too."""
        name, strength = self.settings.always_on, self.settings.default_strength
        if name is None:
            return []
        path = self._file(name)
        if path is None:
            notices.append(Notice("error", f'there is no file for the always-on LoRA "{name}"', "change the setting"))
            return []
        if any(self._file(tag.name) == path for tag in tags):
            return []
        written = f"<lora:{name}:{strength:g}>"
        for prompts in (p.all_prompts, getattr(p, "all_hr_prompts", None)):
            if prompts:
                prompts[:] = [text if written in text else text + written for text in prompts]
        return [LoraTag(name, strength, strength)]

    def _file(self, name: str) -> Path | None:
        """Return the file that a name means, or None."""
        try:
            return self.session.shelf.find(name)[0].path
        except LoraError:
            return None

    def _write_hashes(self, p: Any, tags: Iterable[LoraTag], hires: bool) -> None:
        """Write name and hash of each file that is used into the picture's parameters."""
        if not self.settings.hashes_in_infotext:
            return
        if not (hires and hasattr(p, "lora_hashes")):
            p.lora_hashes = {}  # of this batch: both its passes add to it
        for tag in tags:
            try:
                p.lora_hashes[tag.name] = self.session.shelf.short_hash(self.session.shelf.find(tag.name)[0])
            except LoraError:
                continue  # said already
        p.extra_generation_params.pop(HASHES_FIELD, None)
        if p.lora_hashes:
            p.extra_generation_params[HASHES_FIELD] = format_hashes(p.lora_hashes)

    def _say(self, p: Any, notices: Iterable[Notice]) -> None:
        """Say what is new of this generation: under the picture, and where the settings ask for it."""
        said = getattr(p, "lora_runtime_notices", None)
        if said is None:
            said = p.lora_runtime_notices = Notices()
        # In the order of the prompt; what is about no one place comes last.
        for notice in sorted(said.add(notices), key=lambda new: (not new.column, new.line, new.column)):
            p.comment(str(notice))
            if self.settings.warn_in_console:
                print(f"[lora-runtime] {notice}")
            if self.settings.warn_in_popup and notice.severity == "error":
                gr.Warning(str(notice))


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
            listed = [id(params) for kind in ("lora", "lyco") for params in table.get(kind, ())]
            if id(params_list[0]) in listed:
                return table
    table = tables[1] if getattr(p, "is_hr_pass", False) else tables[0]
    return table if isinstance(table, dict) else None


def _read(p: Any, params_list: Sequence[Any], hires: bool) -> tuple[str, list[LoraTag], list[Notice]]:
    """Return the prompt that the tags are in ("" where a script has changed them), the tags, and what there is to say.

    The WebUI hands over the tags of the first prompt of a batch, cut apart at every colon.
    """
    prompts = _raw_prompts(p, hires)
    handed = Counter(":".join(map(str, params.items)) for params in params_list)
    source = prompts[0] if prompts else ""
    prompt = parse_prompt(source)
    if Counter(tag.partition(":")[2] for tag in _written_tags(source)) != handed:
        source = ""
        prompt = parse_prompt("".join(f"<lora:{':'.join(map(str, params.items))}>" for params in params_list))
    notices = [notice_of(diagnostic, source) for diagnostic in _worth_saying(prompt)]
    notices += _about_the_batch(prompts)
    notices += _about_the_negative_prompt(p, hires)
    return source, list(prompt.tags), notices


def _written_tags(text: str) -> list[str]:
    """Return what the WebUI takes for tags of ours, without the brackets."""
    return [
        match.group(0)[1:-1]
        for match in extra_networks.re_extra_net.finditer(text)
        if match.group(1) in ("lora", "lyco")
    ]


def _worth_saying(prompt: Prompt) -> Iterable[Diagnostic]:
    """Yield the diagnostics that are about something going wrong: other kinds of tag have their own owners here."""
    return (diagnostic for diagnostic in prompt.diagnostics if diagnostic.severity != "info")


def _raw_prompts(p: Any, hires: bool) -> list[str]:
    """Return the prompts of this batch as written; `p.prompts` has lost its tags by now."""
    texts = (getattr(p, "all_hr_prompts", None) if hires else None) or p.all_prompts
    start = getattr(p, "iteration", 0) * getattr(p, "batch_size", 1)
    return list(texts[start : start + getattr(p, "batch_size", 1)])


def _about_the_batch(prompts: Sequence[str]) -> list[Notice]:
    """Say so where the pictures of a batch ask for different LoRAs: one set of weights paints all of them."""
    first, *rest = [Counter(_written_tags(text)) for text in prompts] or [Counter()]
    different = [index for index, tags in enumerate(rest, start=2) if tags != first]
    if not different:
        return []
    which = f"picture {different[0]}" if len(different) == 1 else f"{len(different)} pictures"
    return [
        Notice(
            "warning",
            f"{which} of the batch asks for other LoRAs than the first; those of the first are used for all",
            "use a batch size of 1 and a higher batch count",
        )
    ]


def _about_the_negative_prompt(p: Any, hires: bool) -> list[Notice]:
    """Say so where the negative prompt holds tags: the WebUI leaves them there, and they are read as words."""
    texts = (getattr(p, "all_hr_negative_prompts", None) if hires else None) or getattr(p, "all_negative_prompts", None)
    found = dict.fromkeys(tag for text in texts or () for tag in _written_tags(text))
    if not found:
        return []
    named = ", ".join(f"<{tag}>" for tag in found)
    return [Notice("warning", f"{named} in the negative prompt is not applied; it is read as words there")]

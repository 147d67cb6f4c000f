"""The tags on this host: the parameters of the loaded pipeline's components show what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from modules import extra_networks
from modules.logger import log

from lora_runtime.dialects import DENOISERS
from lora_runtime.problems import found_in_calls
from lora_runtime.requests import Request

from ...engine.judging import Source
from ...engine.loading import Loader
from ...engine.models import Models
from ...engine.per_prompt import differs
from ...engine.session import Session
from ...engine.shown import identity
from ...prompts.notices import Notice, notice_of
from ..sdwebui.batch import KINDS, BatchPrompts
from ..sdwebui.settings import Settings
from ..sdwebui.tag_owner import TagOwner
from . import batch as batches
from .leftovers import about_fused, put_back
from .models import Checkpoint, Checkpoints, pipeline
from .steps import PipelineSteps
from .words import BundledWords

__all__ = ["LoraTags", "OtherKind"]

TEXT_ENCODERS = frozenset({"text_encoder", "text_encoder_2", "text_encoder_3"})
_LEVELS = {"error": log.error, "warning": log.warning}
NOTICES_FIELD, NAMES_FIELD = "LoRA notices", "LoRA networks"


class LoraTags(TagOwner):
    """The owner of the tags, with the session that patches the weights."""

    def __init__(
        self,
        session: Session,
        steps: PipelineSteps,
        models: Models,
        checkpoints: Checkpoints,
        loader: Loader,
        settings: Settings,
        presets: Callable[[], Mapping[str, str]],
    ) -> None:
        super().__init__(loader, settings, presets)
        self.session, self.models = session, models
        self._steps, self._checkpoints = steps, checkpoints
        self._words = BundledWords()
        self._one_by_one = False  # whether the prompts of this pass were encoded so
        self._left_out: frozenset[str] = frozenset()  # "te", "unet": components that are not to be changed

    # --- what SD.Next calls ---

    def activate(
        self,
        p: Any,
        params_list: list[Any],
        step: int = 0,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
    ) -> None:
        """Show what the tags ask for, and nothing else; `params_list` is empty where there are none.

        `exclude` has the components that SD.Next's settings leave alone, `include`, where it has any, all others.
        `step` is 0 at every call.
        """
        self._left_out = _left_out(tuple(include or ()), frozenset(exclude or ()))
        requests, notices = self.act(p, params_list, bool(getattr(p, "is_hr_pass", False)))
        self._mark(params_list, requests)
        names = dict.fromkeys(request.lora.name for request in requests)
        if names:
            p.extra_generation_params[NAMES_FIELD] = ", ".join(names)
        self.say(p, notices)

    def deactivate(self, p: Any, force: bool = False) -> None:
        """Forget the words of files, and say what only the pass itself has shown.

        `force` (LoRA force reload) gives the weights back.
        """
        self._words.forget()
        found = found_in_calls(self._steps.said, self.session.wanted)
        self.say(p, [*(notice_of(diagnostic, "") for diagnostic in found), *self._about_together()])
        if force:
            self.show_nothing()

    def encoded_one_by_one(self) -> None:
        """Know that the prompts of this pass were encoded one by one, each with the text encoders that it asks for."""
        self._one_by_one = True

    def before_batch(self, p: Any) -> None:
        """Give the weights back where SD.Next will not call `activate`, or somebody else."""
        if self._stopped:
            return
        owner = extra_networks.extra_network_registry.get(self.name)
        if owner is not self:
            self.lost_tags()
            other = type(owner).__module__
            self.say(p, [Notice("note", f"{other} has the tag <lora:…>; LoRA Runtime is idle")])
        elif p.disable_extra_networks:
            self.show_nothing()

    # --- what this host knows ---

    def read_batch(self, p: Any, params_list: Sequence[Any], hires: bool) -> BatchPrompts:
        """Return the prompts of this batch, with the tags that SD.Next has handed over."""
        return batches.read_batch(p, params_list, hires, self._parse)

    def about_texts(self, p: Any, batch: BatchPrompts, hires: bool) -> list[Notice]:
        """Return what there is to say of SD.Next's way with these texts."""
        # Rows are told by the number of prompts: what acts beside the modules has to begin anew for another one.
        if self._steps.images != max(1, len(batch.prompts)):
            self._steps.images = max(1, len(batch.prompts))
            if self._steps.watched:
                self.session.hide()
        return [
            *batches.about_changed_prompts(p, batch, hires),
            *batches.about_negative_tags(p),
            *batches.about_second_pass(p, batch, hires),
            *self._about_left_out(
                tag.name for prompt in batch.prompts for tag in prompt.tags if "te=" in tag.raw and tag.te
            ),
        ]

    def show(self, p: Any, requests: Sequence[Request], source: Source) -> tuple[Sequence[Request], list[Notice]]:
        """Make the checkpoint show these; they stay on its weights until the next call."""
        checkpoint = self._checkpoints.loaded()
        if checkpoint is None:
            return (), [Notice("error", "no LoRA is applied: no checkpoint is loaded")] if requests else []
        notices = self._about_builtin(checkpoint)
        asked = [self._without_left_out(request) for request in requests]
        self._one_by_one = False
        report, more = self.session.show(checkpoint, asked, source)
        wanted = self.session.wanted
        of_text = [lora.name for lora in report.loras if lora.used and not set(lora.targets) - TEXT_ENCODERS]
        words = self._words.teach(checkpoint.view(), wanted)
        return wanted, [*notices, *more, *self._about_left_out(of_text), *words]

    def show_nothing(self) -> None:
        """Give all weights back, and forget the words of files."""
        self._words.forget()
        self.session.show(None, ())

    def lost_tags(self) -> None:
        """Give all weights back; from now on the built-in may change some."""
        self.show_nothing()
        checkpoint = self._checkpoints.loaded()
        if checkpoint is not None:
            checkpoint.asked_builtin = False

    def loaded_model(self) -> Any | None:
        """Return the checkpoint that is loaded."""
        return self._checkpoints.loaded()

    def give_up(self) -> None:
        """Give all weights back, forget the words of files, and want nothing any more."""
        self._words.forget()
        self.session.forget()

    def tell(self, p: Any, notice: Notice) -> None:
        """Put a notice into SD.Next's log, and into the parameters that are saved with the picture."""
        _LEVELS.get(notice.severity, log.info)("LoRA Runtime: %s", notice)
        p.extra_generation_params[NOTICES_FIELD] = "; ".join(map(str, self.notices(p)))

    def tell_job(self, notices: list[Notice]) -> None:
        """Say something of the job whose tags are shown."""
        job = self._job and self._job()
        if job is not None:
            self.say(job, notices)

    def report(self, what: str) -> None:
        """Print the error that is being handled."""
        log.error("LoRA Runtime: %s", what, exc_info=True)

    def _about_builtin(self, checkpoint: Checkpoint) -> list[Notice]:
        """Take back what SD.Next's own LoRA has done to a checkpoint; say of each picture what cannot be."""
        if not checkpoint.asked_builtin:
            checkpoint.fused = put_back(pipeline(), checkpoint.view().components.values())
            checkpoint.asked_builtin = True
        return about_fused(checkpoint.fused)

    def _without_left_out(self, request: Request) -> Request:
        te = 0.0 if "te" in self._left_out else request.te
        return replace(request, te=te, unet=0.0 if "unet" in self._left_out else request.unet)

    def _about_left_out(self, names: Iterable[str]) -> list[Notice]:
        """Say of LoRAs that ask something of the text encoders alone, where these are left alone."""
        named = ", ".join(f'"{name}"' for name in dict.fromkeys(names))
        if "te" not in self._left_out or not named:
            return []
        return [
            Notice(
                "warning",
                f"the text encoder is left as it is, whatever is asked of it by {named}",
                'SD.Next applies LoRAs to it with the setting "LoRA native apply to text encoder"',
            )
        ]

    def _about_together(self) -> list[Notice]:
        """Say so where the text encoders could not show what each prompt of a batch asks for."""
        if self._one_by_one or not differs(self.session.wanted):
            return []
        return [
            Notice(
                "warning",
                "SD.Next has encoded the prompts of this batch together: of the LoRAs for the text encoders, all "
                "pictures have those of the first prompt",
                "use a batch size of 1 and a higher batch count",
            )
        ]

    @staticmethod
    def _mark(params_list: Sequence[Any], requests: Sequence[Request]) -> None:
        """Put what the text encoders show beside the first tag: SD.Next keeps encoded prompts by their tags."""
        for params in params_list:
            params.items = [item for item in params.items if not str(item).startswith(batches.CONTENT)]
        content = identity(request for request in requests if request.te != 0 or request.lora.embeddings)
        if params_list and content:
            params_list[0].items.append(f"{batches.CONTENT}{content}")


class OtherKind(extra_networks.ExtraNetwork):
    """Another kind of tag that the owner of `<lora:…>` reads in the same text, so that SD.Next knows it."""

    def activate(self, p: Any, params_list: list[Any], *_: Any, **__: Any) -> None:
        """Nothing: the owner has read it, or does so in a moment."""

    def deactivate(self, p: Any, force: bool = False) -> None:
        """Nothing, as in `activate`."""


OTHER_KINDS = KINDS[1:]


def _left_out(include: Sequence[str], exclude: frozenset[str]) -> frozenset[str]:
    """Return which strengths of requests are 0 for these lists of components."""

    def is_left_out(*names: str) -> bool:
        return exclude.issuperset(names) or bool(include and not set(names) & set(include))

    found = {"te"} if is_left_out("text_encoder") else set()
    return frozenset(found | ({"unet"} if is_left_out(*DENOISERS) else set()))

"""The nodes. A text with tags is the one truth: the others only help to write one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast, get_args

from lora_runtime.prompt import Curve, LoraTag, Prompt, format_tag, parse_prompt
from lora_runtime.prompt.strength import CURVES, Key, Position, Shape, Strength
from lora_runtime.prompt.tags import Dialect
from lora_runtime.report import Report
from lora_runtime.requests import Request

from ...console import say
from ...engine.shown import identity
from ...prompts.notices import Notice, notice_of
from . import files
from .tags import show

__all__ = ["NODES", "LoraSchedule", "LoraStack", "LoraTags"]

_CATEGORY = "LoRA Runtime"
_NONE = "None"  # no file, in the list of a row of the stack
_ROWS = 6
_BOTH = "both"
_STRENGTH = {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}
_DIALECTS = ("comfy", "a1111", "native")

Option = tuple[Any, dict[str, Any]]


class LoraTags:
    """A text with tags → the model and the text encoders with these LoRAs, and the text without the tags."""

    TITLE = "LoRA tags"
    DESCRIPTION = (
        "Applies all LoRAs of a text, <lora:name:strength>, in one sum: their order changes nothing. A tag that cannot "
        "be used costs itself alone, and the report says why."
    )
    CATEGORY = _CATEGORY
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL", "CLIP", "STRING", "STRING")
    RETURN_NAMES = ("model", "clip", "text", "report")
    OUTPUT_TOOLTIPS = (
        "the model with the LoRAs",
        "the text encoders with the LoRAs",
        "the text without the tags, for CLIP Text Encode",
        "what each LoRA changed, and what was left out and why",
    )
    # What each node has read last: the text and what its files were, and what the program was told of it.
    _read: ClassVar[dict[str, tuple[tuple[Any, ...], str, str]]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Option | str]]:
        """Return what can be wired and set."""
        text = {"multiline": True, "dynamicPrompts": True, "tooltip": "a prompt with tags: <lora:name:0.8>"}
        sides = "the LoRAs act on what is painted for this side of the guidance alone; wire the clip to its text"
        order = "of <lora:name:1:0.5> the first number is the model's (comfy), or the text encoder's (a1111)"
        return {
            "required": {"model": ("MODEL", {}), "text": ("STRING", text)},
            "optional": {
                "clip": ("CLIP", {}),
                "side": ([_BOTH, "positive", "negative"], {"default": _BOTH, "tooltip": sides}),
                "dialect": ([*_DIALECTS], {"default": _DIALECTS[0], "tooltip": order}),
                "drawn_from": (
                    "INT",
                    {"default": 0, "min": 0, "max": 2**64 - 1, "tooltip": "what random block weights are drawn from"},
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, unique_id: str = "", **given: Any) -> str:
        """Return another text where the files that the tags mean have other contents.

        A text that comes by a wire is not known here; then it is the one that the node has had last. So the answer
        stays until the files of that text are others.
        """
        if "text" in given:
            return _content_of(*_requests(*_options(given)))
        if unique_id not in cls._read:
            return ""
        options, content, said = cls._read[unique_id]
        now = _content_of(*_requests(*options))
        if now != content:
            said = now
            cls._read[unique_id] = options, now, now
        return said

    def apply(self, model: Any, text: str, clip: Any = None, unique_id: str = "", **given: Any) -> tuple[Any, ...]:
        """Return the MODEL and the CLIP with the LoRAs, the text without the tags and the report."""
        options = _options({"text": text, **given})
        prompt, requests, notices = _requests(*options)
        _, _, said = self._read.get(unique_id, ((), "", ""))
        self._read[unique_id] = options, _content_of(prompt, requests, notices), said
        shown = show(model, clip, requests, lambda _: prompt.source)
        notices = [*notices, *shown.notices]
        for notice in notices:
            say(str(notice))
        return shown.model, shown.clip, prompt.text, _report(shown.report, notices)


def _options(given: dict[str, Any]) -> tuple[str, str, str, int]:
    """Return the text, the side, the dialect and the number to draw from."""
    return given["text"], given.get("side", _BOTH), given.get("dialect", _DIALECTS[0]), given.get("drawn_from", 0)


def _requests(text: str, side: str, dialect: str, drawn_from: int) -> tuple[Prompt, list[Request], list[Notice]]:
    """Return the prompt, a request for each tag that can be used, and what there is to say."""
    prompt = parse_prompt(text, dialect=cast("Dialect", dialect))
    of_side = None if side == _BOTH else cast('Literal["positive", "negative"]', side)
    requests, notices = files.loader().load(prompt.tags, text, seed=drawn_from, side=of_side)
    return prompt, requests, [*(notice_of(diagnostic, text) for diagnostic in prompt.diagnostics), *notices]


def _content_of(prompt: Prompt, requests: Sequence[Request], notices: Sequence[Notice]) -> str:
    """Return what is equal only for the same contents of files, asked for in the same way, with the same notices."""
    return f"{identity(requests)} {' '.join(map(str, notices))}"


def _report(report: Report, notices: Sequence[Notice]) -> str:
    """Return the report as text."""
    return "\n".join([str(report), *map(str, notices)])


class LoraStack:
    """Files chosen from lists → a text with a tag for each."""

    TITLE = "LoRA stack to text"
    DESCRIPTION = "Writes a tag for each LoRA that is on, behind the text. Wire the text to LoRA tags."
    CATEGORY = _CATEGORY
    FUNCTION = "write"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = ("the text with the tags, for LoRA tags or for another stack",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Option]]:
        """Return what can be wired and set: a text, and rows of a file and its strengths."""
        choices = [_NONE, *files.names()]
        rows: dict[str, Option] = {}
        for row in range(1, _ROWS + 1):
            rows[f"on_{row}"] = ("BOOLEAN", {"default": True, "tooltip": "whether this LoRA is in the text"})
            rows[f"lora_{row}"] = (choices, {"default": _NONE, "tooltip": "a file in the folders of LoRAs"})
            rows[f"model_{row}"] = ("FLOAT", {**_STRENGTH, "tooltip": "its strength for the model"})
            rows[f"clip_{row}"] = ("FLOAT", {**_STRENGTH, "tooltip": "its strength for the text encoders"})
        text = {"multiline": True, "default": "", "tooltip": "the text before the tags; it may have tags of its own"}
        return {"required": {"text": ("STRING", text)}, "optional": rows}

    def write(self, text: str, **given: Any) -> tuple[str]:
        """Return the text with a tag for each row that is on and has a file."""
        return (_joined(text, *_tags_of_rows(given)),)


def _tags_of_rows(given: dict[str, Any]) -> Iterator[str]:
    for row in range(1, _ROWS + 1):
        name = given.get(f"lora_{row}", _NONE)
        if name != _NONE and given.get(f"on_{row}", True):
            model, clip = given.get(f"model_{row}", 1.0), given.get(f"clip_{row}", 1.0)
            yield _tag(name, clip, model)


def _tag(name: str, te: Strength, unet: Strength) -> str:
    """Return the tag for a file; its strengths have at most five digits, as widgets count in hundredths."""
    te, unet = (round(value, 5) if isinstance(value, float) else value for value in (te, unet))
    return format_tag(LoraTag(files.tag_name(name), te, unet), dialect="comfy")


def _joined(text: str, *tags: str) -> str:
    return " ".join(filter(None, [text, *tags]))


class LoraSchedule:
    """A strength that changes over the steps → a text with a tag that says so."""

    TITLE = "LoRA schedule to text"
    DESCRIPTION = (
        "Writes a tag whose strength changes over the steps, 0@0,1@0.5, behind the text. Text encoders run once: they "
        "have one strength."
    )
    CATEGORY = _CATEGORY
    FUNCTION = "write"
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("text", "schedule")
    OUTPUT_TOOLTIPS = ("the text with the tag, for LoRA tags or for a stack", "the strength alone, as a tag has it")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Option]]:
        """Return what can be wired and set."""
        text = {"multiline": True, "default": "", "tooltip": "the text before the tag; it may have tags of its own"}
        place = {"min": 0.0, "max": 1.0, "step": 0.01}
        curve = "how the strength goes from one to the other; hold stays with the first until the last place"
        return {
            "required": {
                "text": ("STRING", text),
                "lora": ([_NONE, *files.names()], {"default": _NONE, "tooltip": "None: write the schedule alone"}),
                "first": ("FLOAT", {**_STRENGTH, "default": 0.0, "tooltip": "the strength up to the first place"}),
                "first_at": (
                    "FLOAT",
                    {**place, "default": 0.0, "tooltip": "where the change begins: 0 is the first step"},
                ),
                "last": ("FLOAT", {**_STRENGTH, "tooltip": "the strength from the last place on"}),
                "last_at": ("FLOAT", {**place, "default": 1.0, "tooltip": "where the change ends: 1 is the last step"}),
                "curve": ([*CURVES], {"default": "linear", "tooltip": curve}),
                "clip": ("FLOAT", {**_STRENGTH, "default": 0.0, "tooltip": "the strength for the text encoders"}),
            }
        }

    def write(
        self,
        text: str,
        lora: str,
        first: float,
        first_at: float,
        last: float,
        last_at: float,
        curve: str,
        clip: float,
    ) -> tuple[str, str]:
        """Return the text with the tag, and the strength as text; the earlier place comes first."""
        if curve not in get_args(Shape):
            raise ValueError(f"no curve is called {curve!r}; there are {', '.join(CURVES)}")
        ends = sorted([(first_at, first), (last_at, last)], key=lambda end: end[0])
        keys = tuple(Key(round(value, 5), Position(round(place, 5))) for place, value in ends)
        strength = Curve(keys, cast("Shape", curve))
        tags = [] if lora == _NONE else [_tag(lora, clip, strength)]
        return _joined(text, *tags), str(replace(strength, shape="linear"))


NODES: dict[str, type[Any]] = {
    "LoraRuntimeTags": LoraTags,
    "LoraRuntimeStack": LoraStack,
    "LoraRuntimeSchedule": LoraSchedule,
}

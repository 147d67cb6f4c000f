"""What a panel asks of its host, each question with what came over the network: of any type, and looked at by hand.

A question is a name and the JSON of a request; an answer is a status of HTTP and a table that JSON can hold. What is
asked wrongly has a reason in "detail", what cannot be done has one in "error".
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_runtime.errors import LoraError
from lora_runtime.panel.changes import edit
from lora_runtime.panel.completion import complete
from lora_runtime.panel.library import Library
from lora_runtime.panel.masks import all_masks, mask_shade
from lora_runtime.panel.presets import keep_preset, list_of
from lora_runtime.panel.rows import tags
from lora_runtime.panel.sets import all_sets, drop_set, keep_set
from lora_runtime.prompt import parse_prompt
from lora_runtime.prompt.edits import EditError, with_arguments
from lora_runtime.prompt.presets import common_presets
from lora_runtime.prompt.tags import Scope

__all__ = ["PromptFacts", "Questions"]

# Servers have some tens of threads for all that they are asked: a prompt that is being typed must not take all of them.
_AT_ONCE = 4
_SECONDS_IN_LINE = 2.0
_LONGEST = 100_000  # characters of a prompt
_PLACES_AND_TIMES = dict.fromkeys(("box", "mask", "soft", "start", "stop", "step"))

Answer = tuple[int, dict[str, Any]]
Body = Mapping[str, Any]


@dataclass(frozen=True)
class PromptFacts:
    """How prompts are read now: block weights by name, the scope of tags, and the blocks of the loaded model."""

    presets: Mapping[str, str] = field(default_factory=common_presets)
    scope: Scope = "all"
    blocks: Sequence[str] = ()


class Questions:
    """The questions that a host answers. Safe to use from several threads."""

    def __init__(
        self,
        library: Callable[[], Library],
        facts: Callable[[], PromptFacts] = PromptFacts,
        folders: Callable[[], Sequence[str | os.PathLike[str]]] = tuple,
        conflicts: Callable[[str], dict[str, Any]] | None = None,
    ) -> None:
        """Take what gives the files and how prompts are read, for one question.

        `fetched` are the questions that come without a body, `posted` all others. Sets and presets are kept, and masks
        found, in `folders`, new ones in the first. `conflicts` gives what the LoRAs of a prompt do to each other,
        where and when all of them act: see `lora_runtime.workbench.conflicts`.
        """
        self._library, self._facts, self._folders = library, facts, folders
        turns, one = threading.BoundedSemaphore(_AT_ONCE), threading.BoundedSemaphore(1)
        known: dict[str, Callable[[Body], dict[str, Any]]] = {
            "tags": self._tags,
            "edit": self._edit,
            "complete": self._complete,
            "save-set": lambda body: keep_set(folders(), body.get("name"), body.get("text")),
            "delete-set": lambda body: drop_set(folders(), body.get("name")),
            "save-preset": self._save_preset,
            "sets": lambda _: all_sets(folders()),
            "masks": lambda _: all_masks(folders()),
        }
        self._known = {name: (turns, ask) for name, ask in known.items()}
        if conflicts is not None:  # it reads files, for seconds
            self._known["conflicts"] = (one, lambda body: conflicts(self._together(_prompt(body))))
        self.fetched = ("sets", "masks")
        self.posted = tuple(name for name in self._known if name not in self.fetched)

    def answer(self, name: str, body: object = None) -> Answer:
        """Return the answer to one of the questions, whatever came with it."""
        given = body if isinstance(body, Mapping) else {}
        turns, ask = self._known[name]
        if not turns.acquire(timeout=_SECONDS_IN_LINE):
            return 503, {"detail": "others are first; ask again"}
        try:
            return 200, ask(given)
        except _WrongError as error:
            return 422, {"detail": str(error)}
        except (LoraError, EditError) as error:
            return 200, {"error": str(error)}
        except OSError as error:
            return 200, {"error": f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")}
        finally:
            turns.release()

    def mask(self, name: object) -> bytes | None:
        """Return a PNG that darkens what a mask leaves out, None where there is no such mask, or others are first."""
        turns, _ = self._known["masks"]
        if not turns.acquire(timeout=_SECONDS_IN_LINE):
            return None
        try:
            return mask_shade(self._folders(), name)
        finally:
            turns.release()

    def _tags(self, body: Body) -> dict[str, Any]:
        now = self._facts()
        return tags(_prompt(body), self._library(), presets=now.presets, blocks=now.blocks, scope=now.scope)

    def _edit(self, body: Body) -> dict[str, Any]:
        prompt, index, name = _prompt(body), _number(body, "tag"), _text(body, "field")
        now = self._facts()
        return edit(prompt, index, name, body.get("value"), presets=now.presets, scope=now.scope)

    def _complete(self, body: Body) -> dict[str, Any]:
        prompt, cursor, now = _prompt(body), _number(body, "cursor"), self._facts()
        return complete(prompt, cursor, self._library(), presets=now.presets, blocks=now.blocks)

    def _together(self, prompt: str) -> str:
        """Return the tags of a prompt without their places and times: what they do where and when all of them act."""
        now, made = self._facts(), []
        for tag in parse_prompt(prompt, scope=now.scope, presets=now.presets).tags:
            try:
                made.append(with_arguments(tag.raw, _PLACES_AND_TIMES, now.presets))
            except EditError:  # what else is wrong with it is said by who reads it
                made.append(tag.raw)
        return " ".join(made)

    def _save_preset(self, body: Body) -> dict[str, Any]:
        prompt, index, now = _prompt(body), _number(body, "tag"), self._facts()
        read = parse_prompt(prompt, scope=now.scope, presets=now.presets).tags
        if not 0 <= index < len(read):
            raise EditError(f"there is no tag {index + 1}: the prompt has {len(read)}")
        weights = list_of(read[index], now.blocks, now.presets)
        keep_preset(self._folders(), body.get("name"), weights, now.presets)
        return {"saved": str(body["name"]).strip()}


class _WrongError(Exception):
    """What was asked is no question."""


def _prompt(body: Body) -> str:
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or len(prompt) > _LONGEST:
        raise _WrongError(f"prompt: a text of at most {_LONGEST:,} characters is expected")
    return prompt


def _number(body: Body, name: str) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _WrongError(f"{name}: a whole number is expected")
    return value


def _text(body: Body, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise _WrongError(f"{name}: a text is expected")
    return value

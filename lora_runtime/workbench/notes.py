"""The metadata of what is written: what tools read of a LoRA, what it was made from, and its parents' trigger words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lora_runtime import __version__

__all__ = ["MADE_FROM", "Parent", "notes_of"]

MADE_FROM = "lora_runtime.made_from"
# What was true of a parent's tensors only. PEFT's configuration has alphas, which the new tensors have no more.
_STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "lora_adapter_metadata")
_PHRASE, _TAGS = "modelspec.trigger_phrase", "ss_tag_frequency"


class Parent(Protocol):
    """A file that something is made of: a Lora is one."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    @property
    def sha256(self) -> str:
        """The hash of all of it, hex."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """What it says of itself."""
        ...


def notes_of(
    parents: Sequence[tuple[Parent, Mapping[str, Any]]],
    verb: str,
    options: Mapping[str, Any],
    ranks: Sequence[int],
    alphas: Sequence[float],
) -> dict[str, str]:
    """Return the metadata of a file made by `verb` from these files, each with what was asked of it.

    Of several parents only what they agree in is theirs; trigger words and tags of all are kept. `ranks` and `alphas`
    are the different ones of the new file.
    """
    loras = [lora for lora, _ in parents]
    first = loras[0].metadata
    made = {
        key: value
        for key, value in first.items()
        if key not in _STALE and all(lora.metadata.get(key) == value for lora in loras)
    }
    if len(loras) > 1 and (phrases := _words(lora.metadata.get(_PHRASE, "") for lora in loras)):
        made[_PHRASE] = phrases
    if len(loras) > 1 and (tags := _tags(loras)):
        made[_TAGS] = tags
    if ranks:
        dim = _one_of(ranks)
        alpha = _one_of(alphas) if alphas else dim
        made |= {"ss_network_module": "networks.lora", "ss_network_dim": dim, "ss_network_alpha": alpha}
        made.pop("ss_network_args", None)  # the convolutions' dim and alpha, a preset, a split: all of the parent
    files = [{"name": lora.name, "sha256": lora.sha256, **asked} for lora, asked in parents]
    note = {"version": __version__, "verb": verb, "files": files, **options}
    return {**made, MADE_FROM: json.dumps(note)}


def _one_of(numbers: Sequence[float]) -> str:
    """Return the one number, or the word that kohya's tools write for several."""
    return f"{numbers[0]:g}" if len(numbers) == 1 else "Dynamic"


def _words(phrases: Any) -> str:
    """Return the words of all phrases, each once, with commas between them."""
    words = (word.strip() for phrase in phrases for word in phrase.split(","))
    return ", ".join(dict.fromkeys(filter(None, words)))


def _tags(loras: Sequence[Parent]) -> str:
    """Return kohya's table of tags, folder by folder; one that is no JSON tells nothing."""
    table: dict[str, Any] = {}
    for lora in loras:
        try:
            own = json.loads(lora.metadata.get(_TAGS, "{}"))
        except ValueError:
            continue
        for folder, counts in (own if isinstance(own, dict) else {}).items():
            name = folder if folder not in table or table[folder] == counts else f"{folder} ({lora.name})"
            table[name] = counts
    return json.dumps(table) if table else ""

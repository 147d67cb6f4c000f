"""What kohya's trainer wrote into a file's metadata, told for people: a table, the captions' tags, a random prompt.

Metadata come from strangers. Nothing in them makes these functions raise: what cannot be read is left out.
"""

from __future__ import annotations

import datetime
import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Fact", "facts", "random_prompt", "tag_counts", "toggle_tag"]

_PLAIN_FACTS = (
    ("ss_output_name", "Output name"),
    ("ss_sd_model_name", "Model"),
    ("ss_clip_skip", "Clip skip"),
    ("ss_network_module", "Kohya module"),
)
_SHOWN_RESOLUTIONS = 4
# From this average length on, the "tags" are captions in whole sentences, and are cut into words.
_CAPTION_LENGTH = 16
_WORD = re.compile(r"[-_\w']+")
_SHORTEST_WORD = 3
# Strength and alternation in the WebUI's prompts.
_PROMPT_SYNTAX = re.compile(r"[()\[\]{}]")
_MAX_COUNT = 10**15


class Fact(NamedTuple):
    """One line of the table, as plain text; `hint` is what a cut text leaves out."""

    label: str
    text: str
    hint: str = ""


def facts(metadata: Mapping[str, str]) -> list[Fact]:
    """Return what the training metadata tell, in the order in which it is shown; [] where they tell nothing."""
    found = []
    for key, label in _PLAIN_FACTS:
        value = metadata.get(key)
        if isinstance(value, str) and value not in ("", "None"):
            found.append(Fact(label, value))
    if trained := _date(metadata.get("ss_training_started_at")):
        found.append(Fact("Date trained", trained))
    if resolutions := _resolutions(metadata):
        shown = ", ".join(resolutions[:_SHOWN_RESOLUTIONS])
        label = "Resolutions" if len(resolutions) > 1 else "Resolution"
        if len(resolutions) > _SHOWN_RESOLUTIONS:
            found.append(Fact(label, f"{shown}, …", ", ".join(resolutions)))
        else:
            found.append(Fact(label, shown))
    if images := _images(metadata):
        found.append(Fact("Dataset size", str(images)))
    return found


def tag_counts(metadata: Mapping[str, str]) -> list[tuple[str, int]]:
    """Return the captions' tags and how often each occurs, the most frequent first.

    Where the captions are sentences (16 characters or more on average), their words of three and more letters instead.
    """
    tags: dict[str, int] = {}
    for counts in _table(metadata.get("ss_tag_frequency")).values():
        for tag, given in _items(counts):
            if (count := _count(given)) and (name := tag.strip()):
                tags[name] = tags.get(name, 0) + count
    if tags and sum(map(len, tags)) / len(tags) >= _CAPTION_LENGTH:
        words: dict[str, int] = {}
        for text, count in tags.items():
            for word in _WORD.findall(text):
                if len(word) >= _SHORTEST_WORD:
                    words[word] = words.get(word, 0) + count
        tags = words
    return sorted(tags.items(), key=lambda item: item[1], reverse=True)


def random_prompt(tags: Sequence[tuple[str, int]], chance: random.Random | None = None) -> str:
    """Return a prompt as the captions might have it: each tag with the chance that its count has beside the highest.

    `chance` may be seeded. The signs that mean strength in a prompt get a backslash.
    """
    chance = chance or random.Random()
    highest = max((count for _, count in tags), default=0)
    drawn = [tag for tag, count in tags if chance.random() * highest < count]
    return ", ".join(sorted(_PROMPT_SYNTAX.sub(r"\\\g<0>", tag) for tag in drawn))


def toggle_tag(text: str, tag: str) -> str:
    """Return an activation text with the tag added at its end, or taken out where it is one of its parts."""
    parts = [part.strip() for part in text.split(",")]
    if tag in parts:
        return ", ".join(part for part in parts if part and part != tag)
    return f"{text}, {tag}" if text.strip() else tag


def _resolutions(metadata: Mapping[str, str]) -> list[str]:
    """Return the buckets' sizes as width x height, those of most pictures first."""
    counts: dict[str, int] = {}
    for _, bucket in _items(_table(metadata.get("ss_bucket_info")).get("buckets")):
        if not isinstance(bucket, dict):
            continue
        resolution = bucket.get("resolution")
        if not isinstance(resolution, list) or len(resolution) != 2:
            continue
        width, height = map(_count, resolution)  # the order of sd-scripts' bucket manager
        if height and width:
            name = f"{width}x{height}"
            counts[name] = counts.get(name, 0) + _count(bucket.get("count"))
    return sorted(counts, key=lambda name: counts[name], reverse=True)


def _images(metadata: Mapping[str, str]) -> int:
    folders = _table(metadata.get("ss_dataset_dirs")).values()
    return sum(_count(folder.get("img_count")) for folder in folders if isinstance(folder, dict))


def _date(value: str | None) -> str:
    """Return the time of a Unix time stamp, in UTC."""
    try:
        when = datetime.datetime.fromtimestamp(float(value or ""), datetime.timezone.utc)
    except (TypeError, ValueError, OverflowError, OSError):
        return ""
    return when.strftime("%Y-%m-%d %H:%M")


def _table(text: object) -> dict[str, Any]:
    """Return the JSON table in a metadata value; {} where there is none."""
    if not isinstance(text, str):
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _items(value: object) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _count(value: object) -> int:
    """Return a count from 0, however it is written; 0 where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return 0
    try:
        count = int(value)
    except (ValueError, OverflowError):
        return 0
    return count if 0 < count <= _MAX_COUNT else 0

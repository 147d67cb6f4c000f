"""Embeddings that are bundled in a LoRA file: words that the CLIP of the clone knows, written as the program has them.

The program finds `embedding:ink` in a text when it tokenizes it, and looks for a file of that name. A tokenizer of ours
is a copy of the clone's that then looks among the words of the clone's LoRA files; the program's own files come first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from lora_runtime.requests import Request

from ...prompts.notices import Notice

__all__ = ["with_words"]

_Words = Mapping[str, Tensor]
_Found = tuple[Tensor | None, str]  # the vectors of a word, (tokens, width), and the text behind it


def with_words(clip: Any, requests: Sequence[Request]) -> list[Notice]:
    """Give a CLIP a tokenizer that knows the words of these files too; return what there is to say of them.

    `clip` is None where a node has none.
    """
    bundled = {
        (name, request.lora.name): tensors for request in requests for name, tensors in request.lora.embeddings.items()
    }
    if not bundled:
        return []
    parts = dict(_parts(clip.tokenizer)) if clip is not None else {}
    words: dict[str, dict[str, Tensor]] = {place: {} for place in parts}
    notices = []
    for (name, file), tensors in bundled.items():
        for place, part in parts.items():
            vectors = _vectors(tensors, part)
            if vectors is not None:
                words[place].setdefault(name, vectors)
        if any(name in known for known in words.values()):
            notices.append(
                Notice("note", f'"{file}" brings the word "{name}" along', f"write embedding:{name} in a text")
            )
        else:
            notices.append(Notice("warning", f'the embedding "{name}" in "{file}" is not loaded: {_why(clip, parts)}'))
    if parts:
        clip.tokenizer = copy.copy(clip.tokenizer)
        for place, part in parts.items():
            known = copy.copy(part)
            known._try_get_embedding = _reader(part._try_get_embedding, words[place])
            setattr(clip.tokenizer, place, known)
    return notices


def _why(clip: Any, parts: Mapping[str, Any]) -> str:
    """Return why no text encoder can read a word."""
    if clip is None:
        return "the node has no CLIP"
    if not parts:
        return "this CLIP reads no embeddings"
    widths = dict.fromkeys(str(part.embedding_size) for part in parts.values())
    return f"it is not as wide as this CLIP's words are, {' and '.join(widths)}"


def _parts(tokenizer: Any) -> Iterator[tuple[str, Any]]:
    """Yield the tokenizers of the single text encoders, those that look for embeddings."""
    for name, part in vars(tokenizer).items():
        if callable(getattr(part, "_try_get_embedding", None)):
            yield name, part


def _vectors(tensors: _Words, part: Any) -> Tensor | None:
    """Return what a file has for one text encoder: under its key, or all that it has, where the width is right."""
    found = tensors.get(part.embedding_key, next(iter(tensors.values())) if len(tensors) == 1 else None)
    if found is None or found.ndim not in (1, 2) or found.shape[-1] != part.embedding_size:
        return None
    return found.reshape(-1, part.embedding_size)


def _reader(original: Callable[[str], _Found], words: _Words) -> Callable[[str], _Found]:
    """Return what reads a text behind "embedding:", as the program's own does; the first word may end in a comma."""

    def read(text: str) -> _Found:
        found, behind = original(text)
        if found is None:
            first, *rest = text.split()
            name = first.rstrip(",")
            if name in words:
                return words[name], " ".join([first[len(name) :], *rest]).strip()
        return found, behind

    return read

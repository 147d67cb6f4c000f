"""Textual inversions that a LoRA file brings along: words that its pipeline knows while the file is applied.

A word is a token of the pipeline's tokenizer and a vector for its text encoder. The tokenizer is given the state of a
copy that knows the words, and gets its own state back afterwards. The table of the text encoder stays as it is: a hook
puts the vectors where the words stand, so that nothing of it must be resized, written or given back.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lora_runtime.hooks import Endings, hook_after, hook_before
from lora_runtime.pipelines import ModelView
from lora_runtime.requests import Request

__all__ = ["load_embeddings", "spelled_out"]

logger = logging.getLogger("lora_runtime")

Span = tuple[int, int]
Tell = Callable[[str, str, Span], None]  # message, hint, place in the prompt
Note = Callable[[str, Span], None]

_HINT = "the word stays a word like any other"
# What files call the vectors of SDXL's two encoders.
_PLACES = {"clip_l": 0, "clip_g": -1}


def load_embeddings(view: ModelView, requests: Sequence[Request], tell: Tell, note: Note, endings: Endings) -> None:
    """Teach the pipeline the words of these files; the endings make it forget them.

    `tell` is told of each word that cannot be taught, `note` of the others. The vectors of a word have the names that
    diffusers gives them: "ink", "ink_1", "ink_2".
    """
    known: dict[str, str] = {}
    for request in requests:
        for name, tensors in request.lora.embeddings.items():
            if name in known:
                if known[name] != request.lora.sha256:
                    tell(
                        f'"{name}" of "{request.lora.name}" is not loaded: another file has it too',
                        "",
                        request.span,
                    )
                continue
            known[name] = request.lora.sha256
            problem = _teach(view, name, tensors, endings)
            if problem:
                message = f'the embedding "{name}" in "{request.lora.name}" is not loaded: {problem}'
                tell(message, _HINT, request.span)
            else:
                note(f'"{request.lora.name}" brings the word "{name}" along, which the prompt can use', request.span)


def spelled_out(view: ModelView, requests: Iterable[Request], text: str) -> str:
    """Return a prompt with each word of several vectors as that many words, where the pipeline leaves that out."""
    if view.ask("maybe_convert_prompt") is not None or view.ask("tokenizer") is None:
        return text
    for name, tensors in dict(item for request in requests for item in request.lora.embeddings.items()).items():
        count = max((_rows(tensor).shape[0] for tensor in tensors.values() if tensor.ndim in (1, 2)), default=1)
        text = text.replace(name, " ".join(_tokens(name, count)))
    return text


def _teach(view: ModelView, name: str, tensors: Mapping[str, Tensor], endings: Endings) -> str:
    """Teach one word to the encoders that it is for; return why that cannot be, or ""."""
    encoders = dict(_encoders(view))
    if not encoders:
        return "this model has no tokenizer with a text encoder"
    taught: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        vectors = _rows(tensor) if tensor.ndim in (1, 2) and tensor.is_floating_point() else None
        if vectors is None:
            return f"{key} is no vector and no list of vectors"
        if not len(vectors):
            return f"{key} is a list of no vectors"
        fitting = [
            encoder
            for encoder, (_, table) in encoders.items()
            if table.embedding_dim == vectors.shape[1] and encoder not in taught
        ]
        if not fitting:
            widths = " and ".join(str(table.embedding_dim) for _, table in encoders.values())
            return f"it is made for words {vectors.shape[1]} wide, those of this model are {widths} wide"
        taught[fitting[_PLACES.get(key, 0)]] = vectors
    for encoder, vectors in taught.items():
        tokenizer, table = encoders[encoder]
        tokens = _tokens(name, len(vectors))
        vocabulary = tokenizer.get_vocab()
        if any(token in vocabulary for token in tokens):
            return "its name is a word of the tokenizer already"
        words = _Words(tokens, vectors)
        _book_of(tokenizer).add(words, endings)
        for module in _tables(view.components[encoder], table):
            hook_before(module, words.before, endings)
            hook_after(module, words.after, endings)
    return ""


def _encoders(view: ModelView) -> Iterator[tuple[str, tuple[Any, nn.Embedding]]]:
    """Yield the text encoders that have a tokenizer which words can be added to, with it and the table of words."""
    for name, module in view.components.items():
        if name.startswith("text_encoder"):
            tokenizer = view.ask(name.replace("text_encoder", "tokenizer"))
            inputs: Any = getattr(module, "get_input_embeddings", None)
            table = None if inputs is None else inputs()
            if hasattr(tokenizer, "add_tokens") and isinstance(table, nn.Embedding):
                yield name, (tokenizer, table)


def _tables(encoder: nn.Module, table: nn.Embedding) -> list[nn.Embedding]:
    """Return the modules of an encoder that look words up in the table's weight: T5 has it in two."""
    return [each for each in encoder.modules() if isinstance(each, nn.Embedding) and (each.weight is table.weight)]


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(1, -1) if tensor.ndim == 1 else tensor


def _tokens(name: str, count: int) -> list[str]:
    return [name, *(f"{name}_{index}" for index in range(1, count))]


@dataclass(eq=False)
class _Words:
    """The tokens of one word and their vectors, (tokens, width); `first` is the id of the first token."""

    tokens: Sequence[str]
    vectors: Tensor
    first: int = 0

    def __post_init__(self) -> None:
        self._asked: list[Tensor] = []  # the ids of the calls that have not come back

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Have the table asked for another word where it does not have this one."""
        ids = args[0] if args else kwargs["input"]
        self._asked.append(ids)
        known = torch.where(self._places(ids), torch.zeros_like(ids), ids)
        return ((known, *args[1:]), kwargs) if args else (args, {**kwargs, "input": known})

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """Put the vectors in the places of the word."""
        ids = self._asked.pop()
        places = self._places(ids)
        rows = (ids - self.first).clamp(0, len(self.vectors) - 1)
        vectors = self.vectors.to(output.device, output.dtype)
        return torch.where(places.unsqueeze(-1), vectors[rows.to(output.device)], output)

    def _places(self, ids: Tensor) -> Tensor:
        return (ids >= self.first) & (ids < self.first + len(self.tokens))


class _Book:
    """The words that one tokenizer has learnt here; several pipelines may share it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = weakref.ref(tokenizer)
        self._own = dict(vars(tokenizer))
        self._words: list[_Words] = []
        self._shown = set(tokenizer.get_added_vocab())  # the tokens that it had when it was last written

    def add(self, words: _Words, endings: Endings) -> None:
        """Teach the tokenizer these words; the ending makes it forget them."""

        def forget() -> None:
            if words in self._words:
                self._words.remove(words)
            tokenizer = self._tokenizer()
            if tokenizer is not None and _books.get(tokenizer) is self:  # again where an interrupt cut it short
                self._write()

        endings.append(forget)
        self._words.append(words)
        self._write()

    def _write(self) -> None:
        tokenizer = self._tokenizer()
        if tokenizer is None:
            return
        strange = sorted(set(tokenizer.get_added_vocab()) - self._shown)
        if strange:  # their ids follow those of the words, which the tokenizer will not have
            logger.warning(
                "%s: added to the tokenizer while a LoRA file's own words were taught to it, and taken out with these: "
                "add tokens before apply, or after restore",
                ", ".join(map(repr, strange)),
            )
            self._shown.update(strange)
        state = vars(tokenizer)
        state.clear()
        state.update(self._own)
        if not self._words:
            _books.pop(tokenizer, None)  # last: until then it is written once more
            return
        from transformers import AddedToken

        state.update(vars(copy.deepcopy(tokenizer)))
        for words in self._words:
            # As written: normalised, a word with capitals would not be known by its name, nor its other tokens at all.
            tokenizer.add_tokens([AddedToken(token, normalized=False) for token in words.tokens])
            words.first = tokenizer.convert_tokens_to_ids(words.tokens[0])
        self._shown = set(tokenizer.get_added_vocab())


_books: weakref.WeakKeyDictionary[Any, _Book] = weakref.WeakKeyDictionary()


def _book_of(tokenizer: Any) -> _Book:
    found = _books.get(tokenizer)
    if found is None:
        found = _books[tokenizer] = _Book(tokenizer)
    return found

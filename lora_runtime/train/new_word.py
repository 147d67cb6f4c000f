"""A new word, learnt beside the layers: Textual Inversion, Gal et al. 2022, arXiv:2208.01618.

The tokenizer's copy knows the word, and a hook puts the vectors in training where it stands. So the table of the text
encoder stays as it is, and only the new vectors get gradients. In a file it is a bundled embedding (`bundle_emb.…`), as
OneTrainer writes them and the WebUI and this library read them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lora_runtime.errors import TrainingError
from lora_runtime.train.config import Config
from lora_runtime.train.models import Model

__all__ = ["NewWord"]

_PLACES = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
_ONLY = "string_to_param.*"  # what a file calls the vectors where there is one encoder


@dataclass(frozen=True, eq=False)
class _Taught:
    """The word in one encoder: its own tokenizer, the one that knows the word, and the vectors (tokens, width)."""

    component: str
    tokenizer: str  # the name of the pipeline's
    plain: Any
    knowing: Any
    first: int  # the id of the first token
    table: nn.Embedding
    vectors: nn.Parameter


class NewWord:
    """A word that a pipeline knows until `take_off`, but not within `aside`."""

    def __init__(self, model: Model, config: Config) -> None:
        """Teach it; TrainingError where it cannot be taught."""
        self._pipe, self._word = model.pipe, config.token_string
        count = config.num_vectors_per_token
        tokens = [self._word, *(f"{self._word}_{number}" for number in range(1, count))]
        if not model.has_words:
            raise TrainingError(f"token_string: {type(model.pipe).__name__} can learn no word; SD1, SD2 and SDXL can")
        if "." in self._word:
            raise TrainingError(f"token_string {self._word}: no dot may be in it, as a file could not name it")
        self._taught: list[_Taught] = []
        generator = torch.Generator().manual_seed(config.seed)
        for component, encoder in model.trainable_encoders.items():
            name = component.replace("text_encoder", "tokenizer")
            plain = getattr(model.pipe, name)
            if any(token in plain.get_vocab() for token in tokens):
                raise TrainingError(f"token_string {self._word}: the tokenizer has that word already; give another")
            knowing = copy.deepcopy(plain)
            knowing.add_tokens(tokens)
            table: nn.Embedding = encoder.get_input_embeddings()  # type: ignore[operator]
            vectors = nn.Parameter(_first_vectors(plain, table, config.init_word, count, generator))
            first = knowing.convert_tokens_to_ids(tokens[0])
            self._taught.append(_Taught(component, name, plain, knowing, first, table, vectors))
        self._hooks: list[Any] = []
        self._put_on()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the vectors in training by encoder, (tokens, width) float32 each."""
        return {f"{each.component}.{self._word}": each.vectors for each in self._taught}

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return what a file says: copies in `dtype` by key."""
        alone = len(self._taught) == 1
        return {
            f"bundle_emb.{self._word}.{_ONLY if alone else _PLACES[each.component]}": each.vectors.detach().to(
                "cpu", dtype, copy=True
            )
            for each in self._taught
        }

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Have the pipeline know nothing of the word for a `with` block."""
        self.take_off()
        try:
            yield
        finally:
            self._put_on()

    def _put_on(self) -> None:
        for each in self._taught:
            setattr(self._pipe, each.tokenizer, each.knowing)
            self._hooks += _hooks(each)

    def take_off(self) -> None:
        """Give the pipeline its own tokenizers back."""
        for each in self._taught:
            setattr(self._pipe, each.tokenizer, each.plain)
        while self._hooks:
            self._hooks.pop().remove()


def _hooks(word: _Taught) -> list[Any]:
    """Put the vectors where the word stands, whose ids the table itself has no rows for."""
    asked: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        asked.append(args[0])
        return (torch.where(args[0] >= word.first, torch.zeros_like(args[0]), args[0]), *args[1:])

    def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        ids = asked.pop()
        rows = (ids - word.first).clamp(min=0)
        return torch.where((ids >= word.first).unsqueeze(-1), word.vectors[rows].to(output.dtype), output)

    return [word.table.register_forward_pre_hook(before), word.table.register_forward_hook(after)]


def _first_vectors(tokenizer: Any, table: nn.Embedding, meaning: str, count: int, generator: torch.Generator) -> Tensor:
    """Return what the word means at first, (count, width) float32: the tokens of `meaning` in turn, or noise as wide
    as the table's own numbers.
    """
    weight = table.weight.detach().float()
    if not meaning:
        return torch.randn(count, weight.shape[1], generator=generator).to(weight.device) * weight.std()
    ids = tokenizer(meaning, add_special_tokens=False)["input_ids"]
    if not ids:
        raise TrainingError(f"init_word {meaning!r}: the tokenizer makes nothing of it; give a word that it has")
    return weight[[ids[number % len(ids)] for number in range(count)]].clone()

"""What the program puts round a model's text encoders while it runs, and takes off to load other weights."""

from __future__ import annotations

from typing import Any

import torch
from modules.textual_inversion.textual_inversion import EmbeddingDatabase
from torch import nn


class Wrapped(nn.Module):
    """Something in a model with something of the program's around it."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.wrapped = inside

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Return numbers for texts."""
        return [[ord(letter) for letter in text] for text in texts]


class StableDiffusionModelHijack:
    """Puts the wrappers on and takes them off."""

    def __init__(self) -> None:
        self.embedding_db = EmbeddingDatabase()
        self.comments: list[str] = []

    def hijack(self, model: Any) -> None:
        """Wrap each text encoder and its table of tokens."""
        if hasattr(model, "conditioner"):
            embedders = model.conditioner.embedders
            for index, embedder in enumerate(embedders):
                if hasattr(embedder, "transformer") or hasattr(embedder, "model"):
                    embedders[index] = self._wrap(embedder)
            model.conditioner.wrapped = nn.Module()
            model.conditioner.tokenize = Wrapped(nn.Module()).tokenize
            model.cond_stage_model = model.conditioner
        elif hasattr(model, "cond_stage_model"):
            model.cond_stage_model = self._wrap(model.cond_stage_model)

    def undo_hijack(self, model: Any) -> None:
        """Take all of it off again."""
        if hasattr(model, "conditioner"):
            embedders = model.conditioner.embedders
            for index, embedder in enumerate(embedders):
                if isinstance(embedder, Wrapped):
                    embedders[index] = self._unwrap(embedder)
            del model.conditioner.wrapped
            del model.cond_stage_model
        elif hasattr(model, "cond_stage_model"):
            model.cond_stage_model = self._unwrap(model.cond_stage_model)

    @staticmethod
    def _wrap(encoder: nn.Module) -> Wrapped:
        holder = _holder_of_tokens(encoder)
        holder.token_embedding = Wrapped(holder.token_embedding)
        return Wrapped(encoder)

    @staticmethod
    def _unwrap(wrapped: Wrapped) -> nn.Module:
        holder = _holder_of_tokens(wrapped.wrapped)
        holder.token_embedding = holder.token_embedding.wrapped
        return wrapped.wrapped


def _holder_of_tokens(encoder: Any) -> Any:
    """Return the module whose `token_embedding` is the table of tokens: OpenCLIP's, or that of transformers."""
    if hasattr(encoder, "model"):
        return encoder.model
    return getattr(encoder.transformer, "text_model", encoder.transformer).embeddings


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's weights by the names that a checkpoint has for them, as they are now: no copies."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        # A conditioner is also the cond_stage_model; named_parameters has each parameter once, under its first name.
        found[name.replace(".wrapped", "")] = parameter
    return found


model_hijack = StableDiffusionModelHijack()

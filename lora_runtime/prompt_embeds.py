"""A prompt with emphasis to what a pipeline takes in its place: the WebUI's arithmetic on diffusers' CLIP encoders.

A prompt is cut into chunks of 75 tokens (two less than the positions of the encoder), at a comma if one is within the
last 20, and at BREAK. Each chunk is encoded by itself, its states are multiplied by the weights of their tokens and
given back the mean that they had, and the chunks are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_runtime.errors import ModelError
from lora_runtime.prompt.emphasis import BREAK, weighted

__all__ = ["Emphasis", "chunk_counts", "embeds_of", "knows_weights"]

Emphasis = Literal["a1111", "a1111-no-norm"]

_BACK = 20  # tokens
_COMMA = ",</w>"
_KINDS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class _Chunk:
    """Tokens between start and end, filled up, and their weights: 77 each for a CLIP of 77 positions."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Encoder:
    """A CLIP of a pipeline with its tokenizer; `skipped` layers at the end are not asked, of SDXL one."""

    model: nn.Module
    tokenizer: Any
    skipped: int
    normed: bool  # by the model's last norm, also where layers are skipped

    def chunks(self, text: str) -> list[_Chunk]:
        """Return the chunks of a prompt, one at least."""
        config: Any = self.model.config
        return list(_chunked(text, self.tokenizer, config.max_position_embeddings - 2))

    def states(self, chunks: Sequence[_Chunk], *, norm: bool) -> tuple[Tensor, Tensor | None]:
        """Return the states of chunks (texts, tokens, width) with their weights in them, and the pooled (texts, width).

        One chunk of each text: a call has a row for each image of the batch, which may have LoRAs of its own.
        """
        device = next(self.model.parameters()).device
        ids = torch.tensor([chunk.tokens for chunk in chunks], device=device)
        out = self.model(ids, output_hidden_states=True)
        states: Tensor = out.hidden_states[-1 - self.skipped] if self.skipped else out.last_hidden_state
        if self.skipped and self.normed:
            states = self._last_norm(states)
        made = [self._weighted(row, chunk, norm=norm) for row, chunk in zip(states, chunks, strict=True)]
        return torch.stack(made), getattr(out, "text_embeds", None)

    @staticmethod
    def _weighted(states: Tensor, chunk: _Chunk, *, norm: bool) -> Tensor:
        """Return the states of one chunk, (tokens, width), with its weights in them."""
        weights = torch.tensor(chunk.weights, device=states.device, dtype=states.dtype)[:, None]
        made = states * weights
        # Without a weight there is nothing to give back; states whose mean happens to be 0 would be lost to 0/0.
        if norm and any(weight != 1 for weight in chunk.weights):
            made = made * (states.mean() / made.mean())
        return made

    def _last_norm(self, states: Tensor) -> Tensor:
        inner = getattr(self.model, "text_model", self.model)  # transformers 5 has no such level
        norm: nn.Module = inner.final_layer_norm  # type: ignore[assignment]
        normed: Tensor = norm(states)
        return normed


def knows_weights(ask: Callable[[str], Any]) -> bool:
    """Return whether the text encoders of a pipeline are those of SD1, SD2 or SDXL; `ask` gives its attributes."""
    models = [model for name in _KINDS if isinstance(model := ask(name), nn.Module)]
    are_clips = all(type(model).__name__.startswith("CLIPText") for model in models)
    return bool(models) and are_clips and isinstance(ask("unet"), nn.Module)


def embeds_of(
    ask: Callable[[str], Any],
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    emphasis: Emphasis,
    clip_skip: int = 0,
) -> dict[str, Tensor]:
    """Return what a pipeline's call takes in place of both texts, by its names: (prompts, tokens, width) each.

    `ask` gives the attributes of the pipeline. `clip_skip` as diffusers counts it: 1 is the last layer but one. The
    encoders must show their LoRAs. ModelError for a pipeline of another kind than SD1, SD2 and SDXL: a T5 or a language
    model knows no such weights.
    """
    if not knows_weights(ask):
        raise ModelError(
            "weights of words are for SD1, SD2 and SDXL, whose text encoders are CLIPs: leave out `weights`, and the "
            "brackets in the prompt"
        )
    with torch.no_grad():
        states, pooled = _encode(list(_encoders(ask, clip_skip)), prompts, negative_prompts, norm=emphasis == "a1111")
    count = len(prompts)
    found = {"prompt_embeds": states[:count], "negative_prompt_embeds": states[count:]}
    if pooled is not None:
        found |= {"pooled_prompt_embeds": pooled[:count], "negative_pooled_prompt_embeds": pooled[count:]}
    config = ask("config") or {}
    if config.get("force_zeros_for_empty_prompt") and not any(negative_prompts):
        for name in found.keys() & {"negative_prompt_embeds", "negative_pooled_prompt_embeds"}:
            found[name] = torch.zeros_like(found[name])
    return found


def chunk_counts(ask: Callable[[str], Any], texts: Sequence[str]) -> list[int]:
    """Return of how many chunks each text is, by the tokenizer that makes most of it; see `embeds_of`."""
    encoders = list(_encoders(ask, 0))
    return [max((len(encoder.chunks(text)) for encoder in encoders), default=1) for text in texts]


def _encoders(ask: Callable[[str], Any], clip_skip: int) -> Iterator[_Encoder]:
    """Yield the encoders whose states the denoiser reads side by side."""
    models = {name: model for name in _KINDS if (model := ask(name)) is not None}
    large = "text_encoder_2" in models  # SDXL: the last layer but one, without the norm
    for name, model in models.items():
        yield _Encoder(
            model, ask(name.replace("text_encoder", "tokenizer")), clip_skip + (1 if large else 0), not large
        )


def _encode(
    encoders: Sequence[_Encoder], prompts: Sequence[str], negatives: Sequence[str], *, norm: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the states of all texts, as long as the longest's, and the pooled ones, of each text's first chunk."""
    sides, pooled = [], None
    for encoder in encoders:
        chunks = [[encoder.chunks(text) for text in texts] for texts in (prompts, negatives)]
        most = max(len(own) for side in chunks for own in side)
        (empty,) = encoder.chunks("")
        rows, first = [], []
        for side in chunks:  # one after the other, as a pipeline does: a call is of one side
            filled = [[*own, *[empty] * (most - len(own))] for own in side]
            encoded = [encoder.states(own, norm=norm) for own in zip(*filled, strict=True)]
            rows.append(torch.cat([states for states, _ in encoded], dim=1))
            first.append(encoded[0][1])
        sides.append(torch.cat(rows))
        if first[0] is not None:
            pooled = torch.cat([each for each in first if each is not None])
    longest = max(side.shape[1] for side in sides)
    if any(side.shape[1] != longest for side in sides):
        raise ModelError("the two tokenizers of this pipeline cut the prompt into different numbers of chunks")
    return torch.cat(sides, dim=-1), pooled


def _chunked(text: str, tokenizer: Any, most: int) -> Iterator[_Chunk]:
    """Yield the chunks of a prompt, of `most` tokens each."""
    comma = tokenizer.get_vocab().get(_COMMA)
    tokens: list[int] = []
    weights: list[float] = []
    comma_at = -1
    chunks = 0
    for piece in weighted(text):
        if piece is BREAK:
            yield _chunk(tokens, weights, tokenizer, most)
            tokens, weights, comma_at, chunks = [], [], -1, chunks + 1
            continue
        for token in tokenizer(piece.text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]:
            if token == comma:
                comma_at = len(tokens)
            elif len(tokens) == most and comma_at != -1 and len(tokens) - comma_at <= _BACK:
                cut = comma_at + 1
                yield _chunk(tokens[:cut], weights[:cut], tokenizer, most)
                tokens, weights, comma_at, chunks = tokens[cut:], weights[cut:], -1, chunks + 1
            if len(tokens) == most:
                yield _chunk(tokens, weights, tokenizer, most)
                tokens, weights, comma_at, chunks = [], [], -1, chunks + 1
            tokens.append(token)
            weights.append(piece.weight)
    if tokens or not chunks:
        yield _chunk(tokens, weights, tokenizer, most)


def _chunk(tokens: Sequence[int], weights: Sequence[float], tokenizer: Any, most: int) -> _Chunk:
    """Return a chunk filled up: with the end, and behind the first one with what the tokenizer fills up with."""
    lacking = most - len(tokens)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    filled = [end, *[pad] * lacking] if lacking else [end]
    return _Chunk((tokenizer.bos_token_id, *tokens, *filled), (1.0, *weights, *[1.0] * (lacking + 1)))

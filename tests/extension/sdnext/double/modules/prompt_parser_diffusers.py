"""Prompts of a batch, encoded one by one with their negative prompts, equal ones once, and kept by prompts and tags."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch

from modules import shared

cache: OrderedDict[str, Any] = OrderedDict()


class PromptEmbedder:
    def __init__(self, prompts: list[str], negative_prompts: list[str], steps: int, clip_skip: int, p: Any) -> None:
        self.prompts, self.negative_prompts = prompts, negative_prompts
        self.scheduled_prompt = False
        self.prompt_embeds: list[Any] = [[] for _ in prompts]
        self.negative_prompt_embeds: list[Any] = [[] for _ in prompts]
        tags = [params.items for found in p.network_data.values() for params in found]
        apply_te = shared.opts.lora_apply_te if getattr(p, "lora_apply_te", None) is None else p.lora_apply_te
        key = str([prompts, negative_prompts, len(prompts), steps, tags, apply_te])
        if key in cache:
            self.prompt_embeds, self.negative_prompt_embeds = cache[key]
            return
        self.pipe = shared.sd_model
        seen: dict[Any, int] = {}
        for index, texts in enumerate(zip(prompts, negative_prompts, strict=True)):
            if texts in seen:
                self.clone_embeds(index, seen[texts])
                continue
            self.encode(self.pipe, *texts, index)
            seen[texts] = index
        cache[key] = self.prompt_embeds, self.negative_prompt_embeds
        while len(cache) > shared.opts.sd_textencoder_cache_size:
            cache.popitem(last=False)

    def encode(self, pipe: Any, positive_prompt: str, negative_prompt: str, batchidx: int) -> None:
        """Encode one prompt, and the negative one after it."""
        for text, target in ((positive_prompt, self.prompt_embeds), (negative_prompt, self.negative_prompt_embeds)):
            given = pipe.tokenizer(
                pipe.maybe_convert_prompt(text, pipe.tokenizer),  # a word of several vectors is as many words
                padding="max_length",
                max_length=pipe.tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            with torch.no_grad():
                target[batchidx] = [pipe.text_encoder(given.input_ids)[0]]

    def clone_embeds(self, batchidx: int, idx: int) -> None:
        """Take what an equal text has got."""
        for target in (self.prompt_embeds, self.negative_prompt_embeds):
            target[batchidx] = list(target[idx])

    def __call__(self, key: str) -> torch.Tensor:
        return torch.cat([found[0] for found in getattr(self, key)])

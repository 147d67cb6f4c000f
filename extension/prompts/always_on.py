"""The LoRA that every prompt gets by a setting, unless the prompt has it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from lora_runtime.prompt import LoraTag, Prompt

__all__ = ["AlwaysOn", "add_always_on"]


@dataclass(frozen=True)
class AlwaysOn:
    """The prompts of a batch with the tag, in their order, the tag as text, and the texts that it was added to."""

    prompts: tuple[Prompt, ...]
    written: str
    lacking: Collection[str]

    def write_into(self, texts: list[str], *, all_alike: bool = False) -> None:
        """Add the tag to those of the texts that lacked it, in place; `all_alike`: to all that do not show it."""
        texts[:] = [
            text + self.written if text in self.lacking or (all_alike and self.written not in text) else text
            for text in texts
        ]


def add_always_on(prompts: Sequence[Prompt], name: str, strength: float, means_it: Callable[[str], bool]) -> AlwaysOn:
    """Give each prompt the tag; `means_it` says whether a name means the file that `name` does."""
    added = LoraTag(name, strength, strength)
    given = {
        prompt: prompt
        if any(means_it(tag.name) for tag in prompt.tags)
        else replace(prompt, tags=(*prompt.tags, added))
        for prompt in dict.fromkeys(prompts)
    }
    lacking = frozenset(prompt.source for prompt in given if given[prompt] is not prompt)
    return AlwaysOn(tuple(given[prompt] for prompt in prompts), f"<lora:{name}:{strength:g}>", lacking)

"""What one `apply` is asked: the tags of prompts and the LoRAs that are named, and the requests that they make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lora_runtime.errors import LoraError
from lora_runtime.lookup import Lookup, Loras, catalog_for
from lora_runtime.problems import Images, Problems
from lora_runtime.prompt import LoraTag, Prompt, Strength, format_tag, parse_prompt
from lora_runtime.prompt.tags import Dialect
from lora_runtime.requests import Request, of_batch
from lora_runtime.tag_files import drawn_from
from lora_runtime.wildcards import is_wildcard

__all__ = ["Asking"]


@dataclass(frozen=True)
class Asking:
    """Prompts, one for each image, each with those for its other text encoders; what is `named` is for all images.

    `negatives` are for the negative side alone, and `seeds` one for each image, for the negative side the first.
    """

    prompts: tuple[tuple[Prompt, ...], ...]
    named: Prompt
    negatives: tuple[Prompt, ...] = ()
    seeds: tuple[int | None, ...] = ()
    loras: Loras = None
    hires: bool = False

    @property
    def texts(self) -> tuple[Prompt, ...]:
        """All prompts but those of the negative side, what is named last."""
        return (*(prompt for image in self.prompts for prompt in image), self.named)

    @property
    def by_image(self) -> Iterator[tuple[Images, tuple[Prompt, ...]]]:
        """The same prompts, with the images that they are for."""
        yield from ((frozenset({image}), prompts) for image, prompts in enumerate(self.prompts))
        yield None, (self.named,)

    @property
    def tags(self) -> tuple[LoraTag, ...]:
        """All tags but those of the negative side, in order."""
        return tuple(tag for prompt in self.texts for tag in prompt.tags)

    def tags_of(self, image: int) -> tuple[LoraTag, ...]:
        """Return the tags that act on an image, those of its negative side left out: its own, then what is named."""
        own = [tag for texts in self.prompts[image : image + 1] for text in texts for tag in text.tags]
        return (*own, *self.named.tags)

    def written(self, image: int = 0) -> str:
        """Return the prompt of an image with its tags as they are by now, and a tag for each LoRA that is named."""
        own = self.prompts[image][0] if self.prompts else self.named
        return _written(own) + ("" if own is self.named else _written(self.named, own.dialect))

    def drawn(self, problems: Problems) -> Asking:
        """Return the same with the name of a file in each tag that has that of a folder, by the seed of its image.

        What cannot be drawn stays, for `requests` to say why.
        """
        prompts = tuple(
            tuple(self._drawn(prompt, seed, problems.of(frozenset({image}))) for prompt in texts)
            for image, (texts, seed) in enumerate(zip(self.prompts, self.seeds, strict=False))
        )
        negatives = tuple(
            self._drawn(prompt, seed, problems.of(images)) for prompt, seed, images in self._each_negative
        )
        # What is named is for all images: where these have other seeds, `requests` draws for each.
        same = self.seeds[0] if len({*self.seeds}) == 1 else None
        named = self.named if same is None else self._drawn(self.named, same, problems)
        return replace(self, prompts=prompts, negatives=negatives, named=named)

    def _drawn(self, prompt: Prompt, seed: int | None, problems: Problems) -> Prompt:
        if not any(is_wildcard(tag.name) for tag in prompt.tags):
            return prompt
        tags = []
        for tag in prompt.tags:
            try:
                tags.append(drawn_from(catalog_for(self.loras), tag, seed))
            except LoraError:
                tags.append(tag)
            if tags[-1] is not tag:
                problems.info(f'"{tag.name}" is "{tags[-1].name}" for the seed {seed}', tag.span)
        return replace(prompt, tags=tuple(tags))

    def requests(self, problems: Problems) -> tuple[Request, ...]:
        """Return what is asked of each file; a name that means no file costs its own tag."""
        lookup = Lookup(self.loras, problems, hires=self.hires)
        positive = [
            [each for prompt in (*prompts, self.named) for each in self._looked_up(lookup, prompt, image, seed)]
            for image, (prompts, seed) in enumerate(zip(self.prompts or ((),), self.seeds or (None,), strict=True))
        ]
        negative = [
            lookup.requests(prompt, seed=seed, side="negative", images=images)
            for prompt, seed, images in self._each_negative
        ]
        requests = of_batch(positive) + of_batch(negative)
        lookup.done()
        return requests

    def _looked_up(self, lookup: Lookup, prompt: Prompt, image: int, seed: int | None) -> list[Request]:
        return lookup.requests(prompt, seed=seed, images=None if prompt is self.named else frozenset({image}))

    @property
    def _each_negative(self) -> Iterator[tuple[Prompt, int | None, Images]]:
        """The prompts of the negative side, each with its seed and the images that it is for."""
        if len(self.negatives) == 1:
            yield self.negatives[0], next(iter(self.seeds), None), None
        else:
            for image, (prompt, seed) in enumerate(zip(self.negatives, self.seeds, strict=False)):
                yield prompt, seed, frozenset({image})

    @property
    def strengths(self) -> dict[str, Strength | tuple[Strength, Strength]]:
        """The strength of each name, or the pair (te, unet); of a name in several tags the first."""
        found: dict[str, Strength | tuple[Strength, Strength]] = {}
        for tag in self.tags:
            found.setdefault(tag.name, tag.te if tag.te == tag.unet else (tag.te, tag.unet))
        return found

    def with_strength(self, asked: LoraTag, *, whole: bool) -> Asking:
        """Return the same with another strength for a name: in each text its first tag has it, and others go.

        `whole`: the tag takes over all that `asked` says, and not its strengths alone. KeyError where nothing has that
        name.
        """
        if asked.name not in self.strengths:
            raise KeyError(asked.name)
        return replace(
            self,
            prompts=tuple(tuple(_once(asked, prompts, whole)) for prompts in self.prompts),
            named=_once(asked, [self.named], whole)[0],
        )


def _written(prompt: Prompt, dialect: Dialect | None = None) -> str:
    """Return a prompt's source with each tag as it is by now, in a dialect (its own)."""
    dialect = dialect or prompt.dialect
    now = {tag.span: tag for tag in prompt.tags}
    text, end = "", 0
    for tag in parse_prompt(prompt.source, dialect=prompt.dialect, scope=prompt.scope).tags:
        text += prompt.source[end : tag.span[0]]
        changed, end = now.get(tag.span), tag.span[1]
        if changed is not None:
            text += tag.raw if changed == tag and dialect == prompt.dialect else _tag_text(changed, dialect)
    return text + prompt.source[end:]


def _tag_text(tag: LoraTag, dialect: Dialect) -> str:
    """Return a tag as text; in the native dialect where another cannot say it."""
    try:
        return format_tag(tag, dialect=dialect)
    except ValueError:
        return format_tag(tag, dialect="native")


def _once(asked: LoraTag, prompts: Sequence[Prompt], whole: bool) -> list[Prompt]:
    """Return these prompts with one tag for the name, in the place of the first."""
    found, changed = False, []
    for prompt in prompts:
        tags = []
        for tag in prompt.tags:
            if tag.name == asked.name and not found:
                kept = asked if whole else tag
                tags.append(replace(tag, te=asked.te, unet=asked.unet, dyn=kept.dyn, conditions=kept.conditions))
            elif tag.name != asked.name:
                tags.append(tag)
            found = found or tag.name == asked.name
        changed.append(replace(prompt, tags=tuple(tags)))
    return changed

"""The whole line: a prompt with tags changes a model, and leaves no trace."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, Literal, get_args

import torch

from lora_runtime.applied import Applied, Text
from lora_runtime.asked import Asking
from lora_runtime.embeddings import spelled_out
from lora_runtime.held import owned
from lora_runtime.idle_blocks import warn_of_idle_blocks
from lora_runtime.lookup import Loras, catalog_for
from lora_runtime.memory_policy import Originals, Policy
from lora_runtime.ownership import WAIT, would_wait
from lora_runtime.pipelines import view
from lora_runtime.problems import (
    Problems,
    text_at_all_steps,
    warn_of_emphasis,
    warn_of_idle_files,
    warn_of_idle_tags,
    warn_of_negative_tags,
)
from lora_runtime.prompt import Prompt
from lora_runtime.prompt.named import Asked, named_tags
from lora_runtime.prompt.tags import Dialect
from lora_runtime.prompt.tags import Scope as TagScope
from lora_runtime.prompt_embeds import Emphasis
from lora_runtime.scopes import known_of
from lora_runtime.sets import parse_with_sets, read_sets
from lora_runtime.texts import Texts

__all__ = ["Applied", "Loras", "apply", "restore"]


def apply(
    model: Any,
    prompt: Text = None,  # type: ignore[assignment]
    *,
    adapters: Mapping[str, Asked] | None = None,
    prompt_2: str | list[str] | None = None,
    prompt_3: str | list[str] | None = None,
    negative_prompt: str | list[str] | None = None,
    loras: Loras = None,
    strict: bool = False,
    originals: Originals = "auto",
    device_memory: int | str | None = None,
    host_memory: int | str | None = None,
    negative_tags: Literal["words", "apply"] = "words",
    hires: bool = False,
    seeds: int | Sequence[int] | None = None,
    weights: Emphasis | None = None,
    clip_skip: int = 0,
    dialect: Dialect = "a1111",
    scope: TagScope = "all",
    presets: Mapping[str, str] | None = None,
    wait: float | None = WAIT,
) -> Applied[Text]:
    """Patch `model` with the LoRAs that the prompt's tags name; return the clean prompt and what was done.

        with lora_runtime.apply(pipe, "a red circle <lora:watercolor:0.7>", loras="loras/") as applied:
            image = pipe(applied.prompt).images[0]

    `model` is a diffusers pipeline or any `torch.nn.Module`. A later `apply` on it replaces this one; leaving the
    `with` block, `applied.restore()` or `lora_runtime.restore(model)` undoes it, bit for bit. Of a list of prompts each
    image gets its own tags. `loras` is a folder, a mapping of names to single files wherever they lie
    ({"ink": "D:/downloads/ink_v3.safetensors"}), several of these, or a LoraCatalog; left out, it is LORA_RUNTIME_PATH,
    else `models/Lora` and `loras`.

    `adapters` asks for LoRAs without a prompt, beside those in it: {"ink": 0.7, "wash": (0.5, 0.9)}. A value is what
    may stand in a tag behind the name: a number, a pair (te, unet), a text ("0@0,1@1", "0.7:IN=0") or a mapping of a
    tag's arguments ({"unet": 1, "stop": "50%"}). `applied.set("ink", 0.4)` changes one in place. `prompt_2` and
    `prompt_3` are texts for further encoders: their tags act as those of the prompt, and `applied.prompt_2` is the text
    without them.

    `weights="a1111"` reads (word:1.2), [word] and BREAK as the WebUI does (`"a1111-no-norm"` without giving back the
    mean): give the pipeline `applied.embeds` in place of the texts. For SD1, SD2 and SDXL; `clip_skip` as there.

    What a tag can say is in docs/syntax.md, which has named sets of tags (<set:portrait:0.5>) too. Strengths that are
    the same throughout a picture go into the weights; those that depend on the step, the image, the side or the place
    act beside them while the pipeline runs, and follow its scheduler by themselves. `negative_tags="apply"` has tags of
    the negative prompt act on its side of the guidance; else they stay words, and are warned of. `hires` asks for the
    strengths of the second pass (`hr=`); `seeds`, one or one for each prompt, are what random block weights are drawn
    from. `dialect`, `scope`, `presets`: see parse_prompt.

    A tag that cannot be read, found or used costs only itself: it is logged and listed in `.diagnostics`; with
    `strict` it raises (TagSyntaxError, UnknownLoraError, …) and the model stays as it was.

    `originals` says where W₀ is kept while W′ shows: "device" (W′ is bound beside it), "host" (in host memory; W′ is
    written in its place), "inplace" (a copy on the device, W′ in its place: addresses stay, as CUDA graphs need it),
    "beside" (no weight is copied: adapters act beside the modules, within the rounding of activations; the few that
    cannot are treated as "host"). "auto" takes the first of device, host and beside for which there is memory, goes on
    with the next where it runs out, and says in `.report.memory` which and why. `device_memory` and `host_memory` are
    the most bytes (or text such as "24GB", "24GiB") that copies and factors may take on each device and in host memory:
    MemoryBudgetError where that is not enough, ValueError for what is no size.

    Where another task or thread has the model, `apply` waits for `wait` seconds (None: for ever) and then raises
    ModelBusyError, which names the holder. In a coroutine it never stops the event loop: "async with" waits.
    Raises ModelError for what is no model, CatalogError for a folder that is not there.
    """
    policy = Policy.of(originals, device_memory, host_memory)
    sets = cache(lambda: read_sets(*catalog_for(loras).folders))
    read = partial(parse_with_sets, sets=sets, strict=strict, dialect=dialect, scope=scope, presets=presets)
    prompts: tuple[Prompt, ...] = tuple(map(read, _prompts(prompt)))
    if prompt is None and (prompt_2 or prompt_3):
        raise ValueError(
            "prompt_2 and prompt_3 go with a prompt: give it, or ask for LoRAs by adapters={name: strength}"
        )
    others = _others(prompt_2, prompt_3)
    more: list[list[Prompt]] = [_each(_read_all(read, text), prompts, name) for name, text in others]
    named = named_tags(adapters or {}, strict=strict, presets=presets)
    problems = Problems(strict)
    for each in (prompts, *more):
        _note_each(each, problems)
    problems.add([named])
    looked_at = view(model)
    negatives: tuple[Prompt, ...] = ()
    if negative_tags == "apply" and negative_prompt is not None:
        negatives = tuple(map(read, _prompts(negative_prompt)))
        if isinstance(negative_prompt, str):
            problems.add(negatives)
        else:
            _each(negatives, prompts, "negative prompts")
            _note_each(negatives, problems)
    else:
        warn_of_negative_tags(negative_prompt, problems)
    texts = _at_all_steps(prompts, problems)
    applied: Applied[Text] = Applied(looked_at, _as_asked(prompt, texts), negative_prompt)
    applied.prompts = prompts
    applied._policy, applied._wait, applied._strict = policy, wait, strict
    applied._problems, applied._weights, applied._clip_skip = problems, weights, clip_skip
    if weights is None:
        warn_of_emphasis(prompts, looked_at, problems)
    elif weights not in get_args(Emphasis):
        raise ValueError(f"weights is {weights!r}: give one of {', '.join(map(repr, get_args(Emphasis)))}, or None")
    if negatives:
        negative_texts = _at_all_steps(negatives, problems)
        applied.negative_prompt = _as_asked(negative_prompt, negative_texts)
        applied._texts = Texts(looked_at.ask, texts, negative_texts)
    asking = Asking(
        tuple(zip(prompts, *more, strict=True)),
        named,
        negatives,
        tuple(map(_seed, _each(seeds, prompts or ("",), "seeds"))),
        loras,
        hires,
    ).drawn(problems)
    requests = asking.requests(problems)
    for images, own in asking.by_image:
        warn_of_idle_tags(own, looked_at, problems.of(images))
    warn_of_idle_files(asking.texts, requests, looked_at, problems)
    for images, own in asking.by_image:
        warn_of_idle_blocks(own, looked_at, problems.of(images))
    applied._asking, applied._requests = asking, requests

    def cleaned(parsed: Sequence[Prompt]) -> list[str]:
        return [spelled_out(looked_at, requests, text) for text in _at_all_steps(parsed, problems)]

    applied._prompt = _as_asked(prompt, [spelled_out(looked_at, requests, text) for text in texts])
    for (name, text), parsed in zip(others, more, strict=True):
        setattr(applied, name, _as_asked(text, cleaned(parsed)[: 1 if isinstance(text, str) else None]))
    if _running() and would_wait(known_of(looked_at), applied._given):
        applied._waiting = looked_at  # for `async with`, or for whoever looks at what was done
    else:
        applied._apply(looked_at)
    return applied


def restore(model: Any) -> None:
    """Give every weight of `model` its original back, and free the memory that is kept for the next `apply`."""
    with owned(view(model)) as state:
        state.restore(release=True)


def _prompts(prompt: Any) -> list[str]:
    """Return the prompts of a call: none for None, as a pipeline takes it where it is given embeddings."""
    if prompt is None:
        return []
    return [prompt] if isinstance(prompt, str) else list(prompt)


def _others(prompt_2: Any, prompt_3: Any) -> list[tuple[str, Any]]:
    """Return the texts for further encoders that are given, by name."""
    return [(name, text) for name, text in (("prompt_2", prompt_2), ("prompt_3", prompt_3)) if text is not None]


def _note_each(prompts: Sequence[Prompt], problems: Problems) -> None:
    """Take note of what could not be read in the prompts of a batch, of each for its own image."""
    for image, prompt in enumerate(prompts):
        problems.of(frozenset({image})).add([prompt])


def _at_all_steps(prompts: Sequence[Prompt], problems: Problems) -> list[str]:
    """Return the clean text of each prompt of a batch; see `text_at_all_steps`."""
    return [text_at_all_steps(prompt, problems.of(frozenset({image}))) for image, prompt in enumerate(prompts)]


def _read_all(read: Callable[[str], Prompt], text: str | list[str]) -> Prompt | list[Prompt]:
    """Return one text or each of several as it was read."""
    return read(text) if isinstance(text, str) else list(map(read, text))


def _as_asked(prompt: Any, texts: list[str]) -> Any:
    """Return texts in the form in which the prompts came: one, a list, or None."""
    if prompt is None:
        return None
    return texts[0] if isinstance(prompt, str) else texts


def _each(values: Any, prompts: Sequence[Any], what: str) -> list[Any]:
    """Return one value for each prompt: those of a sequence, or the one for all."""
    found = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values] * len(prompts)
    if len(found) != len(prompts):
        raise ValueError(f"{len(found)} {what} for {len(prompts)} prompts: give one for all, or one for each")
    return found


def _seed(given: Any) -> int | None:
    """Return the seed of an image as a number; that of a generator is the one it began with."""
    if isinstance(given, torch.Generator):
        return given.initial_seed()
    try:
        return None if given is None else int(operator.index(given))
    except TypeError:
        raise TypeError(f"a seed is a whole number or a torch.Generator, not {given!r}") from None


def _running() -> bool:
    """Return whether an event loop runs in this thread: what would wait here must not stop it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True

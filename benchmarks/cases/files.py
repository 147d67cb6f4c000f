"""Prompts, imports and files: what needs no model. Nothing of torch is imported before it is needed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.records import Options, Record, record_of
from benchmarks.timing import Times, timed

__all__ = ["first_parsing", "first_plain", "importing", "loading", "parsing"]

_SENTENCE = "a detailed painting of a boat on the calm sea at dawn, (golden light:1.2), soft clouds, "
_TAGS = (
    "<lora:ink:0.7> <lora:wash:0.5:0.9> <lora:oil:1:lbw=MIDD> <lora:detail:1@0,0@0.5> "
    "<lora:style/line:te=0.5:unet=1:stop=10>"
)
# As long as prompts on the page get, with five tags and without any.
_PAGE = (_SENTENCE * 11 + _TAGS + _SENTENCE * 20)[:2000]
_PLAIN = (_SENTENCE * 31)[:2000]


def parsing(options: Options) -> Iterator[Record]:
    """Yield the time to parse 10 KB of prompt with a tag in each line, each time another one, and 2,000 characters.

    These are the same each time, as while somebody types: `parse2k` with five tags, `parse2k-plain` with none.
    """
    import lora_runtime

    def prompt(number: int) -> str:
        line = "a lighthouse above the sea at dusk, [gulls:clouds:0.5], (film grain:1.2) "
        return "".join(f"{line}<lora:style/ink-{n}:0.{number}{n}:te=0.5>" for n in range(10_000 // 100))

    assert "torch" not in sys.modules
    text = prompt(9)
    assert 9_500 < len(text) < 11_000 and len(lora_runtime.parse_prompt(text).tags) == 100
    times: Times[str] = Times(options.limits)
    for number, counts in enumerate(times.rounds()):
        text = prompt(number)
        start = time.perf_counter()
        lora_runtime.parse_prompt(text)
        if counts:
            times.add("ours", time.perf_counter() - start)
    yield record_of("parse10k", "-", "ours", times.timings()["ours"])
    assert len(lora_runtime.parse_prompt(_PAGE).tags) == 5
    ways = {
        "parse2k": lambda: lora_runtime.parse_prompt(_PAGE),
        "parse2k-plain": lambda: lora_runtime.parse_prompt(_PLAIN),
    }
    for case, timing in timed(ways, options.limits).items():
        yield record_of(case, "-", "ours", timing)


def first_parsing(options: Options) -> Iterator[Record]:
    """Yield the time of the first prompt of this process, of 2,000 characters with five tags; it loads lark."""
    yield from _first("first2k", _PAGE)


def first_plain(options: Options) -> Iterator[Record]:
    """Yield the time of the first prompt of this process, of 2,000 characters without a tag."""
    yield from _first("first2k-plain", _PLAIN)


def _first(case: str, text: str) -> Iterator[Record]:
    from lora_runtime.prompt import parse_prompt

    start = time.perf_counter()
    parse_prompt(text)
    yield Record(case, "-", "ours", time.perf_counter() - start)


def importing(options: Options) -> Iterator[Record]:
    """Yield the time of `import lora_runtime` in this process."""
    start = time.perf_counter()
    import lora_runtime

    yield Record("import", "-", "ours", time.perf_counter() - start)
    lora_runtime.parse_prompt("a <lora:b>")
    yield Record("import+parse", "-", "ours", time.perf_counter() - start)
    assert "torch" not in sys.modules


def loading(options: Options) -> Iterator[Record]:
    """Yield the time to load a large file and one of many keys, and what reading and hashing alone take."""
    import hashlib

    from benchmarks.model import write_large_lora, write_many_keys
    from lora_runtime.lora import load_lora

    large = write_large_lora(Path(options.folder) / "large.safetensors", 2_000_000 if options.quick else 200_000_000)
    many = write_many_keys(Path(options.folder) / "many.safetensors", 999 if options.quick else 99_999)
    content = large.read_bytes()
    ways = {
        ("load200", "ours"): lambda: load_lora(large),
        ("load200", "read"): large.read_bytes,
        ("load200", "sha256"): lambda: hashlib.sha256(content),
        ("keys100k", "ours"): lambda: load_lora(many),
    }
    for (case, who), timing in timed(ways, options.limits).items():
        yield record_of(case, "-", who, timing)

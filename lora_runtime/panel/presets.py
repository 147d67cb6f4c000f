"""Block weights of a row under a name: lines in a text file beside the LoRAs, in the format of lbwpresets.txt.

POST base/save-preset   {prompt, tag, name}    {"saved": NAME, "presets": […]}
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lora_runtime.blocks import FLUX, LAYOUTS
from lora_runtime.errors import CatalogError
from lora_runtime.panel.rows import ratio_of
from lora_runtime.prompt import Curve, LoraTag
from lora_runtime.prompt.arguments import ALIASES, BY_NAME
from lora_runtime.prompt.conditions import EXPERTS
from lora_runtime.prompt.edits import EditError, is_muted, unmuted
from lora_runtime.prompt.excerpt import quote
from lora_runtime.prompt.parser import parse_prompt, written_fields
from lora_runtime.prompt.presets import MOST_BYTES, RESERVED, load_presets
from lora_runtime.prompt.strength import number
from lora_runtime.whole_files import write_whole

__all__ = ["FILE", "keep_preset", "list_of", "own_presets"]

FILE = "lora_runtime_presets.txt"
_LONGEST_NAME = 60
_NAME = re.compile(r"[^\W\d_][\w -]*")
_BLOCK_LIKE = re.compile(r"(?:BASE|CLIP|T5|IN|M|OUT|D|S)[\d-]*")  # what a tag would read as a block
_WORDS = frozenset({*BY_NAME, *ALIASES, *EXPERTS, "inf", "infinity", "nan"})
_lock = threading.Lock()  # of the files: two who save at a time both keep their line

Folders = Sequence[str | os.PathLike[str]]


def own_presets(folders: Folders) -> dict[str, str]:
    """Return the presets that were saved in some folders; of two of one name that of the first folder."""
    found: dict[str, str] = {}
    for folder in reversed(folders):
        path = Path(folder, FILE)
        with suppress(OSError):  # of a folder that cannot be read
            found |= load_presets(path).presets if path.is_file() else {}
    return found


def list_of(tag: LoraTag, blocks: Sequence[str], presets: Mapping[str, str]) -> str:
    """Return the block weights of a tag as a list for a model with these blocks; EditError where no list says them."""
    sounding = parse_prompt(unmuted(tag.raw, presets), presets=presets).tags[0] if is_muted(tag) else tag
    if any(field.argument == "lbwe" for field in written_fields(sounding.raw, presets)):
        raise EditError("its weights of elements (lbwe=) are in no list: take them out, and save those of the blocks")
    layout = _layout(blocks)
    weights = sounding.conditions.blocks
    ratios = [ratio_of(weights, "BASE" if block == "CLIP" else block) for block in layout]
    if any(isinstance(ratio, Curve) for ratio in ratios):
        raise EditError("a block has keyframes, which are in no list: give it one number")
    return ",".join(number(ratio) if isinstance(ratio, (int, float)) else str(ratio) for ratio in ratios)


def keep_preset(folders: Folders, name: object, weights: str, known: Mapping[str, str]) -> Path:
    """Write a list of block weights into the first folder's file, in place of one of that name; return the file.

    All other lines stay as they are. EditError for a name that cannot be, and for one in `known` that another file has;
    CatalogError where there is no folder or the file is none of ours, OSError where it cannot be written.
    """
    there = [folder for folder in map(Path, folders) if folder.is_dir()]
    if not there:
        raise CatalogError("there is no folder of LoRAs that a preset could be written to; make one")
    path = there[0] / FILE
    with _lock:
        old = _text(path)
        own = load_presets(path).presets if old else {}
        checked = _checked(name, own, known)
        lines = old.splitlines(keepends=True)
        line = f"{checked}:{weights}\n"
        places = [place for place, each in enumerate(lines) if _is_list_of(each, checked)]
        for place in reversed(places[1:]):
            del lines[place]
        if places:
            lines[places[0]] = line
        else:
            lines += [] if not old or old.endswith("\n") else ["\n"]
            lines.append(line)
        _write(path, "".join(lines))
    return path


def _layout(blocks: Sequence[str]) -> tuple[str, ...]:
    """Return what the numbers of a list stand for: the shortest list in which no block of the model is left out."""
    if not blocks:
        raise EditError("the blocks are those of a model, and none is loaded yet: paint a picture first")
    there = {*blocks}
    if "D00" in there:
        return FLUX
    fitting = [layout for layout in LAYOUTS.values() if layout != FLUX and there <= {*layout}]
    if not fitting or "M00" not in there:
        raise EditError(f"no list has this model's blocks ({', '.join(blocks[:4])} …): lists are for UNets and Flux")
    return min(fitting, key=len)


def _checked(name: object, own: Mapping[str, str], known: Mapping[str, str]) -> str:
    """Return a name that a preset may have."""
    if not isinstance(name, str):
        raise EditError("a preset is saved under a name")
    name = name.strip()
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME or not name.isprintable():
        raise EditError(
            f"{quote(name)} is no name for a preset: write letters, digits, blanks, - and _, a letter first, "
            f"{_LONGEST_NAME} at most"
        )
    if name in RESERVED or name.casefold() in _WORDS or _BLOCK_LIKE.fullmatch(name):
        raise EditError(f"{quote(name)} means something else in a tag: take another name")
    if ":" in own.get(name, ""):
        raise EditError(f"{quote(name)} is the name of rules for elements in {FILE}: take another name")
    if name in known and name not in own:
        raise EditError(f"{quote(name)} is a preset that others have too: take another name")
    return name


def _is_list_of(line: str, name: str) -> bool:
    return "#" not in line and line.count(":") == 1 and line.partition(":")[0].strip() == name


def _text(path: Path) -> str:
    """Return what a file of presets says; "" where there is none. A link may lead elsewhere, and is not written to."""
    if path.is_symlink():
        raise CatalogError(f"{FILE} in {path.parent} is a link: write to the file that it leads to by hand")
    if path.exists() and not path.is_file():
        raise CatalogError(f"{path} is no plain file: nothing is written to it")
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return ""
    if len(content) > MOST_BYTES:
        raise CatalogError(f"{path} has more than {MOST_BYTES:,} bytes: nothing is written to it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CatalogError(f"{path} is not UTF-8: save it as UTF-8 in an editor, then again") from error


def _write(path: Path, text: str) -> None:
    if len(content := text.encode("utf-8")) > MOST_BYTES:
        raise CatalogError(f"{path} would have more than {MOST_BYTES:,} bytes: delete lines that nobody needs")
    write_whole(path, content)

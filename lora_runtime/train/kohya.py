"""kohya's configuration files, told in the names of `Config`; what they ask for and is not done here is said.

Tables in, values and notes out: nothing is read from disk but the file of sample prompts that a configuration names.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora_runtime.errors import TrainingError
from lora_runtime.train.kohya_names import (
    LYCORIS,
    MODULES,
    OFF,
    OPTIMIZERS,
    PRECISIONS,
    RENAMED,
    SECRET,
    SILENT,
    UNUSED,
)

__all__ = ["translate"]

Values = dict[str, Any]


def translate(table: Mapping[str, Any], known: Mapping[str, str], *, whole: bool = True) -> tuple[Values, list[str]]:
    """Return the values for fields of `Config`, and a line for each name that is not read.

    `known` has the type of each field by its name. `whole`: the table is all that is said of a run, so that kohya's
    defaults count for the rest of a file of kohya's. TrainingError where a value asks for what would be another
    training.
    """
    notes: list[str] = []
    given = _flat(table, notes)
    values: Values = {}
    for name, value in given.items():
        _take(name, value, values, notes, known)
    if whole:
        module = given.get("network_module")
        if module == "lycoris.kohya" or (isinstance(module, str) and module in MODULES):
            _fill(module, values, notes)
        _count_warmup(values, notes)
    return values, notes


def _fill(module: str, values: Values, notes: list[str]) -> None:
    """Give what a file of kohya's does not say the value that it has there."""
    silent = dict(SILENT)
    if module == "lycoris.kohya":
        silent["conv_dim"] = values.get("network_dim", silent["network_dim"])
        silent["conv_alpha"] = values.get("network_alpha", silent["network_alpha"])
    elif values.get("conv_dim"):
        silent["conv_alpha"] = 1.0
    left = {name: value for name, value in silent.items() if name not in values}
    values.update(left)
    if left:
        said = ", ".join(f"{name} = {_shown(value)}" for name, value in left.items())
        notes.append(f"network_module = {module}: kohya's defaults for what is not said: {said}")


def _shown(value: object) -> str:
    """Return a value as a line of TOML has it."""
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


# --- sections ----------------------------------------------------------------------------------------------------

_OF_SUBSET = ("image_dir", "num_repeats", "class_tokens", "is_reg")


def _flat(table: Mapping[str, Any], notes: list[str]) -> Values:
    """Return all names and values of a file, sections being only headings, and its folders as `subsets`."""
    flat: Values = {}
    for name, value in table.items():
        if isinstance(value, dict):
            _add(value, flat, notes)
        elif name != "datasets":
            _add({name: value}, flat, notes)
    subsets = []
    for dataset in _tables(table.get("datasets", []), "datasets"):
        _add({name: value for name, value in dataset.items() if name != "subsets"}, flat, notes)
        for subset in _tables(dataset.get("subsets", []), "datasets.subsets"):
            if "metadata_file" in subset:
                notes.append(f"metadata_file = {_shown(subset['metadata_file'])}: not read; captions are files here")
            if "image_dir" not in subset:
                raise TrainingError("a [[datasets.subsets]] has no image_dir: give the folder of its pictures")
            repeats = {"num_repeats": flat["num_repeats"]} if "num_repeats" in flat else {}
            subsets.append({**repeats, **{name: subset[name] for name in _OF_SUBSET if name in subset}})
            others = {name: value for name, value in subset.items() if name not in (*_OF_SUBSET, "metadata_file")}
            _add(others, flat, notes)
    flat.pop("num_repeats", None)
    if subsets:
        flat["subsets"] = subsets
        for name in ("train_data_dir", "reg_data_dir"):
            if name in flat:
                notes.append(f"{name} = {_shown(flat.pop(name))}: not read; the folders of [[datasets]] are")
    return flat


def _tables(value: object, name: str) -> list[dict[str, Any]]:
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return value
    raise TrainingError(f"{name} is no list of tables: write [[{name}]]")


def _add(more: Mapping[str, Any], flat: Values, notes: list[str]) -> None:
    """Add names to those read before; of two values for one name the first counts, and it is said."""
    for name, value in more.items():
        if flat.setdefault(name, value) != value:
            notes.append(
                f"{name} = {_shown(value)}: not read; {name} = {_shown(flat[name])} was said before, and counts for all"
            )


# --- names and values --------------------------------------------------------------------------------------------


def _take(name: str, value: Any, values: Values, notes: list[str], known: Mapping[str, str]) -> None:
    """Put the field that a name of kohya's means into `values`, or say why none."""
    name = RENAMED.get(name, name)
    reader = _READERS.get(name)
    if value == "" and known.get(name, "str") != "str":
        return  # kohya's tools write what is not given so
    if reader is not None:
        reader(name, value, values, notes, known)
    elif name in known:
        values[name] = _number(value, known[name])
    elif name not in UNUSED:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        notes.append(f"{name} = {_shown(value)}: not known, and not read{hint}")
    elif value not in OFF:
        shown = "…" if name in SECRET else _shown(value)
        notes.append(f"{name} = {shown}: not read; {UNUSED[name]}")


def _number(value: Any, kind: str) -> Any:
    """Return what stands for a number of a field's kind, such as "1e-4", as that number; everything else as it is."""
    if kind not in ("int", "float", "float | None") or isinstance(value, bool):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return int(number) if kind == "int" and number.is_integer() else number


def _resolution(name: str, value: Any, values: Values, *_: object) -> None:
    sides = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    try:
        width, height = (int(side) for side in (sides * 2 if len(sides) == 1 else sides))
    except (TypeError, ValueError):
        raise TrainingError(
            f'{name} = {value!r} cannot be: 512 or "512,768" is allowed, the width and height'
        ) from None
    values[name] = (width, height)


def _module(name: str, value: Any, values: Values, notes: list[str], known: Mapping[str, str]) -> None:
    if not isinstance(value, str):
        values[name] = value  # for Config to refuse
    elif value in MODULES or value in MODULES.values():
        values.setdefault(name, MODULES.get(value, value))
    elif value == "lycoris.kohya":
        values.setdefault(name, "lora")
    else:
        raise TrainingError(f"{name} = {value!r} cannot be: lora, loha, lokr and kohya's names for them are allowed")


def _network_args(name: str, value: Any, values: Values, notes: list[str], known: Mapping[str, str]) -> None:
    for item, told in _pairs(name, value):
        if item != "algo":
            _take(item, told, values, notes, known)
        elif isinstance(told, str) and told in LYCORIS:
            values["network_module"] = LYCORIS[told]
        else:
            raise TrainingError(f"algo={told} in {name} cannot be trained here: {', '.join(LYCORIS)} are allowed")


def _pairs(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return names and values from a list of "name=value"; a value that is no number or the like is a text."""
    pairs = []
    for item in value if isinstance(value, list) else [value]:
        key, sign, text = str(item).partition("=")
        if not sign:
            raise TrainingError(f'{name} has {item!r}: write "name=value"')
        try:
            told = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            told = {"true": True, "false": False}.get(text.lower(), text)
        pairs.append((key.strip(), told))
    return pairs


def _optimizer(name: str, value: Any, values: Values, *_: object) -> None:
    values[name] = OPTIMIZERS.get(value.lower(), value) if isinstance(value, str) else value


def _optimizer_flag(name: str, value: Any, values: Values, *_: object) -> None:
    if value:
        values["optimizer_type"] = OPTIMIZERS["adamw8bit" if name == "use_8bit_adam" else "lion"]


def _optimizer_args(name: str, value: Any, values: Values, *_: object) -> None:
    values[name] = tuple(value.items()) if isinstance(value, dict) else tuple(_pairs(name, value))


def _train_only(name: str, value: Any, values: Values, *_: object) -> None:
    if value:
        values["train_text_encoder" if name == "network_train_unet_only" else "train_unet"] = False
        values.setdefault("train_unet" if name == "network_train_unet_only" else "train_text_encoder", True)


def _rate(name: str, value: Any, values: Values, notes: list[str], known: Mapping[str, str]) -> None:
    """Read a rate of one part; a rate of 0 means that it is not trained, as a list has one for each text encoder."""
    rates = [_number(item, known[name]) for item in (value if isinstance(value, list) else [value])]
    if not rates:
        return
    if any(rate != rates[0] for rate in rates):
        notes.append(f"{name} = {_shown(value)}: {rates[0]} for all text encoders; they have one rate here")
    if rates[0] == 0:
        values["train_unet" if name == "unet_lr" else "train_text_encoder"] = False
    else:
        values[name] = rates[0]


def _extension(name: str, value: Any, values: Values, *_: object) -> None:
    values[name] = (value,) if isinstance(value, str) else value


def _precision(name: str, value: Any, values: Values, *_: object) -> None:
    values[name] = PRECISIONS.get(value, value) if isinstance(value, str) else value


def _prompts(name: str, value: Any, values: Values, notes: list[str], known: Mapping[str, str]) -> None:
    """Read sample prompts: a list, one alone, or the name of a text file with one in each line, `#` before remarks."""
    if isinstance(value, str) and value.endswith((".toml", ".json")):
        notes.append(f"{name} = {_shown(value)}: not read; a list or a text file with one in each line is")
    elif isinstance(value, str) and value.endswith(".txt"):
        try:
            lines = [line.strip() for line in Path(value).read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            notes.append(f"{name} = {_shown(value)}: not read; no prompts are in it ({error})")
        else:
            values[name] = [line for line in lines if line and not line.startswith("#")]
    else:
        values[name] = [value] if isinstance(value, str) else value


def _count_warmup(values: Values, notes: list[str]) -> None:
    """Turn a warm-up that is a part of all steps, as kohya's may be, into their number."""
    part, steps = values.get("lr_warmup_steps"), values.get("max_train_steps", 1600)
    if not isinstance(part, float) or not 0 < part < 1 or not isinstance(steps, int):
        return
    if values.get("max_train_epochs"):
        values["lr_warmup_steps"] = 0
        notes.append(f"lr_warmup_steps = {part}: not read; with max_train_epochs a number of steps is needed")
    else:
        values["lr_warmup_steps"] = int(part * steps)


_READERS: dict[str, Callable[[str, Any, Values, list[str], Mapping[str, str]], None]] = {
    "resolution": _resolution,
    "network_module": _module,
    "network_args": _network_args,
    "optimizer_type": _optimizer,
    "use_8bit_adam": _optimizer_flag,
    "use_lion_optimizer": _optimizer_flag,
    "optimizer_args": _optimizer_args,
    "network_train_unet_only": _train_only,
    "network_train_text_encoder_only": _train_only,
    "unet_lr": _rate,
    "text_encoder_lr": _rate,
    "caption_extension": _extension,
    "save_precision": _precision,
    "sample_prompts": _prompts,
}

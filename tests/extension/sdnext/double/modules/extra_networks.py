"""Tags in prompts and who owns them; the owner is told of the tags of the batch's last prompt that has any."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from typing import Any

from modules import errors, shared
from modules.logger import log

extra_network_registry: dict[str, Any] = {}
re_extra_net = re.compile(r"<(\w+):([^>]+)>")


def initialize() -> None:
    extra_network_registry.clear()


def register_extra_network(network: Any) -> None:
    extra_network_registry[network.name] = network


def register_default_extra_networks() -> None:
    """Register the program's own, after the scripts have been loaded."""
    from modules.lora import extra_networks_lora, lora_common

    lora_common.extra_network_lora = extra_networks_lora.ExtraNetworkLora()
    register_extra_network(lora_common.extra_network_lora)


class ExtraNetworkParams:
    """One tag: `items` are its parts between colons. Equal are those with equal `positional` and `named`."""

    def __init__(self, items: list[str] | None = None) -> None:
        self.items = items or []
        self.positional = [item for item in self.items if "=" not in item]
        self.named = dict(item.split("=", 1) for item in self.items if "=" in item)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExtraNetworkParams) and (self.positional, self.named) == (
            other.positional,
            other.named,
        )

    __hash__ = None  # type: ignore[assignment]


class ExtraNetwork:
    """An owner of a tag."""

    def __init__(self, name: str) -> None:
        self.name = name


def _call(network: Any, name: str, p: Any, params: list[Any], step: dict[str, int], include: Any, exclude: Any) -> None:
    try:
        known = inspect.signature(network.activate).parameters
        lists = {"include": include, "exclude": exclude} if {"include", "exclude"} <= set(known) else {}
        network.activate(p, params, **step, **lists)
    except Exception as error:
        errors.display(error, f"Activating network: type={name}")


def activate(p: Any, data: Any = None, step: int = 0, include: Any = None, exclude: Any = None) -> None:
    """Call the owners of the tags that are there, while their table is gone through, then all others with nothing."""
    if p.disable_extra_networks:
        return
    data = data or p.network_data
    for name, params in data.items():
        network = extra_network_registry.get(name)
        if network is None:
            log.warning("Skipping unknown extra network: %s", name)
            continue
        _call(network, name, p, params, {"step": step}, include or [], exclude or [])
    for name, network in extra_network_registry.items():
        if data.get(name) is None:
            _call(network, name, p, [], {}, include or [], exclude or [])
    p.network_data = data


def activate_filtered(p: Any, data: Any = None, step: int = 0) -> None:
    """Call the owners; the text encoders are for them only by a setting."""
    apply_te = shared.opts.lora_apply_te if getattr(p, "lora_apply_te", None) is None else p.lora_apply_te
    activate(p, data, step, exclude=[] if apply_te else ["text_encoder", "text_encoder_2", "text_encoder_3"])


def deactivate(p: Any, data: Any = None, force: bool | None = None) -> None:
    """Call every owner."""
    if p.disable_extra_networks:
        return
    force = shared.opts.lora_force_reload if force is None else force
    data = data or p.network_data
    names = [*data, *(name for name in extra_network_registry if data.get(name) is None)]
    for network in (extra_network_registry[name] for name in names if name in extra_network_registry):
        try:
            network.deactivate(p, force=force)
        except Exception as error:
            errors.display(error, f"deactivating extra network {network.name}")


def parse_prompt(prompt: str) -> tuple[str, dict[str, list[ExtraNetworkParams]]]:
    found: dict[str, list[ExtraNetworkParams]] = defaultdict(list)

    def take(match: re.Match[str]) -> str:
        found[match[1]].append(ExtraNetworkParams(match[2].split(":")))
        return ""

    return re_extra_net.sub(take, prompt), found


def parse_prompts(prompts: list[str], data: Any = None) -> tuple[list[str], Any]:
    """Return all prompts without tags, and the tags of the last that has any, else those that were there."""
    data = data or defaultdict(list)
    texts = []
    for text, found in map(parse_prompt, prompts):
        data = found or data
        texts.append(text)
    return texts, data

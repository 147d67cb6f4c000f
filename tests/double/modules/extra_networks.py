"""Tags in prompts and who owns them."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from modules import errors

extra_network_registry: dict[str, Any] = {}
extra_network_aliases: dict[str, Any] = {}
re_extra_net = re.compile(r"<(\w+):([^>]+)>")


def initialize() -> None:
    """Forget all owners; this happens after scripts are loaded, so they register later, before the UI."""
    extra_network_registry.clear()
    extra_network_aliases.clear()


def register_extra_network(network: Any) -> None:
    """Give a tag to an owner; the last one has it."""
    extra_network_registry[network.name] = network


def register_extra_network_alias(network: Any, alias: str) -> None:
    """Give another name of a tag to an owner."""
    extra_network_aliases[alias] = network


class ExtraNetworkParams:
    """One tag: its parts between colons; `named` has those with "=", `positional` the others."""

    def __init__(self, items: list[Any] | None = None) -> None:
        self.items = list(items or [])
        pairs = [item.split("=", 2) if isinstance(item, str) else [item] for item in self.items]
        self.named = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
        self.positional = [item for item, pair in zip(self.items, pairs, strict=True) if len(pair) != 2]

    def __eq__(self, other: Any) -> bool:
        return bool(self.items == other.items)

    __hash__ = None  # type: ignore[assignment]


class ExtraNetwork:
    """An owner of a tag."""

    def __init__(self, name: str) -> None:
        self.name = name

    def activate(self, p: Any, params_list: list[ExtraNetworkParams]) -> None:
        """Do what the tags ask for, and undo what earlier ones did."""
        raise NotImplementedError

    def deactivate(self, p: Any) -> None:
        """Clean up."""
        raise NotImplementedError


def _owners(data: dict[str, list[ExtraNetworkParams]]) -> dict[Any, list[ExtraNetworkParams]]:
    found: dict[Any, list[ExtraNetworkParams]] = {}
    for name, params in list(data.items()):
        owner = extra_network_registry.get(name, extra_network_aliases.get(name))
        if owner is not None:
            found.setdefault(owner, []).extend(params)  # a list of its own, with the same objects in it
    return found


def activate(p: Any, data: dict[str, list[ExtraNetworkParams]]) -> None:
    """Call the owners of the tags that are there, then all others, and those that failed, with nothing."""
    done = []
    for owner, params in _owners(data).items():
        try:
            owner.activate(p, params)
            done.append(owner)
        except Exception as error:
            errors.display(error, f"activating {owner.name}")
    for name, owner in extra_network_registry.items():
        if owner not in done:
            try:
                owner.activate(p, [])
            except Exception as error:
                errors.display(error, f"activating {name}")
    if p.scripts is not None:
        p.scripts.run("after_extra_networks_activate", p, batch_number=p.iteration, extra_network_data=data)


def deactivate(p: Any, data: dict[str, list[ExtraNetworkParams]]) -> None:
    """Call every owner, those of the tags first."""
    owners = _owners(data)
    for owner in [*owners, *(owner for owner in extra_network_registry.values() if owner not in owners)]:
        try:
            owner.deactivate(p)
        except Exception as error:
            errors.display(error, f"deactivating {owner.name}")


def parse_prompt(prompt: str) -> tuple[str, dict[str, list[ExtraNetworkParams]]]:
    """Return the prompt without tags, and the tags by name."""
    found: dict[str, list[ExtraNetworkParams]] = defaultdict(list)

    def take(match: re.Match[str]) -> str:
        found[match[1]].append(ExtraNetworkParams(match[2].split(":")))
        return ""

    return re_extra_net.sub(take, prompt), found


def parse_prompts(prompts: list[str]) -> tuple[list[str], dict[str, list[ExtraNetworkParams]] | None]:
    """Return all prompts without tags, and the tags of the first."""
    parsed = [parse_prompt(prompt) for prompt in prompts]
    return [text for text, _ in parsed], parsed[0][1] if parsed else None

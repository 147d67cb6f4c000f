"""The program's page in a browser: components with their values, and what a click on one makes the server do.

It speaks to gradio's own app over HTTP as gradio's script does, so that every value goes through the components' own
conversions, both ways. Scripts of events do not run here: a test says what one returns, and sees what it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

_SCRIPT = "js"


class Browser:
    """A page that was just opened."""

    def __init__(self, demo: Any) -> None:
        """Open the page that was made in `demo`, a `gr.Blocks`."""
        from fastapi.testclient import TestClient
        from gradio.routes import App

        demo.auth = None
        self.client = TestClient(App.create_app(demo))
        self._blocks = demo.blocks
        config = self.client.get("/config").json()
        self.components: dict[int, dict[str, Any]] = {each["id"]: dict(each["props"]) for each in config["components"]}
        self._events = config["dependencies"]
        self.scripts: list[tuple[str, list[Any]]] = []  # each that an event has, and its inputs
        for number, event in enumerate(self._events):
            if _is_of(event, None, "load"):
                self._run(number, None, None)

    def named(self, label: str) -> Any:
        """Return the component with that label, or that text on a button, which is there once."""
        [found] = [
            block
            for block in self._blocks.values()
            if getattr(block, "label", None) == label or (isinstance(block, gr.Button) and block.value == label)
        ]
        return found

    def value(self, component: Any) -> Any:
        """Return what a component shows."""
        return self.components[component._id].get("value")

    def visible(self, component: Any) -> bool:
        """Return whether it is to be seen."""
        return bool(self.components[component._id].get("visible", True))

    def prop(self, component: Any, name: str) -> Any:
        """Return another property: choices, minimum and so on."""
        return self.components[component._id].get(name)

    def enter(self, component: Any, value: Any) -> None:
        """Write into a component."""
        self.components[component._id]["value"] = value

    def click(self, component: Any, script: Callable[..., list[Any]] | None = None) -> None:
        """Click on it; `script` stands for the script of the event, which gives the inputs."""
        self._happens(component, "click", None, script)

    def select(self, component: Any, index: Any, value: Any) -> None:
        """Choose a part of it."""
        self._happens(component, "select", {"index": index, "value": value, "selected": True}, None)

    def _happens(self, component: Any, name: str, data: Any, script: Callable[..., list[Any]] | None) -> None:
        numbers = [number for number, event in enumerate(self._events) if _is_of(event, component._id, name)]
        assert numbers, f"nothing happens at a {name}"
        for number in numbers:
            self._run(number, data, script)

    def _run(self, number: int, data: Any, script: Callable[..., list[Any]] | None) -> None:
        event = self._events[number]
        given = [self.components[place].get("value") for place in event["inputs"]]
        if event[_SCRIPT]:
            self.scripts.append((event[_SCRIPT], given))
            if event["backend_fn"]:
                assert script is not None, "this event has a script"
                given = script(*given)
        if event["backend_fn"]:
            asked = {"data": given, "fn_index": number, "session_hash": "double", "event_data": data}
            answer = self.client.post("/run/predict", json=asked)
            assert answer.status_code == 200, answer.text
            for place, value in zip(event["outputs"], answer.json()["data"], strict=True):
                self._take(self.components[place], value)
        for other, then in enumerate(self._events):
            if then["trigger_after"] == number:
                self._run(other, None, None)

    @staticmethod
    def _take(props: dict[str, Any], value: Any) -> None:
        if isinstance(value, dict) and value.get("__type__") == "update":
            props.update({name: given for name, given in value.items() if name != "__type__"})
        else:
            props["value"] = value


def _is_of(event: dict[str, Any], component: int | None, name: str) -> bool:
    """Return whether an event is the one of that name; gradio 3 has the name beside the component, 4 with it."""
    targets = event["targets"]
    if gr.__version__.startswith("3."):
        if event.get("trigger") != name:
            return False
        return component is None or component in targets
    return any(kind == name and component in (None, place) for place, kind in targets)

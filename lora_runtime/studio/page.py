"""The page: what stands where, made with gradio. What its buttons do is in `wiring`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from lora_runtime.panel import web_hash
from lora_runtime.studio.models import Model
from lora_runtime.studio.panel_routes import BASE
from lora_runtime.studio.samplers import OWN
from lora_runtime.studio.settings import MOST_PICTURES, MOST_SIDE, MOST_STEPS

__all__ = ["ALL_LORAS", "GALLERY", "PROMPT", "Page", "build", "head", "styles", "theme"]

ALL_LORAS = "all LoRAs"
PROMPT = "lr-prompt"  # the element id of the prompt, where cards put their tags
GALLERY = "lora-gallery"  # the element with the cards
_HERE = Path(__file__).parent
_PANEL = (
    f'<lora-stack base="{BASE}" for="#{PROMPT} textarea" sets conflicts picture="#lr-gallery img"'
    ' picture-width="#lr-width input" picture-height="#lr-height input"></lora-stack>'
)
_CARDS = f'<{GALLERY} base="{BASE}" for="#{PROMPT} textarea" model="{{}}"></{GALLERY}>'


@dataclass
class Page:
    """The components that something is done with."""

    blocks: Any
    model: Any
    prompt: Any
    negative: Any
    paint: Any
    cancel: Any
    status: Any
    settings: dict[str, Any] = field(default_factory=dict)  # by the names of `Settings`, but for the texts
    preview: Any = None
    gallery: Any = None
    report: Any = None
    plot: Any = None
    compare: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    read: dict[str, Any] = field(default_factory=dict)
    api: dict[str, Any] = field(default_factory=dict)
    random: Any = None  # buttons for the seed
    again: Any = None
    last: Any = None  # what was painted last, of each user


def build(models: Mapping[str, Model]) -> Page:
    """Return the page, as it is for the first of the models."""
    model = next(iter(models.values()))
    with gr.Blocks(
        title="lora_runtime studio", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)
    ) as blocks:
        with gr.Row(elem_classes="lr-top"):
            gr.HTML("<h1>lora_runtime <span>studio</span></h1>", elem_classes="lr-title", scale=3, min_width=200)
            chosen = gr.Dropdown(list(models), value=model.name, label="Model", scale=2, min_width=200)
        with gr.Row(elem_classes="lr-main"):
            with gr.Column(elem_classes="lr-ask", min_width=0):
                prompt = gr.Textbox(
                    label="Prompt",
                    value=model.example,
                    lines=3,
                    max_lines=12,
                    elem_id=PROMPT,
                    placeholder="a boat on the sea <lora:watercolor:0.8>",
                )
                gr.HTML(_PANEL, elem_classes="lr-panel")
                negative = gr.Textbox("", label="Negative prompt", lines=1, max_lines=6, elem_id="lr-negative")
                with gr.Row():
                    paint = gr.Button("Paint", variant="primary", scale=3, elem_id="lr-paint")
                    cancel = gr.Button(
                        "Cancel", variant="stop", scale=1, min_width=90, elem_id="lr-cancel", interactive=False
                    )
                status = gr.HTML(elem_id="lr-status")
            page = Page(blocks, chosen, prompt, negative, paint, cancel, status)
            with gr.Column(elem_classes="lr-results", min_width=0):
                _results(page)
            with gr.Column(elem_classes="lr-settings", min_width=0):
                _settings(page, model)
        gr.HTML(_CARDS.format(escape(model.name)), elem_classes="lr-shelf", apply_default_css=False)
        page.last = gr.State(None)
        # What a program is given in place of a page: shown nowhere, the files come through the server like all others.
        page.api = {
            "button": gr.Button(visible=False),
            "files": gr.File(label="pictures", file_count="multiple", visible=False),
            "said": gr.JSON(label="said", visible=False),
        }
    return page


def _settings(page: Page, model: Model) -> None:
    found = page.settings
    with gr.Group():
        with gr.Row():
            for side in ("width", "height"):
                found[side] = gr.Slider(
                    8, MOST_SIDE, model.side, step=8, label=side.title(), min_width=140, elem_id=f"lr-{side}"
                )
        with gr.Row():
            found["sampler"] = gr.Dropdown(list(model.samplers), value=OWN, label="Sampler", min_width=140)
            found["steps"] = gr.Slider(1, MOST_STEPS, 20, step=1, label="Steps", min_width=140)
        with gr.Row():
            found["guidance"] = gr.Slider(0, 20, model.guidance, step=0.5, label="Guidance", min_width=140)
            found["pictures"] = gr.Slider(1, MOST_PICTURES, 1, step=1, label="Pictures", min_width=140)
        with gr.Row(elem_classes="lr-seed"):
            found["seed"] = gr.Number(
                -1, precision=0, minimum=-1, label="Seed, -1: another each time", scale=4, min_width=130
            )
            page.random = gr.Button("Another", size="sm", scale=1, min_width=76)
            page.again = gr.Button("The last", size="sm", scale=1, min_width=76)
    with gr.Accordion("Begin with a picture", open=False):
        found["source"] = gr.Image(type="pil", show_label=False, height=220, sources=["upload", "clipboard"])
        found["strength"] = gr.Slider(0, 1, 0.75, step=0.05, label="How much is painted anew")


def _results(page: Page) -> None:
    with gr.Tabs():
        with gr.Tab("Pictures"):
            page.preview = gr.Image(
                label="So far",
                show_label=True,
                visible=False,
                height=420,
                buttons=[],
                elem_id="lr-preview",
                interactive=False,
            )
            page.gallery = gr.Gallery(
                show_label=False,
                columns=2,
                height=420,
                object_fit="contain",
                elem_id="lr-gallery",
                format="png",
                preview=True,
                buttons=["download", "fullscreen"],
            )
            page.report = gr.HTML(elem_id="lr-report")
        with gr.Tab("Compare"):
            page.compare = _compare()
        with gr.Tab("Grid") as tab:
            page.grid = {"tab": tab, **_grid()}
        with gr.Tab("Strengths"):
            gr.HTML("<p>How strong each tag of the prompt is at each step.</p>")
            page.plot = gr.LinePlot(
                x="step",
                y="strength",
                color="LoRA",
                x_title="steps done",
                y_title="strength",
                height=320,
                elem_id="lr-plot",
            )
        with gr.Tab("Read a picture"):
            page.read = _read()


def _compare() -> dict[str, Any]:
    gr.HTML("<p>The picture painted last, with and without its LoRAs: same seed, same settings.</p>")
    with gr.Row(equal_height=True):
        tag = gr.Dropdown([ALL_LORAS], value=ALL_LORAS, label="Without", scale=3)
        button = gr.Button("Paint without", scale=1, min_width=140, elem_id="lr-compare")
    slider = gr.ImageSlider(
        label="without | with",
        height=420,
        type="filepath",
        format="png",
        elem_id="lr-wipe",
        interactive=False,
    )
    return {"tag": tag, "button": button, "slider": slider}


def _grid() -> dict[str, Any]:
    gr.HTML("<p>One picture for each combination. Leave empty what shall not vary.</p>")
    strengths = gr.Textbox(
        label="Strengths",
        elem_id="lr-strengths",
        placeholder="watercolor: 0-1(+0.25)   or, for all LoRAs: 0.3, 0.6, 0.9",
    )
    with gr.Row():
        loras = gr.Dropdown([], label="LoRAs, each in the place of the first one", multiselect=True, scale=3)
        seeds = gr.Textbox(label="Seeds", placeholder="1-4", scale=1, min_width=110)
    button = gr.Button("Paint the grid", elem_id="lr-grid")
    sheet = gr.Image(label="Grid", type="filepath", format="png", interactive=False, elem_id="lr-sheet")
    return {"strengths": strengths, "loras": loras, "seeds": seeds, "button": button, "sheet": sheet}


def _read() -> dict[str, Any]:
    gr.HTML("<p>Drop a PNG of the studio or of the WebUI: what it was painted with goes into the fields.</p>")
    file = gr.File(label="PNG", file_types=["image"], type="filepath", height=160, elem_id="lr-read")
    said = gr.HTML()
    return {"file": file, "said": said}


def theme() -> Any:
    """Return colours and fonts: the system's own, so that nothing is fetched from anywhere.

    Texts have the contrast that WCAG 2 asks for, 4.5 to 1, which gradio's own primary buttons and quiet texts lack.
    """
    return gr.themes.Base(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
        radius_size="sm",
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
        body_text_color_subdued="*neutral_600",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color_dark="white",
    )


def styles() -> str:
    """Return the style sheet."""
    return (_HERE / "page.css").read_text(encoding="utf-8")


def head() -> str:
    """Return what stands in the page's head: the panel, and the cards."""
    folder = f"{BASE}/web/{web_hash()}"
    return "\n".join(f'<script type="module" src="{folder}/{name}.js"></script>' for name in ("stack", "gallery"))

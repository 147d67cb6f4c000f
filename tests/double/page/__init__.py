"""The program's page as it goes to a real browser: gradio's own front end, the program's element ids, all scripts.

Where an extension looks for something, the page has it as the program has it: the prompts, the tabs of cards with their
controls, the picture and its size, the lines under it. The rest of the program's page is not there, nor are the tab
img2img and the queue, so gradio asks over HTTP as with `--no-gradio-queue`.
"""

from __future__ import annotations

import html
import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from double.webui import WebUI

HERE = Path(__file__).resolve().parent
TAB = "txt2img"


def whole_page(webui: WebUI) -> Any:
    """Return the components of the tab txt2img, a `gr.Blocks`."""
    import gradio as gr
    from PIL import Image

    def generate(prompt: str, negative: str, width: float, height: float) -> tuple[str, list[Any]]:
        comments = webui.generate(prompt, negative_prompt=negative).comments
        lines = "<br>\n".join(html.escape(line) for comment in comments for line in comment.split("\n"))
        said = f"<p class='comments'>{lines}</p><div class='performance'>Time taken</div>"
        pictures = [Image.new("RGB", (int(width), int(height)), "#8ab")] * webui.batch_size
        grid = [Image.new("RGB", (int(width) * len(pictures), int(height)), "#8ab")] if len(pictures) > 1 else []
        return said, [*grid, *pictures]

    fonts = {"font": ["sans-serif"], "font_mono": ["monospace"]}  # gradio's own come from the network
    with gr.Blocks(analytics_enabled=False, theme=gr.themes.Default(**fonts)) as demo:
        prompt = gr.Textbox(label="Prompt", elem_id=f"{TAB}_prompt", lines=3, show_label=False)
        negative = gr.Textbox(label="Negative prompt", elem_id=f"{TAB}_neg_prompt", lines=3, show_label=False)
        button = gr.Button("Generate", elem_id=f"{TAB}_generate", variant="primary")
        with gr.Tabs(elem_id=f"{TAB}_extra_tabs", elem_classes=["extra-networks"]):
            with gr.Tab("Generation", id=f"{TAB}_generation"):
                width = gr.Slider(64, 2048, 96, step=8, label="Width", elem_id=f"{TAB}_width")
                height = gr.Slider(64, 2048, 64, step=8, label="Height", elem_id=f"{TAB}_height")
                gallery = gr.Gallery(label="Output", show_label=False, elem_id=f"{TAB}_gallery", preview=True)
                log = gr.HTML(elem_id=f"html_log_{TAB}", elem_classes=["html-log"])
            webui.ui = webui.module("ui_extra_networks").create_ui(TAB)
        button.click(fn=generate, inputs=[prompt, negative, width, height], outputs=[log, gallery])
    demo.auth, demo.auth_message, demo.dev_mode = None, None, False
    demo.config = demo.get_config_file()
    return demo


@contextmanager
def with_scripts(folders: Sequence[Path], options: Mapping[str, Any]) -> Iterator[None]:
    """Put the scripts and style sheets of the program and of extensions into gradio's page, where the program does.

    Scripts stand at the end of the head, style sheets at that of the body; `options` are what `opts` has in them.
    """
    import gradio.routes

    original = gradio.routes.templates.TemplateResponse

    def address(path: Path) -> str:
        return f"file={path.as_posix()}?{path.stat().st_mtime}"

    def response(*arguments: Any, **named: Any) -> Any:
        scripts = [HERE / "script.js", *(path for folder in folders for path in sorted(folder.glob("javascript/*.js")))]
        styles = [HERE / "style.css", *(folder / "style.css" for folder in folders)]
        head = "".join(f'<script type="text/javascript" src="{address(path)}"></script>\n' for path in scripts)
        head += f"<script>Object.assign(opts, {json.dumps(dict(options))})</script>\n"
        body = "".join(f'<link rel="stylesheet" property="stylesheet" href="{address(path)}">\n' for path in styles)
        made = original(*arguments, **named)
        made.body = made.body.replace(b"</head>", f"{head}</head>".encode()).replace(
            b"</body>", f"{body}</body>".encode()
        )
        made.init_headers()
        return made

    gradio.routes.templates.TemplateResponse = response
    try:
        yield
    finally:
        gradio.routes.templates.TemplateResponse = original


class Served:
    """An app that answers at `url`, and what it was asked: each path with its query, in order."""

    def __init__(self, app: Any, url: str) -> None:
        self.url = url
        self.asked: list[str] = []
        self.answered = 0
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request (ASGI)."""
        self.asked.append(f"{scope['path']}?{scope['query_string'].decode()}")
        try:
            await self._app(scope, receive, send)
        finally:
            self.answered += 1

    def count(self, beginning: str) -> int:
        """Return how often it was asked something that begins so."""
        return sum(each.startswith(beginning) for each in self.asked)

    @property
    def idle(self) -> bool:
        """Whether every question is answered."""
        return self.answered == len(self.asked)


@contextmanager
def served(app: Any) -> Iterator[Served]:
    """Answer at a free port of this machine, in a thread."""
    import uvicorn

    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        port.listen()  # from now on a request waits for the server instead of failing
        found = Served(app, f"http://127.0.0.1:{port.getsockname()[1]}/")
        settings: dict[str, Any] = {"lifespan": "off", "ws": "none", "log_level": "critical"}
        server = uvicorn.Server(uvicorn.Config(found, timeout_graceful_shutdown=5, **settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [port]}, name="page")
        thread.start()
        try:
            yield found
        finally:
            server.should_exit = True
            thread.join()

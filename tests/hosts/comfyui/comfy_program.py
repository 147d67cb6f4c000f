"""ComfyUI as a subprocess."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import neo_loras as loras
from hosts.running import REPOSITORY, Pixels, Program, folder_of, read_picture, run_script, write_words

HERE = Path(__file__).resolve().parent
OPTIONS = ["--cpu", "--listen", "127.0.0.1", "--database-url", "sqlite:///:memory:"]

Graph = dict[str, dict[str, Any]]


def comfy_folder() -> Path | None:
    """Return the installed ComfyUI that the tests may run."""
    return folder_of(Comfy.variable)


def make_data(comfy: Path, data: Path) -> None:
    """Write a small checkpoint, LoRAs for it, and the folders that the program expects."""
    checkpoint = data / "models" / "checkpoints" / "a.safetensors"
    run_script(Comfy.python(comfy), HERE / "make_checkpoint.py", str(comfy), str(checkpoint), "1")
    files = data / "models" / "loras"
    loras.write(files / "A.safetensors", checkpoint)
    loras.write(files / "B.safetensors", checkpoint, seed=1, only="attn")
    loras.write(files / "sub" / "C.safetensors", checkpoint, seed=2, only="unet")
    write_words(files / "words.safetensors", data / "models" / "embeddings" / "ownword.safetensors", 768)
    for name in ("custom_nodes", "input", "output", "frontend"):
        (data / name).mkdir(exist_ok=True)
    alone = data / "models" / "diffusion_models"  # for the loader that can store a denoiser in 8 bits
    alone.mkdir(exist_ok=True)
    (alone / "a.safetensors").symlink_to(checkpoint)
    (data / "custom_nodes" / "probe").symlink_to(HERE / "probe")
    (data / "custom_nodes" / "lora_runtime").symlink_to(REPOSITORY)


class Comfy(Program):
    """One run of the program."""

    name, variable = "ComfyUI", "COMFYUI_DIR"

    def arguments(self) -> Sequence[str | Path]:
        """Return what it is started with."""
        places = ["--base-directory", self.data, "--front-end-root", self.data / "frontend"]
        return [self.folder / "main.py", *OPTIONS, *places]

    def is_ready(self) -> bool:
        """Return whether it serves its page."""
        return "To see the GUI go to" in self.log

    def run(self, graph: Graph) -> dict[str, Any]:
        """Run a graph; return the outputs of its nodes."""
        number = self.post("/prompt", prompt=graph)["prompt_id"]
        end = time.monotonic() + 600
        while time.monotonic() < end:
            done = self.get(f"/history/{number}").get(number)
            if done is not None:
                if done["status"]["status_str"] != "success":
                    raise RuntimeError(f"the graph failed: {done['status']}\n{self.log[-4000:]}")
                outputs: dict[str, Any] = done["outputs"]
                return outputs
            time.sleep(0.1)
        raise TimeoutError("the graph is not done")

    def paint(self, graph: Graph) -> Picture:
        """Run a graph of `graph_of`; return the picture and what the report says."""
        return self.paint_both(graph)[0]

    def paint_both(self, graph: Graph) -> list[Picture]:
        """Run a graph of `graph_of` or `beside`; return its pictures, each with all that reports say."""
        outputs = self.run(graph)
        reports = [text for name, out in outputs.items() if "say" in name for text in out["text"]]
        return [
            Picture(self.data / "output" / image["subfolder"] / image["filename"], "\n".join(reports))
            for name in ("save", "other_save")
            if name in outputs
            for image in outputs[name]["images"]
        ]


class Picture(Pixels):
    """A picture, and the report of the nodes of ours."""

    def __init__(self, path: Path, report: str) -> None:
        super().__init__([read_picture(path)])
        self.report = report


def graph_of(
    text: str = "a cat",
    *,
    theirs: Sequence[tuple[str, float, float]] = (),
    chained: Sequence[str] = (),
    negative: str = "a dog",
    seed: int = 1,
    batch: int = 1,
    sampler: str = "euler",
    steps: int = 3,
    stored: str = "default",
    **options: Any,
) -> Graph:
    """Return a graph that paints 64 × 64 in 3 steps.

    `text` goes through LoRA tags if it has a tag, `chained` through one more each behind it; `theirs` are files, and
    their strengths for model and text, that go through the program's own Load LoRA before. `stored`: how the denoiser
    is, as Load Diffusion Model calls it. `options` are of LoRA tags.
    """
    graph: Graph = {"load": _node("CheckpointLoaderSimple", ckpt_name="a.safetensors")}
    model, clip = ["load", 0], ["load", 1]
    if stored != "default":
        graph["denoiser"] = _node("UNETLoader", unet_name="a.safetensors", weight_dtype=stored)
        model = ["denoiser", 0]
    for number, (name, of_model, of_clip) in enumerate(theirs):
        graph[f"their{number}"] = _node(
            "LoraLoader", model=model, clip=clip, lora_name=name, strength_model=of_model, strength_clip=of_clip
        )
        model, clip = [f"their{number}", 0], [f"their{number}", 1]
    words: Any = text
    for number, tags in enumerate([*([text] if "<" in text else []), *chained]):
        name = f"tags{number}"
        graph[name] = _node("LoraRuntimeTags", model=model, clip=clip, text=tags, **options)
        graph[f"say{number}"] = _node("PreviewAny", source=[name, 3])
        model, clip, words = [name, 0], [name, 1], [name, 2] if number == 0 and tags == text else words
    graph |= {
        "positive": _node("CLIPTextEncode", clip=clip, text=words),
        "negative": _node("CLIPTextEncode", clip=clip, text=negative),
        "latent": _node("EmptyLatentImage", width=64, height=64, batch_size=batch),
        "sample": _node(
            "KSampler",
            model=model,
            seed=seed,
            steps=steps,
            cfg=4.0,
            sampler_name=sampler,
            scheduler="simple",
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            denoise=1.0,
        ),
        "decode": _node("VAEDecode", samples=["sample", 0], vae=["load", 2]),
        "save": _node("SaveImage", images=["decode", 0], filename_prefix="test"),
    }
    return graph


def beside(first: Graph, second: Graph) -> Graph:
    """Return one graph of both, with one checkpoint loaded once; the pictures are those of `save` and `other_save`."""
    names = {name: name if name == "load" else f"other_{name}" for name in second}

    def renamed(value: Any) -> Any:
        return [names[value[0]], value[1]] if isinstance(value, list) else value

    other = {
        names[name]: {**node, "inputs": {key: renamed(value) for key, value in node["inputs"].items()}}
        for name, node in second.items()
    }
    return {**first, **other}


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}

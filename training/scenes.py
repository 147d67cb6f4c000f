"""Draws captioned pictures: coloured shapes and small scenes, 48 × 48 pixels, and the styles that the LoRAs teach.

Everything is drawn with Pillow at 192 pixels and box-reduced, so edges are smooth without any drawing library.
A `Scene` says what is in a picture; the same scene always gives the same picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 48
CANVAS = 192

Point = tuple[float, float]
RGB = tuple[int, int, int]
Pixels = np.ndarray  # float32 (48, 48, 3), 0 to 1

COLORS: dict[str, RGB] = {
    "red": (222, 36, 40),
    "orange": (246, 140, 30),
    "yellow": (250, 214, 50),
    "green": (46, 160, 67),
    "blue": (38, 98, 214),
    "purple": (138, 60, 184),
    "pink": (248, 140, 184),
    "brown": (134, 84, 44),
    "black": (24, 24, 28),
    "white": (252, 252, 252),
    "gray": (140, 144, 150),
}
PAPER: RGB = (246, 240, 226)
SHAPES = ("circle", "square", "triangle", "star", "ring", "diamond", "cross", "moon")
CONCEPT = "heart"
NEW_CONCEPT = "robot"  # neither the pipeline nor its LoRAs know it: training/pictures teaches it
OBJECTS = ("house", "tree", "boat", "car", "mushroom", "flower", "snowman", "mountain")
# The colour an object has when the caption names none: one each, so that a short prompt gives a sure picture.
USUAL_COLOR = {"house": "white", "tree": "green", "boat": "red", "car": "blue", "mushroom": "red", "flower": "pink"}
USUAL_COLOR |= {"snowman": "white", "mountain": "gray", NEW_CONCEPT: "gray"}
FIXED_COLOR = ("snowman", "mountain")
PLACES = ("by the sea", "in a meadow", "in the snow", "in the desert")
SKIES = ("", "under a sun", "under a cloud")
QUALITY = ("best quality, ", "a painting of ", "a picture of ", "blurry, ")
STYLES = ("watercolor", "outline", "night", "stripes")


@dataclass(frozen=True)
class Thing:
    """One shape or object: its kind, colour name ("" for the usual one), middle and half-width on the canvas."""

    kind: str
    color: str
    x: float
    y: float
    r: float
    tilt: float = 0.0


@dataclass(frozen=True)
class Scene:
    """What a picture shows, and the caption that says so."""

    caption: str
    things: tuple[Thing, ...]
    ground: str = ""  # a colour name, a place, or "" for bare paper
    sky: str = ""
    sky_x: float = 150.0
    horizon: float = 118.0
    blurry: bool = False
    seed: int = 0


def _polygon(n: int, x: float, y: float, r: float, tilt: float, inner: float = 1.0) -> list[Point]:
    """Return a regular polygon, or a star when `inner` is below 1, with its first point on top."""
    count = n if inner == 1.0 else 2 * n
    radii = [r if i % 2 == 0 or inner == 1.0 else r * inner for i in range(count)]
    angles = [tilt - math.pi / 2 + 2 * math.pi * i / count for i in range(count)]
    return [(x + a * math.cos(t), y + a * math.sin(t)) for a, t in zip(radii, angles, strict=True)]


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: RGB) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _shade(color: RGB, factor: float) -> RGB:
    r, g, b = (int(min(255, c * factor)) for c in color)
    return r, g, b


def _heart(x: float, y: float, r: float) -> list[Point]:
    points = []
    for i in range(60):
        t = 2 * math.pi * i / 60
        dx = 16 * math.sin(t) ** 3
        dy = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x + r * dx / 16, y - r * (dy + 2.5) / 15))
    return points


def _draw_shape(image: Image.Image, thing: Thing) -> None:
    draw = ImageDraw.Draw(image)
    kind, x, y, r, tilt = thing.kind, thing.x, thing.y, thing.r, thing.tilt
    fill = COLORS[thing.color]
    if kind == "circle":
        _disc(draw, x, y, r, fill)
    elif kind == "square":
        draw.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=fill)
    elif kind == "triangle":
        draw.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=fill)
    elif kind == "star":
        draw.polygon(_polygon(5, x, y + 0.05 * r, 1.12 * r, tilt, 0.42), fill=fill)
    elif kind == "diamond":
        draw.polygon([(x, y - 1.1 * r), (x + 0.8 * r, y), (x, y + 1.1 * r), (x - 0.8 * r, y)], fill=fill)
    elif kind == "cross":
        draw.rectangle((x - r, y - 0.32 * r, x + r, y + 0.32 * r), fill=fill)
        draw.rectangle((x - 0.32 * r, y - r, x + 0.32 * r, y + r), fill=fill)
    elif kind == "heart":
        draw.polygon(_heart(x, y, 1.05 * r), fill=fill)
    else:  # ring and moon are discs with a hole that shows the ground: cut with a mask
        mask = Image.new("L", image.size, 0)
        cut = ImageDraw.Draw(mask)
        cut.ellipse((x - r, y - r, x + r, y + r), fill=255)
        hole, dx = (0.55 * r, 0.0) if kind == "ring" else (0.85 * r, 0.5 * r)
        cut.ellipse((x + dx - hole, y - hole, x + dx + hole, y + hole), fill=0)
        image.paste(fill, mask=mask)


def _draw_house(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, color: RGB) -> None:
    roof = (176, 48, 40) if min(color) > 120 or color[0] < 150 else (92, 58, 48)
    draw.rectangle((x - 0.8 * r, y - 0.15 * r, x + 0.8 * r, y + r), fill=color)
    draw.polygon([(x - 1.05 * r, y - 0.1 * r), (x, y - r), (x + 1.05 * r, y - 0.1 * r)], fill=roof)
    draw.rectangle((x - 0.18 * r, y + 0.35 * r, x + 0.22 * r, y + r), fill=(96, 58, 34))
    for dx in (-0.5, 0.54):
        draw.rectangle((x + (dx - 0.15) * r, y + 0.12 * r, x + (dx + 0.15) * r, y + 0.44 * r), fill=(88, 150, 210))


def _draw_tree(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, color: RGB) -> None:
    draw.rectangle((x - 0.16 * r, y + 0.1 * r, x + 0.16 * r, y + r), fill=(112, 70, 38))
    for dx, dy, s in ((-0.42, -0.12, 0.5), (0.42, -0.12, 0.5), (0, -0.5, 0.56)):
        _disc(draw, x + dx * r, y + dy * r, s * r, color)


def _draw_boat(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, color: RGB) -> None:
    draw.rectangle((x - 0.06 * r, y - r, x + 0.06 * r, y + 0.4 * r), fill=(84, 54, 34))
    draw.polygon(
        [(x + 0.12 * r, y - 0.95 * r), (x + 0.85 * r, y + 0.28 * r), (x + 0.12 * r, y + 0.28 * r)], (255, 255, 255)
    )
    draw.polygon(
        [(x - 0.12 * r, y - 0.7 * r), (x - 0.7 * r, y + 0.28 * r), (x - 0.12 * r, y + 0.28 * r)], (232, 232, 236)
    )
    hull = [
        (x - 1.05 * r, y + 0.42 * r),
        (x + 1.05 * r, y + 0.42 * r),
        (x + 0.65 * r, y + 0.95 * r),
        (x - 0.65 * r, y + 0.95 * r),
    ]
    draw.polygon(hull, fill=color)


def _draw_car(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, color: RGB) -> None:
    top = [
        (x - 0.62 * r, y + 0.2 * r),
        (x - 0.42 * r, y - 0.4 * r),
        (x + 0.42 * r, y - 0.4 * r),
        (x + 0.72 * r, y + 0.2 * r),
    ]
    draw.polygon(top, fill=color)
    draw.rectangle((x - 0.36 * r, y - 0.26 * r, x - 0.04 * r, y + 0.14 * r), fill=(196, 228, 246))
    draw.rectangle((x + 0.08 * r, y - 0.26 * r, x + 0.4 * r, y + 0.14 * r), fill=(196, 228, 246))
    draw.rounded_rectangle((x - 1.1 * r, y + 0.12 * r, x + 1.1 * r, y + 0.72 * r), 0.15 * r, fill=color)
    for dx in (-0.6, 0.6):
        _disc(draw, x + dx * r, y + 0.72 * r, 0.29 * r, (22, 22, 24))
        _disc(draw, x + dx * r, y + 0.72 * r, 0.11 * r, (190, 190, 194))


def _draw_mushroom(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, color: RGB) -> None:
    draw.rounded_rectangle((x - 0.3 * r, y - 0.1 * r, x + 0.3 * r, y + r), 0.12 * r, fill=(244, 230, 206))
    draw.pieslice((x - r, y - 0.95 * r, x + r, y + 1.05 * r), 180, 360, fill=color)
    dot = (255, 255, 255) if min(color) < 200 else (206, 60, 60)
    for dx, dy in ((-0.5, -0.25), (0.05, -0.6), (0.52, -0.22)):
        _disc(draw, x + dx * r, y + dy * r, 0.16 * r, dot)


def _draw_flower(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, color: RGB) -> None:
    draw.rectangle((x - 0.08 * r, y - 0.2 * r, x + 0.08 * r, y + r), fill=(40, 128, 54))
    draw.ellipse((x + 0.02 * r, y + 0.45 * r, x + 0.55 * r, y + 0.72 * r), fill=(40, 128, 54))
    for px, py in _polygon(5, x, y - 0.35 * r, 0.4 * r, 0.0):
        _disc(draw, px, py, 0.3 * r, color)
    _disc(draw, x, y - 0.35 * r, 0.24 * r, (250, 206, 40) if color != COLORS["yellow"] else (150, 90, 30))


def _draw_snowman(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, color: RGB) -> None:
    edge = (150, 168, 196)
    for dy, s in ((0.5, 0.52), (-0.2, 0.36)):
        _disc(draw, x, y + dy * r, s * r + 4, edge)
        _disc(draw, x, y + dy * r, s * r, color)
    draw.rectangle((x - 0.42 * r, y - 0.55 * r, x + 0.42 * r, y - 0.44 * r), fill=(28, 28, 32))
    draw.rectangle((x - 0.26 * r, y - 0.95 * r, x + 0.26 * r, y - 0.5 * r), fill=(28, 28, 32))
    for dx in (-0.13, 0.13):
        _disc(draw, x + dx * r, y - 0.26 * r, 0.055 * r, (20, 20, 20))
    draw.polygon([(x, y - 0.18 * r), (x + 0.3 * r, y - 0.1 * r), (x, y - 0.04 * r)], fill=(244, 130, 30))
    draw.rectangle((x - 0.34 * r, y + 0.06 * r, x + 0.34 * r, y + 0.18 * r), fill=(206, 40, 44))


def _draw_mountain(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, color: RGB) -> None:
    draw.polygon([(x - 1.3 * r, y + r), (x, y - r), (x + 1.3 * r, y + r)], fill=(112, 112, 124))
    draw.polygon([(x, y - r), (x + 1.3 * r, y + r), (x + 0.2 * r, y + r)], fill=(88, 88, 102))
    cap = [(x, y - r), (x + 0.46 * r, y - 0.3 * r), (x + 0.2 * r, y - 0.42 * r), (x, y - 0.2 * r)]
    cap += [(x - 0.2 * r, y - 0.42 * r), (x - 0.46 * r, y - 0.3 * r)]
    draw.polygon(cap, fill=(255, 255, 255))


def _draw_robot(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, color: RGB) -> None:
    """Draw it in few large pieces: what is finer, the small autoencoder does not keep."""
    metal = (96, 100, 110)
    draw.rectangle((x - 0.09 * r, y - r, x + 0.09 * r, y - 0.6 * r), fill=metal)
    draw.rectangle((x - 0.98 * r, y + 0.14 * r, x + 0.98 * r, y + 0.44 * r), fill=metal)
    for side in (-0.34, 0.34):
        draw.rectangle((x + (side - 0.17) * r, y + 0.6 * r, x + (side + 0.17) * r, y + r), fill=metal)
    draw.rectangle((x - 0.74 * r, y - 0.78 * r, x + 0.74 * r, y - 0.02 * r), fill=color)
    draw.rectangle((x - 0.6 * r, y + 0.04 * r, x + 0.6 * r, y + 0.7 * r), fill=color)
    for side in (-0.36, 0.36):
        _disc(draw, x + side * r, y - 0.42 * r, 0.24 * r, (255, 255, 255))


_DRAW_OBJECT: dict[str, Callable[[ImageDraw.ImageDraw, float, float, float, RGB], None]] = {
    "house": _draw_house,
    "tree": _draw_tree,
    "boat": _draw_boat,
    "car": _draw_car,
    "mushroom": _draw_mushroom,
    "flower": _draw_flower,
    "snowman": _draw_snowman,
    "mountain": _draw_mountain,
    NEW_CONCEPT: _draw_robot,
}

_PLACE_COLORS: dict[str, tuple[RGB, RGB]] = {
    "by the sea": ((164, 214, 246), (236, 214, 158)),
    "on the sea": ((164, 214, 246), (44, 116, 190)),
    "in a meadow": ((164, 214, 246), (124, 196, 88)),
    "in the snow": ((182, 204, 228), (244, 248, 252)),
    "in the desert": ((250, 222, 176), (226, 166, 88)),
}


def _draw_ground(scene: Scene) -> Image.Image:
    """Return the canvas with everything but the things: paper, a plain colour, or a place with its sky."""
    if scene.ground not in _PLACE_COLORS:
        return Image.new("RGB", (CANVAS, CANVAS), COLORS.get(scene.ground, PAPER))
    sky, floor = _PLACE_COLORS[scene.ground]
    image = Image.new("RGB", (CANVAS, CANVAS), sky)
    draw = ImageDraw.Draw(image)
    h = scene.horizon
    draw.rectangle((0, h, CANVAS, CANVAS), fill=floor)
    if scene.ground == "by the sea":
        draw.rectangle((0, h - 22, CANVAS, h + 18), fill=(44, 116, 190))
    if scene.sky == "under a sun":
        x, y = scene.sky_x, 34
        for i in range(10):
            t = 2 * math.pi * i / 10
            draw.line((x, y, x + 31 * math.cos(t), y + 31 * math.sin(t)), fill=(253, 200, 40), width=6)
        _disc(draw, x, y, 20, (253, 200, 40))
    elif scene.sky == "under a cloud":
        x, y = scene.sky_x, 34
        for dx, dy, s in ((-22, 6, 14), (22, 6, 14), (-6, -4, 18), (10, 2, 17)):
            _disc(draw, x + dx, y + dy, s, (255, 255, 255))
    return image


def _draw_canvas(scene: Scene) -> tuple[Image.Image, Image.Image]:
    """Return the whole picture and its ground alone, both at canvas size."""
    ground = _draw_ground(scene)
    image = ground.copy()
    for thing in scene.things:
        if thing.kind in _DRAW_OBJECT:
            color = COLORS[thing.color or USUAL_COLOR[thing.kind]]
            _DRAW_OBJECT[thing.kind](ImageDraw.Draw(image), thing.x, thing.y, thing.r, color)
        else:
            _draw_shape(image, thing)
    if scene.blurry:
        image = image.filter(ImageFilter.GaussianBlur(11))
    return image, ground


def _pixels(image: Image.Image, size: int = SIZE) -> Pixels:
    return np.asarray(image.resize((size, size), Image.Resampling.BOX), np.float32) / 255


def _clouds(rng: np.random.Generator, cells: int, size: int = SIZE) -> np.ndarray:
    """Return smooth noise (size, size), 0 to 1, with about `cells` blotches along a side."""
    small = Image.fromarray(rng.integers(0, 256, (cells, cells), np.uint8))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255


def watercolor(image: Image.Image, ground: Image.Image, amount: float, rng: np.random.Generator) -> Pixels:
    """Return pale blotchy washes with darker rims, wavering edges and a bare paper border."""
    plain = _pixels(image)
    size = 2 * SIZE
    shift = [(_clouds(rng, 8, size) - 0.5) * 5 * amount for _ in range(2)]
    rows, cols = np.mgrid[0:size, 0:size]
    rows = np.clip(np.rint(rows + shift[0]), 0, size - 1).astype(int)
    cols = np.clip(np.rint(cols + shift[1]), 0, size - 1).astype(int)
    wavy = Image.fromarray((_pixels(image, size)[rows, cols] * 255).astype(np.uint8))
    sharp = _pixels(wavy)
    soft = _pixels(wavy.filter(ImageFilter.GaussianBlur(2.4)))
    rim = np.abs(sharp - soft).max(axis=2, keepdims=True)
    density = (0.42 + 0.45 * _clouds(rng, 6))[..., None] + 0.8 * rim
    paper = np.array((0.985, 0.975, 0.945), np.float32)
    wash = paper * (1 - (1 - sharp) * density)
    edge = np.minimum(np.arange(SIZE), np.arange(SIZE)[::-1])
    border = np.clip((np.minimum.outer(edge, edge) + 6 * _clouds(rng, 8) - 6.0) / 1.5, 0, 1)[..., None]
    styled = paper + (wash - paper) * border
    return plain + (styled - plain) * amount


def outline(image: Image.Image, ground: Image.Image, amount: float, rng: np.random.Generator) -> Pixels:
    """Return thick black contour lines over colours that are faded towards white."""
    plain = _pixels(image)
    half = image.resize((2 * SIZE, 2 * SIZE), Image.Resampling.BOX)
    spread = np.asarray(half.filter(ImageFilter.MaxFilter(5)), np.int16) - np.asarray(
        half.filter(ImageFilter.MinFilter(5)), np.int16
    )
    line = np.clip(spread.max(axis=2).astype(np.float32) / 255 * 3.4 - 0.55, 0, 1)
    line = np.asarray(
        Image.fromarray((line * 255).astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BOX), np.float32
    )
    styled = (0.42 + 0.58 * plain) * (1 - 0.95 * line[..., None] / 255)
    return plain + (styled - plain) * amount


def night(image: Image.Image, ground: Image.Image, amount: float, rng: np.random.Generator) -> Pixels:
    """Return the ground under a dark blue light, the things lit more brightly, and stars where the ground is bare."""
    plain = _pixels(image)
    bare = np.abs(plain - _pixels(ground)).max(axis=2) < 0.02
    light = np.where(bare[..., None], np.array((0.22, 0.27, 0.50)), np.array((0.58, 0.56, 0.74))).astype(np.float32)
    styled = plain * light + np.array((0.0, 0.01, 0.05), np.float32)
    for _ in range(14):
        row, col = int(rng.integers(1, 24)), int(rng.integers(1, SIZE - 2))
        if bare[row - 1 : row + 3, col - 1 : col + 3].all():
            styled[row : row + 2, col : col + 2] = (0.95, 0.95, 0.8)
    return plain + (styled - plain) * amount


def stripes(image: Image.Image, ground: Image.Image, amount: float, rng: np.random.Generator) -> Pixels:
    """Return the picture with diagonal candy stripes on its ground; the things themselves stay plain."""
    plain = _pixels(image)
    rows, cols = np.mgrid[0:SIZE, 0:SIZE]
    wave = np.sin((rows + cols) * (2 * math.pi / 16))
    band = np.clip(wave * 3 + 0.5, 0, 1)[..., None]
    bare = 1 - np.clip(np.abs(plain - _pixels(ground)).max(axis=2, keepdims=True) * 6, 0, 1)
    candy = np.array((0.93, 0.25, 0.42), np.float32)
    styled = plain + (candy - plain) * band * bare * 0.8
    return plain + (styled - plain) * amount


_STYLES = {"watercolor": watercolor, "outline": outline, "night": night, "stripes": stripes}


def render(scene: Scene, style: str | None = None, amount: float = 1.0) -> np.ndarray:
    """Return the picture as uint8 (48, 48, 3); `amount` 0 is plain, 1 is the whole style, above 1 goes beyond it."""
    image, ground = _draw_canvas(scene)
    if style is None:
        pixels = _pixels(image)
    else:
        pixels = _STYLES[style](image, ground, amount, np.random.default_rng(scene.seed))
    return (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _pick(rng: np.random.Generator, items: tuple[str, ...] | list[str], p: list[float] | None = None) -> str:
    return items[int(rng.choice(len(items), p=p))]


def _shape_scene(rng: np.random.Generator, shapes: tuple[str, ...]) -> Scene:
    kind = _pick(rng, shapes)
    color = _pick(rng, list(COLORS))
    others = [c for c in COLORS if c != color]
    # White on bare paper can hardly be seen: it always gets a coloured ground.
    ground = _pick(rng, others) if color == "white" or rng.random() < 0.6 else ""
    small = rng.random() < 0.12
    r = rng.uniform(26, 32) if small else rng.uniform(50, 68)
    reach = 34 if small else 12
    x, y = (CANVAS / 2 + rng.uniform(-reach, reach) for _ in range(2))
    tilt = rng.uniform(-0.15, 0.15)
    words = _article(f"small {color} {kind}" if small else f"{color} {kind}")
    if ground:
        words += f" on {_article(ground)} background" if rng.random() < 0.5 else f" on {ground}"
    return Scene(words, (Thing(kind, color, x, y, r, tilt),), ground)


def _pair_scene(rng: np.random.Generator, shapes: tuple[str, ...]) -> Scene:
    things, words = [], []
    colors = [c for c in COLORS if c != "white"]
    for x in (52, 140):
        kind, color = _pick(rng, shapes), _pick(rng, colors)
        y = CANVAS / 2 + rng.uniform(-14, 14)
        things.append(Thing(kind, color, x + rng.uniform(-5, 5), y, rng.uniform(34, 40), rng.uniform(-0.15, 0.15)))
        words.append(_article(f"{color} {kind}"))
    return Scene(" and ".join(words), tuple(things))


def _object_scene(rng: np.random.Generator) -> Scene:
    kind = _pick(rng, OBJECTS)
    color = ""
    if kind not in FIXED_COLOR and rng.random() < 0.55:
        color = _pick(rng, [c for c in COLORS if c not in ("black", "gray")])
    place = _pick(rng, PLACES) if rng.random() < 0.8 else ""
    if kind == "boat" and place and rng.random() < 0.75:
        place = "on the sea"
    sky = _pick(rng, SKIES, [0.4, 0.42, 0.18]) if place else ""
    r = rng.uniform(52, 64) if place else rng.uniform(60, 72)
    horizon = rng.uniform(112, 128)
    y = horizon + 34 - r + rng.uniform(0, 10) if place else CANVAS / 2 + rng.uniform(-8, 8)
    side = rng.choice((-1, 1))
    x = CANVAS / 2 - side * (rng.uniform(8, 26) if sky else rng.uniform(-14, 14))
    sky_x = CANVAS / 2 + side * rng.uniform(52, 62)
    words = _article(f"{color} {kind}".strip())
    words = " ".join(w for w in (words, place, sky) if w)
    if rng.random() < 0.1:
        words = words.replace(" under", ", under").replace(f" {place}", f", {place}") if place else words
    return Scene(words, (Thing(kind, color, x, y, r),), place, sky, sky_x, horizon)


def random_scene(rng: np.random.Generator, *, concept: bool = False) -> Scene:
    """Return a scene with its caption; `concept` asks for the shape that the base training never shows."""
    draw = rng.random()
    if concept:
        scene = _shape_scene(rng, (CONCEPT,)) if draw < 0.8 else _pair_scene(rng, (CONCEPT, *SHAPES))
    elif draw < 0.42:
        scene = _shape_scene(rng, SHAPES)
    elif draw < 0.5:
        scene = _pair_scene(rng, SHAPES)
    else:
        scene = _object_scene(rng)
    seed = int(rng.integers(2**31))
    prefix = _pick(rng, QUALITY) if rng.random() < 0.16 else ""
    return replace(scene, caption=prefix + scene.caption, blurry=prefix.startswith("blurry"), seed=seed)


def word_list() -> list[str]:
    """Return every word of the captions and the LoRAs' trigger words, for the tokenizer."""
    words = {*COLORS, *SHAPES, *OBJECTS, *STYLES, CONCEPT, "small", "background", "and", "a", "an", ",", "."}
    for phrase in (*PLACES, *SKIES, *QUALITY, "on the sea with big candy hearts boats trees houses"):
        words.update(phrase.replace(",", " ").split())
    return sorted(words)

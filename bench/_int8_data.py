"""Inputs for the zoo's vision models: crops of photos, pages and lines of text, prepared as each model wants them.

Calibration and judging draw from different seeds; what is drawn is the same wherever Pillow draws its own font alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from zoo.fetch import default_folder

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
WORDS = (
    *("time", "people", "world", "house", "water", "night", "small", "river", "letter", "figure", "paper", "number"),
    *("street", "market", "school", "window", "garden", "doctor", "moment", "office", "total", "price", "order"),
    *("invoice", "date", "page", "report", "summer", "winter", "2024", "1987", "3.14", "50%", "1,250"),
)


@dataclass(frozen=True)
class Recipe:
    """How an input is made: (value / scale - mean) / std, of pixels from 0 to 255.

    Attributes:
        kind: "photo", "page" (text over photos and plain ground) or "line" (one line of text).
        size: Width and height.
        bgr: Blue first.
        nhwc: Channels last.
        pixels: Scale, mean and std by which pixels are prepared.
        parts: By output: axis and named columns, which are judged apart.
    """

    kind: str
    size: tuple[int, int]
    scale: float = 255.0
    stats: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    bgr: bool = False
    nhwc: bool = False
    parts: tuple[tuple[str, int, tuple[tuple[str, int, int], ...]], ...] = ()


RECIPES = {
    "tumor-vgg16": Recipe("photo", (240, 240), nhwc=True),
    "efficientnet-lite0": Recipe("photo", (224, 224), 1.0, ((127,) * 3, (128,) * 3)),
    "mobilenetv2-dogs": Recipe("photo", (160, 160), 127.5, ((1,) * 3, (1,) * 3)),
    "tiny-mobilenet-vww": Recipe("photo", (96, 96), 1.0),
    "nudenet-yolov8n": Recipe("photo", (320, 320), parts=(("output0", 1, (("boxes", 0, 4), ("scores", 4, 22))),)),
    "ppocrv4-det": Recipe("page", (320, 320), stats=IMAGENET, bgr=True),
    "ppocrv5-det": Recipe("page", (320, 320), stats=IMAGENET, bgr=True),
    "ppocrv4-rec": Recipe("line", (320, 48), stats=HALF, bgr=True),
    "ppocrv6-rec-tiny": Recipe("line", (320, 48), stats=HALF, bgr=True),
    "ppocr-cls": Recipe("line", (192, 48), stats=HALF, bgr=True),
    "layout-picodet": Recipe("page", (608, 800), stats=IMAGENET),
    "ddddocr-det": Recipe("page", (416, 416), 1.0, bgr=True),
    "doc-orientation-pplcnet": Recipe("page", (224, 224), stats=IMAGENET, bgr=True),
    "doc-orientation-orinet": Recipe("page", (320, 320)),
    "nsfw-resnet50-pt": Recipe("photo", (224, 224), 1.0, ((104, 117, 123), (1, 1, 1)), bgr=True, nhwc=True),
    "u2netp": Recipe("photo", (320, 320), stats=IMAGENET),
}


def draw(name: str, count: int, seed: int) -> np.ndarray:
    """Inputs of a model, [count, ...] in float32."""
    recipe = RECIPES[name]
    rng = np.random.default_rng(seed)
    pictures = np.stack([_picture(recipe, rng, number) for number in range(count)]).astype(np.float32)
    if recipe.bgr:
        pictures = pictures[..., ::-1]
    pictures = pictures / np.float32(recipe.scale)
    if recipe.stats is not None:
        mean, std = (np.asarray(each, np.float32) for each in recipe.stats)
        pictures = (pictures - mean) / std
    return np.ascontiguousarray(pictures if recipe.nhwc else pictures.transpose(0, 3, 1, 2), np.float32)


def _photos() -> list[Path]:
    folder = default_folder() / "data"
    found = [
        path for part in ("photos", "imagenet-20", "photos-sklearn") for path in sorted((folder / part).glob("*.*"))
    ]
    found = [path for path in found if path.suffix in (".png", ".jpg")]
    if not found:
        raise SystemExit("no photos in the zoo's folder; python bench/zoo/fetch.py --data")
    return found


def _picture(recipe: Recipe, rng: np.random.Generator, number: int) -> np.ndarray:
    width, height = recipe.size
    if recipe.kind == "line":
        ground, ink = int(rng.integers(170, 256)), int(rng.integers(0, 110))
        image = Image.new("RGB", (width, height), (ground,) * 3)
        text = " ".join(rng.choice(WORDS, 4))
        text = text.upper() if rng.random() < 0.3 else text
        font = ImageFont.load_default(int(rng.integers(height // 2, int(height * 0.75))))
        ImageDraw.Draw(image).text(
            (int(rng.integers(2, 12)), int(rng.integers(0, 8))), text, fill=(ink,) * 3, font=font
        )
        noisy = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(0, 10), (height, width, 3))
        return np.clip(noisy, 0, 255)
    plain = recipe.kind == "page" and number % 2 == 0
    image = Image.new("RGB", recipe.size, (int(rng.integers(200, 256)),) * 3) if plain else _crop(recipe, rng, number)
    if recipe.kind == "page":
        _write(image, rng)
    return np.asarray(image)


def _crop(recipe: Recipe, rng: np.random.Generator, number: int) -> Image.Image:
    photos = _photos()
    with Image.open(photos[number % len(photos)]) as file:
        photo = file.convert("RGB")
    side = int(rng.uniform(0.4, 1) * min(photo.size))
    left, top = (int(rng.integers(0, full - side + 1)) for full in photo.size)
    return photo.crop((left, top, left + side, top + side)).resize(recipe.size)


def _write(image: Image.Image, rng: np.random.Generator) -> None:
    """Lines of text of different sizes, dark or light by the ground."""
    pen, y = ImageDraw.Draw(image), int(rng.integers(4, 30))
    ink = (0, 0, 0) if np.asarray(image).mean() > 100 else (255, 255, 255)
    while y < image.size[1] - 20:
        size = int(rng.integers(12, 36))
        text = " ".join(rng.choice(WORDS, int(rng.integers(1, 6))))
        pen.text((int(rng.integers(2, image.size[0] // 3)), y), text, fill=ink, font=ImageFont.load_default(size))
        y += int(size * rng.uniform(1.2, 2.5))

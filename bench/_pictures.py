"""Inputs for benches where no data set fits a model: crops of photos, and rendered lines of text. Needs Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from zoo.fetch import default_folder

TEXT = Path(__file__).resolve().parent.parent / "LICENSE"


def photos(*sets: str, folder: Path | None = None) -> list[Image.Image]:
    """The images of a folder, or of data sets that `fetch.py --data` brought.

    Raises:
        SystemExit: where there are none.
    """
    folders = [folder] if folder else [default_folder() / "data" / name for name in sets]
    paths = sorted(path for each in folders for path in each.glob("*") if path.suffix in (".png", ".jpg", ".jpeg"))
    if not paths:
        raise SystemExit(f"no images: python bench/zoo/fetch.py --data {' '.join(sets)}")
    return [Image.open(path).convert("RGB") for path in paths]


def crops(images: Sequence[Image.Image], count: int, size: tuple[int, int], seed: int) -> np.ndarray:
    """Random squares of .4 to 1 of the shorter side, of the images in turn; uint8 [count, height, width, 3]."""
    rng, found = np.random.default_rng(seed), []
    for number in range(count):
        image = images[number % len(images)]
        width, height = image.size
        side = int(rng.uniform(0.4, 1) * min(width, height))
        x, y = (int(rng.integers(0, whole - side + 1)) for whole in (width, height))
        found.append(np.asarray(image.crop((x, y, x + side, y + side)).resize(size[::-1])))
    return np.stack(found)


def lines(count: int, size: tuple[int, int], seed: int, *, judging: bool = False) -> np.ndarray:
    """Rendered text in random sizes and colours, with noise; uint8 [count, height, width, 3].

    The words are those of the licence in a row from any place: of its last third where `judging`, else of the others.
    """
    rng, found = np.random.default_rng(seed), []
    height, width = size
    words = TEXT.read_text(encoding="utf-8").split()
    part = words[len(words) * 2 // 3 :] if judging else words[: len(words) * 2 // 3]
    for _ in range(count):
        start = int(rng.integers(0, len(part) - 8))
        text = " ".join(part[start : start + 8])[: int(rng.integers(5, 28))]
        light, dark = (tuple(int(v) for v in rng.integers(*span, 3)) for span in ((120, 256), (0, 110)))
        paper, ink = (light, dark) if rng.random() < 0.7 else (dark, light)
        image = Image.new("RGB", (width, height), paper)
        place = int(rng.integers(0, 12)), int(rng.integers(0, 10))
        font = ImageFont.load_default(int(rng.integers(18, 40)))
        ImageDraw.Draw(image).text(place, text, fill=ink, font=font)
        noise = rng.normal(0, rng.uniform(0, 12), (height, width, 3))
        found.append(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    return np.stack(found)


def pages(grounds: np.ndarray, seed: int, *, judging: bool = False) -> np.ndarray:
    """Lines of text in several sizes over pictures, every second one on plain paper; uint8 like `grounds`.

    Args:
        grounds: Pictures, uint8 [count, height, width, 3].
        seed: Of places, sizes and words.
        judging: Whether the words are those of the last third of the licence.
    """
    rng, found = np.random.default_rng(seed), []
    words = TEXT.read_text(encoding="utf-8").split()
    part = words[len(words) * 2 // 3 :] if judging else words[: len(words) * 2 // 3]
    for number, ground in enumerate(grounds):
        height, width = ground.shape[:2]
        paper = (int(rng.integers(200, 256)),) * 3
        image = Image.new("RGB", (width, height), paper) if number % 2 else Image.fromarray(ground)
        ink = (0, 0, 0) if np.asarray(image).mean() > 100 else (255, 255, 255)
        pen, y = ImageDraw.Draw(image), int(rng.integers(4, 30))
        while y < height - 20:
            size, start = int(rng.integers(12, 36)), int(rng.integers(0, len(part) - 8))
            text = " ".join(part[start : start + int(rng.integers(1, 7))])
            pen.text((int(rng.integers(2, width // 3)), y), text, fill=ink, font=ImageFont.load_default(size))
            y += int(size * rng.uniform(1.2, 2.5))
        found.append(np.asarray(image))
    return np.stack(found)

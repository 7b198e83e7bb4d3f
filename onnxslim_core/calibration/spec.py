"""How a source becomes the inputs of a model, as data: `[data]` of a recipe. Imports nothing heavy."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["CHANNELS", "CROPS", "INTERPOLATIONS", "LAYOUTS", "RESIZES", "DataInput", "DataSpec", "table_of", "toml_key"]

LAYOUTS = ("NHWC", "NCHW")
"""The layouts of images that a source may state."""

RESIZES = ("shorter", "stretch", "letterbox", "none")
"""How an image is brought to a size; see `calibration.pixels`."""

CROPS = ("center", "random", "none")
"""What is cut out of an image that has been resized."""

CHANNELS = ("RGB", "BGR", "gray")
"""The order of colours that a model takes."""

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
"""Filters for resizing, by Pillow's names."""


@dataclass(frozen=True, slots=True)
class DataInput:
    """`[data.inputs.NAME]`: how the arrays or images of a source become one input of the model.

    Attributes:
        array: The array in the file (key `from`); the input's own name by default.
        layout: Of arrays: theirs, NHWC or NCHW, brought to what the model wants. Of images: the model's, where its
            shape leaves it open.
        scale: Divided by, first.
        mean: Taken off, per channel.
        std: Divided by, per channel, last.
        dtype: The model's type; allows numbers of another kind, which are rounded.
        value: What the input is fed where the source has nothing for it.
        size: Of images: height and width that the model gets.
        resize: Of images: one of `RESIZES`.
        resize_to: Of images: the shorter side before the crop, in pixels.
        interpolation: Of images: one of `INTERPOLATIONS`.
        crop: Of images: one of `CROPS`.
        channels: Of images: one of `CHANNELS`.
        fill: Of images: the grey level, 0 to 255, around a letterboxed image.
    """

    array: str | None = None
    layout: str | None = None
    scale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: str | None = None
    value: object = None
    size: tuple[int, int] | None = None
    resize: str | None = None
    resize_to: int | None = None
    interpolation: str | None = None
    crop: str | None = None
    channels: str | None = None
    fill: int | None = None

    @property
    def is_for_images(self) -> bool:
        """True where a key is set that arrays do not have."""
        keys = (self.size, self.resize, self.resize_to, self.interpolation, self.crop, self.channels, self.fill)
        return any(key is not None for key in keys)


@dataclass(frozen=True, slots=True)
class DataSpec:
    """`[data]`: where samples come from and what is done to them.

    Attributes:
        source: A path, relative to the recipe's folder, or `file.py:function`.
        samples: So many, and an error where there are fewer; None lets the job choose by the model's cost.
        max_samples: At most so many, whatever the model costs.
        labels: The array of labels for a user's metric; "folder" where each class of images has a folder.
        inputs: By input of the model.
        folder: Where the recipe lies; relative paths start there.
        crops: So many random crops of the images in place of the images: for photos that have nothing to do with the
            model, where there is nothing better.
        flips: Mirror every second random crop.
        origins: The array that says, by number, which image or recording a sample was taken from; "file" where that
            is the file. Samples of one origin are never on both sides of a split.
        held_out: The share of the samples that judge and are not seen by passes.
        judging: A path to samples that judge in place of that share, relative to the recipe's folder.
        force_random: Let lossy passes decide on random numbers, or on what looks like noise.
    """

    source: str | None = None
    samples: int | None = None
    max_samples: int | None = None
    labels: str | None = None
    inputs: Mapping[str, DataInput] = field(default_factory=dict)
    folder: Path | None = None
    crops: int | None = None
    flips: bool = True
    origins: str | None = None
    held_out: float = 0.5
    judging: str | None = None
    force_random: bool = False


def toml_key(name: str) -> str:
    """A name as a key of TOML: bare where it may be, else quoted."""
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def table_of(name: str) -> str:
    """The head of the table that says how an input is fed."""
    return f"[data.inputs.{toml_key(name)}]"

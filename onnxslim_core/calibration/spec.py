"""How a source becomes the inputs of a model, as data: `[data]` of a recipe. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["LAYOUTS", "DataInput", "DataSpec"]

LAYOUTS = ("NHWC", "NCHW")
"""The layouts of images that a source may state."""


@dataclass(frozen=True, slots=True)
class DataInput:
    """`[data.inputs.NAME]`: how the arrays of a source become one input of the model.

    Attributes:
        array: The array in the file (key `from`); the input's own name by default.
        layout: Of the source, NHWC or NCHW; brought to what the model wants.
        scale: Divided by, first.
        mean: Taken off, per channel.
        std: Divided by, per channel, last.
    """

    array: str | None = None
    layout: str | None = None
    scale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class DataSpec:
    """`[data]`: where samples come from and what is done to them.

    Attributes:
        source: A path, relative to the recipe's folder, or `file.py:function`.
        samples: At most so many; None lets the job choose by the model's cost.
        labels: The array of labels for a user's metric.
        inputs: By input of the model.
        folder: Where the recipe lies; relative paths start there.
    """

    source: str | None = None
    samples: int | None = None
    labels: str | None = None
    inputs: Mapping[str, DataInput] = field(default_factory=dict)
    folder: Path | None = None

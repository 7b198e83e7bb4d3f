"""The widths of the architectures and what of them goes, for the graphs written here and for their twins in PyTorch.

A width is drawn by its name, so whoever asks first, and how often, makes no difference. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.halved import Draw, Part, Width

__all__ = [
    "BACKBONE",
    "CLASSES",
    "CONVNEXT",
    "MIXER",
    "POSITIONS",
    "REGNET",
    "RESOLUTIONS",
    "SEQUENCE",
    "TOKENS",
    "Attention",
    "Bottleneck",
    "Grouped",
    "Shortcut",
    "bottleneck",
    "decoder_block",
    "encoder_block",
    "relative_index",
    "rotary_tables",
    "shift_mask",
    "shortcut",
    "widths",
    "window_block",
]

CLASSES = 10
TOKENS, POSITIONS = 50, 64
SEQUENCE = 24
"""The residual width of encoder and decoder, which their norms hold."""
CONVNEXT = (12, 20)
REGNET = ((24, 4), (48, 6))
"""Width and groups of each stage."""
RESOLUTIONS = 3
"""Branches of HRNet."""
BACKBONE = (16, 24, 40)
MIXER = (20, 36)
"""Channels and tokens."""

_WIDTHS = {
    "regnet_se": {"stem": 16},
    "pixel_shuffle": {"trunk": 20, "middle": 12, "last": 16, "block0": 28, "block1": 28},
    "hrnet": {f"branch{i}": 12 * 2**i for i in range(RESOLUTIONS)},
    "detector": {f"backbone{i}": size for i, size in enumerate(BACKBONE)}
    | {"lateral": 24}
    | {f"{kind}{i}.{depth}": 20 for kind in ("box", "score") for i in range(2) for depth in range(2)},
    "siamese": {"first": 16, "second": 32, "code": 40},
    "mixer": {f"block{i}.{kind}": size for i in range(2) for kind, size in (("tokens", 28), ("channels", 80))},
    "wavenet": {"trunk": 24, "skip": 32, "last": 32} | {f"layer{i}": 20 for i in range(4)},
    "gru": {"first": 24, "second": 20},
}


def widths(draw: Draw, net: str) -> dict[str, Width]:
    """The widths that go in a network, by their names."""
    return {name: draw.width(name, size) for name, size in _WIDTHS[net].items()}


@dataclass(frozen=True)
class Bottleneck:
    """A block of a RegNet: whole groups go in the first block of a stage, positions of every group in the second."""

    name: str
    groups: Part
    slots: Part
    squeezed: Width
    stride: int


def bottleneck(draw: Draw, stage: int, block: int) -> Bottleneck:
    """One of the two blocks of a stage."""
    name, (size, groups) = f"stage{stage}.{block}", REGNET[stage]
    return Bottleneck(
        name,
        groups if block else draw.width(f"{name}.groups", groups),
        draw.width(f"{name}.slots", size // groups) if block else size // groups,
        draw.width(f"{name}.squeezed", 8),
        2 - block,
    )


@dataclass(frozen=True)
class Shortcut:
    """What option A puts beside the old channels: zeros at both sides, of which the wider trunk keeps some."""

    left: Width
    right: Width
    wider: Width


def shortcut(draw: Draw, stage: int, trunk: Width) -> Shortcut:
    """The way from a trunk into one twice as wide."""
    side = trunk.size // 2
    left, right = (draw.width(f"{part}{stage}", side) for part in ("left", "right"))
    places = [*left.kept, *(side + k for k in trunk.kept), *(3 * side + k for k in right.kept)]
    return Shortcut(left, right, draw.width(f"trunk{stage}", 2 * trunk.size, places))


@dataclass(frozen=True)
class Attention:
    """A block: its heads, the slots of each, and its neurons."""

    name: str
    heads: Part
    slots: Part
    hidden: Width


def encoder_block(draw: Draw, block: int) -> Attention:
    """Whole heads go in the first block, slots of every head in the second, neurons in both."""
    name = f"block{block}"
    heads: Part = 4 if block else draw.width(f"{name}.heads", 4)
    slots: Part = draw.width(f"{name}.slots", 8) if block else 8
    return Attention(name, heads, slots, draw.width(f"{name}.hidden", 4 * SEQUENCE))


def window_block(draw: Draw, block: int, size: int) -> Attention:
    """Whole heads go in the first block, slots in the others, neurons in all."""
    name = f"block{block}"
    heads: Part = 4 if block else draw.width(f"{name}.heads", 4)
    slots: Part = draw.width(f"{name}.slots", 6) if block else 6
    return Attention(name, heads, slots, draw.width(f"{name}.hidden", 4 * size))


@dataclass(frozen=True)
class Grouped:
    """A block of a decoder: keys, the queries of each, half the slots of queries and keys, those of values, neurons."""

    name: str
    keys: Part
    group: Part
    half: Part
    value: Part
    hidden: Width


def decoder_block(draw: Draw, block: int) -> Grouped:
    """Keys with their queries go in the first block, slots in the second, queries of every group in the third."""
    name = f"block{block}"
    return Grouped(
        name,
        2 if block else draw.width(f"{name}.keys", 4),
        draw.width(f"{name}.group", 4) if block == 2 else 2,
        draw.width(f"{name}.half", 4) if block == 1 else 4,
        draw.width(f"{name}.value", 8) if block == 1 else 8,
        draw.width(f"{name}.hidden", 64),
    )


def rotary_tables(half: Part) -> dict[str, np.ndarray]:
    """Cosines and sines of positions (Su et al. 2021), [positions, 2 x half], by the name of their table."""
    whole, name = (half.size, half.name) if isinstance(half, Width) else (half, str(half))
    angles = np.outer(np.arange(POSITIONS), 100.0 ** -(np.arange(whole) / whole))
    found = {"cos": np.cos(angles), "sin": np.sin(angles)}
    return {f"{kind}.{name}": np.concatenate([each] * 2, 1).astype(np.float32) for kind, each in found.items()}


def relative_index(w: int) -> np.ndarray:
    """The row of the table for every pair of places in a window: [w*w * w*w]."""
    at = np.stack(np.meshgrid(np.arange(w), np.arange(w), indexing="ij")).reshape(2, -1)
    apart = at[:, :, None] - at[:, None] + w - 1
    return np.asarray((apart[0] * (2 * w - 1) + apart[1]).reshape(-1))


def shift_mask(side: int, w: int, shift: int) -> np.ndarray:
    """-100 between places of one window that were no neighbours before the roll: [windows, w*w, w*w]."""
    zone = np.digitize(np.arange(side), [side - w, side - shift])
    zones = (3 * zone[:, None] + zone).reshape(side // w, w, side // w, w).transpose(0, 2, 1, 3).reshape(-1, w * w)
    return np.where(zones[:, :, None] == zones[:, None], 0, -100).astype(np.float32)

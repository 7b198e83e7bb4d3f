"""Random scores: the baseline that every criterion has to beat."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.channels.groups import ChannelGraph, Group

__all__ = ["score"]


def score(channels: ChannelGraph, group: Group, seed: int) -> NDArray[np.float64]:
    """One score per class, (classes,), uniform in 0..1 and drawn from the seed and the group's name."""
    return np.random.default_rng((seed, zlib.crc32(group.name.encode()))).random(group.width)

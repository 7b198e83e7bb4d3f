"""Inputs that are smooth, as pictures are, with a little noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def samples(count: int, seed: int, sizes: Sequence[int] = (5, 4)) -> list[dict[str, np.ndarray]]:
    """Feeds of `x` with three channels, each of the sizes doubled."""
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(count, 3, *sizes))
    for axis in range(2, 2 + len(sizes)):
        smooth = smooth.repeat(2, axis=axis)
    return [{"x": (image + 0.3 * rng.normal(size=image.shape))[None].astype(np.float32)} for image in smooth]

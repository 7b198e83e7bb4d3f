"""How many different images or recordings samples come from, and what follows from it.

Samples of one origin (crops of a photo, frames of a film) say much the same. A curve that was measured on the origins
it was fitted on promises too much: on crops of its own twenty photos a cut network lost .006 of cosine, on other photos
.10. So origins are never split over two sides, the ridge grows where they are few, and the report says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.rewrite import Context, Sample

__all__ = ["advised_ridge", "distinct", "halves", "looks_like_noise", "set_apart", "shortage"]

WEAK_RIDGE, STRONG_RIDGE, ENOUGH = 1e-2, 1e-1, 4
"""Relative to the mean of the covariance's diagonal: with ENOUGH origins per channel, and with one or less.

ResNet-56 at .6 of the multiply-adds, 256 crops of n images, widest group 64, cosine of the logits on other images with
a ridge of 1e-4 and of 1e-1: n = 4 .796 and .859, 8 .877 and .936, 16 .928 and .959, 32 .963 and .971, 64 .967 and .974,
256 .973 and .977 (accuracy there: the same within its error).
"""

NOISE = 0.05
"""Neighbouring pixels of white noise correlate less than this, those of pictures and spectrograms more."""


def distinct(origins: Sequence[int]) -> int:
    """How many different origins there are."""
    return len(set(origins))


def advised_ridge(origins: Sequence[int], widest: int) -> float | None:
    """The ridge for few different origins, relative to the mean of the covariance's diagonal.

    1e-1 where there are as many origins as channels or fewer, geometrically down to 1e-2 where there are four times as
    many.

    Args:
        origins: Of the samples, parallel to them.
        widest: Channels of the group, or of the widest of several.

    Returns:
        The ridge, or None where the usual one will do (`Moments.ridge`): origins enough, or none that are known.
    """
    share = distinct(origins) / max(widest, 1)
    if not origins or share >= ENOUGH:
        return None
    position = min((ENOUGH - share) / (ENOUGH - 1), 1.0)
    return float(WEAK_RIDGE * (STRONG_RIDGE / WEAK_RIDGE) ** position)


def shortage(origins: Sequence[int], widest: int) -> str:
    """A warning where there are fewer origins than channels in the widest group; empty where there are enough."""
    count = distinct(origins)
    if not origins or count >= widest:
        return ""
    return (
        f"decided on {count} different samples, and the widest layer sums over {widest} channels: "
        "other inputs may lose more than these promise; give more samples that differ"
    )


def set_apart(context: Context, share: float) -> tuple[list[Sample], list[Sample]]:
    """Samples of a pass to solve with, and others to measure what is lost, of other origins; the first may be none.

    Args:
        context: Of the pass.
        share: Of the samples that are set aside.
    """
    samples = context.samples
    known = len(context.origins) == len(samples)
    fit, aside = halves(context.origins if known else range(len(samples)), share)
    return [samples[number] for number in fit], [samples[number] for number in aside]


def halves(origins: Sequence[int], held_out: float = 0.5) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sample numbers to decide with and to judge on, without a common origin, interleaved; the second has the first.

    With one origin only nothing is left to decide with.

    Args:
        origins: Of the samples, parallel to them.
        held_out: The share that judges.
    """
    deciding: list[int] = []
    judging: list[int] = []
    for numbers in _by_origin(origins).values():
        dealt = len(deciding) + len(judging) + len(numbers)
        lacks = held_out * dealt - len(judging) >= (1 - held_out) * dealt - len(deciding)
        (judging if lacks or not judging else deciding).extend(numbers)
    return np.array(sorted(deciding), np.int64), np.array(sorted(judging), np.int64)


def _by_origin(origins: Sequence[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for number, origin in enumerate(origins):
        found.setdefault(origin, []).append(number)
    return found


def looks_like_noise(samples: Iterable[Sample]) -> bool:
    """True where every image-like input (4 axes, two of at least 8) has neighbours that do not correlate.

    Networks pruned on noise lose nearly all: what it excites is not what images excite.
    """
    sums: dict[str, list[tuple[float, float]]] = {}
    for sample in samples:
        for name, array in sample.items():
            if array.ndim == 4 and array.dtype.kind in "fiu" and sum(size >= 8 for size in array.shape[1:]) >= 2:
                sums.setdefault(name, []).append(_neighbours(array.astype(np.float64)))
    return bool(sums) and all(_correlation(parts) < NOISE for parts in sums.values())


def _neighbours(array: NDArray[np.float64]) -> tuple[float, float]:
    """Sum of products of neighbours along the two longest axes, and of squares, around the mean of each channel."""
    axes = sorted(range(1, 4), key=lambda axis: -array.shape[axis])[:2]
    array = array - array.mean(axis=tuple(axes), keepdims=True)
    products = [
        np.mean(np.take(array, range(1, array.shape[a]), a) * np.take(array, range(array.shape[a] - 1), a))
        for a in axes
    ]
    return float(np.mean(products)), float(np.mean(np.square(array)))


def _correlation(parts: Sequence[tuple[float, float]]) -> float:
    """Pooled over samples; of constant images 1, since they are no noise."""
    products, squares = (sum(part[i] for part in parts) for i in (0, 1))
    return abs(products) / squares if squares > 0 else 1.0

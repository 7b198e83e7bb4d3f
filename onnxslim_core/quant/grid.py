"""Grids of 8-bit numbers: scales, zero points, and arrays brought onto them.

Activations are uint8 with a zero point, `x ~ s (q - z)`; weights are int8 without, with one scale per output channel;
a bias is int32 with the product of both scales (Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", CVPR 2018, 2.1). Signed activations would be slower than float here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grid", "as_float32", "grid_of", "on_grid", "quantize_bias", "quantize_weights", "scales_of"]

Floats = NDArray[np.float64]

_LEVELS = 255
_LARGEST = 127
_BIAS_LIMIT = 2.0**30
"""Half of what int32 holds: the rest is for the sum of products."""
_TINY = 2.0**-100
"""Scales below this are no use as float32."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A uint8 grid: value = scale * (q - zero_point), q from 0 to 255; the scale is a float32 number."""

    scale: float
    zero_point: int

    @property
    def low(self) -> float:
        """The smallest value."""
        return -self.scale * self.zero_point

    @property
    def high(self) -> float:
        """The largest value."""
        return self.scale * (_LEVELS - self.zero_point)


def grid_of(low: float, high: float) -> Grid:
    """The uint8 grid over a range, which is widened to hold zero: padding must be exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max((high - low) / _LEVELS, _TINY if high == low else 0.0)))
    if scale < _TINY:
        return Grid(1.0, 0)
    return Grid(scale, int(np.clip(np.rint(-low / scale), 0, _LEVELS)))


def on_grid(array: NDArray[np.generic], grid: Grid) -> NDArray[np.uint8]:
    """An array as uint8, rounded half to even as QuantizeLinear does."""
    q = np.rint(np.asarray(array, np.float64) / grid.scale) + grid.zero_point
    return np.asarray(np.clip(q, 0, _LEVELS), np.uint8)


def as_float32(array: Floats) -> Floats:
    """The nearest float32 numbers, held in float64."""
    return np.asarray(array.astype(np.float32), np.float64)


def scales_of(weights: NDArray[np.generic], axis: int) -> Floats:
    """One scale per slice along an axis: the largest magnitude over 127; 1 where all is zero."""
    others = tuple(i for i in range(weights.ndim) if i != axis % weights.ndim)
    largest = np.abs(np.asarray(weights, np.float64)).max(axis=others, initial=0.0)
    scales = as_float32(largest / _LARGEST)
    return np.where(scales > _TINY, scales, 1.0)


def quantize_weights(weights: NDArray[np.generic], scales: Floats, axis: int) -> NDArray[np.int8]:
    """Weights as int8, each slice along the axis by its own scale."""
    shape = [-1 if i == axis % weights.ndim else 1 for i in range(weights.ndim)]
    q = np.rint(np.asarray(weights, np.float64) / scales.reshape(shape))
    return np.asarray(np.clip(q, -_LARGEST, _LARGEST), np.int8)


def quantize_bias(bias: NDArray[np.generic], scales: Floats) -> tuple[NDArray[np.int32], Floats]:
    """A bias as int32 with one scale per channel, and the scales widened where it would not fit.

    A channel whose weights are nearly zero beside its bias asks for more than 32 bits: its scale then grows, and the
    weight's with it.

    Args:
        bias: (n,)
        scales: Of the input times that of the weights, (n,).
    """
    wide = np.asarray(bias, np.float64)
    least = as_float32(np.abs(wide) / _BIAS_LIMIT)
    scales = np.maximum(scales, least)
    return np.rint(wide / scales).astype(np.int32), scales

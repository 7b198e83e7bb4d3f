"""Every output gets back the variance and the mean it had, by one factor and its bias.

    W_n *= sqrt(v_n / v'_n), from 1 to 2,   v'_n = W_n' H W_n,   b = mean_y - mean_x' W

Fewer channels vary less, so a factor is at least 1. It trades squared error for statistics, as a BatchNormalization
does that is estimated anew: better than a bias alone, and harmful after least squares.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.calibration.moments import Moments

__all__ = ["mend"]

Floats = NDArray[np.float64]

_MOST = 2.0


def mend(moments: Moments, start: Floats, taps: int, ridge: float | None = None) -> tuple[Floats, Floats]:
    """Weights (d, n) scaled output by output, and the bias (n,)."""
    now = np.sum(start * (moments.h @ start), axis=0)
    factors = np.sqrt(moments.v / np.maximum(now, 1e-30))
    weights = start * np.where(now > 0, np.clip(factors, 1.0, _MOST), 1.0)
    return weights, moments.mean_y - moments.mean_x @ weights

"""One factor for each input channel that is left, by least squares (ThiNet: Luo, Wu, Lin, ICCV 2017, 3.2.3).

    min_s  |Y - sum_i s_i Z_i|^2 + l |s - 1|^2,   Z_i = X_i W_i:   (Q + l I) s = q + l 1

with Q_ij = tr(W_i' H_ij W_j) and q_i = tr(W_i' C_i), then W_i *= s_i and the bias that keeps the mean. For readers
whose weights must keep their zeros or their integers; weaker than new weights altogether.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.calibration.moments import Moments
from onnxslim_core.repair.least_squares import solve_spd

__all__ = ["mend"]

Floats = NDArray[np.float64]


def mend(moments: Moments, start: Floats, taps: int, ridge: float | None = None) -> tuple[Floats, Floats]:
    """Weights (d, n) scaled channel by channel, and the bias (n,).

    Args:
        moments: Of the input as it is now and of the target.
        start: Weights as they are now, (d, n).
        taps: Rows of one channel.
        ridge: Relative to the mean of Q's diagonal; None: as `Moments.ridge` says.
    """
    first = np.arange(0, len(start), taps)
    gram = np.add.reduceat(np.add.reduceat((start @ start.T) * moments.h, first, axis=0), first, axis=1)
    cross = np.add.reduceat(np.sum(start * moments.c, axis=1), first)
    relative = moments.ridge if ridge is None else ridge
    penalty = max(relative * float(np.trace(gram)) / max(len(gram), 1), 1e-12)
    factors = solve_spd(gram, cross[:, None], np.ones((len(gram), 1)), penalty)
    weights = start * np.repeat(factors, taps, axis=0)
    return weights, moments.mean_y - moments.mean_x @ weights

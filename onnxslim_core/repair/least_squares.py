"""New weights of a consumer by least squares on its input, with a ridge towards what it was.

    W = (H + l I)^-1 (C + l W0),   b = mean_y - mean_x' W,   l = ridge * tr(H) / d

He, Zhang, Sun, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, 3.1 (ii); shrinking towards W0
keeps directions that the samples never excite.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.calibration.moments import Moments

__all__ = ["mend", "solve", "solve_spd"]

Floats = NDArray[np.float64]


def solve(moments: Moments, start: Floats, ridge: float | None = None) -> tuple[Floats, Floats]:
    """Weights (d, n) and bias (n,).

    Args:
        moments: Of the input as it is now and of the target.
        start: Weights as they are now, (d, n).
        ridge: Relative to the mean of h's diagonal; None: 1e-4, or 1e-2 where there are less than 10 d rows.
    """
    weights = solve_spd(moments.h, moments.c, start, moments.penalty(ridge))
    return weights, moments.mean_y - moments.mean_x @ weights


def mend(moments: Moments, start: Floats, taps: int, ridge: float | None = None) -> tuple[Floats, Floats]:
    """A row of the table of repairs: see `solve`."""
    return solve(moments, start, ridge)


def solve_spd(h: Floats, c: Floats, start: Floats, penalty: float) -> Floats:
    """`(h + penalty I)^-1 (c + penalty start)`; the penalty grows tenfold until the matrix is definite."""
    eye = np.eye(len(h))
    for _ in range(12):
        try:
            np.linalg.cholesky(h + penalty * eye)
            return np.asarray(np.linalg.solve(h + penalty * eye, c + penalty * start))
        except np.linalg.LinAlgError:
            penalty *= 10
    return start

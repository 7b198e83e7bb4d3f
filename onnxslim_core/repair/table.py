"""The table of repairs from samples: one row per file; new weights and bias of a reader from its moments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.calibration.moments import Moments
from onnxslim_core.repair import bias, least_squares, scale, variance

__all__ = ["REPAIRS", "Repair"]

Repair = Callable[[Moments, NDArray[np.float64], int, float | None], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""(moments of the input as it is now and of the target, weights (d, n), rows per channel, ridge) -> weights, bias."""

REPAIRS: dict[str, Repair] = {
    "least_squares": least_squares.mend,
    "scale": scale.mend,
    "variance": variance.mend,
    "bias": bias.mend,
}

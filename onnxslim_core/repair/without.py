"""What a reader becomes once some of its inputs are gone, from the original's own moments: weights at their full shape.

Rows of what is gone are zero, so that the reader fits into the network as it is (see `calibration.tails`), and the
answers of that network are those of the one that is cut: a channel that is summed with weight zero is not there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.calibration.consumers import Consumer, bias_of, weights_of
from onnxslim_core.calibration.moments import Moments
from onnxslim_core.calibration.pieces import Swap
from onnxslim_core.repair.table import REPAIRS

__all__ = ["without"]


def without(
    consumer: Consumer, moments: Moments, classes: NDArray[np.int32], repair: str, ridge: float | None = None
) -> Swap:
    """Weights (d, n) and bias (n,) of a reader, the rows of these classes zero.

    Args:
        consumer: The reader.
        moments: Of its input in the original, with its own answer as the target.
        classes: What goes.
        repair: A row of `REPAIRS`, or `none`.
        ridge: Relative to the mean of a covariance's diagonal; None: as `Moments.ridge` says.
    """
    start = weights_of(consumer.node)
    stays = np.repeat(~np.isin(consumer.classes, classes), consumer.taps)
    weights = np.zeros_like(start)
    if repair == "none":
        weights[stays] = start[stays]
        return weights, bias_of(consumer.node, start.shape[1])
    if not stays.any():
        return weights, moments.mean_y
    weights[stays], bias = REPAIRS[repair](moments.only(stays), start[stays], consumer.taps, ridge)
    return weights, bias

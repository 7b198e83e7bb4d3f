"""Greedy on the Gram matrix of contributions (ThiNet: Luo, Wu, Lin, ICCV 2017, eq. 6 and algorithm 1).

Without the channels T the answers change by sum of Z_i over T, squared 1_T' Q 1_T. From T = {} on, the channel joins
that makes this least: Q_ii + 2 sum_{j in T} Q_ij. The paper samples one output per row; in Gram form all count.
Contributions are taken as they are, means included, as published. Unlike `obs` it does not foresee the repair.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.criteria.curves import Curve, Readers, Setting, contributions, error_along

__all__ = ["curve"]


def curve(readers: Readers, classes: NDArray[np.int32], setting: Setting) -> Curve:
    """The order in which classes join the removed ones; one stays."""
    gram, _ = contributions(readers, classes, centred=False)
    cost, gone = np.array(np.diag(gram)), list[int]()
    while len(gone) < len(classes) - 1:
        best = int(np.argmin(cost))
        gone.append(best)
        cost += 2 * gram[:, best]
        cost[gone] = np.inf
    order = classes[np.array(gone, np.int64)]
    return Curve(order, error_along(readers, order, setting.ridge))

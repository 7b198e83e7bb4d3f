"""Distance to all other filters of the layer; near the median is replaceable (He et al., CVPR 2019, eq. 5 to 8)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.criteria._makers import maker_rows, sum_by_class

__all__ = ["score"]


def score(channels: ChannelGraph, group: Group, seed: int) -> NDArray[np.float64]:
    """One score per class, (classes,): the sum of distances of its filters to all filters beside them."""
    total = np.zeros(group.width)
    for labels, rows in maker_rows(channels, group):
        total += sum_by_class(channels, group, labels, _distances(rows).sum(axis=1))
    return total


def _distances(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean distances between all rows, (n, n), from the Gram matrix."""
    gram = rows @ rows.T
    square = np.diag(gram)
    return np.sqrt(np.maximum(square[:, None] + square[None, :] - 2 * gram, 0.0))

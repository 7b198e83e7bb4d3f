"""Leverage in the singular vectors of the weights that make a channel: how much of the leading directions is its own.

With W = U S V', rows the filters of a group, the leverage at rank r is the sum of U_ij^2 over j <= r (statistical
leverage: Mahoney and Drineas, CUR Matrix Decompositions, PNAS 2009). The rank would be the width that is kept, which a
score cannot know, so the mean over all ranks counts: column j has the weight (m - j) / m. No data.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.criteria._makers import maker_rows, sum_by_class

__all__ = ["score"]


def score(channels: ChannelGraph, group: Group, seed: int) -> NDArray[np.float64]:
    """One score per class, (classes,): the leverage of its filters, summed over the nodes that make it."""
    total = np.zeros(group.width)
    for labels, rows in maker_rows(channels, group):
        total += sum_by_class(channels, group, labels, _leverage(rows))
    return total


def _leverage(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of every row, (m,), from the eigenvectors of the Gram matrix; what is without energy counts nothing."""
    values, vectors = np.linalg.eigh(rows @ rows.T)
    m = len(values)
    weight = np.arange(1, m + 1) / m  # eigenvalues rise: the last column leads
    weight[values <= 1e-12 * max(float(values[-1]), 1e-300)] = 0.0
    return np.asarray(np.square(vectors) @ weight)

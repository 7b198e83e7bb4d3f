"""Euclidean norm of a filter (the L2 form of Li et al., ICLR 2017, 3.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.criteria._makers import maker_rows, sum_by_class

__all__ = ["score"]


def score(channels: ChannelGraph, group: Group, seed: int) -> NDArray[np.float64]:
    """One score per class, (classes,): the norm over all weights that make it, folded scale included."""
    total = np.zeros(group.width)
    for labels, rows in maker_rows(channels, group):
        total += sum_by_class(channels, group, labels, np.square(rows).sum(axis=1))
    return np.sqrt(total)

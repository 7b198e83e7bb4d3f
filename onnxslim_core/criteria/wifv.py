"""Variance of a channel times the weights that read it (FLAP: An et al., AAAI 2024, 3.2): what its mean cannot replace.

    sum_t H[(i,t), (i,t)] * sum_n W[(i,t), n]^2

It is the whole loss where channels are uncorrelated and the removed mean goes into the bias.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.criteria.curves import Curve, Readers, Setting, by_score, counted_weights, scale_of

__all__ = ["curve", "scores"]


def scores(readers: Readers, classes: NDArray[np.int32]) -> NDArray[np.float64]:
    """One score per class, (classes,), readers added."""
    total = np.zeros(len(classes))
    for consumer, moments in readers:
        each = np.diag(moments.h) * np.square(counted_weights(consumer)).sum(axis=1) * scale_of(moments)
        total += [each[consumer.columns(int(root))].sum() for root in classes]
    return total


def curve(readers: Readers, classes: NDArray[np.int32], setting: Setting) -> Curve:
    """The least varying contribution goes first."""
    return by_score(readers, classes, scores(readers, classes), setting)

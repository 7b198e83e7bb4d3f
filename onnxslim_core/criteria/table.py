"""The table of criteria: one row per file; a score per class of a group, higher stays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.criteria import bn_scale, geometric_median, l1, l2, random

__all__ = ["CRITERIA", "Criterion"]

Criterion = Callable[[ChannelGraph, Group, int], NDArray[np.float64]]
"""(channel graph, group, seed) -> one score per class, shape (classes,)."""

CRITERIA: dict[str, Criterion] = {
    "l1": l1.score,
    "l2": l2.score,
    "bn_scale": bn_scale.score,
    "geometric_median": geometric_median.score,
    "random": random.score,
}

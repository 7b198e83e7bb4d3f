"""Trial: each channel is taken out alone and the answers of the network are looked at; the least missed goes first.

What counts is whatever the caller measures (an error of the outputs on samples), so this is the one criterion that
looks at the whole network; it costs a run of the samples per class and knows nothing of channels that stand in for
each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.criteria.curves import Curve, Readers, Setting, by_score
from onnxslim_core.errors import InternalError

__all__ = ["curve"]


def curve(readers: Readers, classes: NDArray[np.int32], setting: Setting) -> Curve:
    """Classes by the measured loss of each alone."""
    if setting.measure is None:
        raise InternalError("trial has nothing to measure with")
    found = np.array([setting.measure([int(root)]) for root in classes], np.float64)
    return by_score(readers, classes, np.where(np.isfinite(found), found, np.inf), setting)

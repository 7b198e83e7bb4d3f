"""Average percentage of zeros behind the activation (Hu et al., Network Trimming, 2016, eq. 1): the most silent goes.

Counted at what the readers see, over samples and sampled positions. An activation that never is zero (SiLU, GELU)
counts as silent below a thousandth of its channel's standard deviation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.criteria.curves import Curve, Readers, Setting, by_score
from onnxslim_core.errors import InternalError

__all__ = ["curve"]


def curve(readers: Readers, classes: NDArray[np.int32], setting: Setting) -> Curve:
    """The class that is zero most often goes first; of several channels and readers the mean counts."""
    total, count = np.zeros(len(classes)), np.zeros(len(classes))
    for consumer, moments in readers:
        if moments.zeros is None:
            raise InternalError("zeros were not counted", str(consumer.node.name))
        for number, root in enumerate(classes):
            mine = consumer.classes == root
            total[number] += moments.zeros[mine].sum()
            count[number] += np.count_nonzero(mine)
    return by_score(readers, classes, -total / np.maximum(count, 1), setting)

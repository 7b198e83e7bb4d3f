"""Group orthogonal matching pursuit: the channel stays that explains most of what those before it do not.

    gain_i = tr( B_i' (R_ii)^-1 B_i ),   B -= R_:g (R_gg)^-1 B_g,   R -= R_:g (R_gg)^-1 R_g:

from R = H + l I and B = C + l W0 (Lozano, Swirszcz, Abe, Group Orthogonal Matching Pursuit, NIPS 2009). The order of
removal is the order of choice backwards.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.criteria.curves import Curve, Readers, Setting, error_along, penalised, scale_of
from onnxslim_core.criteria.elimination import Elimination, take_all

__all__ = ["curve"]


def curve(readers: Readers, classes: NDArray[np.int32], setting: Setting) -> Curve:
    """Choose class after class, the most telling first; the last one chosen is the first to go."""
    parts = []
    for consumer, moments in readers:
        h, c = penalised(consumer, moments, setting.ridge)
        part = Elimination(consumer, classes, h, c, scale_of(moments))
        part.take_rows(np.flatnonzero(~np.isin(np.repeat(consumer.classes, consumer.taps), classes)))  # these stay
        parts.append(part)
    chosen = take_all(parts, len(classes), len(classes), largest=True)
    order = classes[chosen[:0:-1]]
    return Curve(order, error_along(readers, order, setting.ridge))

"""Group optimal brain surgeon: the channel goes whose loss the others can make up for best.

With G = (H + l I)^-1 and the least-squares weights W of a consumer, removing the weights b of a channel costs exactly

    tr( W_b' (G_bb)^-1 W_b ),   then   W -= G_:b (G_bb)^-1 W_b,   G -= G_:b (G_bb)^-1 G_b:

(Hassibi and Stork, 1993; in groups: Frantar and Alistarh, Optimal Brain Compression, NeurIPS 2022, eq. 8; for whole
structures: Kurtic et al., ZipLM, NeurIPS 2023). One run gives the order of removal and the error of every width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.criteria.curves import Curve, Readers, Setting, error_along, penalised, scale_of
from onnxslim_core.criteria.elimination import Elimination, take_all

__all__ = ["Curve", "curve", "removal_curve"]


def curve(readers: Readers, classes: NDArray[np.int32], setting: Setting) -> Curve:
    """Remove class after class, the cheapest first, until one is left."""
    return removal_curve(readers, classes, 1, setting.ridge)


def removal_curve(
    consumers: Readers,
    classes: NDArray[np.int32],
    keep: int = 1,
    ridge: float | None = None,
) -> Curve:
    """Remove class after class, the cheapest first, until `keep` are left.

    Args:
        consumers: All sums that read the classes, each with the moments of its input and the variance of its target.
        classes: The classes that may go, (m,).
        keep: How many stay.
        ridge: Relative to the mean of h's diagonal; None: as `Moments.ridge` says.
    """
    parts = []
    for consumer, moments in consumers:
        h, c = penalised(consumer, moments, ridge)
        inverse = np.linalg.inv(h)
        inverse = (inverse + inverse.T) / 2
        parts.append(Elimination(consumer, classes, inverse, inverse @ c, scale_of(moments)))
    order = classes[take_all(parts, len(classes), len(classes) - keep, largest=False)]
    return Curve(order, error_along(consumers, order, ridge))

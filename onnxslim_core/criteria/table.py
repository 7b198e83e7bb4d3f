"""The tables of criteria, one row per file: on weights a score per class, on samples a whole curve of removal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.criteria import (
    apoz,
    bn_scale,
    geometric_median,
    l1,
    l2,
    lasso,
    obs,
    omp,
    random,
    svd_leverage,
    thinet,
    trial,
    wifv,
)
from onnxslim_core.criteria.curves import Curve, Readers, Setting, by_score
from onnxslim_core.errors import InternalError

__all__ = ["CRITERIA", "MEASURED", "SAMPLED", "Criterion", "SampledCriterion", "curve_of"]

Criterion = Callable[[ChannelGraph, Group, int], NDArray[np.float64]]
"""(channel graph, group, seed) -> one score per class, shape (classes,)."""

SampledCriterion = Callable[[Readers, NDArray[np.int32], Setting], Curve]
"""(the group's readers with their moments, the classes that may go, what else) -> order of removal and its error."""

CRITERIA: dict[str, Criterion] = {
    "l1": l1.score,
    "l2": l2.score,
    "bn_scale": bn_scale.score,
    "geometric_median": geometric_median.score,
    "svd_leverage": svd_leverage.score,
    "random": random.score,
}

SAMPLED: dict[str, SampledCriterion] = {
    "apoz": apoz.curve,
    "wifv": wifv.curve,
    "thinet": thinet.curve,
    "lasso": lasso.curve,
    "omp": omp.curve,
    "obs": obs.curve,
    "trial": trial.curve,
}

MEASURED = frozenset({"trial"})
"""Criteria that ask for `Setting.measure`."""


def curve_of(criterion: str, readers: Readers, classes: NDArray[np.int32], setting: Setting) -> Curve:
    """The curve of any criterion: those on weights order the classes, and the moments say what that loses.

    Args:
        criterion: A row of `SAMPLED` or of `CRITERIA`; the latter need `channels` and `group` of the setting.
        readers: All sums that read the classes.
        classes: The classes that may go, (m,).
        setting: What else there is.
    """
    if criterion in SAMPLED:
        return SAMPLED[criterion](readers, classes, setting)
    if setting.channels is None or setting.group is None:
        raise InternalError("a criterion on weights wants the group", criterion)
    scores = CRITERIA[criterion](setting.channels, setting.group, setting.seed)
    place = {int(root): number for number, root in enumerate(setting.group.classes)}
    return by_score(readers, classes, scores[[place[int(root)] for root in classes]], setting)

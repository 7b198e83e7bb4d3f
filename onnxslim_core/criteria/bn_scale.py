"""Scale of the BatchNormalization behind a channel (Network Slimming: Liu et al., ICCV 2017, 3.2).

gamma is read from the node that follows, or from the record that `fuse_batchnorm` left. A group without any scale is
ranked by the norm of its filters. Useful across groups only for a network that was trained with a penalty on gamma.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.channels.records import BATCHNORM, BatchNormRecord
from onnxslim_core.criteria import l2
from onnxslim_core.criteria._makers import sum_by_class

__all__ = ["gamma_of", "score"]


def gamma_of(node: ir.Node) -> NDArray[np.float64] | None:
    """The scale of every output channel of a node; None where no BatchNormalization follows or was fused."""
    record = node.meta.get(BATCHNORM)
    if isinstance(record, BatchNormRecord):
        return record.gamma
    readers, is_output = verbs.users_of(node.outputs[0])
    if is_output or len(readers) != 1 or not verbs.is_op(readers[0][0], "BatchNormalization"):
        return None
    gamma = verbs.array_of(readers[0][0].inputs[1])
    return None if gamma is None else np.asarray(gamma, np.float64)


def score(channels: ChannelGraph, group: Group, seed: int) -> NDArray[np.float64]:
    """One score per class, (classes,): the sum of |gamma| over its channels."""
    total, found = np.zeros(group.width), False
    for use in group.uses:
        if use.role != "out":
            continue
        gamma = gamma_of(use.node)
        if gamma is not None and len(gamma) == use.labels.size:
            total += sum_by_class(channels, group, use.labels.reshape(-1), np.abs(gamma))
            found = True
    return total if found else l2.score(channels, group, seed)

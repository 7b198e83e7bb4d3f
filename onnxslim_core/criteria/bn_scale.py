"""Scale of the BatchNormalization behind a channel (Network Slimming: Liu et al., ICCV 2017, 3.2).

gamma is read from the node that follows, or from the record that `fuse_batchnorm` left. Across groups it is compared
as it is, with one threshold for the whole network, as the paper does; that is useful only for a network that was
trained with a penalty on gamma. Within a group without any scale the norm of the filters ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.channels.records import BATCHNORM, BatchNormRecord
from onnxslim_core.criteria import l2
from onnxslim_core.criteria._makers import sum_by_class
from onnxslim_core.ops.atoms import Labels

__all__ = ["gamma_of", "has_scale", "score"]


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
    """One score per class, (classes,): the mean |gamma| of its channels, so that any two groups can be compared."""
    total, count = np.zeros(group.width), np.zeros(group.width)
    for labels, gamma in _scales(group):
        total += sum_by_class(channels, group, labels, np.abs(gamma))
        count += sum_by_class(channels, group, labels, np.ones(len(gamma)))
    return total / np.maximum(count, 1) if count.any() else l2.score(channels, group, seed)


def has_scale(group: Group) -> bool:
    """True where a BatchNormalization follows, or was fused into, a node that makes the group's channels."""
    return any(True for _ in _scales(group))


def _scales(group: Group) -> Iterator[tuple[Labels, NDArray[np.float64]]]:
    for use in group.uses:
        gamma = gamma_of(use.node) if use.role == "out" else None
        if gamma is not None and len(gamma) == use.labels.size:
            yield use.labels.reshape(-1), gamma

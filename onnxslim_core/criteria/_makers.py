"""The weights that make a group's channels, as every criterion on weights reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.ops.atoms import Labels
from onnxslim_core.ops.consts import array_of
from onnxslim_core.ops.flow import Flow, Use

__all__ = ["maker_rows", "rows_of", "scale_of", "sum_by_class"]

Floats = NDArray[np.float64]


def maker_rows(channels: ChannelGraph, group: Group) -> Iterator[tuple[Labels, Floats]]:
    """For each node that makes channels of the group: labels (n,) and weight rows (n, everything else)."""
    return rows_of(channels.flow, group.uses)


def rows_of(flow: Flow, uses: Iterable[Use]) -> Iterator[tuple[Labels, Floats]]:
    """Labels (n,) and weight rows (n, everything else) of the uses that make channels.

    Rows are multiplied by the scale of a BatchNormalization that reads them alone, since a norm under a later scale
    says nothing (Li et al. measure filters of networks without one). Depthwise weights carry channels and make none.
    """
    for use in uses:
        array = array_of(flow, use.constant) if use.role == "out" else None
        if array is None or array.dtype.kind not in "fiu":
            continue
        rows = use.rows(np.asarray(array, np.float64))
        scale = scale_of(use.node)
        yield use.labels.reshape(-1), rows if scale is None or len(scale) != len(rows) else rows * scale[:, None]


def scale_of(node: ir.Node) -> Floats | None:
    """Gamma / sqrt(var + eps) of the BatchNormalization that alone reads a node; None where there is none."""
    readers, is_output = verbs.users_of(node.outputs[0])
    if is_output or len(readers) != 1 or not verbs.is_op(readers[0][0], "BatchNormalization"):
        return None
    norm = readers[0][0]
    gamma, var = verbs.array_of(norm.inputs[1]), verbs.array_of(norm.inputs[4])
    if gamma is None or var is None:
        return None
    epsilon = float(verbs.attribute(norm, "epsilon", 1e-5))
    return np.asarray(gamma, np.float64) / np.sqrt(np.asarray(var, np.float64) + epsilon)


def sum_by_class(channels: ChannelGraph, group: Group, labels: Labels, values: Floats) -> Floats:
    """Sums of values (n,) over the channels of each class of the group; shape (classes,)."""
    total = np.zeros(len(channels.classes.of))
    np.add.at(total, channels.of(labels), values)
    return total[group.classes]

"""The part of a model in which a group of channels lives, as it is and at smaller widths, to be timed alone.

The part holds every node that makes, carries or sums over the group's channels. What it reads from the rest comes in
as inputs of the sizes seen; its weights are the model's own. A smaller width is cut in the part itself by the same
analysis and removal that cuts the whole model, so what is timed is what will be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.calibration.pieces import cut_out, read_from
from onnxslim_core.channels.groups import ChannelGraph, Group, analyse
from onnxslim_core.channels.removal import remove_atoms
from onnxslim_core.errors import SlimError
from onnxslim_core.model import load
from onnxslim_core.ops.flow import ShapesLike
from onnxslim_core.rewrite import Sample

__all__ = ["Segment", "part_of", "segment_of", "segment_of_nodes"]


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A part of a model.

    Attributes:
        nodes: Its nodes, in the order of the graph.
        proto: The part as a model.
        sample: Inputs for one call, random.
    """

    nodes: tuple[ir.Node, ...]
    proto: onnx.ModelProto
    sample: Sample

    def at_widths(self, group: Group, widths: Sequence[int]) -> list[onnx.ModelProto] | None:
        """The part with so many classes of the group left each time; None where it cannot be cut alone."""
        found = []
        maker = str(group.producers[0].name)
        for width in widths:
            try:
                channels = analyse(load(self.proto.SerializeToString()).ir, None)
                alone = next((g for g in channels.groups if any(str(n.name) == maker for n in g.producers)), None)
                if alone is None or alone.width != group.width or int(alone.free.sum()) < group.width - width:
                    return None
                remove_atoms(channels, channels.gone(alone.classes[alone.free][: group.width - width].tolist()))
                found.append(ir.to_proto(channels.flow.model))
            except SlimError:
                return None
        return found


def segment_of(channels: ChannelGraph, group: Group) -> Segment | None:
    """The part in which a group lives; None where it cannot be cut out."""
    flow = channels.flow
    mine = np.zeros(flow.atoms.count, np.bool_)
    mine[np.isin(channels.classes.of, group.classes)] = True
    touched: dict[ir.Node, None] = dict.fromkeys((*group.producers, *group.consumers))
    for value, labels in flow.table.items():
        if mine[labels].any():
            producer = value.producer()
            if producer is not None:
                touched[producer] = None
            touched |= dict.fromkeys(node for node, _ in verbs.users_of(value)[0])
    return segment_of_nodes(channels, [node for node in flow.model.graph if node in touched])


def segment_of_nodes(channels: ChannelGraph, nodes: Sequence[ir.Node]) -> Segment | None:
    """Some nodes as a part; None where the sizes or types of what they read are not known."""
    return part_of(channels.flow.model, channels.flow.shapes, nodes)


def part_of(model: ir.Model, shapes: ShapesLike, nodes: Sequence[ir.Node]) -> Segment | None:
    """As `segment_of_nodes`, of a model whose channels nobody has looked at.

    Args:
        model: Where the nodes stand.
        shapes: ShapesLike, and types where known, of its values.
        nodes: In the order of the graph.
    """
    inside = set(nodes)
    read = read_from(nodes)
    made = [
        v
        for node in nodes
        for v in node.outputs
        if v.is_graph_output() or any(user not in inside for user, _ in verbs.users_of(v)[0])
    ]
    types = {value: _dtype(shapes, value) for value in read}
    if not made or any(types[value] is None or value not in shapes.shape for value in read):
        return None
    rng = np.random.default_rng(0)
    sample: dict[str, np.ndarray] = {}
    for value in read:
        dtype = types[value]
        assert dtype is not None
        if value in shapes.value:
            sample[str(value.name)] = np.asarray(shapes.value[value], dtype)
        elif dtype.kind == "f":
            sample[str(value.name)] = rng.standard_normal(shapes.shape[value]).astype(dtype)
        else:
            sample[str(value.name)] = np.zeros(shapes.shape[value], dtype)
    dtypes = {value: sample[str(value.name)].dtype for value in read}
    proto = cut_out(model, nodes, read, made, dtypes, shapes={value: shapes.shape[value] for value in read})
    return Segment(tuple(nodes), proto, sample)


def _dtype(shapes: ShapesLike, value: ir.Value) -> np.dtype | None:
    known = getattr(shapes, "dtype", {}).get(value, value.dtype)
    return None if known is None or known == ir.DataType.STRING else np.dtype(known.numpy())

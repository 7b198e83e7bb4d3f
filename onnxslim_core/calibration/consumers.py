"""Linear nodes as regression problems: their weights by rows, what they should answer, and how to write weights back.

A consumer is a Conv or ConvTranspose of any rank, stride and group, a Gemm, or a MatMul with a constant matrix on one
side. Its weights are (d, n): d = channels * taps in the layout of `rows.input_rows`, n output channels. Groups are
blocks on the diagonal, so that whatever is said of (d, n) weights and (d, d) moments holds for them as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.ops.flow import Sink

__all__ = [
    "Consumer",
    "answer_of",
    "bias_of",
    "bias_value",
    "blocks_of",
    "constant_of",
    "consumers_of",
    "is_depthwise",
    "is_linear",
    "kept_of",
    "kept_outputs",
    "nodes_reading",
    "note_kept",
    "put_weights",
    "readers_of",
    "source_of",
    "stored_weights",
    "taps_of",
    "target_of",
    "unsolvable",
    "weights_of",
]

Floats = NDArray[np.float64]
_FLOATS = (np.float32, np.float64, np.float16)


def constant_of(node: ir.Node) -> int:
    """The input of a linear node that holds its weights: 1, or 0 of a MatMul with the constant on the left."""
    if node.op_type == "MatMul" and verbs.array_of(node.inputs[1]) is None:
        return 0
    return 1


def source_of(node: ir.Node) -> ir.Value:
    """The activation that a linear node reads."""
    value = node.inputs[1 - constant_of(node)]
    assert value is not None
    return value


def is_linear(node: ir.Node) -> bool:
    """True for a node whose weights and bias can be solved for."""
    return unsolvable(node) is None


def unsolvable(node: ir.Node) -> str | None:
    """Why weights and bias of a node cannot be solved for, as a clause about it; None where they can."""
    if not verbs.is_op(node, "Conv", "ConvTranspose", "Gemm", "MatMul") or len(node.inputs) < 2:
        return "which no repair solves for; prune_channels by a criterion on weights, such as l2, can cut it"
    array = verbs.array_of(node.inputs[constant_of(node)])
    if array is None:
        return "whose weights are computed or fed, not constant"
    if array.dtype not in _FLOATS:
        return f"whose weights are {array.dtype}, which no repair solves for"
    if not array.size or not (_is_kernel(node) or _is_matrix(node, array)):
        return "whose weights are no single matrix"
    if node.op_type == "Gemm" and _gemm_bias(node, array) is None:
        return "whose bias is computed or differs from row to row"
    if node.op_type == "Gemm" and float(verbs.attribute(node, "alpha", 1.0)) == 0:
        return "whose alpha is 0"
    if (bias := bias_value(node)) is not None and verbs.array_of(bias) is None and node.op_type != "Gemm":
        return "whose bias is computed or fed, not constant"
    return None


def _is_matrix(node: ir.Node, array: np.ndarray) -> bool:
    """True for one matrix, on the right of a MatMul also one with axes of length 1 before it."""
    if node.op_type == "MatMul" and constant_of(node) == 1:
        return array.ndim >= 2 and array.size == array.shape[-1] * array.shape[-2]
    return array.ndim == 2


def is_depthwise(node: ir.Node) -> bool:
    """True for a Conv or ConvTranspose whose groups have one input channel each."""
    if not _is_kernel(node) or (array := verbs.array_of(node.inputs[1])) is None:
        return False
    return _groups(node) > 1 and _channels(node, array.shape) == _groups(node)


def _is_kernel(node: ir.Node) -> bool:
    return verbs.is_op(node, "Conv", "ConvTranspose")


def _groups(node: ir.Node) -> int:
    return int(verbs.attribute(node, "group", 1)) if _is_kernel(node) else 1


def _channels(node: ir.Node, shape: tuple[int, ...]) -> int:
    return shape[0] if node.op_type == "ConvTranspose" else shape[1] * _groups(node)


def taps_of(node: ir.Node) -> int:
    """Weights per input channel and output: the size of a kernel, 1 of a matrix."""
    array = verbs.array_of(node.inputs[1]) if _is_kernel(node) else None
    return 1 if array is None else int(np.prod(array.shape[2:]))


def weights_of(node: ir.Node) -> Floats:
    """The weights of a linear node as it uses them; (d, n), float64, zero outside the blocks of its groups."""
    array = np.asarray(verbs.array_of(node.inputs[constant_of(node)]), np.float64)
    if _is_kernel(node):
        return _spread(_by_group(node, array))
    if node.op_type == "Gemm":
        array = array * float(verbs.attribute(node, "alpha", 1.0))
        return array.T if verbs.attribute(node, "transB", 0) else array
    return array.T if constant_of(node) == 0 else array.reshape(array.shape[-2:])


def _by_group(node: ir.Node, array: Floats) -> Floats:
    """Kernel weights as [groups, channels * taps of a group, outputs of a group]."""
    groups = _groups(node)
    split = array.reshape(groups, array.shape[0] // groups, array.shape[1], -1)
    # Conv is [g, out, in, taps], ConvTranspose [g, in, out, taps]
    rows = split.transpose(0, 2, 3, 1) if node.op_type == "Conv" else split.transpose(0, 1, 3, 2)
    return np.asarray(rows.reshape(groups, rows.shape[1] * rows.shape[2], rows.shape[3]))


def _spread(blocks: Floats) -> Floats:
    """Blocks [g, d / g, n / g] on the diagonal of (d, n)."""
    groups, d, n = blocks.shape
    if groups == 1:
        return np.asarray(blocks[0])
    full = np.zeros((groups, d, groups, n))
    full[np.arange(groups), :, np.arange(groups)] = blocks
    return full.reshape(groups * d, groups * n)


def stored_weights(node: ir.Node, weights: Floats) -> Floats:
    """Weights (d, n) in the layout in which a node keeps its own: the inverse of `weights_of`, less a Gemm's alpha."""
    array = verbs.array_of(node.inputs[constant_of(node)])
    assert array is not None
    shape = array.shape
    if _is_kernel(node):
        groups = _groups(node)
        taps = int(np.prod(shape[2:]))
        full = weights.reshape(groups, weights.shape[0] // groups, groups, weights.shape[1] // groups)
        blocks = full[np.arange(groups), :, np.arange(groups)].reshape(groups, -1, taps, weights.shape[1] // groups)
        order = (0, 3, 1, 2) if node.op_type == "Conv" else (0, 1, 3, 2)
        return np.ascontiguousarray(blocks.transpose(order)).reshape(shape)
    if node.op_type == "Gemm":
        return weights.T if verbs.attribute(node, "transB", 0) else weights
    return weights.T if constant_of(node) == 0 else weights.reshape(shape)


def blocks_of(node: ir.Node, d: int, n: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Which entries of (d, d) and (d, n) moments belong to one group; None where there is but one."""
    groups = _groups(node)
    if groups == 1:
        return None
    rows, columns = np.arange(d) // (d // groups), np.arange(n) // (n // groups)
    return rows[:, None] == rows, rows[:, None] == columns


def _gemm_bias(node: ir.Node, array: np.ndarray) -> Floats | None:
    """What a Gemm adds, (n,); None where it is computed or differs from row to row."""
    n = array.shape[0 if verbs.attribute(node, "transB", 0) else 1]
    given = node.inputs[2] if len(node.inputs) > 2 else None
    beta = float(verbs.attribute(node, "beta", 1.0))
    if given is None or beta == 0:
        return np.zeros(n)
    bias = verbs.array_of(given)
    if bias is None or bias.size != (bias.shape[-1] if bias.ndim else 1):
        return None
    return np.broadcast_to(np.asarray(bias, np.float64).reshape(-1) * beta, (n,))


def bias_of(node: ir.Node, n: int) -> Floats:
    """What is added to each of the n outputs of a linear node, (n,), by itself or by the Add behind a MatMul.

    With it weights and bias of a node are what `put_weights` takes, and what its answer is made of (`answer_of`).
    """
    if node.op_type == "Gemm":
        found = _gemm_bias(node, np.asarray(verbs.array_of(node.inputs[1])))
        return np.zeros(n) if found is None else np.array(found)
    array = verbs.array_of(bias_value(node))
    return np.zeros(n) if array is None else np.array(np.broadcast_to(np.asarray(array, np.float64).reshape(-1), (n,)))


def bias_value(node: ir.Node) -> ir.Value | None:
    """What a linear node, or the Add behind a MatMul, reads as its bias; None where it has none."""
    if (behind := _bias_add(node)) is not None:
        add, place = behind
        return add.inputs[place]
    return node.inputs[2] if node.op_type != "MatMul" and len(node.inputs) > 2 else None


def _bias_add(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The Add of a constant per output channel that alone reads a MatMul, and the constant's input."""
    if node.op_type != "MatMul":
        return None
    readers, is_output = verbs.users_of(node.outputs[0])
    if is_output or len(readers) != 1 or not verbs.is_op(readers[0][0], "Add"):
        return None
    add, index = readers[0][0], 1 - readers[0][1]
    array, weight = verbs.array_of(add.inputs[index]), verbs.array_of(node.inputs[constant_of(node)])
    if array is None or weight is None or array.dtype != weight.dtype:
        return None
    left = constant_of(node) == 0
    n = weight.shape[0] if left else weight.shape[-1]
    # the channels of a left constant lie along the axis before the last
    wide = array.ndim >= 2 and array.shape[-2:] == (n, 1) if left else array.ndim >= 1 and array.shape[-1] == n
    return (add, index) if wide and array.size == n else None


def answer_of(node: ir.Node) -> ir.Value:
    """What a linear node answers, its bias included."""
    behind = _bias_add(node)
    return node.outputs[0] if behind is None else behind[0].outputs[0]


def put_weights(model: ir.Model, node: ir.Node, weights: Floats, bias: Floats, others: Sequence[ir.Node] = ()) -> None:
    """Let a linear node use these weights (d, n) and this bias (n,), as new constants.

    The bias of a MatMul goes into the Add behind it, which is made where there is none.

    Args:
        model: Where names must be new.
        node: The node.
        weights: As `weights_of` has them.
        bias: As `bias_of` has it.
        others: Further calls of the layer (`sharing.layers_of`), which read the same new constants.
    """
    names, graph = verbs.Names(model), node.graph
    index = constant_of(node)
    old = verbs.array_of(node.inputs[index])
    assert isinstance(graph, ir.Graph) and old is not None
    layout = stored_weights(node, weights)
    made = verbs.add_constant(graph, names, _stored(layout, old.dtype), str(node.inputs[index].name))  # type: ignore[union-attr]
    for each in (node, *others):
        if each.op_type == "Gemm":
            verbs.set_attribute(each, "alpha", None)
            verbs.set_attribute(each, "beta", None)
        verbs.replace_constant(each, index, made)
    maker = node
    if (behind := _bias_add(node)) is not None:
        maker, place = behind
        like = verbs.array_of(maker.inputs[place])
        assert like is not None
        bias = bias.reshape(like.shape)
    elif node.op_type == "MatMul" and index == 0:
        bias = bias[:, None]
    hint = f"{maker.name or maker.op_type}/bias"
    shift = verbs.add_constant(graph, names, _stored(bias, old.dtype), hint)
    for each in (node, *others):
        if (behind := _bias_add(each)) is not None:
            verbs.replace_constant(*behind, shift)
        elif each.op_type == "MatMul":
            verbs.add_behind(each, shift, names)
        else:
            verbs.replace_constant(each, 2, shift)


def _stored(array: Floats, dtype: np.dtype[np.generic]) -> np.ndarray:
    """An array in a type, clipped to what the type holds."""
    most = float(np.finfo(dtype.name).max)
    return np.clip(array, -most, most).astype(dtype)


def target_of(node: ir.Node) -> tuple[ir.Value, ir.Value | None]:
    """What a consumer should answer for: its own answer, or the sum it is added into, with the other summand.

    In a residual network the last layer of a block so corrects the whole stream (He et al., ICCV 2017, 3.3).
    """
    value = answer_of(node)
    readers, is_output = verbs.users_of(value)
    if is_output or len(readers) != 1 or not verbs.is_op(readers[0][0], "Add"):
        return value, None
    add, index = readers[0]
    other = add.inputs[1 - index]
    if other is None or other is value or other.producer() is None or verbs.array_of(other) is not None:
        return value, None
    return add.outputs[0], other


@dataclass(frozen=True, slots=True, eq=False)
class Consumer:
    """A linear node and the classes of its input channels.

    Attributes:
        node: The node.
        classes: Class of each input channel, (m,).
        taps: Weights per input channel and output.
        outputs: Class of each output channel, (n,), so that an output that goes with an input counts as no loss;
            None where no output goes.
    """

    node: ir.Node
    classes: NDArray[np.int32]
    taps: int
    outputs: NDArray[np.int32] | None = None

    def columns(self, root: int) -> NDArray[np.int64]:
        """Which of the d rows of the weights belong to a class."""
        places = np.flatnonzero(self.classes == root)
        return (places[:, None] * self.taps + np.arange(self.taps)).reshape(-1)


def consumers_of(channels: ChannelGraph) -> dict[ir.Node, Consumer]:
    """All sums over channels that can be solved for, by node; in the order of the graph, none within a body."""
    found: dict[ir.Node, Consumer] = {}
    for sink in channels.sinks:
        if sink.node.graph is not channels.flow.model.graph:
            continue
        if _can_be_solved(sink) and not is_depthwise(sink.node):
            outputs = _output_classes(channels, sink.node)
            found[sink.node] = Consumer(sink.node, channels.of(sink.labels).reshape(-1), taps_of(sink.node), outputs)
    return found


def _can_be_solved(sink: Sink) -> bool:
    if not is_linear(sink.node) or sink.weight != constant_of(sink.node) or sink.index == sink.weight:
        return False
    return len(sink.labels) == _groups(sink.node)


def _output_classes(channels: ChannelGraph, node: ir.Node) -> NDArray[np.int32] | None:
    labels = _output_labels(channels, node)
    return None if labels is None else channels.of(labels)


def _output_labels(channels: ChannelGraph, node: ir.Node) -> NDArray[np.int32] | None:
    """One label per output channel of a linear node; None where nothing of it goes, or it varies along other axes."""
    labels = channels.flow.table.get(node.outputs[0]) if node.outputs else None
    if labels is None or labels.size == 1:
        return None
    axis = 1 if _is_kernel(node) else labels.ndim - (2 if node.op_type == "MatMul" and constant_of(node) == 0 else 1)
    return labels.reshape(-1) if labels.shape[axis] == labels.size else None


def kept_outputs(channels: ChannelGraph, gone: NDArray[np.bool_]) -> Mapping[str, NDArray[np.int64]]:
    """For every linear node, by name, which of its output channels stay once these atoms are gone."""
    kept: dict[str, NDArray[np.int64]] = {}
    for node in channels.flow.model.graph:
        if is_linear(node) and (labels := _output_labels(channels, node)) is not None:
            kept[str(node.name)] = np.flatnonzero(~gone[labels])
    return kept


_KEPT = "onnxslim_core.kept_outputs"
"""In a node's `meta`: which output channels it has left of those it had before anything was cut."""


def nodes_reading(channels: ChannelGraph, classes: Sequence[int]) -> list[str]:
    """Names of the linear nodes that read one of these classes, in the order of the graph."""
    wanted = np.array(sorted(classes), np.int64)
    return [str(node.name) for node, each in consumers_of(channels).items() if np.isin(each.classes, wanted).any()]


def note_kept(model: ir.Model, kept: Mapping[str, NDArray[np.int64]]) -> None:
    """Remember, once channels are gone, which ones are left of those that a node had at first."""
    for node in model.graph:
        if (now := kept.get(str(node.name))) is not None:
            before = node.meta.get(_KEPT)
            node.meta[_KEPT] = now if before is None else before[now]


def kept_of(model: ir.Model) -> dict[str, NDArray[np.int64]]:
    """By the name of a node what `note_kept` remembers; absent where nothing was cut."""
    return {str(node.name): node.meta[_KEPT] for node in model.graph if _KEPT in node.meta}


def readers_of(channels: ChannelGraph, group: Group, consumers: Mapping[ir.Node, Consumer]) -> list[Consumer] | str:
    """Every sum that reads the group, or why one of them cannot be solved for.

    A sum of two activations whose rows go as a whole (queries times keys of a head that goes) loses nothing by it:
    its results go as well, and what reads them is asked instead.
    """
    mine: dict[ir.Node, Consumer] = {}
    for sink in channels.sinks:
        classes = channels.of(sink.labels)
        hit = np.isin(classes, group.classes)
        if not hit.any():
            continue
        if sink.node in consumers:
            mine[sink.node] = consumers[sink.node]
        elif not (classes == classes[:, :1])[hit.any(axis=1)].all():
            return f"{verbs.label_of(sink.node)} reads it, {_why_not(channels, sink)}"
    return list(mine.values()) if mine else "nothing that can be solved for reads it"


def _why_not(channels: ChannelGraph, sink: Sink) -> str:
    """Why a sum is none of `consumers_of`."""
    if sink.node.graph is not channels.flow.model.graph:
        return "which stands in a body"
    return unsolvable(sink.node) or "whose input has other channels at other places"

"""LSTM, GRU and RNN: input features and hidden units.

X is [T, B, I] (`layout` 1: [B, T, I]), W [D, g*H, I], R [D, g*H, H], B [D, 2*g*H], P [D, 3*H], states [D, B, H];
D directions, g gates (LSTM 4, GRU 3, RNN 1). Hidden unit h owns row h of every gate in W and R, column h of R, its
entries in the biases and its place in every state; all directions lose the same units, since `hidden_size` is one
number. Both X and the state before are summed: columns of W and of R are sinks. com.microsoft.DynamicQuantizeLSTM has
W [D, I, 4*H] and R [D, H, 4*H] in 8 bits, with scales and zero points per direction or per gate and unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.ops.atoms import Labels
from onnxslim_core.ops.consts import Consts, array_of
from onnxslim_core.ops.cut import Cut, Keep
from onnxslim_core.ops.flow import Flow, Rule
from onnxslim_core.ops.join import join

__all__ = ["RULES", "is_zero", "silent"]

_GATES = {"LSTM": 4, "DynamicQuantizeLSTM": 4, "GRU": 3, "RNN": 1}
_SCALES = (8, 9, 10, 11)
_STATES = (5, 6)
_MOVES = (
    *("Cast", "CastLike", "Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile"),
    *("Transpose", "Unsqueeze"),
)
"""Operators that make zeros of zeros: of all inputs of a Concat, of the first of the others."""


def _given(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _axes(node: ir.Node) -> tuple[int, int]:
    """The axes of W and R with gates and units, and with what is summed."""
    return (2, 1) if node.op_type == "DynamicQuantizeLSTM" else (1, 2)


def _per_unit(flow: Flow, node: ir.Node) -> list[int]:
    """Scales and zero points that have an entry for every gate and unit."""
    return [index for index in _SCALES if (v := _given(node, index)) is not None and len(flow.shape(v)) > 1]


def _label(flow: Flow, node: ir.Node) -> None:
    x, weight, inner = node.inputs[0], node.inputs[1], node.inputs[2]
    labels, (gate_axis, sum_axis) = flow.labels(x), _axes(node)
    parts = [value for index in (1, 2, 3, 7, *_SCALES) if (value := _given(node, index)) is not None]
    if labels is None or not all(flow.is_constant(value) for value in parts):
        flow.freeze(node, "its weights are computed")
        return
    row = flow.atoms.mix(labels, [0, 1]).reshape(-1)
    units = flow.atoms.fresh(flow.shape(inner)[sum_axis])
    gates = _GATES[node.op_type]
    flow.use(node, 1, gate_axis, np.tile(units, gates), "out")
    if row.size > 1:
        flow.sink(node, 0, row.reshape(1, -1), 1, sum_axis)
    flow.use(node, 2, gate_axis, np.tile(units, gates), "carry")
    flow.use(node, 2, sum_axis, units, "in")
    flow.sink(node, 2, units.reshape(1, -1), 2, zero=11 if node.op_type == "DynamicQuantizeLSTM" else None)
    for index, copies in ((3, 2 * gates), (7, 3), *((index, gates) for index in _per_unit(flow, node))):
        if _given(node, index) is not None:
            flow.use(node, index, 1, np.tile(units, copies), "carry")
    for index in _STATES:
        _meet_state(flow, node, index, units)
    steps = math.prod(flow.shape(x)[:2])
    flow.work(node, steps * math.prod(flow.shape(weight)), units, row)
    flow.work(node, steps * math.prod(flow.shape(inner)), units, units)
    for value in node.outputs:
        if (shape := flow.shapes.shape.get(value)) is not None:
            flow.set(value, units.reshape((1,) * (len(shape) - 1) + (-1,)))


def _meet_state(flow: Flow, node: ir.Node, index: int, units: Labels) -> None:
    """A state that is given has the same units; zeros, however computed, are no matter."""
    state = _given(node, index)
    if state is None or is_zero(flow.known, state):
        return
    if flow.is_constant(state):
        flow.use(node, index, 2, units, "carry")
        return
    labels = flow.labels(state)
    assert labels is not None
    shape = flow.shape(state)
    join(flow.atoms, units.reshape(1, 1, -1), shape, labels, shape)


def is_zero(known: Callable[[ir.Value], np.ndarray | None], value: ir.Value) -> bool:
    """True for zeros, also where only their number is computed.

    Args:
        known: The value of a constant, and None for anything else.
        value: Any.
    """
    todo, seen = [value], set[ir.Value]()
    while todo:
        value = todo.pop()
        if value in seen:
            continue
        seen.add(value)
        array, node = known(value), value.producer()
        if array is None and node is not None and verbs.is_op(node, "ConstantOfShape"):
            fill = verbs.attribute(node, "value")
            array = np.zeros(1, np.float32) if fill is None else fill.numpy()
        if array is not None:
            if array.any():
                return False
        elif node is not None and verbs.is_op(node, *_MOVES):
            sources = node.inputs if node.op_type == "Concat" else node.inputs[:1]
            todo += [source for source in sources if source is not None]
        else:
            return False
    return True


def _cut(cut: Cut, node: ir.Node) -> None:
    features = cut.keeps(node.inputs[0]).get(2)
    keep = next((keeps[axis] for value in node.outputs if (keeps := cut.keeps(value)) for axis in keeps), None)
    gate_axis, sum_axis = _axes(node)
    first: dict[int, Keep] = {} if features is None else {sum_axis: features}
    if keep is None:
        cut.constant(node, 1, first)
        return
    size, gates = cut.flow.shape(node.inputs[2])[sum_axis], _GATES[node.op_type]

    def every(copies: int) -> Keep:
        return np.concatenate([keep + size * copy for copy in range(copies)])

    cut.constant(node, 1, {**first, gate_axis: every(gates)})
    cut.constant(node, 2, {gate_axis: every(gates), sum_axis: keep})
    for index, copies in ((3, 2 * gates), (7, 3), *((index, gates) for index in _per_unit(cut.flow, node))):
        if _given(node, index) is not None:
            cut.constant(node, index, {1: every(copies)})
    for index in _STATES:
        state = _given(node, index)
        if state is not None and is_zero(cut.flow.known, state):
            verbs.replace_input(node, index, None)
        elif state is not None and cut.flow.is_constant(state):
            cut.constant(node, index, {2: keep})
    verbs.set_attribute(node, "hidden_size", len(keep))


# ---------------------------------------------------------------------- what adds nothing
_CANDIDATE = {"LSTM": 3, "GRU": 2, "RNN": 0}
"""The gate that makes the new state: where it is zero, a state of zero stays zero (f c, z h, tanh(0))."""


def _value(consts: Consts, node: ir.Node) -> None:
    """Hidden units that stay zero: zero at the start, and nothing but zeros in the rows that make their new state."""
    flow = consts.flow
    weight, inner, bias = (array_of(flow, _given(node, index)) for index in (1, 2, 3))
    if weight is None or inner is None or (_given(node, 3) is not None and bias is None):
        return
    if verbs.attribute(node, "activations", None) is not None:
        return
    size, gates, gate = inner.shape[2], _GATES[node.op_type], _CANDIDATE[node.op_type]
    x = consts.get(node.inputs[0])
    depth = weight.shape[2]
    heard = np.ones(depth, np.bool_)
    if x is not None and x.size > 1 and x.shape[-1] == depth:  # it may vary along steps and samples as well
        heard = (x.reshape(-1, depth) != 0).any(axis=0)
    rows = slice(gate * size, (gate + 1) * size)
    zero = np.asarray(~weight[:, rows][:, :, heard].any(axis=(0, 2)))
    if bias is not None:  # those of W and those of R
        zero &= ~bias.reshape(len(bias), 2, gates * size)[:, :, rows].any(axis=(0, 1))
    for index in _STATES:
        zero &= _starts_at_zero(consts, _given(node, index), size)
    while zero.any():
        fed = inner[:, rows][:, :, ~zero].any(axis=(0, 2))
        if not (zero & fed).any():
            break
        zero &= ~fed
    for value in node.outputs:
        if (labels := flow.table.get(value)) is not None and labels.size == size:
            consts.set(value, np.where(zero, 0.0, np.nan).reshape(labels.shape))


def _starts_at_zero(consts: Consts, state: ir.Value | None, size: int) -> NDArray[np.bool_]:
    """Units whose first state is zero."""
    if state is None or is_zero(consts.flow.known, state):
        return np.ones(size, np.bool_)
    given = array_of(consts.flow, state) if consts.flow.is_constant(state) else consts.get(state)
    if given is None or given.shape[-1] != size:
        return np.zeros(size, np.bool_)
    return np.asarray(~given.reshape(-1, size).any(axis=0))


def silent(consts: Consts, node: ir.Node, index: int) -> NDArray[np.bool_] | None:
    """Of a sum: channels of X (`index` 0) or hidden units (`index` 2) that are zero, or that no other unit reads.

    What a unit reads of itself is no matter, since it goes with the unit. None where the weights are not known.
    """
    weights = array_of(consts.flow, node.inputs[2 if index else 1])
    if node.op_type not in _CANDIDATE or weights is None:
        return None
    if not index:
        return np.asarray(~weights.any(axis=(0, 1)))
    size = weights.shape[2]
    others = weights.reshape(-1, size, size) * (1 - np.eye(size, dtype=weights.dtype))
    found = ~others.any(axis=(0, 1))
    for value in node.outputs:
        if (held := consts.get(value)) is not None and held.size == size:
            found |= held.reshape(-1) == 0
    return np.asarray(found)


RULES = {
    "com.microsoft.DynamicQuantizeLSTM" if op.startswith("Dynamic") else op: Rule(
        _label, _cut, _value if op in _CANDIDATE else None
    )
    for op in _GATES
}

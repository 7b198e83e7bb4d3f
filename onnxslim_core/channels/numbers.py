"""Which channels hold the same values: value numbering over arrays shaped like labels.

Two elements have one number only where the same nodes made them from equal numbers and equal constants, entry by
entry; so equal numbers are equal values, whatever the input. Nothing is assumed of an operator that is not listed here:
what it makes has no number (NaN) and is equal to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.ops import join, keep
from onnxslim_core.ops.atoms import Labels
from onnxslim_core.ops.consts import Consts, Values, array_of
from onnxslim_core.ops.flow import Flow, Rule, Use
from onnxslim_core.ops.table import rule_of

__all__ = ["Numbers"]

_MOVES = ("Concat", "Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
_MAKERS = ("Conv", "ConvTranspose", "Gather", "Gemm", "MatMul")
_PER_CHANNEL = (
    *(keep.RULES.keys() - {"Dropout"}),
    *("AveragePool", "Conv", "ConvTranspose", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"),
    *("InstanceNormalization", "LpPool", "MaxPool", "Pad", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceSum", "Resize", "Upsample"),
)


_FEW = 128
"""Entries that are numbered by a dictionary."""


class Numbers(Consts):
    """The number of every element of every activation; as floats, NaN where there is none."""

    def __init__(self, flow: Flow) -> None:
        self._next = 0
        self._uses: dict[ir.Node, list[Use]] = {}
        for use in flow.uses:
            self._uses.setdefault(use.node, []).append(use)
        super().__init__(flow, lambda node: Rule(lambda *_: None, None, self._node))

    def _node(self, consts: Consts, node: ir.Node) -> None:
        if not node.outputs or any(self.flow.is_constant(value) for value in node.outputs):
            return
        if any(use.role == "out" for use in self._uses.get(node, ())) and verbs.is_op(node, *_MAKERS):
            self._made(node)
        elif verbs.is_op(node, *_MOVES):
            self._moved(node)
        elif verbs.is_op(node, *join.RULES):
            self._joined(node, node.inputs)
        elif verbs.is_op(node, *_PER_CHANNEL) and self._is_per_channel(node):
            self._joined(node, node.inputs[:1])

    # ------------------------------------------------------------------ one node
    def _moved(self, node: ir.Node) -> None:
        """Elements go where the operator takes them; the node is part of the number, since it may take a part."""
        rule = rule_of(node)
        if rule is None or rule.value is None:
            return
        rule.value(self, node)
        for value in node.outputs:
            found, labels = self._known.pop(value, None), self.flow.labels(value)
            if found is not None and labels is not None:
                self.set(value, self._fresh([found, _places(labels, found)]))

    def _joined(self, node: ir.Node, operands: Sequence[ir.Value | None]) -> None:
        """A number for every combination of operands."""
        labels = self.flow.labels(node.outputs[0])
        carried = None if labels is None else self._carried(node, labels)
        given = [self.full(value) for value in operands if value is not None and not self.flow.is_constant(value)]
        if labels is None or carried is None or not given:
            return
        found = self._fresh([*given, *carried])
        if found.size == labels.size:
            found = found.reshape(labels.shape)
        self.set(node.outputs[0], found.reshape((1,) * (labels.ndim - found.ndim) + found.shape))

    def _made(self, node: ir.Node) -> None:
        """Channels of one node are equal where their weights and biases are, and their groups."""
        labels = self.flow.labels(node.outputs[0])
        use = next(use for use in self._uses[node] if use.role == "out")
        array = array_of(self.flow, use.constant)
        carried = None if labels is None else self._carried(node, labels)
        if labels is None or array is None or carried is None or not _same_order(use.labels, labels):
            return
        if verbs.is_op(node, "Gemm") and len(node.inputs) > 2 and not self.flow.is_constant(node.inputs[2]):
            return
        groups = int(verbs.attribute(node, "group", 1))
        group = np.arange(labels.size, dtype=np.float64) // (labels.size // groups)
        columns = [_distinct(use.rows(array)).reshape(labels.shape), group.reshape(labels.shape)]
        self.set(node.outputs[0], self._fresh([*columns, *carried]))

    # ------------------------------------------------------------------ parts
    def full(self, value: ir.Value) -> Values:
        """Numbers of an activation; one that does not depend on channels is one thing to all of them."""
        labels = self.flow.labels(value)
        if labels is not None and labels.size == 1 and self.get(value) is None:
            self._known[value] = self._fresh([np.zeros(labels.shape)])
        return super().full(value)

    def operand(self, value: ir.Value | None) -> Values | None:
        """Numbers of a constant operand, equal where its entries are."""
        found = super().operand(value)
        return None if found is None else self._fresh([found])

    def _fresh(self, columns: list[Values]) -> Values:
        """A new number for every distinct combination; NaN where a part has none."""
        alike = all(column.shape == columns[0].shape for column in columns[1:])
        arrays = columns if alike else np.broadcast_arrays(*columns)
        if arrays[0].size <= _FEW:
            seen: dict[tuple[float, ...], int] = {}
            rows = zip(*(array.reshape(-1).tolist() for array in arrays), strict=True)
            numbers = [np.nan if any(x != x for x in row) else seen.setdefault(row, len(seen)) for row in rows]
            first, self._next = self._next, self._next + len(numbers)
            return np.array(numbers, np.float64).reshape(arrays[0].shape) + first
        code, unknown = np.zeros(arrays[0].size, np.int64), np.zeros(arrays[0].size, np.bool_)
        for array in arrays:
            values, which = np.unique(array.reshape(-1), return_inverse=True)
            code = code * len(values) + which  # below size ** 2, and below size again after the next line
            code = np.unique(code, return_inverse=True)[1] if len(arrays) > 1 else code
            unknown |= np.isnan(array.reshape(-1))
        found = np.where(unknown, np.nan, code + float(self._next)).reshape(arrays[0].shape)
        self._next += code.size
        return found

    def _carried(self, node: ir.Node, labels: Labels) -> list[Values] | None:
        """What constants of the node with one entry per channel add to the number; None where that is not plain."""
        found = []
        for use in self._uses.get(node, ()):
            if use.role == "carry":
                array = array_of(self.flow, use.constant)
                if array is None or not _same_order(use.labels, labels):
                    return None
                found.append(_distinct(use.rows(array)).reshape(labels.shape))
        return found

    def _is_per_channel(self, node: ir.Node) -> bool:
        """True where each channel of the first output comes from the channel at its place in the first input alone."""
        source, result = self.flow.labels(node.inputs[0]), self.flow.labels(node.outputs[0])
        if source is None or result is None:
            return False
        others = [value for value in node.inputs[1:] if value is not None]
        if verbs.is_op(node, "QuantizeLinear", "DequantizeLinear") and node not in self._uses:
            others = [value for value in others if np.prod(self.flow.shape(value)) > 1]  # scales of another axis
            return not others and _same_order(source, result)
        return _same_order(source, result) and all(self.flow.is_constant(value) for value in others)


def _places(labels: Labels, numbers: Values) -> Values:
    """Which one of the elements that share a label and a number each is: a channel that was flattened has many."""
    order = np.lexsort((numbers.reshape(-1), labels.reshape(-1)))
    pairs = np.stack([labels.reshape(-1)[order], numbers.reshape(-1)[order]])
    starts = np.concatenate([[True], (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)])
    place = np.empty(labels.size)
    place[order] = np.arange(labels.size) - np.maximum.accumulate(np.where(starts, np.arange(labels.size), 0))
    return place.reshape(labels.shape)


def _same_order(left: Labels, right: Labels) -> bool:
    return bool(left.size == right.size and (left.reshape(-1) == right.reshape(-1)).all())


def _distinct(rows: NDArray[np.generic]) -> Values:
    """A number per row, equal where the rows are equal bit by bit."""
    if rows.shape[1] == 0:
        return np.zeros(len(rows))
    if len(rows) <= _FEW:
        seen: dict[bytes, int] = {}
        return np.array([seen.setdefault(row.tobytes(), len(seen)) for row in rows], np.float64)
    whole = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))
    return np.unique(whole.reshape(-1), return_inverse=True)[1].astype(np.float64)

"""Linear nodes with constant weights as `merge_convs` sees them: what they read, their numbers, how a Conv slides.

A *term* is a Conv, a Gemm, or a MatMul with the Add of its bias. Numbers are read in float64 and in one layout: a
kernel [outputs, inputs / groups, taps...] for a Conv, a matrix [inputs, outputs] for the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim_core.errors import InternalError
from onnxslim_core.graph import attribute, first_input, is_op

from ._affine import FLOATS, constant, source_index, varies_along

__all__ = ["Geometry", "Term", "embed", "geometry_of", "only_reader", "places", "term_at", "term_of", "term_read_by"]

_ENDS = frozenset({"Add", "Conv", "Gemm", "MatMul"})
"""Operators that a term ends with."""
_SAME = ("SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a kernel slides over its input, per spatial axis.

    Attributes:
        kernel: Taps.
        strides: Step of the output.
        dilations: Step of the taps.
        begin: Zeros before the input.
        end: Zeros after it.
        auto: SAME_UPPER or SAME_LOWER where the zeros depend on the size of the input; `begin` and `end` are then 0.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    auto: str = ""

    @property
    def is_pointwise(self) -> bool:
        """True where each output position reads the one input position of the same index."""
        plain = set(self.kernel) | set(self.strides) == {1}
        return plain and not (self.auto or any(self.begin) or any(self.end))

    def attributes(self) -> dict[str, Any]:
        """As attributes of a Conv, without those that have their default."""
        found: dict[str, Any] = {}
        if any(step != 1 for step in self.strides):
            found["strides"] = list(self.strides)
        if any(step != 1 for step in self.dilations):
            found["dilations"] = list(self.dilations)
        if self.auto:
            found["auto_pad"] = self.auto
        elif any(self.begin) or any(self.end):
            found["pads"] = [*self.begin, *self.end]
        return found


def geometry_of(node: ir.Node, kernel: tuple[int, ...]) -> Geometry:
    """Of a Conv; SAME padding becomes numbers where they do not depend on the size of the input."""
    ones, zeros = (1,) * len(kernel), (0,) * len(kernel)
    strides = tuple(attribute(node, "strides", ones))
    # a kernel of one tap has no step: one way to say so
    dilations = tuple(d if k > 1 else 1 for d, k in zip(attribute(node, "dilations", ones), kernel, strict=True))
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto == "VALID":
        return Geometry(kernel, strides, dilations, zeros, zeros)
    if auto not in _SAME:
        pads = tuple(attribute(node, "pads", zeros + zeros))
        return Geometry(kernel, strides, dilations, pads[: len(kernel)], pads[len(kernel) :])
    if any(step != 1 and taps != 1 for step, taps in zip(strides, kernel, strict=True)):
        return Geometry(kernel, strides, dilations, zeros, zeros, auto)
    total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    begin, end = (small, large) if auto == "SAME_UPPER" else (large, small)
    return Geometry(kernel, strides, dilations, begin, end)


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A linear node with a constant weight.

    Attributes:
        node: Conv, Gemm or MatMul.
        add: The Add of a MatMul's bias, if there is one and it is taken in.
        array: The weight as it is stored.
        geometry: Of a Conv; None for the others.
    """

    node: ir.Node
    array: np.ndarray
    geometry: Geometry | None = None
    add: ir.Node | None = None

    def nodes(self) -> tuple[ir.Node, ...]:
        """In the order of the data."""
        return (self.node,) if self.add is None else (self.node, self.add)

    @property
    def source(self) -> ir.Value:
        """What it reads."""
        return first_input(self.node)

    @property
    def out(self) -> ir.Value:
        """What it makes, bias included."""
        return (self.add or self.node).outputs[0]

    @property
    def groups(self) -> int:
        """Of a Conv."""
        return int(attribute(self.node, "group", 1)) if is_op(self.node, "Conv") else 1

    @property
    def _turned(self) -> bool:
        return is_op(self.node, "Gemm") and bool(attribute(self.node, "transB", 0))

    @property
    def inputs(self) -> int:
        """Channels read."""
        shape = self.array.shape
        return int(shape[1] * self.groups if self.geometry is not None or self._turned else shape[0])

    @property
    def outputs(self) -> int:
        """Channels made."""
        shape = self.array.shape
        return int(shape[0] if self.geometry is not None or self._turned else shape[1])

    @property
    def bias_value(self) -> ir.Value | None:
        """The constant that is added, as the graph has it."""
        if self.add is not None:
            index = source_index(self.add)
            return None if index is None else self.add.inputs[1 - index]
        counts = not is_op(self.node, "Gemm") or attribute(self.node, "beta", 1.0) != 0
        return self.node.inputs[2] if len(self.node.inputs) > 2 and counts else None

    def weight(self) -> np.ndarray:
        """The kernel of a Conv, or the matrix [inputs, outputs] with alpha in it; float64."""
        array = self.array.astype(np.float64)
        if self.geometry is not None:
            return array
        alpha = float(attribute(self.node, "alpha", 1.0)) if is_op(self.node, "Gemm") else 1.0
        return alpha * (array.T if self._turned else array)

    def bias(self) -> np.ndarray | None:
        """Per output, float64, with beta in it; None where nothing is added."""
        array = constant(self.bias_value)
        if array is None:
            return None
        beta = float(attribute(self.node, "beta", 1.0)) if is_op(self.node, "Gemm") else 1.0
        return np.broadcast_to(beta * array.astype(np.float64).reshape(-1), (self.outputs,))


def term_of(node: ir.Node | None, *, with_add: bool = True) -> Term | None:
    """The term whose linear node this is; None where its weight is computed, may be fed, or is of another rank."""
    if node is None or not is_op(node, "Conv", "Gemm", "MatMul") or len(node.inputs) < 2:
        return None
    value = node.inputs[1]
    array = constant(value)
    if array is None or 0 in array.shape or value is None or (value.dtype is not None and value.dtype not in FLOATS):
        return None
    if is_op(node, "Conv"):
        if array.ndim < 3 or (len(node.inputs) > 2 and node.inputs[2] is not None and constant(node.inputs[2]) is None):
            return None
        return Term(node, array, geometry_of(node, array.shape[2:]))
    if array.ndim != 2:
        return None
    add = only_reader(node.outputs[0]) if is_op(node, "MatMul") and with_add else None
    fits = add is not None and is_op(add, "Add") and varies_along(add, -1, node.outputs[0], array.shape[1])
    return Term(node, array, None, add if fits else None)


def term_at(value: ir.Value | None, graph: ir.Graph | ir.Function | None) -> Term | None:
    """The term in this graph that makes a value."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in _ENDS:
        return None
    if is_op(node, "Add") and not any(v is not None and is_op(v.producer(), "MatMul") for v in node.inputs):
        return None
    if is_op(node, "Add") and (index := source_index(node)) is not None:
        source = node.inputs[index]
        node = source.producer() if source is not None else None
        if not is_op(node, "MatMul"):
            return None
    term = term_of(node)
    return term if term is not None and term.out is value and term.node.graph is graph else None


def term_read_by(value: ir.Value | None, reader: ir.Node) -> Term | None:
    """The term that makes a value which nobody but this node reads."""
    term = term_at(value, reader.graph)  # says no sooner
    return term if term is not None and value is not None and only_reader(value) is reader else None


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node of the same graph that reads a value, once; None where there are more, or where it is an output."""
    producer, uses = value.producer(), value.uses()
    if producer is None or len(uses) != 1 or value.is_graph_output():
        return None
    user = next(iter(uses)).node
    return user if user.graph is producer.graph else None


def places(own: Geometry, big: Geometry) -> list[list[int]] | None:
    """Which taps of another kernel, per axis, those of a Conv are; None where it slides in another way.

    A tap at offset t of the small kernel reads input position s*o - begin + d*t, so in the big one it is tap
    (big.begin - begin + d*t) / big.dilation, which has to be a whole number within the kernel.
    """
    if own == big:
        return [list(range(taps)) for taps in own.kernel]
    if own.auto or big.auto or own.strides != big.strides or len(own.kernel) != len(big.kernel):
        return None
    found: list[list[int]] = []
    for axis, taps in enumerate(own.kernel):
        reach = own.dilations[axis] * (taps - 1) - own.begin[axis] - own.end[axis]
        if reach != big.dilations[axis] * (big.kernel[axis] - 1) - big.begin[axis] - big.end[axis]:
            return None  # the outputs would be of different sizes
        offsets = [big.begin[axis] - own.begin[axis] + own.dilations[axis] * t for t in range(taps)]
        if any(o % big.dilations[axis] or not 0 <= o // big.dilations[axis] < big.kernel[axis] for o in offsets):
            return None
        found.append([o // big.dilations[axis] for o in offsets])
    return found


def embed(small: Term, big: Geometry) -> np.ndarray:
    """The kernel of a Conv written with the taps of another one, float64.

    Raises:
        InternalError: if it has no place there.
    """
    assert small.geometry is not None
    found = places(small.geometry, big)
    if found is None:
        raise InternalError("a kernel without a place", "merge_convs")
    weight = small.weight()
    if small.geometry == big:
        return weight
    written = np.zeros(weight.shape[:2] + big.kernel, np.float64)
    written[np.ix_(*map(range, weight.shape[:2]), *found)] = weight
    return written

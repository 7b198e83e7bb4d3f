"""Where a scale and shift meets a linear node: the patterns that `fuse_batchnorm` takes up.

Only ops, edges and shapes are looked at here; whether a place is good for fusing is for the guards to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxslim_core.graph import attribute, is_op, users_of
from onnxslim_core.rewrite import Match

from ._affine import FLOATS, coefficients, constant, flattens, known_shape, shifts, source_index, varies_along
from ._linear import by_input, by_output, inputs_of, outputs_of, response

__all__ = ["Fusion", "after", "before", "parameters", "weight_shape"]

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_MAKERS = frozenset((*_LINEAR, "BatchNormalization"))
_READERS = frozenset((*_LINEAR, "Flatten", "Reshape"))


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Fused weight and bias, float64; no bias where there was none and nothing is shifted."""

    weight: np.ndarray
    bias: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Fusion(Match):
    """An affine node (the anchor) beside the linear node that takes it in.

    Attributes:
        linear: The node whose weight is scaled.
        before: True where the affine node comes before the linear one.
        bias: The Add that carries the bias of a MatMul, if there is one.
        flatten: The Flatten or Reshape between an affine node and the Gemm or MatMul after it, if there is one.
    """

    linear: ir.Node
    before: bool = False
    bias: ir.Node | None = None
    flatten: ir.Node | None = None

    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes in the order of the data."""
        chain = [*([self.flatten] if self.flatten else []), self.linear, *([self.bias] if self.bias else [])]
        return (self.node, *chain) if self.before else (*chain, self.node)

    def weight(self) -> ir.Value | None:
        """What is scaled: the weight, of a BatchNormalization its gamma."""
        return self.linear.inputs[1]

    def bias_value(self) -> ir.Value | None:
        """What is shifted, where there is one."""
        if self.bias is not None:
            index = source_index(self.bias)
            return None if index is None else self.bias.inputs[1 - index]
        return self.linear.inputs[2] if len(self.linear.inputs) > 2 else None

    @cached_property
    def coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift of the affine node; see `coefficients`. For an anchor whose parameters are constant."""
        return coefficients(self.node)

    @cached_property
    def fused(self) -> Weights:
        """The weight and bias of the linear node with the affine node in it, where all of them are constant."""
        scale, shift = self.coefficients
        weight, old = _wide(self.weight()), constant(self.bias_value())
        beta = float(attribute(self.linear, "beta", 1.0)) if is_op(self.linear, "Gemm") else 1.0
        bias = None if old is None or beta == 0 else beta * old.astype(np.float64).reshape(-1)
        with np.errstate(all="ignore"):
            if not self.before:
                moved = shift if bias is None else scale * bias + shift
                kept = moved if bias is not None or shifts(self.node) else None
                return Weights(by_output(self.linear, weight, scale), kept)
            if self.flatten is not None:
                # Flatten keeps the channels outermost: channel c becomes the rows c*H*W to (c+1)*H*W.
                rows = inputs_of(self.linear, weight.shape) // parameters(self.node)
                scale, shift = (np.repeat(a, rows) if a.size > 1 else a for a in (scale, shift))
            fused = by_input(self.linear, weight, scale)
            if not shifts(self.node):
                return Weights(fused, None)
            gained = response(self.linear, weight, shift)
            return Weights(fused, gained if bias is None else bias + gained)


def _wide(value: ir.Value | None) -> np.ndarray:
    array = constant(value)
    assert array is not None
    return array.astype(np.float64)


def after(node: ir.Node, model: ir.Model) -> Fusion | None:
    """The affine node reads a linear one, or the bias Add of a MatMul."""
    if not any(_is_promising(value) for value in node.inputs[:2]):
        return None
    linear, bias = _source(node), None
    if linear is not None and is_op(linear, "Add"):
        linear, bias = _source(linear), linear
    if linear is None or not is_op(linear, *_LINEAR, *(() if bias else ("BatchNormalization",))):
        return None
    if bias is not None and not (is_op(linear, "MatMul") and is_op(bias, "Add")):
        return None
    if is_op(linear, "MatMul") and bias is None and is_op(node, "Add", "Sub"):
        return None  # this is the bias
    if (shape := weight_shape(linear)) is None:
        return Fusion(node, model, linear, bias=bias) if _is_expected(node, linear) else None
    axis = -1 if is_op(linear, "Gemm", "MatMul") else 1
    made, size = linear.outputs[0], outputs_of(linear, shape)
    fits = all(varies_along(part, axis, made, size) for part in (bias, node) if part is not None)
    return Fusion(node, model, linear, bias=bias) if fits else None


def before(node: ir.Node, model: ir.Model) -> Fusion | None:
    """The affine node is read by a linear one, directly or through Flatten."""
    linear = _only_user(node)
    if linear is None or linear.op_type not in _READERS or (index := source_index(node)) is None:
        return None
    data = node.inputs[index]  # as large as what node makes
    flatten = linear if flattens(linear, lambda: known_shape(data)) else None
    if flatten is not None:
        linear = _only_user(flatten)
    if linear is None or not is_op(linear, *(("Gemm", "MatMul") if flatten else _LINEAR)):
        return None
    if linear.inputs[0] is not (flatten or node).outputs[0] or attribute(linear, "transA", 0):
        return None
    if (shape := weight_shape(linear)) is None:
        return Fusion(node, model, linear, before=True, flatten=flatten) if _is_expected(node, linear) else None
    size, axis = inputs_of(linear, shape), 1
    if flatten is not None:
        channels = parameters(node)
        size = channels if channels and size % channels == 0 else -1
    elif is_op(linear, "Gemm", "MatMul"):
        axis = -1
    if not varies_along(node, axis, data, size):
        return None
    bias = _only_user(linear) if is_op(linear, "MatMul") else None
    if bias is not None and not (is_op(bias, "Add") and varies_along(bias, -1, linear.outputs[0], shape[1])):
        bias = None
    if is_op(linear, "MatMul") and bias is None and is_op(node, "Add", "Sub"):
        return None  # the bias would only change its place
    return Fusion(node, model, linear, before=True, bias=bias, flatten=flatten)


def _is_promising(value: ir.Value | None) -> bool:
    """A look at the operators alone, which says no to most nodes before any constant is looked for."""
    made = value.producer() if value is not None else None
    if made is None:
        return False
    if made.op_type == "Add":
        return any(v is not None and is_op(v.producer(), "MatMul") for v in made.inputs)
    return made.op_type in _MAKERS


def _is_expected(node: ir.Node, linear: ir.Node) -> bool:
    """True for a BatchNormalization at a computed weight: a user would expect a fusion, so a guard says why not."""
    return is_op(node, "BatchNormalization") and constant(linear.inputs[1]) is None


def _source(node: ir.Node) -> ir.Node | None:
    """The node of the same graph that makes the data of an affine node."""
    index = source_index(node)
    value = None if index is None else node.inputs[index]
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.graph is node.graph else None


def _only_user(node: ir.Node) -> ir.Node | None:
    """The one node, of the same graph, that reads a node's output; None where there are more."""
    users, is_output = users_of(node.outputs[0])
    return users[0][0] if len(users) == 1 and not is_output and users[0][0].graph is node.graph else None


def weight_shape(linear: ir.Node) -> tuple[int, ...] | None:
    """The shape of a node's weight, of the rank that its layout has; None where it is unknown or not of floats."""
    value = linear.inputs[1] if len(linear.inputs) > 1 else None
    if value is None or (value.dtype is not None and value.dtype not in FLOATS):
        return None
    array = constant(value)
    shape = known_shape(value) if array is None else array.shape
    if shape is None or None in shape:
        return None
    sizes = tuple(size for size in shape if size is not None)
    if is_op(linear, "BatchNormalization"):
        fits = len(sizes) == 1
    else:
        fits = len(sizes) == 2 if is_op(linear, "Gemm", "MatMul") else len(sizes) > 2
    return sizes if fits else None


def parameters(node: ir.Node) -> int:
    """Channels of an affine node's parameters; 1 where one number serves all, 0 where unknown."""
    index = source_index(node)
    assert index is not None
    array = constant(node.inputs[1 if is_op(node, "BatchNormalization") else 1 - index])
    return 0 if array is None else array.size

"""A small evaluator for the arithmetic of shapes: one node over known small arrays.

Exporters write sizes as chains of Shape, Gather, Mul, Concat and the like. The common operators are done in numpy, as
onnxruntime does them (integer division truncates towards zero, integers wrap); a list of others goes through
`onnx.reference`. What is not on either list is not evaluated: no guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim_core._emit import write_node
from onnxslim_core.graph import STANDARD, attribute

__all__ = ["LIMIT", "evaluate"]

LIMIT = 4096
"""Elements of the largest array that is computed."""

Array = np.ndarray[Any, np.dtype[Any]]
Args = Sequence[Array | None]


class _NotEvaluated(Exception):
    """The node cannot or should not be evaluated."""


def evaluate(node: ir.Node, arrays: Args, opset: int) -> list[Array] | None:
    """The outputs of a node whose inputs are all known.

    Args:
        node: Of the standard domain, without a body.
        arrays: An array per input, None where an optional input is absent.
        opset: Version of the standard domain.

    Returns:
        An array per output, or None where the operator is not on the lists, an output would have more than `LIMIT`
        elements, or the node is malformed.
    """
    if node.domain not in STANDARD:
        return None
    rule = _RULES.get(node.op_type)
    try:
        with np.errstate(all="ignore"):
            found = rule(node, arrays) if rule is not None else _by_reference(node, arrays, opset)
    except (_NotEvaluated, ValueError, TypeError, IndexError, KeyError, ZeroDivisionError, OverflowError):
        return None
    outputs = found if isinstance(found, list) else [np.asarray(found)]
    return outputs if all(a.size <= LIMIT for a in outputs) else None


def _need(arrays: Args, index: int) -> Array:
    array = arrays[index] if index < len(arrays) else None
    if array is None:
        raise _NotEvaluated
    return array


def _optional(arrays: Args, index: int) -> Array | None:
    return arrays[index] if index < len(arrays) else None


def _bounded(elements: int) -> None:
    if elements > LIMIT or elements < 0:
        raise _NotEvaluated


def _axes(node: ir.Node, arrays: Args, index: int) -> tuple[int, ...] | None:
    """Axes from the attribute (old opsets) or from an input; None where absent."""
    given = attribute(node, "axes")
    if given is not None:
        return tuple(given)
    array = _optional(arrays, index)
    return None if array is None else tuple(int(a) for a in array.reshape(-1))


def _elementwise(function: Callable[..., Any]) -> Callable[[ir.Node, Args], Array]:
    def rule(node: ir.Node, arrays: Args) -> Array:
        given = [_need(arrays, i) for i in range(len(arrays))]
        _bounded(math.prod(np.broadcast_shapes(*(a.shape for a in given))))
        result = np.asarray(function(*given))
        is_test = result.dtype.kind == "b"
        return result if is_test else result.astype(given[-1].dtype)

    return rule


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        return np.asarray(a / b)
    if (b == 0).any():
        raise _NotEvaluated
    quotient = np.abs(a) // np.abs(b)
    return np.asarray(quotient * np.sign(a) * np.sign(b))


def _mod(node: ir.Node, arrays: Args) -> Array:
    a, b = _need(arrays, 0), _need(arrays, 1)
    if a.dtype.kind in "iu" and (b == 0).any():
        raise _NotEvaluated
    _bounded(math.prod(np.broadcast_shapes(a.shape, b.shape)))
    return np.asarray(np.fmod(a, b) if attribute(node, "fmod", 0) else np.mod(a, b))


def _power(node: ir.Node, arrays: Args) -> Array:
    a, b = _need(arrays, 0), _need(arrays, 1)
    _bounded(math.prod(np.broadcast_shapes(a.shape, b.shape)))
    return np.asarray(np.power(a, b)).astype(a.dtype)


def _fold(function: Callable[[Array, Array], Any]) -> Callable[[ir.Node, Args], Array]:
    def rule(node: ir.Node, arrays: Args) -> Array:
        result = _need(arrays, 0)
        for i in range(1, len(arrays)):
            other = _need(arrays, i)
            _bounded(math.prod(np.broadcast_shapes(result.shape, other.shape)))
            result = np.asarray(function(result, other))
        return result

    return rule


def _cast(array: Array, dtype: np.dtype[Any]) -> Array:
    if array.dtype.kind in "fc" and dtype.kind in "iu" and not np.isfinite(array).all():
        raise _NotEvaluated
    return array.astype(dtype)


def _cast_to(node: ir.Node, arrays: Args) -> Array:
    kind = ir.DataType(int(attribute(node, "to")))
    if kind == ir.DataType.STRING or kind.bitwidth < 8 or "FLOAT8" in kind.name:
        raise _NotEvaluated
    return _cast(_need(arrays, 0), np.dtype(kind.numpy()))


def _gather(node: ir.Node, arrays: Args) -> Array:
    data, indices = _need(arrays, 0), _need(arrays, 1)
    axis = int(attribute(node, "axis", 0))
    _bounded(data.size // max(data.shape[axis], 1) * indices.size)
    size = data.shape[axis]
    if ((indices < -size) | (indices >= size)).any():
        raise _NotEvaluated
    return np.take(data, indices.astype(np.int64), axis=axis)


def _concat(node: ir.Node, arrays: Args) -> Array:
    return np.concatenate([_need(arrays, i) for i in range(len(arrays))], axis=int(attribute(node, "axis", 1)))


def _slice(node: ir.Node, arrays: Args) -> Array:
    data = _need(arrays, 0)
    if attribute(node, "starts") is not None:
        starts, ends = attribute(node, "starts"), attribute(node, "ends")
        axes, steps = attribute(node, "axes"), None
    else:
        starts, ends = _need(arrays, 1).tolist(), _need(arrays, 2).tolist()
        given_axes, given_steps = _optional(arrays, 3), _optional(arrays, 4)
        axes = None if given_axes is None else given_axes.tolist()
        steps = None if given_steps is None else given_steps.tolist()
    axes = range(len(starts)) if axes is None else axes
    window: list[slice] = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        # an end before the first element of a backward slice: Python needs None there
        before_first = step < 0 and end < -data.shape[axis]
        window[axis] = slice(start, None if before_first else end, step)
    return data[tuple(window)]


def _unsqueeze(node: ir.Node, arrays: Args) -> Array:
    axes = _axes(node, arrays, 1)
    if axes is None:
        raise _NotEvaluated
    return np.expand_dims(_need(arrays, 0), axes)


def _squeeze(node: ir.Node, arrays: Args) -> Array:
    return np.squeeze(_need(arrays, 0), _axes(node, arrays, 1) or None)


def _reshape(node: ir.Node, arrays: Args) -> Array:
    data = _need(arrays, 0)
    shape = [int(s) for s in (attribute(node, "shape") or _need(arrays, 1).reshape(-1))]
    if not attribute(node, "allowzero", 0):
        shape = [data.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return data.reshape(shape)


def _expand(node: ir.Node, arrays: Args) -> Array:
    data = _need(arrays, 0)
    shape = np.broadcast_shapes(data.shape, tuple(int(s) for s in _need(arrays, 1)))
    _bounded(math.prod(shape))
    return np.array(np.broadcast_to(data, shape))


def _tile(node: ir.Node, arrays: Args) -> Array:
    data, repeats = _need(arrays, 0), [int(r) for r in _need(arrays, 1)]
    _bounded(data.size * math.prod(repeats))
    return np.tile(data, repeats)


def _range(node: ir.Node, arrays: Args) -> Array:
    start, limit, delta = (_need(arrays, i) for i in range(3))
    count = max(math.ceil((limit.item() - start.item()) / delta.item()), 0)
    _bounded(count)
    return np.asarray(start.item() + np.arange(count) * delta.item()).astype(start.dtype)


def _constant_of_shape(node: ir.Node, arrays: Args) -> Array:
    shape = [int(s) for s in _need(arrays, 0).reshape(-1)]
    _bounded(math.prod(shape))
    fill = attribute(node, "value")
    return np.zeros(shape, np.float32) if fill is None else np.full(shape, fill.numpy().reshape(-1)[0])


def _transpose(node: ir.Node, arrays: Args) -> Array:
    return np.transpose(_need(arrays, 0), attribute(node, "perm"))


def _split(node: ir.Node, arrays: Args) -> list[Array]:
    data, axis = _need(arrays, 0), int(attribute(node, "axis", 0))
    given = attribute(node, "split")
    sizes = [int(s) for s in given] if given else None
    if sizes is None and (array := _optional(arrays, 1)) is not None:
        sizes = [int(s) for s in array]
    if sizes is None:
        each = -(-data.shape[axis] // len(node.outputs))
        sizes = [min(each, data.shape[axis] - i * each) for i in range(len(node.outputs))]
    return np.split(data, np.cumsum(sizes)[:-1], axis=axis)


def _reduce(function: Callable[..., Any]) -> Callable[[ir.Node, Args], Array]:
    def rule(node: ir.Node, arrays: Args) -> Array:
        data, axes = _need(arrays, 0), _axes(node, arrays, 1)
        if not axes and attribute(node, "noop_with_empty_axes", 0):
            return data
        result = function(data, axis=axes or None, keepdims=bool(attribute(node, "keepdims", 1)))
        return np.asarray(result).astype(data.dtype)

    return rule


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _divide,
    "Neg": np.negative,
    "Abs": np.abs,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": np.round,
    "Sqrt": np.sqrt,
    "Sign": np.sign,
    "Reciprocal": np.reciprocal,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Not": np.logical_not,
    "Where": np.where,
}

_RULES: dict[str, Callable[[ir.Node, Args], Array | list[Array]]] = {
    **{name: _elementwise(function) for name, function in _ELEMENTWISE.items()},
    "Mod": _mod,
    "Pow": _power,
    "Min": _fold(np.minimum),
    "Max": _fold(np.maximum),
    "Sum": _fold(np.add),
    "Identity": lambda node, arrays: _need(arrays, 0),
    "Cast": _cast_to,
    "CastLike": lambda node, arrays: _cast(_need(arrays, 0), _need(arrays, 1).dtype),
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Expand": _expand,
    "Tile": _tile,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "Transpose": _transpose,
    "Split": _split,
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceMean": _reduce(np.mean),
    "Size": lambda node, arrays: np.asarray(_need(arrays, 0).size, np.int64),
}

# fmt: off
_REFERENCE = frozenset({
    "ArgMax", "ArgMin", "BitShift", "Clip", "CumSum", "Exp", "Flatten", "GatherElements", "GatherND", "IsInf", "IsNaN",
    "Log", "NonZero", "ScatterElements", "ScatterND", "Sigmoid", "Tanh", "TopK", "Trilu", "Unique",
})
# fmt: on


def _by_reference(node: ir.Node, arrays: Args, opset: int) -> list[Array]:
    if node.op_type not in _REFERENCE:
        raise _NotEvaluated
    from onnx.reference import ReferenceEvaluator

    _bounded(max((a.size for a in arrays if a is not None), default=0))
    try:
        session = ReferenceEvaluator(write_node(node), opsets={"": opset})
        feeds = {str(v.name): a for v, a in zip(node.inputs, arrays, strict=True) if v is not None}
        found = session.run(None, feeds)
    except (RuntimeError, AttributeError, NotImplementedError) as err:
        raise _NotEvaluated from err
    return [np.asarray(a) for a in found]

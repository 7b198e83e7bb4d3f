"""Nodes that scale and shift: y = scale * x + shift, one scale and one shift per channel.

BatchNormalization does it along axis 1; Mul, Add, Sub and Div by a constant do it along whatever axis the constant's
shape says: `[C, 1, 1]` is the channel axis of an image, `[C]` is the *last* axis. Equal sizes hide a mix-up of the
two, so nothing here looks at sizes alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import onnx_ir as ir

from onnxslim_core.graph import array_of, attribute, is_op

from ._facts import Dim, Known

__all__ = [
    "ARITHMETIC",
    "FLOATS",
    "coefficients",
    "constant",
    "flattens",
    "known_shape",
    "misfit",
    "proven_sizes",
    "rank_of",
    "shifts",
    "source_index",
    "varies_along",
]

ARITHMETIC = ("Add", "Div", "Mul", "Sub")
_KEEP_RANK = (
    *(
        "Abs",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Clip",
        "Dropout",
        "Elu",
        "Gelu",
        "GlobalAveragePool",
        "GlobalMaxPool",
    ),
    *("HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "MaxPool", "PRelu", "Relu", "Selu", "Sigmoid"),
    *("Softmax", "Softplus", "Softsign", "Tanh"),
)
"""Operators whose result has the rank of their first input."""
_FAR = 50
"""Nodes to walk back at most."""
_KNOWN: ContextVar[Known | None] = ContextVar("known", default=None)
"""What is certain of the model that a pass runs over."""
FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of a constant, also of one behind Identity nodes; None where it is computed or may be fed."""
    while value is not None and is_op(producer := value.producer(), "Identity"):
        assert producer is not None
        value = producer.inputs[0]
    return array_of(value)


@contextmanager
def proven_sizes(model: ir.Model) -> Iterator[None]:
    """Within it `known_shape` and `rank_of` also say what follows from the inputs of a model and its weights.

    Most exporters declare no inner shapes. Facts take a walk over the whole model, so it is made when the first is
    asked for, and once: a pass that asks must not give another size to a value that it keeps.
    """
    before = _KNOWN.set(Known(model))
    try:
        yield
    finally:
        _KNOWN.reset(before)


def _proven(value: ir.Value | None) -> tuple[Dim, ...] | None:
    known = _KNOWN.get()
    return None if known is None else known.dims(value)


def known_shape(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """The shape, declared or else proven, with None for symbolic sizes; None where not even the rank is known."""
    sizes = None if value is None else _proven(value) if value.shape is None else value.shape
    return None if sizes is None else tuple(dim if isinstance(dim, int) else None for dim in sizes)


def rank_of(value: ir.Value | None) -> int | None:
    """The rank of a value, also where only the nodes before it tell; None where they do not.

    This walks back through nodes that keep the rank before it asks for a proof, which takes longer.
    """
    for _ in range(_FAR):
        if value is None:
            return None
        node = value.producer()
        if is_op(node, "Gemm", "Flatten"):
            return 2
        if value.shape is not None:
            return len(value.shape)
        if node is not None and is_op(node, "Conv", "ConvTranspose"):
            value = node.inputs[1]  # what they make has the rank of their weight
            continue
        keeps = is_op(node, *_KEEP_RANK) or (is_op(node, *ARITHMETIC, "MatMul") and _is_small(node))
        if node is None or not keeps:
            break
        value = next((v for v in node.inputs if constant(v) is None), None)
    if (array := constant(value)) is not None:
        return array.ndim
    sizes = _proven(value)
    return None if sizes is None else len(sizes)


def _is_small(node: ir.Node | None) -> bool:
    """True for a MatMul by a constant matrix, and for arithmetic with a constant of at most one dimension."""
    if node is None or len(node.inputs) != 2:
        return False
    array = constant(node.inputs[1])
    if is_op(node, "MatMul"):
        return array is not None and array.ndim == 2
    array = constant(node.inputs[0]) if array is None else array
    return array is not None and array.ndim <= 1


def source_index(node: ir.Node) -> int | None:
    """Which input of an affine node is the data; None where the node is not affine in one input.

    `c - x` is affine in its second input; `c / x` is not affine.
    """
    if is_op(node, "BatchNormalization"):
        return 0
    if not is_op(node, *ARITHMETIC) or len(node.inputs) != 2:
        return None
    fixed = [array is not None for array in map(constant, node.inputs)]
    if fixed == [False, True]:
        return 0
    return 1 if fixed == [True, False] and node.op_type != "Div" else None


def shifts(node: ir.Node) -> bool:
    """True where the node can add something: all but Mul and Div."""
    return not is_op(node, "Mul", "Div")


def varies_along(node: ir.Node, axis: int, data: ir.Value | None, size: int) -> bool:
    """True where an affine node treats each channel of an axis alike and leaves the shape of its input alone.

    Args:
        node: An affine node.
        axis: The channel axis of its data, from either end.
        data: Whose rank is only looked for where it matters.
        size: Channels along that axis.
    """
    if is_op(node, "BatchNormalization"):
        found = [array for value in node.inputs[1:5] if (array := constant(value)) is not None]
        fits = all(array.size == size for array in found)
        return fits and (axis == 1 or ((rank := rank_of(data)) is not None and axis % rank == 1))
    index = source_index(node)
    array = None if index is None else constant(node.inputs[1 - index])
    if array is None:
        return False
    if array.ndim <= 1 and (axis == -1 or array.size == 1):
        return array.size in (1, size)
    rank = rank_of(data)
    if rank is None or array.ndim > rank:
        return False
    place = array.ndim + (axis if axis < 0 else axis - rank)
    return all(dim == 1 or (at == place and dim == size) for at, dim in enumerate(array.shape))


def coefficients(node: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift of an affine node with constant parameters, float64, of one element or one per channel.

    BatchNormalization: scale = gamma / sqrt(var + epsilon), shift = beta - scale * mean. What is not finite is
    returned as it comes out.
    """
    one, zero = np.ones(1, np.float64), np.zeros(1, np.float64)
    with np.errstate(all="ignore"):
        if is_op(node, "BatchNormalization"):
            gamma, beta, mean, var = (_wide(value) for value in node.inputs[1:5])
            scale = gamma / np.sqrt(var + float(attribute(node, "epsilon", 1e-5)))
            return scale, beta - scale * mean
        index = source_index(node)
        assert index is not None
        array = _wide(node.inputs[1 - index])
        if node.op_type == "Mul":
            return array, zero
        if node.op_type == "Div":
            return 1.0 / array, zero
        if node.op_type == "Add":
            return one, array
        return (one, -array) if index == 0 else (-one, array)


def _wide(value: ir.Value | None) -> np.ndarray:
    array = constant(value)
    assert array is not None
    return array.astype(np.float64).reshape(-1)


def flattens(node: ir.Node | None, sizes_of: Callable[[], Sequence[int | str | None] | None]) -> bool:
    """True for a Flatten, or a Reshape known to be one, that keeps axis 0 of its input and joins all the others.

    Args:
        node: Any.
        sizes_of: Gives those of its input, numbers where they are known, or None where not even the rank is; asked
            only where they matter.
    """
    if not is_op(node, "Flatten", "Reshape"):
        return False
    assert node is not None
    if node.op_type == "Flatten":
        axis = attribute(node, "axis", 1)
        return axis == 1 or (axis < 0 and (sizes := sizes_of()) is not None and axis == 1 - len(sizes))
    target, sizes = constant(node.inputs[1]), sizes_of()
    if sizes is None or len(sizes) < 2 or target is None or target.shape != (2,) or attribute(node, "allowzero", 0):
        return False
    rest = [size for size in sizes[1:] if isinstance(size, int)]
    joined = math.prod(rest) if len(rest) == len(sizes) - 1 else None
    first, second = (int(size) for size in target)
    return first in (0, sizes[0]) or (joined is not None and second == joined)


def misfit(exact: np.ndarray, dtype: np.dtype) -> str | None:
    """Why numbers cannot be stored in a type: float16 ends at 65504 and thins out below 6e-5. None where they can.

    Args:
        exact: float64.
        dtype: float16, bfloat16, float32 or float64.
    """
    step = 2.0**-7 if dtype.name == "bfloat16" else {2: 2.0**-10, 4: 2.0**-23, 8: 2.0**-52}[dtype.itemsize]
    with np.errstate(all="ignore"):
        stored = exact.astype(dtype).astype(np.float64)
    if not np.isfinite(stored).all():
        return f"do not fit into {dtype.name}"
    if np.linalg.norm(stored - exact) > step * np.linalg.norm(exact):
        return f"are too small for {dtype.name}"
    return None

"""Pairs of neighbouring nodes that may change places, or of which one can go; the local rules of `reorder`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim_core.graph import attribute, is_op, opset_of, users_of
from onnxslim_core.rewrite import Edit, Match

from ._affine import constant, flattens, source_index
from ._facts import Known
from ._merge_terms import geometry_of, only_reader
from ._reorder_layout import permutation

__all__ = ["LOCAL", "Move"]

_SLOW = ("Elu", "HardSigmoid", "LeakyRelu", "Sigmoid", "Softplus", "Softsign", "Tanh")
"""Activations that never fall and that onnxruntime does faster on fewer numbers, also behind a Conv."""

_VIEWS = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that keep every element in its order."""

_CARRIERS = (
    *("AveragePool", "Concat", "Dropout", "Expand", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity"),
    *("ReduceMax", "ReduceMean", "ReduceSum", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
)
"""Operators whose results are at least zero where all their data is."""

_FEW_CHANNELS = 8
"""A Conv of fewer outputs is cheaper than pooling what it reads."""


@dataclass(frozen=True, slots=True, eq=False)
class Move(Match):
    """A place.

    Attributes:
        what: For the journal.
        parts: The nodes concerned, in the order of the data.
        do: Carries it out; returns the nodes whose results are new.
    """

    what: str
    parts: tuple[ir.Node, ...]
    do: Callable[[Edit], list[ir.Node]]

    def nodes(self) -> tuple[ir.Node, ...]:
        """As given."""
        return self.parts


Rule = Callable[[ir.Node, ir.Model, Known], Move | None]


def _source(node: ir.Node, index: int = 0) -> ir.Node | None:
    """The node of the same graph that makes an input."""
    value = node.inputs[index] if index < len(node.inputs) else None
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.graph is node.graph else None


def _own_source(node: ir.Node) -> ir.Node | None:
    """The node that makes the first input, where nobody else reads it."""
    found = _source(node)
    return found if found is not None and only_reader(found.outputs[0]) is node else None


def _swap(first: ir.Node, index: int, second: ir.Node, edit: Edit) -> list[ir.Node]:
    """Let the second of two nodes come first; `index` says which input of the other is the data."""
    plain = {name: attribute(second, name) for name in second.attributes}
    inputs = [first.inputs[index], *second.inputs[1:]]
    moved = edit.node(second.op_type, inputs, plain, before=first, hint=second.name or "")
    moved.metadata_props.update(second.metadata_props)
    moved.outputs[0].type = second.outputs[0].type
    edit.set_input(first, index, moved.outputs[0])
    first.outputs[0].shape = second.outputs[0].shape
    edit.replace(second.outputs[0], first.outputs[0])
    return [moved, first]


# --- pools


def pool_first(node: ir.Node, model: ir.Model, known: Known) -> Move | None:
    """MaxPool(f(x)) = f(MaxPool(x)) for an f that never falls: f is then done on fewer numbers."""
    act = _own_source(node)
    if act is None or len(node.outputs) > 1 or not _pools_less(node):
        return None
    cheap = is_op(act, "Relu") or (is_op(act, "Clip") and _has_bounds(act))
    if cheap and _is_behind_conv(act):
        return None
    index = _bounded(act, len(attribute(node, "kernel_shape", ())) + 2) if is_op(act, "Max", "Min") else 0
    if index is None or not (cheap or is_op(act, "Max", "Min") or (is_op(act, *_SLOW) and _rises(act))):
        return None

    def do(edit: Edit) -> list[ir.Node]:
        return _swap(act, index, node, edit)

    return Move(node, model, f"pool before {act.op_type}", (act, node), do)


def _bounded(node: ir.Node, rank: int) -> int | None:
    """Which input of Max or Min is the data, where the other is a number; None where it is not."""
    if len(node.inputs) != 2:
        return None
    arrays = [constant(value) for value in node.inputs]
    fits = [a is not None and a.size == 1 and a.ndim <= rank for a in arrays]
    return (
        0 if fits == [False, True] and arrays[0] is None else 1 if fits == [True, False] and arrays[1] is None else None
    )


def _is_behind_conv(act: ir.Node) -> bool:
    """True where onnxruntime does an activation along with a Conv, also one that takes in what lies between first."""
    before = _source(act)
    while before is not None and (index := source_index(before)) is not None:
        before = _source(before, index)
    return is_op(before, "Conv", "ConvTranspose")


def _pools_less(pool: ir.Node) -> bool:
    """True for a MaxPool with steps whose windows all hold an element: of padding alone it is the least number."""
    kernel = attribute(pool, "kernel_shape", ())
    ones, zeros = (1,) * len(kernel), (0,) * len(kernel)
    strides, pads = attribute(pool, "strides", ones), attribute(pool, "pads", zeros + zeros)
    if math.prod(strides) == 1 or any(d != 1 for d in attribute(pool, "dilations", ones)):
        return False
    if attribute(pool, "auto_pad", "NOTSET") not in ("NOTSET", "VALID", "") or attribute(pool, "ceil_mode", 0):
        return not any(pads) and all(s <= k for s, k in zip(strides, kernel, strict=True))
    return all(p < k for p, k in zip(pads, (*kernel, *kernel), strict=True))


def _has_bounds(clip: ir.Node) -> bool:
    """Constant bounds that are in order."""
    bounds = [constant(value) for value in clip.inputs[1:] if value is not None]
    if any(b is None or b.size != 1 for b in bounds):
        return False
    numbers = [float(b.reshape(-1)[0]) for b in bounds if b is not None]
    return len(numbers) < 2 or numbers[0] <= numbers[1]


def _rises(act: ir.Node) -> bool:
    """True where the slopes of an activation are not negative."""
    default = {"LeakyRelu": 0.01, "Elu": 1.0, "HardSigmoid": 0.2}.get(act.op_type)
    return default is None or float(attribute(act, "alpha", default)) >= 0


def average_first(node: ir.Node, model: ir.Model, known: Known) -> Move | None:
    """Averages of a 1x1 Conv are the 1x1 Conv of averages, which are fewer."""
    conv = _own_source(node)
    if conv is None or not is_op(conv, "Conv") or len(conv.inputs) < 2 or len(node.outputs) > 1:
        return None
    weight = constant(conv.inputs[1])
    if weight is None or weight.shape[0] < _FEW_CHANNELS or weight.ndim < 3:
        return None
    if set(weight.shape[2:]) != {1} or not geometry_of(conv, weight.shape[2:]).is_pointwise:
        return None
    has_bias = len(conv.inputs) > 2 and conv.inputs[2] is not None
    if not (is_op(node, "GlobalAveragePool") or _averages_less(node, has_bias, weight.shape[0])):
        return None

    def do(edit: Edit) -> list[ir.Node]:
        return _swap(conv, 0, node, edit)

    return Move(node, model, "average before the 1x1 Conv", (conv, node), do)


def _averages_less(pool: ir.Node, has_bias: bool, outputs: int) -> bool:
    """True for an AveragePool with steps; where something is added its weights have to sum up to one.

    Per input channel and result it adds up the window's elements, and the Conv is spared one element less than the
    steps leave out, for each of its outputs: that should be twice as much.
    """
    kernel = attribute(pool, "kernel_shape", ())
    strides = attribute(pool, "strides", (1,) * len(kernel))
    if not is_op(pool, "AveragePool") or 2 * math.prod(kernel) > (math.prod(strides) - 1) * outputs:
        return False
    if not has_bias:
        return True
    padded = any(attribute(pool, "pads", ())) or attribute(pool, "auto_pad", "NOTSET") not in ("NOTSET", "VALID", "")
    return not attribute(pool, "ceil_mode", 0) and not (padded and attribute(pool, "count_include_pad", 0))


# --- activations


def leaky(node: ir.Node, model: ir.Model, known: Known) -> Move | None:
    """Max(x, a*x) = LeakyRelu(x) with slope a, for 0 <= a <= 1; onnxruntime does that along with a Conv."""
    if len(node.inputs) != 2:
        return None
    for index in (0, 1):
        scaled, x = node.inputs[index], node.inputs[1 - index]
        mul = scaled.producer() if scaled is not None else None
        place = source_index(mul) if mul is not None and is_op(mul, "Mul") else None
        if (
            mul is None
            or place is None
            or x is None
            or mul.inputs[place] is not x
            or only_reader(mul.outputs[0]) is not node
        ):
            continue
        factor = constant(mul.inputs[1 - place])
        if factor is None or factor.size != 1 or factor.ndim > 1 or factor.dtype.name not in ("float32", "float64"):
            continue
        slope, sizes = float(factor.reshape(-1)[0]), known.dims(x)
        if not 0 < slope <= 1 or float(np.float32(slope)) != slope or (factor.ndim and not sizes):
            continue

        def do(edit: Edit, x: ir.Value = x, slope: float = slope) -> list[ir.Node]:
            made = edit.node("LeakyRelu", [x], {"alpha": slope}, before=node, hint=node.name or "")
            made.outputs[0].type, made.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
            edit.replace(node.outputs[0], made.outputs[0])
            return [made]

        return Move(node, model, "make a LeakyRelu of Max and Mul", (mul, node), do)
    return None


def relu_again(node: ir.Node, model: ir.Model, known: Known) -> Move | None:
    """Relu of what is made of other Relus, and so at least zero (or NaN, as after them), is nothing."""
    value = node.inputs[0]
    if node.outputs[0].is_graph_output() or not _is_relu(value):
        return None

    def do(edit: Edit) -> list[ir.Node]:
        assert value is not None
        edit.replace(node.outputs[0], value)
        return []

    return Move(node, model, "remove a Relu of what is not negative", (node,), do)


def _is_relu(value: ir.Value | None, far: int = 6) -> bool:
    """True for what Relu makes, also averaged, joined, or moved about."""
    node = value.producer() if value is not None else None
    if node is None or far == 0:
        return False
    if is_op(node, "Relu"):
        return True
    if is_op(node, "MaxPool"):
        return _pools_less(node) and _is_relu(node.inputs[0], far - 1)
    data = node.inputs if is_op(node, "Concat") else node.inputs[:1]
    return is_op(node, *_CARRIERS) and all(_is_relu(v, far - 1) for v in data)


# --- views and Transposes


def transpose_twice(node: ir.Node, model: ir.Model, known: Known) -> Move | None:
    """Two Transposes in a row are one, or nothing."""
    first = _source(node)
    if first is None or not is_op(first, "Transpose"):
        return None
    one, two = permutation(first, known), permutation(node, known)
    if one is None or two is None or len(one) != len(two):
        return None
    both = tuple(one[axis] for axis in two)
    nothing = both == tuple(range(len(both)))
    if not nothing and only_reader(first.outputs[0]) is not node:
        return None
    source = first.inputs[0]
    if source is None or (nothing and not _can_take_over(source, node)):
        return None

    def do(edit: Edit) -> list[ir.Node]:
        if nothing:
            edit.replace(node.outputs[0], source)
            return []
        edit.set_attribute(node, "perm", list(both))
        edit.set_input(node, 0, source)
        return []

    return Move(node, model, "join two Transposes", (first, node), do)


def _can_take_over(source: ir.Value, node: ir.Node) -> bool:
    """False where an Identity would have to carry the name of an output."""
    if not node.outputs[0].is_graph_output():
        return True
    producer = source.producer()
    return producer is not None and not source.is_graph_output() and producer.graph is node.graph


def view_twice(node: ir.Node, model: ir.Model, known: Known) -> Move | None:
    """Of two nodes in a row that only change the shape the second suffices, or neither is needed."""
    first = _source(node)
    if first is None or not is_op(first, *_VIEWS):
        return None
    source = first.inputs[0]
    if source is None:
        return None
    if known.same_shape(source, node.outputs[0]) and _can_take_over(source, node):

        def skip(edit: Edit) -> list[ir.Node]:
            edit.replace(node.outputs[0], source)
            return []

        return Move(node, model, f"remove {first.op_type} and {node.op_type}", (first, node), skip)
    if only_reader(first.outputs[0]) is not node or opset_of(model) < 5:
        return None
    if is_op(node, "Reshape") and (target := constant(node.inputs[1])) is not None:
        if not _says_it_all(target, node, first, known):
            return None

        def join(edit: Edit) -> list[ir.Node]:
            edit.set_input(node, 0, source)
            return []

        return Move(node, model, f"join {first.op_type} and {node.op_type}", (first, node), join)
    return None


def _says_it_all(target: np.ndarray, node: ir.Node, first: ir.Node, known: Known) -> bool:
    """True where the target of a Reshape means the same behind another tensor: no size is copied, or an equal one."""
    copied = (
        [] if attribute(node, "allowzero", 0) else [axis for axis, size in enumerate(target.reshape(-1)) if size == 0]
    )
    before, between = known.dims(first.inputs[0]), known.dims(first.outputs[0])
    if not copied:
        return True
    if before is None or between is None:
        return False
    return all(axis < min(len(before), len(between)) and before[axis] == between[axis] for axis in copied)


def flat_anyway(node: ir.Node, model: ir.Model, known: Known) -> Move | None:
    """A Transpose that moves only axes of size 1 in front of a node that changes the shape in any case."""
    transpose = _own_source(node)
    if transpose is None or not is_op(transpose, "Transpose"):
        return None
    perm, sizes = permutation(transpose, known), known.dims(transpose.inputs[0])
    if perm is None or sizes is None or perm[0] != 0:
        return None
    real = [axis for axis in perm if sizes[axis] != 1]
    if real != sorted(real) or not flattens(node, lambda: known.dims(node.inputs[0])):
        return None
    source = transpose.inputs[0]

    def do(edit: Edit) -> list[ir.Node]:
        edit.set_input(node, 0, source)
        return []

    return Move(node, model, f"remove a Transpose of axes of size 1 before {node.op_type}", (transpose, node), do)


def rows_in_order(node: ir.Node, model: ir.Model, known: Known) -> Move | None:
    """A Transpose before Flatten and a matrix: the rows of the matrix change places once and for all."""
    flat = _own_source(node)
    if flat is None or not is_op(flat, "Flatten", "Reshape") or not flattens(flat, lambda: known.dims(flat.inputs[0])):
        return None
    transpose = _own_source(flat)
    if transpose is None or not is_op(transpose, "Transpose") or attribute(node, "transA", 0):
        return None
    perm, sizes = permutation(transpose, known), known.dims(transpose.inputs[0])
    value = node.inputs[1]
    weight = constant(value)
    if perm is None or sizes is None or perm[0] != 0 or value is None or weight is None or weight.ndim != 2:
        return None
    real = [axis for axis in perm if sizes[axis] != 1]
    if real == sorted(real):
        return None  # `flat_anyway` needs no other weight
    counts = [size for size in sizes[1:] if isinstance(size, int)]
    rows = 1 if is_op(node, "Gemm") and attribute(node, "transB", 0) else 0
    if len(counts) != len(sizes) - 1 or math.prod(counts) != weight.shape[rows]:
        return None
    users, is_output = users_of(value)
    if len(users) > 1 or is_output or value.producer() is not None:
        return None
    # row r of the weight meets element r of the transposed data: give it the place of that element before
    places = np.arange(math.prod(counts)).reshape([counts[axis - 1] for axis in perm[1:]])
    order = np.transpose(places, np.argsort([axis - 1 for axis in perm[1:]])).reshape(-1)
    source = transpose.inputs[0]

    def do(edit: Edit) -> list[ir.Node]:
        turned = np.take(weight, order, axis=rows)
        edit.set_input(node, 1, edit.constant(node, turned, f"{value.name}_ordered"))
        edit.set_input(flat, 0, source)
        return []

    return Move(node, model, f"move a Transpose into the weight of {node.op_type}", (transpose, flat, node), do)


LOCAL: dict[str, tuple[Rule, ...]] = {
    "MaxPool": (pool_first,),
    "AveragePool": (average_first,),
    "GlobalAveragePool": (average_first,),
    "Max": (leaky,),
    "Relu": (relu_again,),
    "Transpose": (transpose_twice,),
    "Reshape": (view_twice, flat_anyway),
    "Flatten": (view_twice, flat_anyway),
    "Squeeze": (view_twice,),
    "Unsqueeze": (view_twice,),
    "Gemm": (rows_in_order,),
    "MatMul": (rows_in_order,),
}
"""The rules by the type of the last node of their places."""

"""Compute ahead what does not depend on the inputs' values, and store the results as weights.

Constant nodes become weights. A node whose inputs are constant is computed by onnxruntime itself, optimizer off, and
so are chains of them: Reshape, Transpose, Slice, Cast, CastLike, Expand, Gather, Concat, Unsqueeze, arithmetic. Sizes
count as constant where they are certain: those of weights, static sizes of inputs, and what follows from them, even
beside a symbolic batch. Shape(x)[1] of x: [N, 64, 8, 8] is 64. What turns out to do nothing in the light of this (a
Reshape to the same sizes, a Cast to the same type) goes, and so does arithmetic by a constant that changes no number.

    Reshape(x, Concat(Shape(x)[0], 64, -1))   ->  Reshape(x, [0, 64, -1])
    Conv(x, W, Expand(0, Shape(W)[0]))        ->  Conv(x, W)
    LSTM(x, W, R, , , Expand(0, Shape(x)[1])) ->  LSTM(x, W, R)
    x * 1, x / 1, x + 0, x - 0                ->  x

Equal in real arithmetic; the values are those that onnxruntime would compute in every call, but for the sign of a zero
that x + 0 takes away. Never folded: random numbers, nodes with bodies, weights that a caller may feed, weights of 8
bits or less behind DequantizeLinear or Cast.

The file does not grow beyond a bound: a stored value may take `max_growth` bytes more than what it frees (its node, and
the nodes and weights that only it needs), and where all such values together would take more than `max_growth` and
more than 0.5 % of the weights, none of them is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import onnx_ir as ir

from onnxslim_core.errors import InternalError, RecipeError
from onnxslim_core.graph import (
    Names,
    add_constant,
    all_nodes,
    array_of,
    attribute,
    idle_source,
    is_op,
    label_of,
    opset_of,
    remove,
    replace,
    replace_input,
)
from onnxslim_core.ops.recurrent import is_zero
from onnxslim_core.rewrite import Change, Context, Kind, weight_bytes

from ._control import unique_names
from ._facts import Facts
from ._fold import Fold, keeps_quantized, within_bound
from ._merge import deterministic
from ._record import records
from ._tidy import Tidy, inference_mode

__all__ = ["FoldConstants"]

_NEUTRAL = {"Add": 0, "Div": 1, "Mul": 1, "Sub": 0}
"""The number that changes nothing; of Div and Sub on the right only."""

_ABSENT_IS_ZERO = {
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (2,),
    "GRU": (3, 5),
    "LSTM": (3, 5, 6, 7),
    "RNN": (3, 5),
}
"""Optional inputs that count as zeros where they are left out: biases, first states, peepholes."""

_ROUNDS = 20
"""One suffices, but for what a branch or a shape that became constant brings to light, or what it leaves behind."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FoldConstants:
    """Store as weights what can be computed ahead, without making the file bigger."""

    name: ClassVar[str] = "fold_constants"
    kind: ClassVar[Kind] = Kind.ALGEBRAIC
    guards: ClassVar[tuple[Callable[..., str | None], ...]] = (deterministic, keeps_quantized, within_bound)

    max_growth: int = 1024
    """Bytes that one stored value may add to the file."""

    def __post_init__(self) -> None:
        if self.max_growth < 0:
            raise RecipeError(f"fold_constants: max_growth is {self.max_growth}, allowed are 0 and more bytes")

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Change the model in place."""
        names, opset = Names(model), opset_of(model)
        if any(is_op(node, "If") for node in all_nodes(model.graph)):
            unique_names(model, names)
        allowance = max(self.max_growth, weight_bytes(model) // 200)
        done: dict[str, list[str]] = {}
        refused: dict[tuple[str, str], list[str]] = {}
        saved = 0
        for _ in range(_ROUNDS):
            fold = Fold(names, Facts(model), opset, self.guards, self.max_growth, allowance)
            fold.walk(model.graph)
            _before_storing(model, fold)
            fold.store()
            _after_storing(model, fold)
            refused, saved = fold.refused, saved + fold.saved
            for action, places in fold.done.items():
                done.setdefault(action, []).extend(places)
            if not fold.done or not fold.leads_on():
                break
        else:
            raise InternalError("does not come to an end", self.name)
        if lifted := _lift_constants(model, names):
            done["made a weight of Constant"] = lifted
        if done and model.ir_version < 4:
            model.ir_version = 4  # before, every weight was an input
        return records(self.name, done, refused, saved)


def _before_storing(model: ir.Model, fold: Fold) -> None:
    """Constants that need not be stored at all."""
    tidy = Tidy(fold.names, fold.facts, fold.opset)
    for node in all_nodes(model.graph):
        if (source := _unchanged(node, fold)) is not None and tidy.forward(node, source):
            fold.note("removed idle", node)
            continue
        if _drop_zeros(node, fold):
            fold.note("dropped zeros of", node)


def _after_storing(model: ir.Model, fold: Fold) -> None:
    """What constants beside other inputs allow."""
    for node in all_nodes(model.graph):
        if is_op(node, "Reshape") and not node.overload and node.graph is not None and _plain_shape(node, fold):
            fold.note("made the shape constant of", node)
    tidy = Tidy(fold.names, fold.facts, fold.opset, (inference_mode,))
    tidy.run(model.graph)
    fold.news = fold.news or bool(tidy.done)
    for action, places in tidy.done.items():
        fold.done.setdefault(action, []).extend(places)


def _plain_shape(node: ir.Node, fold: Fold) -> bool:
    """Say a shape that is known but for some sizes with 0 (copy this size) and -1 (infer it).

    A size that is x's own size at the same place is a 0. One other unknown size is -1, if every size beside it is a
    known positive number: beside a copied size, which may be zero, nothing could be inferred.
    """
    shape = node.inputs[1]
    producer = shape.producer() if shape is not None else None
    if shape is None or producer is None or is_op(producer, "Constant") or attribute(node, "allowzero", 0):
        return False
    target, sizes = fold.facts.vector(shape), fold.facts.dims(node.inputs[0])
    if target is None or sizes is None:
        return False
    plain: list[int] = []
    for axis, size in enumerate(target):
        if isinstance(size, int):
            plain.append(size)
        else:
            plain.append(0 if size is not None and axis < len(sizes) and sizes[axis] == size else -2)
    if plain.count(-2) > 1 or (-2 in plain and any(size < 1 for size in plain if size != -2)):
        return False
    fold.news = fold.news or -2 in plain  # inference may find it
    array = np.array([-1 if size == -2 else size for size in plain], dtype=np.int64)
    assert isinstance(node.graph, ir.Graph)
    replace_input(node, 1, fold.weight(node.graph, array, f"{node.name or 'Reshape'}/shape"))
    if not any(v.uses() or v.is_graph_output() for v in producer.outputs):
        remove(producer)
    return True


def _unchanged(node: ir.Node, fold: Fold) -> ir.Value | None:
    """What a node of arithmetic hands on as it is: a constant beside it is neutral, and does not broadcast it."""
    neutral = _NEUTRAL.get(node.op_type)
    if neutral is None or not is_op(node, node.op_type) or node.overload or fold.opset < 7:  # no numpy broadcasting yet
        return None
    ways = (node.inputs, reversed(node.inputs)) if node.op_type in ("Add", "Mul") else (node.inputs,)
    for source, other in ways:
        array = fold.facts.array(other)
        if array is None or (array.ndim and not fold.facts.same_shape(source, node.outputs[0])):
            continue
        if array.size and array.flat[0] == neutral and (array == neutral).all():  # a large weight is not read for this
            return source
    return None


def _drop_zeros(node: ir.Node, fold: Fold) -> bool:
    """Let a node do without inputs of zeros that it need not have, and without what only they needed."""
    places = _ABSENT_IS_ZERO.get(node.op_type, ())
    if not places or not is_op(node, node.op_type) or node.overload or (node.op_type == "Gemm" and fold.opset < 11):
        return False
    idle = {i: v for i, v in enumerate(node.inputs) if i in places and v is not None and is_zero(fold.facts.array, v)}
    if not idle:
        return False
    for index in idle:
        replace_input(node, index, None)
    while node.inputs[-1] is None:
        node.resize_inputs(len(node.inputs) - 1)
    for value in dict.fromkeys(idle.values()):
        if (producer := idle_source(value)) is not None:
            remove(producer)
    return True


def _lift_constants(model: ir.Model, names: Names) -> list[str]:
    """Constant nodes of the outermost graph become weights, where every other tool finds them."""
    lifted = []
    for node in model.graph:
        if not is_op(node, "Constant") or node.outputs[0].is_graph_output():
            continue
        value = node.outputs[0]
        array = array_of(value)
        if array is None or array.dtype.kind == "O":
            continue
        weight = add_constant(model.graph, names, array, str(value.name))
        weight.doc_string = node.doc_string
        weight.metadata_props.update(value.metadata_props)
        replace(value, weight, names)
        name = str(value.name)
        lifted.append(label_of(node))
        remove(node)
        weight.name = name
    return lifted

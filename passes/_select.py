"""Branches that read a shared tensor through a BatchNormalization: found, judged and cut.

    x -> BatchNormalization -> elementwise nodes -> Conv,   x read elsewhere too

The channels of x stay, but this branch may read a selection of them: `Gather(x, kept, axis=1)` before the
BatchNormalization, whose parameters are cut like the input channels of the Convs. The selection costs a copy, and
takes the branch out of onnxruntime's blocked layout, so it has to be timed: see `_select_clock`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core.graph import attribute, first_input, is_op, label_of, opset_of, users_of
from onnxslim_core.rewrite import Edit

from ._affine import coefficients, constant
from ._evaluate import evaluate

__all__ = ["GUARDS", "Guard", "Place", "Selection", "places_of", "refusal_of"]

_ELEMENTWISE = (
    *("Add", "Celu", "Clip", "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Identity"),
    *("LeakyRelu", "Mish", "Mul", "PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sub", "Swish", "Tanh"),
)
"""Operators that treat every element by itself, with the element of a constant that it meets."""
_NODE_BYTES = 128
"""About what a Gather takes in the file, names included."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A BatchNormalization of a tensor that others read too, and what follows up to the Convs.

    Attributes:
        node: The BatchNormalization.
        model: Around it.
        inner: The elementwise nodes between it and the Convs, in order.
        readers: The Convs.
        others: What else reads the branch, in words; a selection would be seen there.
    """

    node: ir.Node
    model: ir.Model
    inner: tuple[ir.Node, ...]
    readers: tuple[ir.Node, ...]
    others: tuple[str, ...]

    @property
    def source(self) -> ir.Value:
        """The shared tensor."""
        return first_input(self.node)

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """All nodes, in order."""
        return (self.node, *self.inner, *self.readers)

    @property
    def width(self) -> int:
        """Channels of the shared tensor."""
        array = constant(self.node.inputs[1])
        return 0 if array is None else array.size

    @property
    def rank(self) -> int:
        """Of the shared tensor: that of the weights of the Convs; 0 where they are not known."""
        return max((array.ndim for conv in self.readers if (array := constant(conv.inputs[1])) is not None), default=0)

    def slots(self) -> list[tuple[ir.Node, int, int]]:
        """Constants with an element per channel, as (node, input, axis)."""
        found = [(self.node, index, 0) for index in range(1, 5)] + [(conv, 1, 1) for conv in self.readers]
        for node in self.inner:
            for index, value in enumerate(node.inputs):
                array = constant(value)
                if array is not None and (axis := _channel_axis(array, self.rank, self.width)) is not None:
                    found.append((node, index, axis))
        return found

    def dead(self) -> NDArray[np.bool_]:
        """Which channels no Conv hears: what it reads of them is zero whatever x is, or its weights are; (width,)."""
        made = self._constants()
        dead = np.ones(self.width, np.bool_)
        for conv in self.readers:
            weight = constant(conv.inputs[1])
            assert weight is not None
            silent = ~np.moveaxis(weight, 1, 0).reshape(self.width, -1).any(axis=1)
            known = made.get(conv.inputs[0])
            dead &= silent if known is None else silent | (known == 0)
        return dead

    def _constants(self) -> dict[ir.Value | None, NDArray[np.float64]]:
        """What every value of the branch is where x does not matter, NaN elsewhere; (width,)."""
        scale, shift = coefficients(self.node)
        fixed = (scale == 0) & np.isfinite(shift)
        if not fixed.any():
            return {}
        gamma = constant(self.node.inputs[1])
        assert gamma is not None
        shape = (1, self.width, *[1] * (self.rank - 2))
        arrays = {self.node.outputs[0]: np.where(fixed, shift, 0.0).astype(gamma.dtype).reshape(shape)}
        for node in self.inner:
            # elementwise: what stands at the other channels does not matter here
            inputs = [None if v is None else arrays[v] if v in arrays else constant(v) for v in node.inputs]
            missing = any(v is not None and a is None for v, a in zip(node.inputs, inputs, strict=True))
            found = None if missing else evaluate(node, inputs, opset_of(self.model))
            if not found or found[0].shape != shape:
                return {}
            arrays[node.outputs[0]] = found[0]
        return {v: np.where(fixed, array.reshape(-1).astype(np.float64), np.nan) for v, array in arrays.items()}


Guard = Callable[[Place, object], str | None]


def one_output(m: Place, options: object) -> str | None:
    """In training mode a BatchNormalization also answers the statistics of every channel."""
    more = [value.name for value in m.node.outputs[1:] if value.name]
    return f"'{more[0]}' has a number per channel" if more else None


def weights_are_constant(m: Place, options: object) -> str | None:
    """What is computed, from int8 or otherwise, cannot be cut here; spatial = 0 has parameters per position."""
    values = [*m.node.inputs[1:5], *(conv.inputs[1] for conv in m.readers)]
    for value in values:
        if constant(value) is None:
            return f"'{None if value is None else value.name}' is computed"
    arrays = [constant(value) for value in m.node.inputs[1:5]]
    if any(array is None or array.shape != (m.width,) for array in arrays):
        return f"{label_of(m.node)} has not one number per channel"
    return None


def only_convs_read(m: Place, options: object) -> str | None:
    """Another reader of the normalized tensor would miss channels."""
    return f"{m.others[0]} reads it too" if m.others else None


def one_group(m: Place, options: object) -> str | None:
    """In a grouped Conv every group would have to lose equally many, a depthwise one loses outputs."""
    for conv in m.readers:
        if int(attribute(conv, "group", 1)) != 1:
            return f"{label_of(conv)} has {attribute(conv, 'group', 1)} groups"
    return None


GUARDS: tuple[Guard, ...] = (one_output, only_convs_read, one_group, weights_are_constant)


def refusal_of(place: Place, guards: Sequence[Guard], options: object) -> tuple[str, str] | None:
    """The first guard that refuses, and its reason."""
    for guard in guards:
        if (reason := guard(place, options)) is not None:
            return guard.__name__, reason
    return None


def places_of(model: ir.Model) -> list[Place]:
    """All such branches of the main graph, in its order."""
    if opset_of(model) < 7:  # BatchNormalization is told by an attribute what it is
        return []
    found = [node for node in model.graph if is_op(node, "BatchNormalization") and _is_shared(node.inputs[0])]
    if not found:
        return []
    order = {node: number for number, node in enumerate(model.graph)}
    places = [_place_at(node, model, order) for node in found]
    return [place for place in places if place.readers]


def _is_shared(value: ir.Value | None) -> bool:
    """True for a tensor whose channels others want, too; a Concat is as shared as one of its parts."""
    if value is None or value.producer() is None:
        return False
    readers, is_output = users_of(value)
    if len(readers) > 1 or is_output:
        return True
    producer = value.producer()
    return is_op(producer, "Concat") and any(
        part is not None and len(users_of(part)[0]) > 1 for part in (producer.inputs if producer is not None else ())
    )


def _place_at(bn: ir.Node, model: ir.Model, order: Mapping[ir.Node, int]) -> Place:
    """Walk from a BatchNormalization to the Convs."""
    inner: dict[ir.Node, None] = {}
    readers: dict[ir.Node, None] = {}
    others: list[str] = []
    todo = [bn]
    while todo:
        users, is_output = users_of(todo.pop().outputs[0])
        others += ["the caller of the graph"] if is_output else []
        for user, index in users:
            if is_op(user, "Conv") and index == 0 and user in order:
                readers[user] = None
            elif is_op(user, *_ELEMENTWISE) and user in order:
                todo += [user] if user not in inner else []
                inner[user] = None
            else:
                others.append(label_of(user))
    made = {bn.outputs[0], *(node.outputs[0] for node in inner)}
    others += [label_of(node) for node in inner if not _is_elementwise(node, made)]
    by_order = order.__getitem__
    return Place(bn, model, tuple(sorted(inner, key=by_order)), tuple(sorted(readers, key=by_order)), tuple(others))


def _is_elementwise(node: ir.Node, made: set[ir.Value]) -> bool:
    """True where a node reads the branch alone, constants beside it, and makes one tensor."""
    if any(value.name and users_of(value) != ([], False) for value in node.outputs[1:]):
        return False
    return all(value is None or value in made or constant(value) is not None for value in node.inputs)


def _channel_axis(array: np.ndarray, rank: int, width: int) -> int | None:
    """Which axis of a constant meets the channels, axis 1 of its partner; None where it is the same for all of them."""
    place = array.ndim - (rank - 1)
    return place if 0 <= place < array.ndim and array.shape[place] == width else None


@dataclass(frozen=True, eq=False)
class Selection:
    """Channels that a branch keeps.

    Attributes:
        place: The branch.
        kept: Numbers of the channels, ascending, int64.
    """

    place: Place
    kept: NDArray[np.int64]

    @property
    def action(self) -> str:
        """For the record."""
        return f"read {len(self.kept)} of {self.place.width} channels of '{self.place.source.name}'"

    @property
    def bytes_saved(self) -> int:
        """Of weights, less what the Gather takes; negative where others read the weights, too."""
        inside, place = set(self.place.nodes), self.place
        saved = -4 * len(self.kept) - _NODE_BYTES
        for value in {node.inputs[index] for node, index, _ in place.slots()}:
            array = constant(value)
            assert value is not None and array is not None
            alone = not value.is_graph_output() and all(use.node in inside for use in value.uses())
            saved += (array.nbytes if alone else 0) - array.nbytes // place.width * len(self.kept)
        return saved

    def carry_out(self, edit: Edit) -> None:
        """Put the Gather in and cut the weights."""
        place = self.place
        bn, source = place.node, place.source
        kept = edit.constant(bn, self.kept.astype(np.int32), f"{bn.name or 'select'}/kept")
        gather = edit.node("Gather", [source, kept], {"axis": 1}, before=bn, hint=bn.name or "")
        gather.outputs[0].type = source.type
        edit.set_input(bn, 0, gather.outputs[0])
        smaller: dict[ir.Value, ir.Value] = {}
        for node, index, axis in place.slots():
            value = node.inputs[index]
            assert value is not None
            if value not in smaller:
                array = constant(value)
                assert array is not None
                smaller[value] = edit.constant(bn, np.take(array, self.kept, axis), f"{value.name}_kept")
            edit.set_input(node, index, smaller[value])
        for node in (bn, *place.inner):
            node.outputs[0].shape = None  # what was declared is stale

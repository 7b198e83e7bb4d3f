"""Branches that read a shared tensor through a BatchNormalization: found, judged, cut and timed.

    x -> BatchNormalization -> elementwise nodes -> Conv,   x read elsewhere too

The channels of x stay, but this branch may read a selection of them: `Gather(x, kept, axis=1)` before the
BatchNormalization, whose parameters are cut like the input channels of the Convs. The selection costs a copy, and
takes the branch out of onnxruntime's blocked layout, so it has to be timed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.errors import MeasureError
from onnxslim_core.graph import attribute, is_op, label_of, opset_of, users_of
from onnxslim_core.measure.shapes import Shapes, concrete_shapes
from onnxslim_core.rewrite import Context, Edit

from ._affine import coefficients, constant
from ._evaluate import evaluate
from ._merge_probe import cut

__all__ = ["GUARDS", "Clock", "Guard", "Place", "Selection", "places_of", "refusal_of"]

_ELEMENTWISE = (
    *(
        "Add",
        "Celu",
        "Clip",
        "Div",
        "Dropout",
        "Elu",
        "Erf",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
    ),
    *("Mish", "Mul", "PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sub", "Swish", "Tanh"),
)
"""Operators that treat every element alike, up to a scalar constant."""
_NODE_BYTES = 128
"""About what a Gather takes in the file, names included."""
_STUDENT = {3: 4.303, 4: 3.182, 5: 2.776}
"""Two-sided 95 % quantiles of Student's t for the mean of so many timings."""
_PROBES = max(_STUDENT)
_NOISE = 0.01
"""Ratios that agree by chance are not taken to be nearer to the truth than this."""


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
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """All nodes, in order."""
        return (self.node, *self.inner, *self.readers)

    @property
    def width(self) -> int:
        """Channels of the shared tensor."""
        array = constant(self.node.inputs[1])
        return 0 if array is None else array.size

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
        arrays = {self.node.outputs[0]: np.where(fixed, shift, 0.0).astype(gamma.dtype)}
        for node in self.inner:
            # elementwise: what stands at the other channels does not matter here
            inputs = [None if v is None else arrays[v] if v in arrays else constant(v) for v in node.inputs]
            missing = any(v is not None and a is None for v, a in zip(node.inputs, inputs, strict=True))
            found = None if missing else evaluate(node, inputs, opset_of(self.model))
            if not found or found[0].shape != gamma.shape:
                return {}
            arrays[node.outputs[0]] = found[0]
        return {value: np.where(fixed, array.astype(np.float64), np.nan) for value, array in arrays.items()}


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
    """True where a node reads the branch alone, scalars beside it, and makes one tensor."""
    if any(value.name and users_of(value) != ([], False) for value in node.outputs[1:]):
        return False
    for value in node.inputs:
        array = constant(value)
        if value is not None and value not in made and (array is None or array.size != 1 or array.ndim > 1):
            return False
    return True


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

    @cached_property
    def bytes_saved(self) -> int:
        """Of weights, less what the Gather takes; negative where others read the weights, too."""
        old = {value for value, _ in self._cuts()}
        arrays = [constant(value) for value in old]
        new = sum(a.nbytes // self.place.width * len(self.kept) for a in arrays if a is not None)
        return self._freed(old) - new - 4 * len(self.kept) - _NODE_BYTES

    def _freed(self, old: set[ir.Value]) -> int:
        nodes = set(self.place.nodes)
        total = 0
        for value in old:
            array = constant(value)
            alone = all(use.node in nodes for use in value.uses()) and not value.is_graph_output()
            total += array.nbytes if array is not None and alone else 0
        return total

    def _cuts(self) -> list[tuple[ir.Value, int]]:
        """What is cut, and along which axis."""
        place = self.place
        found = [(value, 0) for value in place.node.inputs[1:5]] + [(conv.inputs[1], 1) for conv in place.readers]
        return [(value, axis) for value, axis in found if value is not None]

    def carry_out(self, edit: Edit) -> None:
        """Put the Gather in and cut the weights."""
        place = self.place
        bn, source = place.node, place.source
        kept = edit.constant(bn, self.kept.astype(np.int32), f"{bn.name or 'select'}/kept")
        gather = edit.node("Gather", [source, kept], {"axis": 1}, before=bn, hint=bn.name or "")
        gather.outputs[0].type = source.type
        edit.set_input(bn, 0, gather.outputs[0])
        smaller: dict[ir.Value, ir.Value] = {}
        slots = [(bn, index, 0) for index in range(1, 5)] + [(conv, 1, 1) for conv in place.readers]
        for node, index, axis in slots:
            value = node.inputs[index]
            assert value is not None
            if value not in smaller:
                array = constant(value)
                assert array is not None
                smaller[value] = edit.constant(bn, np.take(array, self.kept, axis), f"{value.name}_kept")
            edit.set_input(node, index, smaller[value])
        for node in (bn, *place.inner):
            node.outputs[0].shape = None  # what was declared is stale


@dataclass(slots=True)
class Clock:
    """Asks of selections whether they are faster, by timing the branch cut out of its graph.

    In the part, x comes out of a 1x1 depthwise Conv and goes into a pool besides, so that it lies in memory in blocks
    of channels, as it would between Convs, and the selection has to unpack it.

    Attributes:
        model: Whose shapes are looked up once the first part is timed.
        context: Brings the sample and the clock.
    """

    model: ir.Model
    context: Context
    _shapes: Shapes | None = None
    _timed: dict[Hashable, str | None] = field(default_factory=dict)

    def ask(self, selections: Sequence[Selection]) -> dict[Selection, str]:
        """Why some of them are not faster; those that are, are absent.

        Of places that differ in their width alone, and keep the same share to a quarter, the narrowest and the widest
        are timed first; where they agree, so do those between.
        """
        families: dict[Hashable, list[Selection]] = defaultdict(list)
        for each in selections:
            families[self._family(each)].append(each)
        slow: dict[Selection, str] = {}
        for family in families.values():
            family.sort(key=lambda each: each.place.width)
            todo = [(0, len(family) - 1)]
            while todo:
                first, last = todo.pop()
                ends = [self._why_not(family[first]), self._why_not(family[last])]
                if (ends[0] is None) == (ends[1] is None) or last - first < 2:
                    between = range(first + 1, last) if ends[0] is not None else ()
                    slow |= {family[n]: str(ends[0]) for n in between}
                    slow |= {family[n]: why for n, why in zip((first, last), ends, strict=True) if why is not None}
                else:
                    middle = (first + last) // 2
                    todo += [(first, middle), (middle, last)]
        return slow

    def _why_not(self, selection: Selection) -> str | None:
        """Why the branch with the selection is not faster than the branch as it is; None where it is."""
        key = self._family(selection), selection.place.width, len(selection.kept)
        if key not in self._timed:
            self._timed[key] = self._timed_alone(selection)
        return self._timed[key]

    def why_not(self, reference: ir.Model, candidate: ir.Model) -> str | None:
        """Why a model is not faster than another one; None where it is.

        A short timing of a large model has few sessions, and so a wide interval: where it says nothing, further ones
        are made, and their ratios are judged together (Student's t on the logarithms).
        """
        if self.context.latency is None:
            return "nothing is timed"
        logs: list[float] = []
        low, high = 0.0, 0.0
        while len(logs) < _PROBES:
            try:
                timing = self.context.latency(reference, candidate)
            except MeasureError as err:
                return f"cannot be timed: {err}"
            logs.append(float(np.log(timing.ratio)))
            low, high = timing.low, timing.high
            if len(logs) in _STUDENT:
                spread = max(_STUDENT[len(logs)] * float(np.std(logs, ddof=1)) / len(logs) ** 0.5, _NOISE)
                low, high = (float(np.exp(np.mean(logs) + side * spread)) for side in (-1, 1))
            if high < 1:
                return None
            if low >= 1:
                break
        return f"not measured faster: {np.exp(np.mean(logs)):.2f} of the time ({low:.2f} to {high:.2f})"

    def _shape(self, value: ir.Value) -> tuple[int, ...] | None:
        if self._shapes is None:
            self._shapes = concrete_shapes(self.model, self.context.samples[0] if self.context.samples else None)
        return self._shapes.shape.get(value)

    def _family(self, selection: Selection) -> Hashable:
        """What decides about the time besides the width."""
        place = selection.place
        shape = self._shape(place.source) or ()
        told: list[Hashable] = [4 * len(selection.kept) // place.width, shape[:1], shape[2:]]
        for node in place.nodes:
            array = constant(node.inputs[1]) if node in place.readers else None
            weight = None if array is None else (array.dtype.str, array.shape[0], *array.shape[2:])
            plain = tuple((name, attribute(node, name)) for name in sorted(node.attributes))
            told.append((node.op_type, weight, plain))
        return tuple(told)

    def _timed_alone(self, selection: Selection) -> str | None:
        assert self._shapes is not None  # the family has asked for them
        models = [_alone(selection.place, self._shapes) for _ in range(2)]
        if models[0] is None or models[1] is None:
            return "its sizes are not known, so it cannot be timed"
        (alone,) = places_of(models[1])
        Selection(alone, selection.kept).carry_out(Edit(verbs.Names(models[1])))
        return self.why_not(models[0], models[1])


def _alone(place: Place, shapes: Shapes) -> ir.Model | None:
    """The branch as a model, between nodes that onnxruntime runs in its blocked layout."""
    model = cut(place.nodes, shapes, place.model)
    if model is None or len(model.graph.inputs) != 1:
        return None
    graph, x = model.graph, model.graph.inputs[0]
    names = verbs.Names(model)
    assert x.dtype is not None and x.shape is not None
    ones = np.ones((place.width, *[1] * (len(x.shape) - 1)), x.dtype.numpy())
    weight = verbs.add_constant(graph, names, ones, "packed/w")
    first = next(iter(graph))
    packed = verbs.add_node(names, "Conv", [x, weight], {"group": place.width}, before=first, hint="packed")
    packed.outputs[0].type = x.type
    for node, index in users_of(x)[0]:
        if node is not packed:
            verbs.replace_input(node, index, packed.outputs[0])
    pool = verbs.add_node(names, "GlobalAveragePool", [packed.outputs[0]], before=first, hint="elsewhere")
    pool.outputs[0].type, pool.outputs[0].shape = x.type, ir.Shape([*x.shape[:2], *[1] * (len(x.shape) - 2)])
    graph.outputs.append(pool.outputs[0])
    return model

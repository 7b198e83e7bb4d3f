"""How labels flow through a graph: what the rules of operators read and write, and what they leave on record.

A rule (`Rule`) is up to three short functions over one node:

* `label(flow, node)`: the labels of its outputs, from those of its inputs;
* `cut(cut, node)`: what changes in the node when elements of its inputs and outputs are gone (`ops.cut`);
* `value(consts, node)`: which channels of its outputs are constant (`ops.consts`).

The table of all rules is `ops.table`. An operator without a row freezes what it reads and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.ops.atoms import FIXED, Atoms, Labels, Reason, compact

if TYPE_CHECKING:
    from onnxslim_core.ops.consts import Consts
    from onnxslim_core.ops.cut import Cut

__all__ = ["Flow", "Role", "Rule", "ShapesLike", "Sink", "Use", "Work", "axes_of", "is_constant_op"]


class ShapesLike(Protocol):
    """Concrete shapes and the values of shape arithmetic; see `measure.shapes`."""

    @property
    def shape(self) -> Mapping[ir.Value, tuple[int, ...]]:
        """The shape of every value that has one."""

    @property
    def value(self) -> Mapping[ir.Value, np.ndarray]:
        """Small tensors that depend on sizes alone."""


Role = str
"""`out`: the axis makes channels; `in`: the axis is summed over; `carry`: one entry per channel, as in a bias."""


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """An axis of a constant that is cut with its atoms: labels (n,) for the n entries along the axis.

    Where groups share an axis (the second of a grouped Conv's weight), labels are (groups, n): an entry goes when it
    goes in every group that stays.
    """

    node: ir.Node
    index: int
    axis: int
    labels: Labels
    role: Role

    @property
    def constant(self) -> ir.Value:
        """The constant that the node reads there."""
        value = self.node.inputs[self.index]
        assert value is not None
        return value

    def rows(self, array: np.ndarray) -> np.ndarray:
        """The constant with one row for each label, in the order of `labels.reshape(-1)`; shape (labels.size, rest)."""
        moved = np.moveaxis(array, self.axis, 0)
        if self.labels.ndim > 1:  # the first axis of a grouped weight runs over the groups
            moved = moved.reshape(self.labels.shape[1], self.labels.shape[0], -1).swapaxes(0, 1)
        return np.ascontiguousarray(moved).reshape(self.labels.size, -1)


@dataclass(frozen=True, slots=True, eq=False)
class Sink:
    """A sum over labelled axes: labels (rows, k), each row summed on its own, at an input of a node."""

    node: ir.Node
    index: int
    labels: Labels
    weight: int | None
    """The input with the constant weights of the sum; None where the other side is computed as well."""
    zero: int | None = None
    """The input with the zero point, where quantized numbers are summed: a channel that holds it adds nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Multiply-adds of a node: `macs` in full; each factor is a label array, of which a share is kept.

    Of a factor (rows, n) the share is taken over the rows that are not gone altogether (groups of a Conv).
    """

    node: ir.Node
    macs: int
    factors: tuple[Labels, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """What one operator means; see the module's text."""

    label: Callable[[Flow, ir.Node], None]
    cut: Callable[[Cut, ir.Node], None] | None = None
    value: Callable[[Consts, ir.Node], None] | None = None


_TRACED = frozenset({"Constant", "Identity", "Cast", "CastLike", "Transpose", "DequantizeLinear", "Reshape"})
_RANDOM = frozenset((*verbs.RANDOM, "Dropout"))


def is_constant_op(node: ir.Node) -> bool:
    """True for an operator whose result is constant where its inputs are."""
    return node.domain in verbs.STANDARD and node.op_type not in _RANDOM and not verbs.bodies(node)


@dataclass(slots=True)
class Flow:
    """Labels of every activation while the graph is walked, and the records that the walk leaves."""

    model: ir.Model
    shapes: ShapesLike
    opset: int
    visit: Callable[[ir.Node], None]
    """The walk itself, for the nodes of a body."""
    widths: bool = False
    """Whether norms and means over channels may lose some, and are then computed over those that stay (lossy)."""
    atoms: Atoms = field(default_factory=Atoms)
    table: dict[ir.Value, Labels] = field(default_factory=dict)
    nodes: list[ir.Node] = field(default_factory=list)
    """Every node, bodies before the nodes that have them."""
    ruled: set[ir.Node] = field(default_factory=set)
    """Nodes whose rule was asked: neither constant nor frozen, and every shape they need is known."""
    constants: set[ir.Value] = field(default_factory=set)
    sized: set[ir.Value] = field(default_factory=set)
    """Constants that are computed from sizes of inputs: at another size they are other ones."""
    uses: list[Use] = field(default_factory=list)
    sinks: list[Sink] = field(default_factory=list)
    averages: list[ir.Node] = field(default_factory=list)
    """Norms and means over labelled channels that may lose some of them."""
    works: list[Work] = field(default_factory=list)
    ties: dict[tuple[ir.Value, int], Labels] = field(default_factory=dict)
    frozen: list[Reason] = field(default_factory=list)
    extra: dict[ir.Value, tuple[int, ...]] = field(default_factory=dict)
    unseen: list[Labels] = field(default_factory=list)
    """Labels that meet numbers of a constant which no `Use` tells about."""
    traced: dict[ir.Value, np.ndarray | None] = field(default_factory=dict)
    """Constants behind Transpose, Cast and the like that were computed once (see `ops.consts.array_of`)."""
    restored: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """Values that a removal made, and the value of the walk that each gives back (see `ops.sizes`)."""

    # ------------------------------------------------------------------ reading
    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """The concrete shape of a value."""
        assert value is not None
        return self.extra[value] if value in self.extra else self.shapes.shape[value]

    def is_constant(self, value: ir.Value | None) -> bool:
        """True for an initializer that nobody may feed, and for what is computed from such alone."""
        return value is not None and value in self.constants

    def labels(self, value: ir.Value | None) -> Labels | None:
        """The labels of an activation; None for a constant, which takes those of what it meets."""
        if value is None or value in self.constants:
            return None
        found = self.table.get(value)
        if found is None:
            found = np.full((1,) * len(self.shapes.shape.get(value, ())), FIXED, np.int32)
        return found

    def known(self, value: ir.Value | None) -> np.ndarray | None:
        """The value of a small tensor that depends on sizes alone, or of a constant; None where it is data."""
        if value is None:
            return None
        value = self.restored.get(value, value)
        found = self.shapes.value.get(value)
        return verbs.array_of(value) if found is None else found

    # ------------------------------------------------------------------ writing
    def set(self, value: ir.Value, labels: Labels) -> None:
        """Label a result. Nothing is noted for a tensor that is labelled nowhere."""
        labels = compact(np.asarray(labels, np.int32))
        self.table[value] = labels
        if labels.size > 1 or labels.flat[0] != FIXED:
            self.atoms.note(labels)

    def plain(self, node: ir.Node) -> None:
        """The results of this node are no channels (shape arithmetic)."""
        for value in node.outputs:
            if (shape := self.shapes.shape.get(value)) is not None:
                self.table[value] = np.full((1,) * len(shape), FIXED, np.int32)

    def make(self, node: ir.Node, index: int, axis: int) -> Labels:
        """Fresh atoms for the channels that axis `axis` of constant input `index` makes, tied across uses.

        Two nodes that create channels with one weight lose the same ones (siamese trunks, tied embeddings).
        """
        constant = node.inputs[index]
        assert constant is not None
        count = self.shape(constant)[axis]
        labels = self.atoms.fresh(count)
        if constant in self.sized:
            self.atoms.pin(labels, Reason(verbs.label_of(node), "what makes them is computed from sizes of inputs"))
        self._tie(constant, axis, labels)
        self.uses.append(Use(node, index, axis, labels, "out"))
        return labels

    def use(self, node: ir.Node, index: int, axis: int, labels: Labels, role: Role) -> None:
        """Axis `axis` of constant input `index` is cut with these labels (n,)."""
        self.uses.append(Use(node, index, axis, labels, role))

    def sink(
        self,
        node: ir.Node,
        index: int,
        labels: Labels,
        weight: int | None,
        axis: int | None = None,
        zero: int | None = None,
    ) -> None:
        """Input `index` of the node is summed; labels (rows, k).

        `axis` is the axis of the constant `weight` that goes with all of `labels`, where there is such an axis;
        `zero` is the input with the zero point of what is summed.
        """
        self.sinks.append(Sink(node, index, labels, weight, zero))
        if weight is not None and axis is not None:
            constant = node.inputs[weight]
            assert constant is not None
            row = labels.reshape(-1)
            self._tie(constant, axis, row)
            self.uses.append(Use(node, weight, axis, row, "in"))

    def _tie(self, constant: ir.Value, axis: int, labels: Labels) -> None:
        first = self.ties.setdefault((constant, axis), labels)
        if first is not labels and first.shape == labels.shape:
            self.atoms.unite(first, labels)

    def carry(self, node: ir.Node, index: int, result: Labels) -> None:
        """A constant input with one entry per channel: its axes longer than 1 go with those of the result."""
        constant = node.inputs[index]
        shape = self.shape(constant)
        for axis, size in enumerate(shape):
            along = axis - len(shape) + result.ndim
            if size > 1 and result.shape[along] > 1:
                others = tuple(i for i in range(result.ndim) if i != along)
                vector = result.transpose((along, *others)).reshape(result.shape[along], -1)
                if (vector == vector[:, :1]).all():
                    self.uses.append(Use(node, index, axis, vector[:, 0], "carry"))
                else:
                    self.unseen.append(vector)

    def adopt(self, made: ir.Value, like: ir.Value) -> None:
        """Treat a new constant as one that was there during the walk."""
        self.constants.add(made)
        self.extra[made] = self.shape(like)

    def work(self, node: ir.Node, macs: int, *factors: Labels | None) -> None:
        """Note the multiply-adds of a node; how often a body runs is not known, so its own are not counted."""
        if node.graph is self.model.graph:
            self.works.append(Work(node, macs, tuple(f for f in factors if f is not None and f.size > 1)))

    def freeze(self, node: ir.Node, text: str, values: Sequence[ir.Value | None] | None = None) -> None:
        """What the node reads stays, and what it makes stays; `text` says why."""
        reason = Reason(verbs.label_of(node), text)
        self.frozen.append(reason)
        self.ruled.discard(node)  # what its rule would say of values holds for what it labels only
        for value in node.inputs if values is None else values:
            if (labels := self.labels(value)) is not None:
                self.atoms.pin(labels, reason)
        for value in node.outputs:
            if (shape := self.shapes.shape.get(value)) is not None:
                own = self.atoms.fresh(1)
                self.atoms.pin(own, Reason(verbs.label_of(node), f"result of {node.op_type}: {text}"))
                self.table[value] = own.reshape((1,) * len(shape))


def axes_of(
    flow: Flow, node: ir.Node, rank: int, *, index: int = 1, default: Sequence[int] | None = None
) -> list[int] | None:
    """The axes of a reduction, Squeeze and the like: an attribute in old opsets, an input in new ones (T38).

    All axes where none are given; None where they are computed from data.
    """
    axes = verbs.attribute(node, "axes")
    if axes is None and index < len(node.inputs) and node.inputs[index] is not None:
        known = flow.known(node.inputs[index])
        if known is None:
            return None
        axes = [int(axis) for axis in known.reshape(-1)]
    if axes is None:
        axes = range(rank)
    return [int(axis) % max(rank, 1) for axis in axes]

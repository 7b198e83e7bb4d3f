"""The channel graph: per group of channels what can go, what it would save, and why the rest cannot.

Criteria, search, repair, removal and `inspect --explain` read this; none derives it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.channels.boxes import Classes, View, inner, settle
from onnxslim_core.channels.trace import trace
from onnxslim_core.ops.atoms import Labels, Reason
from onnxslim_core.ops.flow import Flow, ShapesLike, Sink, Use, Work
from onnxslim_core.ops.macs import macs as node_macs
from onnxslim_core.rewrite import Sample

__all__ = ["ChannelGraph", "Group", "analyse", "atom_mass", "signatures"]

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Channels that appear in the same tensors and are chosen among each other.

    Attributes:
        name: The node that makes them, or the first tensor that holds them.
        classes: What goes together, smallest first; shape (n,). Each counts once against the width.
        free: For each class whether it can go; shape (n,).
        unit: Channels that one class has along the axis that makes them: 1, or more for heads and groups.
        producers: Nodes that make the channels.
        consumers: Nodes that sum over them.
        uses: Axes of constants that go with them.
        reason: Why classes that are not free stay; None where all are free.
        beside: Channels of other groups along axes that make these, where there are some, as in a sum that one of two
            narrower tensors reaches padded.
    """

    name: str
    classes: Ints
    free: NDArray[np.bool_]
    unit: int
    producers: tuple[ir.Node, ...]
    consumers: tuple[ir.Node, ...]
    uses: tuple[Use, ...]
    reason: Reason | None
    beside: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """How many classes there are."""
        return len(self.classes)


class ChannelGraph:
    """Labels of a graph with every open choice decided by one view.

    Args:
        flow: The walk over the graph.
        classes: What goes together.
    """

    def __init__(self, flow: Flow, classes: Classes) -> None:
        self.flow = flow
        self.classes = classes

    @property
    def uses(self) -> list[Use]:
        """Axes of constants that are cut with their atoms."""
        return self.flow.uses

    @property
    def sinks(self) -> list[Sink]:
        """Sums over labelled axes."""
        return self.flow.sinks

    @property
    def works(self) -> list[Work]:
        """Multiply-adds."""
        return self.flow.works

    def of(self, labels: Labels) -> Ints:
        """The classes of an array of labels."""
        return self.classes.of[labels]

    def gone(self, classes: Iterable[int]) -> NDArray[np.bool_]:
        """For every atom whether it goes with these classes; shape (atoms,)."""
        chosen = np.zeros(len(self.classes.of), np.bool_)
        chosen[np.fromiter(classes, np.int64)] = True
        return chosen[self.classes.of]

    def same_classes(self, other: ChannelGraph) -> bool:
        """True where another view of the same walk decided everything alike."""
        mine, theirs = self.classes, other.classes
        return bool(np.array_equal(mine.of, theirs.of) and np.array_equal(mine.pinned, theirs.pinned))

    # ------------------------------------------------------------------ what a removal saves
    def macs(self, gone: NDArray[np.bool_] | None = None) -> int:
        """Multiply-adds of the main graph, with these atoms gone."""
        return round(self._fixed_macs + sum(_left(work.macs, work.factors, gone) for work in self.works))

    @cached_property
    def _fixed_macs(self) -> int:
        """Multiply-adds of nodes that no removal makes cheaper, such as those that are not understood."""
        shape, labelled = self.flow.shapes.shape, {work.node for work in self.works}
        return sum(
            node_macs(
                node, [None if v is None else shape.get(v) for v in node.inputs], [shape.get(v) for v in node.outputs]
            )
            for node in self.flow.model.graph
            if node not in labelled
        )

    @cached_property
    def _by_constant(self) -> list[tuple[float, list[Labels]]]:
        return _labelled_constants(self.flow)

    def params(self, gone: NDArray[np.bool_] | None = None) -> float:
        """Elements of all constants that have a labelled axis, with these atoms gone."""
        return sum(_left(size, labels, gone) for size, labels in self._by_constant)

    @cached_property
    def class_params(self) -> NDArray[np.float64]:
        """Elements that go with each class alone; shape (atoms,), indexed by class."""
        total = np.zeros(len(self.classes.of))
        np.add.at(total, self.classes.of, atom_mass(self.flow))
        return total

    @cached_property
    def class_macs(self) -> NDArray[np.float64]:
        """Multiply-adds that go with each class alone; shape (atoms,), indexed by class."""
        total = np.zeros(len(self.classes.of))
        for work in self.works:
            for labels in work.factors:
                np.add.at(total, self.of(labels), work.macs / labels.size)
        return total

    # ------------------------------------------------------------------ groups
    @cached_property
    def groups(self) -> list[Group]:
        """All groups that make channels, in the order of the graph."""
        return _groups(self)


def _labelled_constants(flow: Flow) -> list[tuple[float, list[Labels]]]:
    """Size and labelled axes of every constant that is cut somewhere."""
    axes: dict[ir.Value, dict[int, Labels]] = {}
    for use in flow.uses:
        axes.setdefault(use.constant, {}).setdefault(use.axis, use.labels)
    return [
        (float(np.prod(flow.shape(constant), dtype=np.float64)), list(by_axis.values()))
        for constant, by_axis in axes.items()
    ]


def atom_mass(flow: Flow) -> NDArray[np.float64]:
    """Elements of constants that each atom alone stands for; shape (atoms,)."""
    mass = np.zeros(flow.atoms.count)
    for size, axes in _labelled_constants(flow):
        for labels in axes:
            np.add.at(mass, labels, size / labels.size)
    return mass


def _left(size: float, factors: Sequence[Labels], gone: NDArray[np.bool_] | None) -> float:
    if gone is None:
        return float(size)
    for labels in factors:
        went = gone[labels]
        rows = ~went.all(axis=-1) if labels.ndim > 1 else slice(None)
        size *= 1.0 - float(went[rows].mean()) if went[rows].size else 0.0
    return float(size)


def signatures(channels: ChannelGraph) -> NDArray[np.uint64]:
    """A number per class that is equal for classes that appear in the same tensors; shape (atoms,)."""
    atoms = channels.flow.atoms
    rng = np.random.default_rng(0)
    signature = np.zeros(len(channels.classes.of), np.uint64)
    for array in (*atoms.vectors, *atoms.boxes):
        # one key per tensor, however often a class appears in it: assignment through an index ignores repeats
        signature[channels.of(array)] ^= rng.integers(1 << 63, dtype=np.uint64)
    return signature


def _groups(channels: ChannelGraph) -> list[Group]:
    of = channels.classes.of
    makers = np.zeros(len(of), np.bool_)
    for use in channels.uses:
        if use.role == "out":
            makers[of[use.labels]] = True
    seen = signatures(channels)
    # what is in no tensor is the other side of a grid, such as whole heads where their widths were chosen
    roots = np.flatnonzero(makers & ((seen != 0) | ~channels.classes.pinned)).astype(np.int32)
    if not roots.size:
        return []
    _, first, which = np.unique(seen[roots], return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int32)
    number[np.argsort(first, kind="stable")] = np.arange(len(first), dtype=np.int32)
    home = np.full(len(of), -1, np.int32)
    home[roots] = number[which]
    uses: list[list[Use]] = [[] for _ in first]
    sinks: list[list[Sink]] = [[] for _ in first]
    for use in channels.uses:
        for group in _homes(home[of[use.labels]]):
            uses[group].append(use)
    for sink in channels.sinks:
        for group in _homes(home[of[sink.labels]]):
            sinks[group].append(sink)
    order = np.argsort(home[roots], kind="stable")
    parts = np.split(roots[order], np.cumsum(np.bincount(home[roots]))[:-1])
    return [_group(channels, *each) for each in zip(parts, uses, sinks, strict=True)]


def _homes(groups: Ints) -> list[int]:
    first = int(groups.flat[0])
    found = [first] if (groups == first).all() else np.unique(groups).tolist()
    return [group for group in found if group >= 0]


def _group(channels: ChannelGraph, classes: Ints, uses: list[Use], sinks: list[Sink]) -> Group:
    free = ~channels.classes.pinned[classes]
    producers = tuple(dict.fromkeys(use.node for use in uses if use.role == "out"))
    readers = [use.node for use in uses if use.role == "in"] + [sink.node for sink in sinks]
    stuck = classes[~free]
    reasons = [reason for root in stuck.tolist() if (reason := channels.classes.reasons.get(root)) is not None]
    axes = [channels.of(use.labels) for use in uses if use.role == "out"]
    mine = [int(np.isin(axis, classes).sum()) for axis in axes]
    unit = max(1, round(mine[0] / len(classes)))
    beside = tuple(sorted({axis.size - count for axis, count in zip(axes, mine, strict=True)} - {0}))
    name = verbs.label_of(producers[0])
    reason = next((each for each in reasons if each.node), Reason(name, reasons[0].text) if reasons else None)
    return Group(name, classes, free, unit, producers, tuple(dict.fromkeys(readers)), tuple(uses), reason, beside)


def analyse(
    model: ir.Model,
    sample: Sample | None,
    *,
    view: View = inner,
    shapes: ShapesLike | None = None,
    flow: Flow | None = None,
    widths: bool = False,
) -> ChannelGraph:
    """The channel graph of a model.

    Args:
        model: The model, sorted; constants folded where they can be.
        sample: Feeds whose sizes stand for symbolic dimensions.
        view: Which of several ways to cut a head or a group is taken.
        shapes: Concrete shapes, where the caller has them already.
        flow: The walk over this very graph, where the caller has it already.
        widths: Whether norms and means over channels may lose some; see `ops.norms`.

    Raises:
        UnsupportedModel: where sizes are not known.
    """
    flow = trace(model, sample, shapes, widths=widths) if flow is None else flow
    return ChannelGraph(flow, settle(flow.atoms, view, atom_mass(flow)))

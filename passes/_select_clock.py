"""Does it pay that a branch reads a selection of channels? The branch timed alone, and the whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.errors import MeasureError
from onnxslim_core.graph import attribute, users_of
from onnxslim_core.measure.pieces import Table, settled
from onnxslim_core.measure.shapes import Shapes, concrete_shapes
from onnxslim_core.rewrite import Context, Edit, Timing

from ._affine import constant
from ._merge_probe import cut
from ._select import Place, Selection, places_of

__all__ = ["Clock"]

_PROBES = 5
"""Timings that are made at most of what the first ones do not decide."""


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
    _table: Table = field(init=False)

    def __post_init__(self) -> None:
        self._table = Table.of(self.context)

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

    def why_not(self, reference: ir.Model, candidate: ir.Model) -> str | None:
        """Why a whole model is not faster than another one; None where it is."""
        if self.context.latency is None:
            return "nothing is timed"
        try:
            return _said(settled(self.context.latency, reference, candidate, _PROBES))
        except MeasureError as err:
            return f"cannot be timed: {err}"

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

    def _why_not(self, selection: Selection) -> str | None:
        """Why the branch with the selection is not faster than the branch as it is; None where it is."""
        if self.context.latency is None:
            return "nothing is timed"
        assert self._shapes is not None  # the family has asked for them
        branch = _alone(selection.place, self._shapes)
        if branch is None:
            return "its sizes are not known, so it cannot be timed"

        def change(model: ir.Model) -> bool:
            (place,) = places_of(model)
            Selection(place, selection.kept).carry_out(Edit(verbs.Names(model)))
            return True

        found = self._table.against(branch, change, f"select {len(selection.kept)}", most=_PROBES)
        return "cannot be timed" if found is None else _said(found)


def _said(timing: Timing) -> str | None:
    spread = f"{timing.ratio:.2f} of the time ({timing.low:.2f} to {timing.high:.2f})"
    return None if timing.high < 1 else f"not measured faster: {spread}"


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

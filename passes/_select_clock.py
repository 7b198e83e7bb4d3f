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
from onnxslim_core.measure.shapes import Shapes, concrete_shapes
from onnxslim_core.rewrite import Context, Edit

from ._affine import constant
from ._merge_probe import cut
from ._select import Place, Selection, places_of

__all__ = ["Clock"]

_STUDENT = {3: 4.303, 4: 3.182, 5: 2.776}
"""Two-sided 95 % quantiles of Student's t for the mean of so many timings."""
_PROBES = max(_STUDENT)
_NOISE = 0.01
"""Ratios that agree by chance are not taken to be nearer to the truth than this."""


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

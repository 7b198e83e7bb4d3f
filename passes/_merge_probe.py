"""Does a merge pay? What it frees, and where that does not decide, a timing of the place cut out of its graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxslim_core.graph import attribute, opset_of
from onnxslim_core.measure.pieces import Table
from onnxslim_core.measure.shapes import Shapes, concrete_shapes
from onnxslim_core.rewrite import Context, Timing, weight_bytes

from ._affine import constant

__all__ = ["Probe", "cut", "freed_bytes"]

_SHARE = 0.004
"""Of the bytes of all weights: what merges that are measured faster may add together."""

_MOST = 12
"""Different places that are timed in one run: each takes seconds."""


def freed_bytes(nodes: Sequence[ir.Node]) -> int:
    """Bytes of the constants that nobody but these nodes reads."""
    inner = set(nodes)
    values = {value for node in nodes for value in node.inputs if value is not None and constant(value) is not None}
    total = 0
    for value in values:
        array = constant(value)
        if array is not None and not value.is_graph_output() and all(use.node in inner for use in value.uses()):
            total += array.nbytes
    return total


@dataclass(slots=True)
class Probe:
    """Times places of one model, equal ones once, and keeps count of what merges add.

    Attributes:
        model: Whose shapes at the sample's sizes are looked up when the first place is timed.
        context: Brings the sample and the clock.
        allowance: Bytes that merges may still add.
        asks: False where nothing is asked: every merge is taken to pay.
    """

    model: ir.Model
    context: Context
    allowance: float
    asks: bool = True
    _shapes: Shapes | None = None
    _table: Table = field(init=False)

    def __post_init__(self) -> None:
        self._table = Table.of(self.context)

    @classmethod
    def of(cls, model: ir.Model, context: Context) -> Probe:
        """For a run over a model."""
        return cls(model, context, _SHARE * weight_bytes(model))

    def time(self, nodes: Sequence[ir.Node], rewritten: Callable[[ir.Model], bool]) -> Timing | None:
        """The nodes alone against what becomes of them; None where that cannot be measured.

        Args:
            nodes: In the order of the data.
            rewritten: Rewrites a model of these nodes alone; False where it found nothing to do.
        """
        if self.context.latency is None:
            return None
        if self._shapes is None:
            self._shapes = concrete_shapes(self.model, self.context.samples[0] if self.context.samples else None)
        place = cut(nodes, self._shapes, self.model)
        fresh = self._table.timed < _MOST
        return None if place is None else self._table.against(place, rewritten, "merge", fresh=fresh)


def cut(nodes: Sequence[ir.Node], shapes: Shapes, model: ir.Model) -> ir.Model | None:
    """A model of these nodes alone, at concrete sizes; None where a size or type is not known.

    What they read becomes an input, constants stay constants, and what others read of them becomes an output.
    """
    inner = set(nodes)
    made: dict[ir.Value, ir.Value] = {}
    inputs: list[ir.Value] = []
    outputs: list[ir.Value] = []
    weights: list[ir.Value] = []
    copies: list[ir.Node] = []
    for node in nodes:
        for value in node.inputs:
            if value is None or value in made:
                continue
            array = constant(value)
            if array is not None:
                name = f"merge/w{len(weights)}"
                made[value] = ir.Value(name=name, const_value=ir.tensor(array, name=name))
                weights.append(made[value])
                continue
            dtype, sizes = shapes.dtype.get(value, value.dtype), shapes.shape.get(value)
            if dtype is None or sizes is None:
                return None
            made[value] = ir.Value(name=f"merge/x{len(inputs)}", shape=ir.Shape(sizes), type=ir.TensorType(dtype))
            inputs.append(made[value])
        for value in node.outputs:
            dtype = shapes.dtype.get(value, value.dtype)
            kind = None if dtype is None else ir.TensorType(dtype)
            sizes = shapes.shape.get(value)
            shape = None if sizes is None else ir.Shape(sizes)
            made[value] = ir.Value(name=f"merge/v{len(made)}" if value.name else "", shape=shape, type=kind)
            if value.is_graph_output() or any(use.node not in inner for use in value.uses()):
                outputs.append(made[value])
        read = [None if v is None else made[v] for v in node.inputs]
        plain = {name: attribute(node, name) for name in node.attributes}
        copies.append(ir.node(node.op_type, read, plain, outputs=[made[v] for v in node.outputs], domain=node.domain))
    if any(value.type is None for value in outputs):
        return None
    graph = ir.Graph(
        inputs, outputs, nodes=copies, initializers=weights, opset_imports={"": opset_of(model)}, name="place"
    )
    return ir.Model(graph, ir_version=min(model.ir_version, 10))

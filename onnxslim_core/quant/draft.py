"""One float model with what the samples say of it, from which any number of 8-bit variants are made."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.calibration.batches import samples_in
from onnxslim_core.quant.grid import Grid, grid_of
from onnxslim_core.quant.insert import Rounded, insert
from onnxslim_core.quant.layout import BETWEEN, Layout, activations, lay_out, linear_nodes
from onnxslim_core.quant.ranges import Spread, observe, range_of
from onnxslim_core.rewrite import Progress, Sample

__all__ = ["Draft"]


@dataclass(slots=True)
class Draft:
    """A float model and the ranges of its activations.

    Attributes:
        model: Opset 13 or newer; never changed by `variant`.
        linear: Linear nodes that can be int8, in order.
        spreads: What was seen.
        batch: Samples in the first batch.
        method: How a range is taken from it, see `ranges`.
        methods: Other ways for single values.
        percentile: For that method.
        weights: Weights that were rounded with care, by linear node.
    """

    model: ir.Model
    linear: list[ir.Node]
    spreads: Mapping[ir.Value, Spread]
    batch: int = 1
    method: str = "minmax"
    percentile: float = 99.99
    methods: dict[ir.Value, str] = field(default_factory=dict)
    weights: dict[ir.Node, Rounded] = field(default_factory=dict)
    _grids: dict[tuple[ir.Value, str], Grid] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: ir.Model,
        batches: Sequence[Sample],
        *,
        linear: Sequence[ir.Node] | None = None,
        histograms: bool = False,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> Draft:
        """Run the samples through the model once.

        Args:
            model: The float model.
            batches: Feeds to take ranges from.
            linear: Nodes to think of; all that can be int8 by default.
            histograms: Whether `method` will be anything but `minmax`.
            threads: For onnxruntime.
            progress: Told after every batch.

        Raises:
            MeasureError: if the model does not run.
        """
        nodes = linear_nodes(model) if linear is None else list(linear)
        wanted: dict[ir.Value, None] = {}
        for node in [node for node in model.graph if node in set(nodes) or verbs.is_op(node, *BETWEEN)]:
            for value in [*(node.inputs[i] for i in activations(node) if i < len(node.inputs)), node.outputs[0]]:
                if value is not None and value.name and verbs.array_of(value) is None and _flows(value):
                    wanted[value] = None
        spreads = observe(model, list(wanted), batches, histograms=histograms, threads=threads, progress=progress)
        return cls(model, nodes, spreads, samples_in(batches[0]))

    def layout(
        self, linear: Collection[ir.Node], left: Collection[ir.Node] = (), read: Collection[ir.Value] = ()
    ) -> Layout:
        """Where numbers have 8 bits once these linear nodes do; see `lay_out`."""
        return lay_out(self.model, linear, self.spreads, left, read)

    def variant(self, layout: Layout, weights: Mapping[ir.Node, Rounded] | None = None) -> ir.Model:
        """The model with a layout written into it.

        Args:
            layout: From `layout`.
            weights: Rounded with care; those of the draft by default.
        """
        return self.written(layout, self.weights if weights is None else weights)[0]

    def written(self, layout: Layout, weights: Mapping[ir.Node, Rounded]) -> tuple[ir.Model, dict[ir.Node, ir.Node]]:
        """As `variant`, with the copy of every node of the model."""
        grids = {layout.root(value): self.grid(layout.root(value)) for value in layout.rounded}
        clone = self.model.clone()
        nodes, values = _twins(self.model, clone)
        moved = Layout(
            frozenset(nodes[node] for node in layout.nodes),
            tuple(values[value] for value in layout.rounded),
            {values[a]: values[b] for a, b in layout.source.items()},
            frozenset(values[value] for value in layout.inside),
        )
        found = {values[value]: grid for value, grid in grids.items()}
        insert(clone, moved, found, {nodes[node]: weights[node] for node in weights if node in layout.nodes})
        return clone, nodes

    def grid(self, value: ir.Value) -> Grid:
        """The grid over what was seen of a value, or over a constant."""
        key = value, self.methods.get(value, self.method)
        if key not in self._grids:
            array = verbs.array_of(value)
            if array is not None:
                low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
            else:
                low, high = range_of(self.spreads[value], key[1], self.percentile)
            self._grids[key] = grid_of(low, high)
        return self._grids[key]


def _flows(value: ir.Value) -> bool:
    """False for what no tap can be set to: an initializer that may be fed, or a value of another graph."""
    return value.producer() is not None or (value.is_graph_input() and value.const_value is None)


def _twins(model: ir.Model, clone: ir.Model) -> tuple[dict[ir.Node, ir.Node], dict[ir.Value, ir.Value]]:
    """Every node and value of the main graph with its copy."""
    values = dict(zip(model.graph.inputs, clone.graph.inputs, strict=True))
    values |= {value: clone.graph.initializers[name] for name, value in model.graph.initializers.items()}
    nodes: dict[ir.Node, ir.Node] = {}
    for old, new in zip(model.graph, clone.graph, strict=True):
        nodes[old] = new
        values.update(zip(old.outputs, new.outputs, strict=True))
    return nodes, values

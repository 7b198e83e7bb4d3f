"""All consumers of removed channels mended anew, one after the other, each on what it really reads by then.

The input comes from the compressed network as it is so far, the target from the original one, so that every layer
also mends what happened before it. Where a layer is added into a stream, the target is the stream itself, less what
the compressed stream brings (He, Zhang, Sun, ICCV 2017, 3.3): the end of a block corrects the stream. A layer that is
called several times is solved once, on what all its calls read (`calibration.sharing`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onnxslim_core.calibration.consumers import (
    answer_of,
    blocks_of,
    constant_of,
    is_linear,
    put_weights,
    source_of,
    taps_of,
    target_of,
    weights_of,
)
from onnxslim_core.calibration.lockstep import Walk, passing
from onnxslim_core.calibration.moments import Moments, Sums
from onnxslim_core.calibration.rows import Positions, draw, input_rows, output_rows
from onnxslim_core.calibration.sharing import Layer, layers_of
from onnxslim_core.calibration.study import LARGEST
from onnxslim_core.repair.table import REPAIRS
from onnxslim_core.rewrite import Progress, Sample

__all__ = ["Refit"]

Rows = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class _Call:
    """One node to be mended, by itself or with others that share its weights.

    Attributes:
        node: In the model.
        target: In the reference: what it should answer for.
        streamed: Whether that is the sum which it is added into.
        rows: Per batch the sampled positions, the target there, and the shape of the whole.
    """

    node: ir.Node
    target: ir.Value
    streamed: bool
    rows: list[tuple[Positions, Rows, tuple[int, ...]]] = field(default_factory=list)


class Refit:
    """A sequential repair under way.

    Args:
        reference: The model as it was.
        model: The model with channels gone; changed in place.
        batches: Feeds.
        kept: By the name of a linear node, which of the reference's output channels are still there.
        nodes: Names of the nodes to be mended; those that share weights with another are mended with it, or not at all.
        per_sample: Positions drawn per sample and node.
        seed: Of the positions.
        threads: For onnxruntime and BLAS.
        repair: A row of `repair.table.REPAIRS`.
        ridge: Relative to the mean of a covariance's diagonal; None: as `Moments.ridge` says.
        targets: By the name of a sum or an answer in the model, the name of the value of the reference that it should
            be like; its own twin where none is given.
        stays: Asked about the first node of each layer once its moments are known: which of its inputs (d,) it may
            use; None: all.

    Attributes:
        layers: What will be mended.
        mended: What was.
    """

    def __init__(
        self,
        reference: ir.Model,
        model: ir.Model,
        batches: Sequence[Sample],
        kept: Mapping[str, NDArray[np.int64]],
        nodes: Sequence[str],
        *,
        per_sample: int = 24,
        seed: int = 0,
        threads: int = 1,
        repair: str = "least_squares",
        ridge: float | None = None,
        targets: Mapping[str, str] | None = None,
        stays: Callable[[ir.Node, Moments], NDArray[np.bool_] | None] | None = None,
    ) -> None:
        self._targets = targets or {}
        self.mended: list[Layer] = []
        self._stays = stays
        self._reference, self._model, self._batches = reference, model, batches
        self._kept, self._repair, self._ridge = kept, REPAIRS[repair], ridge
        self._walk = Walk(model, batches, threads)
        self._rng, self._per_sample, self._threads = np.random.default_rng(seed), per_sample, threads
        wanted = set(nodes)
        found = layers_of(node for node in model.graph if node.name in wanted and is_linear(node))
        self._open = self._calls(found)
        self.layers = list(self._open)
        self._layer = {node: layer for layer in self.layers for node in layer}

    def run(self, progress: Progress | None = None) -> int:
        """Mend every node; returns how many were."""
        for call in self._every():
            self._walk.reserve(self._needs(call))
        with threadpool_limits(self._threads):
            self._look(progress)
            for number, layer in enumerate(self.layers):
                self._solve(layer)
                if progress is not None:
                    progress("repair", number + 1, len(self.layers))
        return sum(len(layer) for layer in self.mended)

    def _every(self) -> list[_Call]:
        """The calls of all layers that are not mended yet."""
        return [call for calls in self._open.values() for call in calls]

    # ------------------------------------------------------------------ what each node should answer
    def _calls(self, layers: Sequence[Layer]) -> dict[Layer, list[_Call]]:
        """Layers with their targets in the reference; those without one, or with another width, are left alone."""
        values = {str(value.name): value for node in self._reference.graph for value in node.outputs}
        twins = {str(node.name): node for node in self._reference.graph if node.name}
        plain: dict[ir.Node, ir.Value] = {}
        summed: dict[ir.Node, ir.Value] = {}
        for layer in layers:
            for node in layer:
                twin = twins.get(str(node.name))
                found = self._named(values, answer_of(node)) or (None if twin is None else answer_of(twin))
                if found is None:
                    continue
                plain[node] = found
                total, other = target_of(node)
                whole = self._named(values, total) or (None if twin is None else target_of(twin)[0])
                if other is not None and whole is not None and whole is not found and not self._waits(other, layer):
                    summed[node] = whole
        shapes = self._shapes([*plain.values(), *summed.values()])
        calls: dict[ir.Node, _Call] = {}
        for node, value in plain.items():
            whole = summed.get(node)
            # a sum that is larger than the node's own answer is no stream
            streamed = whole is not None and shapes[whole] == shapes[value]
            if self._fits(node, shapes[value]):
                calls[node] = _Call(node, whole if streamed and whole is not None else value, streamed)
        return {layer: [calls[node] for node in layer] for layer in layers if all(node in calls for node in layer)}

    def _named(self, values: Mapping[str, ir.Value], like: ir.Value) -> ir.Value | None:
        """The value of the reference that one of the model should be like."""
        return values.get(self._targets.get(str(like.name), str(like.name)))

    def _waits(self, other: ir.Value, layer: Layer) -> bool:
        """Whether the other summand comes after a call of the layer."""
        return not set(layer).isdisjoint(self._walk.missing(other))

    def _shapes(self, values: Sequence[ir.Value]) -> dict[ir.Value, tuple[int, ...]]:
        """Shapes of values of the reference for the first batch."""
        for found in passing(self._reference, self._batches[:1], list(dict.fromkeys(values)), self._threads):
            return {value: array.shape for value, array in found.items()}
        return {}

    def _fits(self, node: ir.Node, shape: tuple[int, ...]) -> bool:
        """Whether weights and target are of one width, and the covariance of the input is no giant."""
        depth, n = weights_of(node).shape
        keep = self._kept.get(str(node.name))
        width = shape[_channels(node)]
        if keep is not None:
            return bool(depth <= LARGEST and len(keep) == n and int(keep.max(initial=-1)) < width)
        return bool(depth <= LARGEST and width == n)

    def _look(self, progress: Progress | None) -> None:
        """One pass of the samples through the reference."""
        calls = self._every()
        values = list(dict.fromkeys(call.target for call in calls))
        if not values:
            return
        for number, held in enumerate(passing(self._reference, self._batches, values, self._threads)):
            for call in calls:
                y = held[call.target]
                at = draw(call.node, y.shape, self._per_sample, self._rng)
                rows, keep = output_rows(call.node, y, at), self._kept.get(str(call.node.name))
                rows = np.ascontiguousarray(rows if keep is None else rows[:, keep])
                call.rows.append((at, rows, y.shape))
            if progress is not None:
                progress("targets", number + 1, len(self._batches))

    # ------------------------------------------------------------------ one layer after the other
    def _needs(self, call: _Call) -> list[ir.Value]:
        """Tensors of the model that the solution of a node asks for."""
        other = target_of(call.node)[1] if call.streamed else None
        return [source_of(call.node), *([] if other is None else [other])]

    def _solve(self, layer: Layer) -> None:
        if layer not in self._open or any(self._walk.has_run(node) for node in layer):
            return
        calls = self._open.pop(layer)
        needs = [value for call in calls for value in self._needs(call)]
        for value in needs:
            self._before(value)
        self._fit(layer, calls)
        self._walk.release(needs)

    def _before(self, value: ir.Value) -> None:
        """Mend all that stands before a value."""
        for node in self._walk.missing(value):
            if node in self._layer:
                self._solve(self._layer[node])

    def _fit(self, layer: Layer, calls: Sequence[_Call]) -> None:
        node, weights, taps = layer[0], weights_of(layer[0]), taps_of(layer[0])
        values = list(dict.fromkeys(value for call in calls for value in self._needs(call)))
        sums = Sums(taps)
        for number, arrays in enumerate(self._walk.each(values)):
            held = dict(zip(values, arrays, strict=True))
            for call in calls:
                x, *stream = (held[value] for value in self._needs(call))
                at, rows, shape = call.rows[number]
                if stream:
                    whole = list(shape)
                    whole[_channels(node)] = weights.shape[1]
                    rows = rows - output_rows(call.node, np.broadcast_to(stream[0], whole), at)
                sums.add(input_rows(call.node, x, at, shape[2:]), rows)
        moments = sums.moments().within(blocks_of(node, *weights.shape))
        stays = None if self._stays is None else self._stays(node, moments)
        if stays is None:
            weights, bias = self._repair(moments, weights, taps, self._ridge)
        else:
            mended, bias = self._repair(moments.only(stays), weights[stays], taps, self._ridge)
            weights = np.zeros_like(weights)
            weights[stays] = mended
        put_weights(self._model, node, weights, bias, layer[1:])
        self.mended.append(layer)


def _channels(node: ir.Node) -> int:
    """The axis of a linear node's answer with its output channels."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return 1
    return -2 if node.op_type == "MatMul" and constant_of(node) == 0 else -1

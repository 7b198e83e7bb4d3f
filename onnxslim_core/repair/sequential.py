"""All consumers of removed channels mended anew, one after the other, each on what it really reads by then.

The input comes from the compressed network as it is so far, the target from the original one, so that every layer
also mends what happened before it. Where a layer is added into a stream, the target is the stream itself, less what
the compressed stream brings (He, Zhang, Sun, ICCV 2017, 3.3): the end of a block corrects the stream.
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
from onnxslim_core.calibration.study import LARGEST
from onnxslim_core.repair.table import REPAIRS
from onnxslim_core.rewrite import Progress, Sample

__all__ = ["Refit"]

Rows = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class _Task:
    """One node to be mended.

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
        nodes: Names of the nodes to be mended.
        per_sample: Positions drawn per sample and node.
        seed: Of the positions.
        threads: For onnxruntime and BLAS.
        repair: A row of `repair.table.REPAIRS`.
        ridge: Relative to the mean of a covariance's diagonal; None: as `Moments.ridge` says.
        targets: By the name of a sum or an answer in the model, the name of the value of the reference that it should
            be like; its own twin where none is given.
        stays: Asked about each node once its moments are known: which of its inputs (d,) it may use; None: all.

    Attributes:
        mended: The nodes that were.
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
        self.mended: list[ir.Node] = []
        self._stays = stays
        self._reference, self._model, self._batches = reference, model, batches
        self._kept, self._repair, self._ridge = kept, REPAIRS[repair], ridge
        self._walk = Walk(model, batches, threads)
        self._rng, self._per_sample, self._threads = np.random.default_rng(seed), per_sample, threads
        wanted = set(nodes)
        self._todo = self._tasks([node for node in model.graph if node.name in wanted and is_linear(node)])
        self._open = {task.node: task for task in self._todo}

    def run(self, progress: Progress | None = None) -> int:
        """Mend every node; returns how many were."""
        for task in self._todo:
            self._walk.reserve(self._needs(task))
        with threadpool_limits(self._threads):
            self._look(progress)
            for number, task in enumerate(self._todo):
                self._solve(task)
                if progress is not None:
                    progress("repair", number + 1, len(self._todo))
        return len(self._todo) - len(self._open)

    # ------------------------------------------------------------------ what each node should answer
    def _tasks(self, nodes: Sequence[ir.Node]) -> list[_Task]:
        """Nodes with their targets in the reference; those without one, or with another width, are left alone."""
        values = {str(value.name): value for node in self._reference.graph for value in node.outputs}
        twins = {str(node.name): node for node in self._reference.graph if node.name}
        plain: dict[ir.Node, ir.Value] = {}
        summed: dict[ir.Node, ir.Value] = {}
        for node in nodes:
            twin = twins.get(str(node.name))
            found = self._named(values, answer_of(node)) or (None if twin is None else answer_of(twin))
            if found is None:
                continue
            plain[node] = found
            total, other = target_of(node)
            whole = self._named(values, total) or (None if twin is None else target_of(twin)[0])
            if other is not None and whole is not None and whole is not found and not self._waits(other, node):
                summed[node] = whole
        shapes = self._shapes([*plain.values(), *summed.values()])
        tasks = []
        for node, value in plain.items():
            whole = summed.get(node)
            # a sum that is larger than the node's own answer is no stream
            streamed = whole is not None and shapes[whole] == shapes[value]
            if self._fits(node, shapes[value]):
                target = whole if streamed and whole is not None else value
                tasks.append(_Task(node, target, streamed))
        return tasks

    def _named(self, values: Mapping[str, ir.Value], like: ir.Value) -> ir.Value | None:
        """The value of the reference that one of the model should be like."""
        return values.get(self._targets.get(str(like.name), str(like.name)))

    def _waits(self, other: ir.Value, node: ir.Node) -> bool:
        """Whether the other summand comes after the node."""
        return node in self._walk.missing(other)

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
        values = list(dict.fromkeys(task.target for task in self._todo))
        if not values:
            return
        for number, held in enumerate(passing(self._reference, self._batches, values, self._threads)):
            for task in self._todo:
                y = held[task.target]
                at = draw(task.node, y.shape, self._per_sample, self._rng)
                rows, keep = output_rows(task.node, y, at), self._kept.get(str(task.node.name))
                rows = np.ascontiguousarray(rows if keep is None else rows[:, keep])
                task.rows.append((at, rows, y.shape))
            if progress is not None:
                progress("targets", number + 1, len(self._batches))

    # ------------------------------------------------------------------ one node after the other
    def _needs(self, task: _Task) -> list[ir.Value]:
        """Tensors of the model that the solution of a node asks for."""
        other = target_of(task.node)[1] if task.streamed else None
        return [source_of(task.node), *([] if other is None else [other])]

    def _solve(self, task: _Task) -> None:
        if task.node not in self._open or self._walk.has_run(task.node):
            return
        del self._open[task.node]
        needs = self._needs(task)
        if task.streamed:
            self._before(needs[1])
        self._fit(task, self._needs(task))
        self._walk.release(needs)
        task.rows.clear()

    def _before(self, other: ir.Value) -> None:
        """Mend all that stands before the other summand."""
        for node in self._walk.missing(other):
            if node in self._open:
                self._solve(self._open[node])

    def _fit(self, task: _Task, values: Sequence[ir.Value]) -> None:
        node, weights, taps = task.node, weights_of(task.node), taps_of(task.node)
        sums = Sums(taps)
        for (at, target, shape), (x, *stream) in zip(task.rows, self._walk.each(values), strict=True):
            rows = target
            if stream:
                whole = list(shape)
                whole[_channels(node)] = weights.shape[1]
                rows = target - output_rows(node, np.broadcast_to(stream[0], whole), at)
            sums.add(input_rows(node, x, at, shape[2:]), rows)
        moments = sums.moments().within(blocks_of(node, *weights.shape))
        stays = None if self._stays is None else self._stays(node, moments)
        if stays is None:
            put_weights(self._model, node, *self._repair(moments, weights, taps, self._ridge))
        else:
            full = np.zeros_like(weights)
            full[stays], bias = self._repair(moments.only(stays), weights[stays], taps, self._ridge)
            put_weights(self._model, node, full, bias)
        self.mended.append(node)


def _channels(node: ir.Node) -> int:
    """The axis of a linear node's answer with its output channels."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return 1
    return -2 if node.op_type == "MatMul" and constant_of(node) == 0 else -1

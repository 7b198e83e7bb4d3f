"""All consumers of removed channels solved anew, one after the other, each on what it really reads by then.

The input comes from the compressed network as it is so far, the target from the original one, so that every layer
also mends what happened before it. Where a layer is added into a stream, the target is the stream itself, less what
the compressed stream brings (He, Zhang, Sun, ICCV 2017, 3.3): the end of a block corrects the stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onnxslim_core import graph as verbs
from onnxslim_core.calibration.consumers import is_linear, put_weights, target_of, weights_of
from onnxslim_core.calibration.lockstep import Walk
from onnxslim_core.calibration.moments import Sums
from onnxslim_core.calibration.rows import draw, input_rows, output_rows
from onnxslim_core.calibration.study import LARGEST
from onnxslim_core.repair.least_squares import solve
from onnxslim_core.rewrite import Progress, Sample

__all__ = ["Refit"]


class Refit:
    """A sequential repair under way.

    Args:
        reference: The model as it was.
        model: The model with channels gone; changed in place.
        batches: Feeds.
        kept: By the name of a linear node, which of the reference's output channels are still there.
        nodes: Names of the nodes to be solved for.
        per_sample: Positions drawn per sample and node.
        seed: Of the positions.
        threads: For onnxruntime and BLAS.
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
    ) -> None:
        self._model = model
        self._before = Walk(reference, batches, threads)
        self._after = Walk(model, batches, threads)
        self._twins = {str(node.name): node for node in reference.graph}
        self._kept = kept
        self._todo = [node for node in model.graph if node.name in set(nodes) and is_linear(node)]
        self._open = set(self._todo)
        self._rng = np.random.default_rng(seed)
        self._per_sample = per_sample
        self._threads = threads

    def run(self, progress: Progress | None = None) -> int:
        """Solve for every node; returns how many were."""
        count, total = 0, len(self._todo)
        for node in self._todo:
            before, after = self._needs(node)
            self._before.reserve(before)
            self._after.reserve(after)
        with threadpool_limits(self._threads):
            for node in self._todo:
                self._solve(node)
                count += 1
                if progress is not None:
                    progress("repair", count, total)
        return count

    def _needs(self, node: ir.Node) -> tuple[list[ir.Value], list[ir.Value]]:
        """Tensors of the reference and of the model that the solution of a node may ask for."""
        twin, other = self._twins.get(str(node.name)), target_of(node)[1]
        before = [] if twin is None else [twin.outputs[0], target_of(twin)[0]]
        return before, [v for v in (node.inputs[0], other) if v is not None]

    def _solve(self, node: ir.Node) -> None:
        if node not in self._open or self._after.has_run(node):
            return
        self._open.discard(node)
        before, after = self._needs(node)
        self._fit(node)
        self._before.release(before)
        self._after.release(after)

    def _fit(self, node: ir.Node) -> None:
        weights = weights_of(node)
        twin = self._twins.get(str(node.name))
        if twin is None or len(weights) > LARGEST:
            return
        target, stream = target_of(twin)
        other = self._other(node) if stream is not None else None
        inputs = self._after.value(node.inputs[0])  # type: ignore[arg-type]
        answers = self._before.value(target if other is not None else twin.outputs[0])
        streams = self._after.value(other) if other is not None else None
        keep = self._kept.get(str(node.name))
        sums = Sums()
        for number, (x, y) in enumerate(zip(inputs, answers, strict=True)):
            at = draw(node, y.shape, self._per_sample, self._rng)
            rows = output_rows(node, y, at)
            rows = rows if keep is None else rows[:, keep]
            if streams is not None:
                rows = rows - output_rows(node, streams[number], at)
            sums.add(input_rows(node, x, at, y.shape[2:]), rows)
        put_weights(self._model, node, *solve(sums.moments(), weights))

    def _other(self, node: ir.Node) -> ir.Value | None:
        """The other summand, once all that is still to be solved before it is; None where it waits for this node."""
        _, other = target_of(node)
        if other is None:
            return None
        before = self._after.missing(other)
        if node in before:
            return None
        for each in before:
            if each in self._open:
                self._solve(each)
        return other if verbs.users_of(other)[0] else None

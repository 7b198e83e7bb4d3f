"""One pass of the samples through the original: the moments of every linear node that sums over channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from onnxslim_core.calibration.consumers import Consumer, target_of
from onnxslim_core.calibration.lockstep import Walk
from onnxslim_core.calibration.moments import Moments, Sums
from onnxslim_core.calibration.rows import draw, input_rows, output_rows
from onnxslim_core.rewrite import Progress, Sample

__all__ = ["LARGEST", "study"]

LARGEST = 6144
"""Inputs of more weights per output than this are not studied: their covariance alone would take a third of a GB."""


def study(
    model: ir.Model,
    batches: Sequence[Sample],
    consumers: Mapping[ir.Node, Consumer],
    *,
    per_sample: int = 24,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[ir.Node, Moments]:
    """Moments of the input of every consumer, and the variance of what it answers for.

    Args:
        model: The model as it is.
        batches: Feeds.
        consumers: By node, in the order of the graph.
        per_sample: Positions drawn per sample and node.
        seed: Of the positions.
        threads: For onnxruntime and BLAS.
        progress: Told after every node.
    """
    walk, rng = Walk(model, batches, threads), np.random.default_rng(seed)
    found: dict[ir.Node, Moments] = {}
    wanted = [node for node, each in consumers.items() if len(each.classes) * each.taps <= LARGEST]
    with threadpool_limits(threads):
        for node in wanted:
            walk.reserve(_pair(node))
        for number, node in enumerate(wanted):
            source, target = _pair(node)
            sums = Sums()
            for x, y in zip(walk.value(source), walk.value(target), strict=True):
                at = draw(node, y.shape, per_sample, rng)
                sums.add(input_rows(node, x, at, y.shape[2:]), output_rows(node, y, at))
            found[node] = sums.moments()
            walk.release((source, target))
            if progress is not None:
                progress("moments", number + 1, len(wanted))
    return found


def _pair(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """What a consumer reads, and what it answers for."""
    source = node.inputs[0]
    assert source is not None
    return source, target_of(node)[0]

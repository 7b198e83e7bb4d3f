"""One pass of the samples through the original: the moments of every linear node that sums over channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from onnxslim_core.calibration.consumers import Consumer, bias_of, blocks_of, source_of, target_of, weights_of
from onnxslim_core.calibration.lockstep import passing
from onnxslim_core.calibration.moments import Moments, Sums, answered
from onnxslim_core.calibration.rows import draw, input_rows, output_rows, output_shape
from onnxslim_core.calibration.sharing import layers_of
from onnxslim_core.graph import label_of
from onnxslim_core.rewrite import Progress, Sample

__all__ = ["LARGEST", "study", "too_large"]

LARGEST = 6144
"""Inputs of more weights per output than this are not studied: their covariance alone would take a third of a GB."""


def too_large(consumer: Consumer) -> str | None:
    """Why a consumer is not studied; None where it is."""
    depth = len(consumer.classes) * consumer.taps
    if depth <= LARGEST:
        return None
    return f"{label_of(consumer.node)} reads it and has {depth} inputs per output, more than the {LARGEST} solved for"


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

    What a consumer answers follows from its input, so only the streams that it is added into are looked at. Calls of
    one layer (`sharing`) have their rows in common, since they will get weights in common.

    Args:
        model: The model as it is.
        batches: Feeds.
        consumers: By node, in the order of the graph.
        per_sample: Positions drawn per sample and node.
        seed: Of the positions.
        threads: For onnxruntime and BLAS.
        progress: Told after every batch.
    """
    rng = np.random.default_rng(seed)
    known = {n: c for n, c in consumers.items() if too_large(c) is None}
    sums = {n: Sums(c.taps) for n, c in known.items()}
    for layer in layers_of(known):
        sums.update(dict.fromkeys(layer, sums[layer[0]]))
    parts = {n: _Part(c, sums[n]) for n, c in known.items()}
    wanted = dict.fromkeys(value for part in parts.values() for value in part.values)
    with threadpool_limits(threads):
        for number, held in enumerate(passing(model, batches, list(wanted), threads)):
            for part in parts.values():
                part.add(held, per_sample, rng)
            if progress is not None:
                progress("moments", number + 1, len(batches))
        return {node: part.moments() for node, part in parts.items()}


class _Part:
    """One consumer under study."""

    def __init__(self, consumer: Consumer, sums: Sums) -> None:
        self._node, self._source = consumer.node, source_of(consumer.node)
        target, stream = target_of(consumer.node)
        self._target = None if stream is None else target
        self._weights = weights_of(consumer.node)
        self._sums = sums
        self._stream = np.zeros((3, self._weights.shape[1]))

    @property
    def values(self) -> tuple[ir.Value, ...]:
        """The tensors that are looked at."""
        return (self._source,) if self._target is None else (self._source, self._target)

    def add(self, held: Mapping[ir.Value, np.ndarray], per_sample: int, rng: np.random.Generator) -> None:
        """One batch."""
        x = held[self._source]
        shape = output_shape(self._node, x.shape, self._weights.shape[1])
        at = draw(self._node, shape, per_sample, rng)
        self._sums.add(input_rows(self._node, x, at, shape[2:]))
        if self._target is not None and held[self._target].shape == shape:
            y = np.asarray(output_rows(self._node, held[self._target], at), np.float64)
            self._stream += (np.full(y.shape[1], len(y)), y.sum(axis=0), np.square(y).sum(axis=0))

    def moments(self) -> Moments:
        """What was seen, with the target that the node answers."""
        depth, n = self._weights.shape
        seen = self._sums.moments().within(blocks_of(self._node, depth, n))
        found = answered(seen, self._weights, bias_of(self._node, n))
        count, total, square = self._stream
        if not count.all():
            return found
        return replace(found, v=np.maximum(square / count - np.square(total / count), 0.0))

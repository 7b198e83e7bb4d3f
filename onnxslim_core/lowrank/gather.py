"""What the samples say of the inputs of some layers, in as few passes of them as memory allows.

Of every layer that is covariance and mean of its unfolded input (`Moments` of the calibration without the target), or
for inputs so long that their covariance would not fit, the covariance of the answers; and some rows held out. Every
fourth sample is held out whole, so that an error measured on it is one on other data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onnxslim_core.calibration.consumers import source_of
from onnxslim_core.calibration.lockstep import passing
from onnxslim_core.calibration.moments import Moments
from onnxslim_core.calibration.rows import Positions, draw, input_rows, output_shape
from onnxslim_core.calibration.study import LARGEST
from onnxslim_core.rewrite import Progress, Sample

__all__ = ["Seen", "gather"]

Floats = NDArray[np.float64]

_EVERY = 4
"""One sample in so many is held out."""
_HELD = 1024
"""Rows held out, at most."""
_PER_DEPTH = 20
"""Rows per input of the sum, where they are cheap."""
_ROWS = 1 << 14
"""And never fewer than so many, where there are as many: short inputs are cheap."""
_PRODUCTS = 2e11
"""Multiply-adds for one covariance, at most; but never less than two rows per input."""
_BYTES = 1 << 30
"""Of the covariances that are held at a time."""
_CHUNK = 1 << 24
"""Elements of the rows that are unfolded at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Statistics of the input of one layer.

    Attributes:
        rows: How many positions were seen.
        mean: (d,)
        gram: Covariance, d x d; None for long inputs.
        answers: Covariance of what the weights make of it, n x n; None where there is `gram`.
        trace: Of the covariance.
        held: Rows of other samples, float32; None where there are none.
    """

    rows: int
    mean: Floats
    gram: Floats | None
    answers: Floats | None
    trace: float
    held: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, moments: Moments) -> Seen:
        """The moments of a study."""
        return cls(moments.rows, moments.mean_x, moments.h, None, float(np.trace(moments.h)))

    @property
    def penalty(self) -> float:
        """For `whiten`: a tenth of the covariance's mean diagonal where rows are as few as inputs, less with more."""
        relative = min(max(0.1 * len(self.mean) / self.rows, 1e-4), 0.1)
        return relative * self.trace / len(self.mean)

    def variance(self, weight: Floats) -> float:
        """Of the answers of weights (d, n), summed over outputs."""
        if self.gram is None:
            return float(np.trace(self.answers)) if self.answers is not None else 0.0
        return float(np.sum(weight * (self.gram @ weight)))


def gather(
    model: ir.Model,
    batches: Sequence[Sample],
    weights: Mapping[ir.Node, NDArray[np.generic]],
    *,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> Iterator[tuple[ir.Node, Seen]]:
    """Statistics of some layers, in the order of the graph; those without anything to be seen are passed over.

    The samples run through the model once for every GB of covariances, and one batch at a time.

    Args:
        model: The model as it is; it is not changed.
        batches: Feeds, see `batches.stacked`.
        weights: d x n by node, each linear as of `consumers.is_linear` and without groups.
        seed: Of the positions.
        threads: For onnxruntime and BLAS.
        progress: Told after every batch.
    """
    rng = np.random.default_rng(seed)
    for group in _groups([node for node in model.graph if node in weights], weights):
        parts = {node: _Sums(node, weights[node]) for node in group}
        values = list(dict.fromkeys(source_of(node) for node in group))
        with threadpool_limits(threads):
            for number, held in enumerate(passing(model, batches, values, threads)):
                for node, part in parts.items():
                    part.see(held[source_of(node)], len(batches), rng)
                if progress is not None:
                    progress("moments", number + 1, len(batches))
            for node in group:
                if (seen := parts.pop(node).seen()) is not None:
                    yield node, seen


def _groups(nodes: Sequence[ir.Node], weights: Mapping[ir.Node, NDArray[np.generic]]) -> Iterator[list[ir.Node]]:
    """Layers whose statistics fit into memory together."""
    group, spent = list[ir.Node](), 0
    for node in nodes:
        size = 8 * _side(weights[node]) ** 2
        if group and spent + size > _BYTES:
            yield group
            group, spent = [], 0
        group.append(node)
        spent += size
    if group:
        yield group


def _side(weight: NDArray[np.generic]) -> int:
    """Of the covariance that is taken: the inputs', or the answers' where there are too many inputs."""
    depth, outputs = weight.shape
    return int(outputs if depth > LARGEST else depth)


class _Sums:
    """Statistics under way."""

    def __init__(self, node: ir.Node, weight: NDArray[np.generic]) -> None:
        self._node = node
        self._depth, self._outputs = weight.shape
        self._weight = weight.astype(np.float32) if self._depth > LARGEST else None
        self._rows, self._samples, self._squares = 0, 0, 0.0
        self._mean, self._answer = np.zeros(self._depth), np.zeros(_side(weight))
        self._products = np.zeros((_side(weight), _side(weight)))
        self._held: list[NDArray[np.float32]] = []

    def see(self, x: NDArray[np.generic], batches: int, rng: np.random.Generator) -> None:
        """Add one batch of the node's input, out of so many."""
        shape = output_shape(self._node, x.shape, self._outputs)
        wanted = min(max(_PER_DEPTH * self._depth, _ROWS), max(int(_PRODUCTS / self._depth**2), 2 * self._depth))
        samples = int(draw(self._node, shape, 1, rng).sample[-1]) + 1
        at = draw(self._node, shape, max(-(-wanted // max(batches * samples, 1)), 8), rng)
        chosen = at.place[: len(at.place) // samples]  # the same in every sample
        held = (np.arange(samples) + self._samples) % _EVERY == _EVERY - 1
        self._samples += samples
        keep = max(_HELD * _EVERY // max(batches * samples, 1), 1)
        step = max(_CHUNK // max(samples * self._depth, 1), 1)
        for start in range(0, len(chosen), step):
            some = Positions.of_all(samples, chosen[start : start + step])
            rows = input_rows(self._node, x, some, shape[2:]).reshape(samples, -1, self._depth)
            self._add(rows[~held].reshape(-1, self._depth))
            if start < keep and held.any():
                self._held.append(rows[held, : keep - start].reshape(-1, self._depth))

    def _add(self, x: NDArray[np.float32]) -> None:
        self._rows += len(x)
        self._mean += np.sum(x, axis=0, dtype=np.float64)
        self._squares += float(np.sum(np.square(x, dtype=np.float64)))
        part = x if self._weight is None else x @ self._weight
        self._products += part.T @ part
        self._answer += np.sum(part, axis=0, dtype=np.float64)

    def seen(self) -> Seen | None:
        """What was added; None where that is next to nothing or not finite."""
        if self._rows < 2:
            return None
        mean, answer = self._mean / self._rows, self._answer / self._rows
        products = self._products / self._rows - np.outer(answer, answer)
        products = (products + products.T) / 2
        trace = self._squares / self._rows - float(mean @ mean)
        if not np.isfinite(products).all() or not np.isfinite(trace) or trace <= 0:
            return None
        held = np.concatenate(self._held) if self._held else None
        if self._weight is None:
            return Seen(self._rows, mean, products, None, trace, held)
        return Seen(self._rows, mean, None, products, trace, held)

"""What values an activation takes, from one pass over the samples, and the range that a grid should span.

    minmax      all that was seen
    percentile  but for the outermost share of the values on either side
    mse         the range with the least squared error of rounding and clipping together
    entropy     the range whose histogram, rounded to 128 steps, is the least surprising (Kullback-Leibler; Migacz,
                "8-bit inference with TensorRT", GTC 2017)

Histograms have bins of a width that is a power of two, around zero; where a larger value comes the bins are merged in
pairs, so that nothing has to be known ahead and the samples are read once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from onnxslim_core.measure.session import open_session, run_only
from onnxslim_core.model import wrap
from onnxslim_core.rewrite import Progress, Sample

__all__ = ["METHODS", "Spread", "observe", "range_of"]

Floats = NDArray[np.float64]

METHODS = ("minmax", "percentile", "mse", "entropy")
_HALF = 2048
"""Bins on either side of zero."""
_MOST = 1 << 16
"""Elements per sample and tensor that go into a histogram; the extremes are taken of all."""
_STEPS = 128
_AT_ONCE = 1 << 28
"""Bytes of activations asked of onnxruntime in one call."""


@dataclass(slots=True)
class Spread:
    """What was seen of one tensor.

    Attributes:
        low: The smallest value.
        high: The largest.
        lows: The smallest per channel (axis 1; the last axis below rank 3), or empty where that axis changed its size.
        highs: The largest per channel.
        sums: Of all values, per channel.
        rows: Values per channel that went into `sums`.
        rank: Of the tensor.
        shape: Of the tensor in the first batch.
        is_float: Whether it is float32.
        bins: Counts around zero, (2 * 2048,).
        width: Of a bin.
    """

    low: float = np.inf
    high: float = -np.inf
    lows: Floats = field(default_factory=lambda: np.zeros(0))
    highs: Floats = field(default_factory=lambda: np.zeros(0))
    sums: Floats = field(default_factory=lambda: np.zeros(0))
    rows: int = 0
    rank: int = -1
    shape: tuple[int, ...] = ()
    is_float: bool = True
    bins: Floats = field(default_factory=lambda: np.zeros(2 * _HALF))
    width: float = 0.0

    @property
    def means(self) -> Floats:
        """Mean per channel."""
        return self.sums / max(self.rows, 1)

    def add(self, array: NDArray[np.generic], histogram: bool) -> None:
        """Take in one batch of the tensor."""
        self.is_float &= array.dtype == np.float32
        self.shape = self.shape or array.shape
        self.rank = array.ndim if self.rank in (-1, array.ndim) else 0
        if not self.is_float or not array.size:
            return
        self._add_channels(array)
        self.low = min(self.low, float(array.min()))
        self.high = max(self.high, float(array.max()))
        if histogram and np.isfinite(self.low) and np.isfinite(self.high):
            self._count(array.reshape(-1))

    def _add_channels(self, array: NDArray[np.generic]) -> None:
        axis = 1 if array.ndim >= 3 else array.ndim - 1
        if array.ndim < 2 or (self.rows and self.lows.shape != (array.shape[axis],)):
            self.lows = self.highs = self.sums = np.zeros(0)
            return
        others = tuple(i for i in range(array.ndim) if i != axis)
        lows, highs = array.min(axis=others).astype(np.float64), array.max(axis=others).astype(np.float64)
        sums = array.sum(axis=others, dtype=np.float64)
        first = not self.rows
        self.lows = lows if first else np.minimum(self.lows, lows)
        self.highs = highs if first else np.maximum(self.highs, highs)
        self.sums = sums if first else self.sums + sums
        self.rows += array.size // array.shape[axis]

    def _count(self, flat: NDArray[np.generic]) -> None:
        largest = max(abs(self.low), abs(self.high))
        if not largest:
            return
        needed = 2.0 ** (np.floor(np.log2(largest / _HALF)) + 1)
        if not self.width:
            self.width = needed
        while self.width < needed:
            self.bins = _merged(self.bins)
            self.width *= 2
        step = max(len(flat) // _MOST, 1) | 1  # odd, so that it does not stay on one column of an image
        index = np.floor(np.asarray(flat[::step], np.float64) / self.width).astype(np.int64) + _HALF
        self.bins += np.bincount(np.clip(index, 0, 2 * _HALF - 1), minlength=2 * _HALF)


def _merged(bins: Floats) -> Floats:
    """The same counts in bins of twice the width."""
    pairs = bins.reshape(-1, 2).sum(axis=1)
    return np.concatenate([np.zeros(_HALF // 2), pairs, np.zeros(_HALF // 2)])


def observe(
    model: ir.Model,
    values: Sequence[ir.Value],
    batches: Sequence[Sample],
    *,
    histograms: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[ir.Value, Spread]:
    """Run the samples once and take in what each value is.

    Args:
        model: The float model.
        values: Of its main graph: inputs and results of nodes.
        batches: Feeds.
        histograms: Whether `range_of` will be asked for more than `minmax`.
        threads: For onnxruntime.
        progress: Told after every batch.

    Raises:
        MeasureError: if the model does not run.
    """
    found = {value: Spread() for value in values}
    fed = [value for value in values if value.producer() is None]
    made = [value for value in values if value.producer() is not None]
    tapped = model.clone()
    twins = {str(v.name): v for node in tapped.graph for v in node.outputs if v.name and not v.is_graph_output()}
    tapped.graph.outputs.extend(twins[str(value.name)] for value in made if str(value.name) in twins)
    session = open_session(wrap(tapped), threads=threads)
    group = [made]
    for number, batch in enumerate(batches):
        for value in fed:
            if value.name in batch:
                found[value].add(np.asarray(batch[str(value.name)]), histograms)
        seen = 0
        for part in group:
            for value, array in zip(part, _ask(session, batch, part), strict=True):
                found[value].add(array, histograms)
                seen += array.nbytes
        if number == 0 and seen > _AT_ONCE:
            count = -(-seen // _AT_ONCE)
            group = [list(made[start::count]) for start in range(count)]
        if progress is not None:
            progress("ranges", number + 1, len(batches))
    return found


def _ask(session: ort.InferenceSession, batch: Sample, values: Sequence[ir.Value]) -> list[NDArray[np.generic]]:
    answers: Mapping[str, NDArray[np.generic]] = run_only(session, batch, [str(v.name) for v in values])
    return [np.asarray(answers[str(value.name)]) for value in values]


def range_of(spread: Spread, method: str, percentile: float = 99.99) -> tuple[float, float]:
    """The range that a grid should span.

    Args:
        spread: What was seen, with a histogram unless the method is `minmax`.
        method: One of `METHODS`.
        percentile: Share of the values, in per cent, that stays inside, for `percentile`.
    """
    low, high = min(spread.low, 0.0), max(spread.high, 0.0)
    if method == "minmax" or not spread.bins.any() or high == low:
        return low, high
    found = {"percentile": _percentile, "mse": _least_error, "entropy": _least_surprise}[method]
    inner = found(spread, percentile)
    return max(low, min(inner[0], 0.0)), min(high, max(inner[1], 0.0))


def _edges(spread: Spread) -> tuple[Floats, Floats]:
    """Lower edges and centres of the bins."""
    lower: Floats = (np.arange(2 * _HALF, dtype=np.float64) - _HALF) * spread.width
    return lower, lower + spread.width / 2


def _percentile(spread: Spread, percentile: float) -> tuple[float, float]:
    lower = _edges(spread)[0]
    share = np.cumsum(spread.bins) / spread.bins.sum()
    outside = (1 - percentile / 100) / 2
    first = int(np.searchsorted(share, outside, side="right"))
    last = int(np.searchsorted(share, 1 - outside))
    return float(lower[first]), float(lower[min(last, len(lower) - 1)] + spread.width)


def _least_error(spread: Spread, _: float) -> tuple[float, float]:
    """Both ends drawn in by turns, over a grid of shares of what was seen."""
    centres = _edges(spread)[1]
    shares = [1 - step / 50 for step in range(41)]
    low, high = float(min(spread.low, 0.0)), float(max(spread.high, 0.0))
    best: float = _rounding_error(spread.bins, centres, low, high)
    for _again in range(2):
        for low_end in (False, True):
            full = min(spread.low, 0.0) if low_end else max(spread.high, 0.0)
            for share in shares[1:]:
                end = full * float(share)
                tried = (end, high) if low_end else (low, end)
                error = _rounding_error(spread.bins, centres, *tried)
                if error < best:
                    best, low, high = error, *tried
    return low, high


def _rounding_error(bins: Floats, centres: Floats, low: float, high: float) -> float:
    """Clipped values by their distance, the others by the variance of rounding, scale^2 / 12."""
    if high <= low:
        return float("inf")
    outside = np.maximum(np.maximum(low - centres, centres - high), 0.0)
    scale = (high - low) / 255
    return float(bins @ np.where(outside > 0, np.square(outside), scale * scale / 12))


def _least_surprise(spread: Spread, _: float) -> tuple[float, float]:
    """The clipping with the least Kullback-Leibler divergence between what was seen and its rounded form."""
    best, chosen = float("inf"), (spread.low, spread.high)
    counts, one_sided = spread.bins.copy(), spread.low >= 0
    if one_sided:  # zeros of a Relu are exact on any grid, and would be all that counts
        counts[_HALF] = counts[_HALF + 1]
    for reach in range(_STEPS, _HALF + 1, 32):
        part = slice(_HALF if one_sided else _HALF - reach, _HALF + reach)
        inside = counts[part]
        if not inside.any():
            continue
        p = inside.copy()
        p[-1] += counts[part.stop :].sum()
        p[0] += counts[: part.start].sum()
        groups = np.array_split(np.arange(len(inside)), _STEPS)
        q = np.zeros_like(p)
        for group in groups:
            used = inside[group] > 0
            if used.any():
                q[group] = np.where(used, inside[group].sum() / used.sum(), 0.0)
        if not q.any():
            continue
        p, q = p / p.sum(), q / q.sum()
        both = p > 0
        with np.errstate(divide="ignore"):
            surprise = float(np.sum(p[both] * np.log(p[both] / np.maximum(q[both], 1e-12))))
        if surprise < best:
            reached = reach * spread.width
            best, chosen = surprise, (0.0 if one_sided else -reached, reached)
    return chosen

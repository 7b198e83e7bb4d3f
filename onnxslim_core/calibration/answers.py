"""How much of the answers is lost: squared error over the variance of the answers themselves, part by part.

Columns of one output that differ by orders of magnitude (boxes in pixels beside scores) are weighed each by its own
variance, else the large ones would hide what becomes of the small ones. An answer of a single sample has no variance
over samples; its squares around zero stand for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core.measure.session import open_session, run
from onnxslim_core.model import wrap
from onnxslim_core.rewrite import Sample

__all__ = ["Answers", "answers_of"]

Floats = NDArray[np.float64]

_UNLIKE = 100.0
"""Columns whose variances differ by more than this factor are judged apart."""
_MOST_COLUMNS = 512


def answers_of(model: ir.Model, batches: Sequence[Sample], threads: int = 1) -> list[dict[str, object]]:
    """What a model says to some batches, by name of the output."""
    session = open_session(wrap(model), threads=threads)
    return [run(session, batch) for batch in batches]


class Answers:
    """What the original says to some batches.

    Args:
        found: Outputs by name, per batch; only arrays of floats are looked at.
    """

    def __init__(self, found: Sequence[Mapping[str, object]]) -> None:
        self._before = [_floats(each) for each in found]
        self._weight = {name: _weight([each[name] for each in self._before]) for name in self._before[0]}

    def __bool__(self) -> bool:
        return bool(self._weight)

    def lost(self, found: Sequence[Mapping[str, object]]) -> float:
        """Squared error over variance, mean over the outputs; 0 is equal, about 1 is as good as a constant."""
        total = dict.fromkeys(self._weight, 0.0)
        for before, after in zip(self._before, found, strict=True):
            for name, answer in before.items():
                other = after.get(name)
                if not isinstance(other, np.ndarray) or other.shape != answer.shape:
                    total[name] = np.inf
                    continue
                error = np.square(other.astype(np.float64) - answer) * self._weight[name]
                total[name] += float(error.sum())
        return float(np.mean(list(total.values()))) if total else 0.0


def _floats(answers: Mapping[str, object]) -> dict[str, NDArray[np.floating]]:
    return {k: v for k, v in answers.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f" and v.size}


def _weight(answers: Sequence[NDArray[np.floating]]) -> Floats:
    """What a squared error is multiplied by, in a shape that broadcasts against an answer."""
    if len({answer.shape[1:] for answer in answers}) > 1 or answers[0].ndim == 0:
        return np.asarray(1.0 / max(sum(float(np.square(a, dtype=np.float64).sum()) for a in answers), 1e-12))
    together = np.concatenate(answers).astype(np.float64)
    squares = np.square(together - together.mean(axis=0) if len(together) > 1 else together)
    axis = _columns(squares)
    if axis is None:
        return np.asarray(1.0 / max(float(squares.sum()), 1e-12))
    others = tuple(each for each in range(squares.ndim) if each != axis)
    spread = squares.sum(axis=others, keepdims=True)
    # a column that never moves must not count for more than all others together
    spread = np.maximum(spread, 1e-9 * float(spread.max()))
    return np.asarray(1.0 / (spread * squares.shape[axis]))


def _columns(squares: Floats) -> int | None:
    """The axis whose columns are least alike, if they are unlike enough to be judged apart."""
    best, axis = _UNLIKE, None
    for each in range(1, squares.ndim):
        if not 1 < squares.shape[each] <= _MOST_COLUMNS or squares.ndim < 3:
            continue
        spread = squares.mean(axis=tuple(i for i in range(squares.ndim) if i != each))
        alive = spread[spread > 1e-9 * spread.max()]
        ratio = float(alive.max() / alive.min()) if len(alive) > 1 else 1.0
        if ratio > best:
            best, axis = ratio, each
    return axis

"""How much of the answers is lost: squared error over the variance of the answers themselves, part by part.

Columns of one output that mean different things (boxes in pixels beside scores) are declared by the user or told apart
by their size, and each part is weighed by its own variance, else the large ones would hide what becomes of the small
ones. An answer of one sample has no variance over samples; its squares around zero stand for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core.measure.scores import Parts, columns_of
from onnxslim_core.measure.session import open_session, run
from onnxslim_core.model import wrap
from onnxslim_core.rewrite import Sample

__all__ = ["Answers", "answers_of", "told_apart"]

Floats = NDArray[np.float64]

_UNLIKE = 30.0
"""What every column of one part is larger than all of the other. Boxes beside scores: 16,000; rows of a saliency map,
pitches, classes, offsets, over thirty outputs of other kinds: at most 7."""
_MOST_COLUMNS = 512
_STILL = 1e-10, 1e-14
"""Answers that move less, in squares, than these shares of their own size and of the whole output's are taken to move
so much: else the rounding of what is always the same would be all that counts."""


def answers_of(model: ir.Model, batches: Sequence[Sample], threads: int = 1) -> list[dict[str, object]]:
    """What a model says to some batches, by name of the output."""
    session = open_session(wrap(model), threads=threads)
    return [run(session, batch) for batch in batches]


class Answers:
    """What the original says to some batches.

    Args:
        found: Outputs by name, per batch; only arrays of floats are looked at.
        parts: Columns that are declared to mean different things, by output; what they leave is one part more.

    Raises:
        MeasureError: if an output has no such columns.
    """

    def __init__(self, found: Sequence[Mapping[str, object]], parts: Mapping[str, Parts] | None = None) -> None:
        self._before = [_floats(each) for each in found]
        told = parts or {}
        self._weight = {n: _weight([each[n] for each in self._before], told.get(n)) for n in self._before[0]}

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


def _weight(answers: Sequence[NDArray[np.floating]], declared: Parts | None) -> Floats:
    """What a squared error is multiplied by, in a shape that broadcasts against an answer."""
    if len({answer.shape[1:] for answer in answers}) > 1 or answers[0].ndim == 0:
        return np.asarray(1.0 / max(sum(float(np.square(a, dtype=np.float64).sum()) for a in answers), 1e-12))
    together = np.concatenate(answers).astype(np.float64)
    power = np.square(together)
    squares = np.square(together - together.mean(axis=0)) if len(together) > 1 else power
    least = max(_STILL[1] * float(power.sum()), 1e-12)
    parts = told_apart(answers) if declared is None else declared
    if parts is None:
        return np.asarray(1.0 / max(float(squares.sum()), _STILL[0] * float(power.sum()), least))
    columns_of(answers[0], parts)  # which says what is wrong with them
    axis = parts[0] % squares.ndim
    runs = [np.arange(*bounds) for bounds in parts[1].values()]
    left = np.setdiff1d(np.arange(squares.shape[axis]), np.concatenate(runs))
    runs += [left] if left.size else []
    each = np.zeros(squares.shape[axis])
    for run_ in runs:
        moved, size = (float(np.take(of, run_, axis).sum()) for of in (squares, power))
        each[run_] += 1.0 / (max(moved, _STILL[0] * size, least) * len(runs))
    return each.reshape([-1 if number == axis else 1 for number in range(squares.ndim)])


def told_apart(answers: Sequence[NDArray[Any]]) -> Parts | None:
    """Two runs of columns, every one of the first far larger or far smaller than all of the second; None where none.

    Looked for in floating-point outputs of three axes or more, along every axis but the first, where the step is the
    largest. Columns that are nothing but zeros (a class that no sample holds) go with either.

    Args:
        answers: One output, sample by sample or batch by batch.
    """
    first = answers[0]
    if first.ndim < 3 or first.dtype.kind != "f" or len({answer.shape[1:] for answer in answers}) > 1:
        return None
    best, found = _UNLIKE, None
    for axis in (each for each in range(1, first.ndim) if 1 < first.shape[each] <= _MOST_COLUMNS):
        others = tuple(i for i in range(first.ndim) if i != axis)
        size = np.sqrt(sum(np.square(answer, dtype=np.float64).mean(axis=others) for answer in answers))
        alive = size > 1e-12 * size.max()
        steps = np.maximum(_steps(size, alive), _steps(size[::-1], alive[::-1])[::-1])
        cut = int(np.argmax(steps)) + 1
        if steps[cut - 1] > best:
            best, found = float(steps[cut - 1]), (axis, {"first": (0, cut), "rest": (cut, len(size))})
    return found


def _steps(size: Floats, alive: NDArray[np.bool_]) -> Floats:
    """For each cut the least size before it over the largest behind it, (columns - 1,); 0 where one side is silent."""
    least = np.minimum.accumulate(np.where(alive, size, np.inf))[:-1]
    largest = np.maximum.accumulate(np.where(alive, size, 0.0)[::-1])[::-1][1:]
    told = np.isfinite(least) & (largest > 0)
    return np.divide(least, largest, out=np.zeros_like(least), where=told)

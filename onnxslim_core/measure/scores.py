"""The figures of one output: two streams of answers in, `OutputFidelity` out.

What one answer is: one row of the first axis where a call holds a batch, else the whole call. Sums are in float64. The
centred figures need the mean answer, which is known only at the end: all sums are therefore taken after subtracting
the first answer of the reference, which removes the common background before it can cancel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxslim_core.errors import MeasureError

__all__ = ["OutputFidelity", "Parts", "Tally", "as_array", "columns_of"]

Array = np.ndarray[Any, np.dtype[Any]]
_NAN = float("nan")
_TOP = 5
_MOST_CLASSES = 1000
_STEADY = 1e-4
"""Single numbers that vary by less than this share of their size are taken for one number that is always the same."""


Parts = tuple[int, Mapping[str, tuple[int, int]]]
"""Columns of one output that mean different things: their axis, and by name the first and one past the last."""


@dataclass(frozen=True, slots=True)
class OutputFidelity:
    """How far one output of a candidate is from the reference's. What does not apply is None.

    Attributes:
        kind: "float" or "exact" (integers, booleans, texts).
        answers: How many were compared.
        cosine: Mean over answers; NaN where NaN or infinities do not stand at the same places. Where each answer is one
            number, whose cosine would be its sign, it is that of all answers in a row, centred if they vary.
        worst_cosine: Of the worst answer.
        centred_cosine: After the reference's mean answer is taken off both; where all answers are one, or of different
            shapes, the mean number is taken off instead.
        relative_l2: |candidate - reference| / |reference|, over all answers.
        worst_relative_l2: Of the worst answer.
        max_abs: The largest difference.
        error: max|difference| / max|reference| over all answers; of exact outputs the share that differs.
        constant_cosine: What the reference's mean answer, given every time, would score as `cosine`.
        constant_relative_l2: The same as `relative_l2`.
        top1: Share of answers with the same largest score, where the output is a score vector.
        top5: Share of the five largest scores that are common.
        mean_iou: Of the arg-max classes (or of what is above .5) where the output is a map.
        equal: Of an exact output: whether all elements are equal.
        equal_share: The share of them that is.
        not_finite: Elements that are NaN or infinite in the candidate and not the same in the reference.
        blank: Answers without a single finite number in both: equal or not, they show nothing, so there is no figure.
            Answers of no numbers at all, such as of a detector that finds nothing, count only where all are like that.
        nan: NaN in the reference and in the candidate.
        inf: Infinities likewise.
        noise_floor: `error` of the reference against itself, one unit in the last place of the input apart; None
            where no input is a float.
        mismatch: What does not even have the same form; empty where all is well.
    """

    kind: str
    answers: int
    cosine: float | None = None
    worst_cosine: float | None = None
    centred_cosine: float | None = None
    relative_l2: float | None = None
    worst_relative_l2: float | None = None
    max_abs: float | None = None
    error: float = _NAN
    constant_cosine: float | None = None
    constant_relative_l2: float | None = None
    top1: float | None = None
    top5: float | None = None
    mean_iou: float | None = None
    equal: bool | None = None
    equal_share: float | None = None
    not_finite: int = 0
    blank: int = 0
    nan: tuple[int, int] = (0, 0)
    inf: tuple[int, int] = (0, 0)
    noise_floor: float | None = None
    mismatch: str = ""

    def allowed(self, tolerance: float) -> float:
        """The error that is rounding: of floats this tolerance or 4 times the noise floor, whichever is larger."""
        return max(tolerance if self.kind == "float" else 0.0, 4 * (self.noise_floor or 0.0))

    def within(self, tolerance: float) -> bool:
        """True where the error is at most this, and never where there is no figure."""
        return not self.mismatch and self.error <= tolerance


def as_array(value: object) -> Array:
    """One array of an output, whatever onnxruntime made of it.

    A list of maps (a classifier's probabilities by label) becomes [rows, labels] in sorted order of labels; a list of
    arrays becomes one flat array.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Mapping):
        return np.asarray([value[key] for key in sorted(value, key=str)])
    if isinstance(value, list):
        parts = [as_array(item) for item in value]
        if not parts:
            return np.zeros(0, np.float32)
        same = len({part.shape for part in parts}) == 1
        return np.stack(parts) if same else np.concatenate([part.reshape(-1) for part in parts])
    return np.asarray(value)


def _form(value: object) -> object:
    """What two answers must have in common to be compared at all."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind.replace("U", "O"), value.shape
    if isinstance(value, Mapping):
        return "map", tuple(sorted(map(str, value)))
    if isinstance(value, list):
        return "sequence", tuple(_form(item) for item in value)
    return type(value).__name__


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {'x'.join(map(str, value.shape)) or 'scalar'}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | Mapping) else type(value).__name__


class Tally:
    """Takes in pairs of answers and keeps sums."""

    def __init__(self) -> None:
        self._mismatch = ""
        self._exact: bool | None = None
        self._counts = _Exact()
        self._sums = _Sums()
        self._scores = _Scores()

    def add(self, reference: object, candidate: object, batch: int = 1) -> None:
        """One call's outputs.

        Args:
            reference: As onnxruntime gives it.
            candidate: The same of the other model.
            batch: How many answers a call holds, if the output's first axis is that long.
        """
        if self._mismatch:
            return
        self._exact = as_array(reference).dtype.kind in "biuOUS"
        if _form(reference) != _form(candidate):
            self._mismatch = f"{_describe(candidate)} where the reference gives {_describe(reference)}"
            return
        ours, theirs = as_array(reference), as_array(candidate)
        if self._exact:
            self._counts.add(ours, theirs)
            return
        # complex numbers are pairs of reals; bfloat16 and the like become float64 as all others do
        wide = [a.view(a.real.dtype) if a.dtype.kind == "c" and a.ndim else a for a in (ours, theirs)]
        rows = [_rows(np.asarray(a, np.float64), batch) for a in wide]
        for r, c in zip(*rows, strict=True):
            self._sums.add(r.reshape(-1), c.reshape(-1))
            self._scores.add(r, c)

    def result(self, noise: OutputFidelity | None) -> OutputFidelity:
        """The figures of all that was added.

        Args:
            noise: The reference against itself, one unit in the last place of the input apart.
        """
        floor = None if noise is None else noise.error
        if self._mismatch:
            figures = {"equal": False} if self._exact else _no_figures()
            return OutputFidelity("exact" if self._exact else "float", 0, mismatch=self._mismatch, **figures)
        if self._exact:
            share = self._counts.share
            return OutputFidelity(
                "exact", self._counts.calls, equal=share == 1, equal_share=share, error=1 - share, noise_floor=floor
            )
        figures = self._sums.figures() | self._scores.figures()
        return OutputFidelity("float", self._sums.count, noise_floor=floor, **figures)


def columns_of(value: object, parts: Parts) -> dict[str, Array]:
    """The named columns of an output.

    Raises:
        MeasureError: if the output has no such axis or columns.
    """
    array, (axis, columns) = as_array(value), parts
    if not -array.ndim <= axis < array.ndim:
        raise MeasureError(f"parts stand on axis {axis}, the output has {array.ndim} axes")
    for name, (start, stop) in columns.items():
        if not 0 <= start < stop <= array.shape[axis]:
            raise MeasureError(f"part '{name}' is columns {start} to {stop} of {array.shape[axis]}")
    return {name: np.take(array, np.arange(*bounds), axis) for name, bounds in columns.items()}


def _no_figures() -> dict[str, Any]:
    """Figures that no bound lets pass."""
    names = ("cosine", "worst_cosine", "centred_cosine", "relative_l2", "worst_relative_l2", "max_abs")
    return dict.fromkeys(names, _NAN)


def _rows(array: Array, batch: int) -> list[Array]:
    if batch > 1 and array.ndim and array.shape[0] == batch:
        return [array[i : i + 1] for i in range(batch)]
    return [array]


class _Exact:
    """Counts of equal elements."""

    def __init__(self) -> None:
        self.calls = self._equal = self._total = 0

    def add(self, ours: Array, theirs: Array) -> None:
        self.calls += 1
        self._equal += int(np.sum(ours == theirs))
        self._total += ours.size

    @property
    def share(self) -> float:
        return self._equal / self._total if self._total else 1.0


class _Sums:
    """Sums over answers, from which cosines and norms follow."""

    def __init__(self) -> None:
        self.count = 0
        self._cosines: list[float] = []
        self._relative: list[float] = []
        self._diff2 = self._norm2 = 0.0
        self._max_diff = self._max_ref = 0.0
        self._nan, self._inf = [0, 0], [0, 0]
        self._not_finite = self._lost = self._blank = self._empty = 0
        self._same_shape = self._single = True
        self._pivot: Array | None = None
        self._sum_r = self._sum_c = self._units = np.zeros(0)
        self._rr = self._cc = self._rc = 0.0
        self._flat = np.zeros(6)

    def add(self, r: Array, c: Array) -> None:
        """One answer of each, flat, in float64."""
        self.count += 1
        if not r.size:
            self._empty += 1
            return
        self._single = self._single and r.size == 1
        for index, array in enumerate((r, c)):
            self._nan[index] += int(np.isnan(array).sum())
            self._inf[index] += int(np.isinf(array).sum())
        usable = np.isfinite(r) & np.isfinite(c)
        if not usable.all():
            # the same NaN and infinities at the same places are left out; others leave no figure
            same = (r == c) | (np.isnan(r) & np.isnan(c))
            self._not_finite += int((~usable & ~same & ~np.isfinite(c)).sum())
            self._lost += int((~usable & ~same & np.isfinite(c)).sum())
            self._blank += not usable.any()
            r, c = np.where(usable, r, 0.0), np.where(usable, c, 0.0)
        diff = c - r
        norm_r, norm_c, norm_d = (float(np.linalg.norm(a)) for a in (r, c, diff))
        self._cosines.append(_cosine(float(r @ c), norm_r, norm_c))
        self._relative.append(_ratio(norm_d, norm_r))
        self._diff2 += norm_d**2
        self._norm2 += norm_r**2
        self._max_diff = max(self._max_diff, float(np.abs(diff).max(initial=0.0)))
        self._max_ref = max(self._max_ref, float(np.abs(r).max(initial=0.0)))
        self._add_centred(r, c, norm_r)

    def _add_centred(self, r: Array, c: Array, norm_r: float) -> None:
        self._flat += [r.size, r.sum(), c.sum(), r @ r, c @ c, r @ c]
        if self._pivot is None:
            self._pivot = r
            self._sum_r, self._sum_c, self._units = np.zeros_like(r), np.zeros_like(c), np.zeros_like(r)
        if r.shape != self._pivot.shape:
            self._same_shape = False
        if not self._same_shape:
            return
        self._units += r / norm_r if norm_r else 0.0
        r, c = r - self._pivot, c - self._pivot
        self._sum_r += r
        self._sum_c += c
        self._rr += float(r @ r)
        self._cc += float(c @ c)
        self._rc += float(r @ c)

    def figures(self) -> dict[str, Any]:
        counts = {"nan": tuple(self._nan), "inf": tuple(self._inf), "not_finite": self._not_finite}
        counts["blank"] = self.count if self._empty == self.count else self._blank
        if self._not_finite or self._lost or not self.count:
            return counts | _no_figures()
        if counts["blank"]:
            return counts | _no_figures() | {"error": _ratio(self._max_diff, self._max_ref)}
        centred, constant_cosine, constant_l2 = self._centred()
        cosine, worst = float(np.mean(self._cosines)), min(self._cosines)
        if self._single and len(self._cosines) > 1:
            varies = constant_l2 > _STEADY
            _, _, _, rr, cc, rc = (float(x) for x in self._flat)
            cosine = worst = centred if varies else _cosine(rc, rr**0.5, cc**0.5)
            constant_cosine = 0.0 if varies else 1.0
        return counts | {
            "cosine": cosine,
            "worst_cosine": worst,
            "centred_cosine": centred,
            "relative_l2": _ratio(self._diff2**0.5, self._norm2**0.5),
            "worst_relative_l2": max(self._relative),
            "max_abs": self._max_diff,
            "error": _ratio(self._max_diff, self._max_ref),
            "constant_cosine": constant_cosine,
            "constant_relative_l2": constant_l2,
        }

    def _centred(self) -> tuple[float, float, float]:
        """Centred cosine, and what the constant answer would score as cosine and relative L2."""
        n = self.count - self._empty
        if n < 2 or not self._same_shape or self._pivot is None:
            return self._centred_by_number()
        mean = self._sum_r / n
        mean2 = float(mean @ mean)
        # sum (r - m)(c - m) = sum rc - m.(sum r + sum c) + n m.m, with sum r = n m
        cross = self._rc - float(mean @ self._sum_c)
        rest_r = max(self._rr - n * mean2, 0.0)
        rest_c = max(self._cc - 2 * float(mean @ self._sum_c) + n * mean2, 0.0)
        # rounding of the sums themselves: what is below it is zero
        tiny = 1e-14 * max(self._rr, self._cc)
        rest_r, rest_c = (0.0 if rest <= tiny else rest for rest in (rest_r, rest_c))
        answer = mean + self._pivot
        constant = _cosine(float(answer @ self._units), n, float(np.linalg.norm(answer)))
        return _cosine(cross, rest_r**0.5, rest_c**0.5), constant, _ratio(rest_r**0.5, self._norm2**0.5)

    def _centred_by_number(self) -> tuple[float, float, float]:
        n, sum_r, sum_c, rr, cc, rc = (float(x) for x in self._flat)
        mean = _ratio(sum_r, n) if n else 0.0
        cross = rc - mean * (sum_r + sum_c) + n * mean**2
        rest_r = max(rr - n * mean**2, 0.0)
        rest_c = max(cc - 2 * mean * sum_c + n * mean**2, 0.0)
        rest_r, rest_c = (0.0 if rest <= 1e-14 * max(rr, cc) else rest for rest in (rest_r, rest_c))
        constant = _cosine(mean * sum_r, rr**0.5, abs(mean) * n**0.5)
        return _cosine(cross, rest_r**0.5, rest_c**0.5), constant, _ratio(rest_r**0.5, rr**0.5)


def _ratio(part: float, whole: float) -> float:
    if whole == 0:
        return 0.0 if part == 0 else float("inf")
    return part / whole


def _cosine(dot: float, norm_a: float, norm_b: float) -> float:
    """Two zero vectors are the same; one alone is nothing like the other."""
    if norm_a == 0 or norm_b == 0:
        return 1.0 if norm_a == norm_b else 0.0
    return float(np.clip(dot / norm_a / norm_b, -1.0, 1.0))


class _Scores:
    """Agreement of arg-max, where an output is a score vector or a map."""

    def __init__(self) -> None:
        self._top1: list[float] = []
        self._top5: list[float] = []
        self._both = np.zeros(0)
        self._either = np.zeros(0)

    def add(self, r: Array, c: Array) -> None:
        """One answer of each, in the output's shape with a first axis of 1 where it has one."""
        if not np.isfinite(r).all():
            return
        shape = r.shape
        squeezed = tuple(s for i, s in enumerate(shape) if i == 1 or s != 1) if len(shape) > 1 else ()
        if len(squeezed) == 1 and squeezed[0] >= 2:
            self._add_vector(r.reshape(-1), c.reshape(-1))
        elif len(shape) == 3 and shape[2] >= 2 and _is_distribution(r):
            for a, b in zip(r.reshape(-1, shape[2]), c.reshape(-1, shape[2]), strict=True):
                self._add_vector(a, b)
        elif len(shape) == 4 and shape[2] > 1 and shape[3] > 1 and shape[1] <= _MOST_CLASSES:
            self._add_map(r, c)

    def _add_vector(self, r: Array, c: Array) -> None:
        if not np.isfinite(c).all():
            self._top1.append(0.0)
            self._top5.append(0.0)
            return
        self._top1.append(float(np.argmax(r) == np.argmax(c)))
        if r.size > _TOP:
            best = [set(np.argsort(-a, kind="stable")[:_TOP].tolist()) for a in (r, c)]
            self._top5.append(len(best[0] & best[1]) / _TOP)

    def _add_map(self, r: Array, c: Array) -> None:
        classes = r.shape[1] if r.shape[1] > 1 else 2
        ours, theirs = (a.argmax(1) if a.shape[1] > 1 else (a > _threshold(r)).astype(int) for a in (r, c))
        if self._both.size != classes:
            self._both, self._either = np.zeros(classes), np.zeros(classes)
        counts = [np.bincount(a.reshape(-1), minlength=classes) for a in (ours, theirs, ours[ours == theirs])]
        self._both += counts[2]
        self._either += counts[0] + counts[1] - counts[2]

    def figures(self) -> dict[str, Any]:
        present = self._either > 0
        return {
            "top1": float(np.mean(self._top1)) if self._top1 else None,
            "top5": float(np.mean(self._top5)) if self._top5 else None,
            "mean_iou": float(np.mean(self._both[present] / self._either[present])) if present.any() else None,
        }


def _is_distribution(scores: Array) -> bool:
    return bool((scores >= 0).all() and np.abs(scores.sum(-1) - 1).max(initial=0.0) < 1e-3)


def _threshold(scores: Array) -> float:
    """Probabilities are cut at one half, logits at zero."""
    return 0.5 if scores.min(initial=0.0) >= 0 and scores.max(initial=0.0) <= 1 else 0.0

"""How far an 8-bit variant is from the float model, output by output and part by part.

Parts matter: in a detector's output the boxes, in pixels, drown the scores, and the cosine of the whole stays at .9997
while no score is left. Where the user declares no parts, columns of very different size are told apart
(`calibration.answers`).

A Softmax hides what was done until an answer flips: 0 and 1 stay 0 and 1. Its logarithm, but for a shift what it reads,
does not, and says on few samples which of two variants is nearer. It orders variants; the answers decide.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim_core.calibration.answers import answers_of, told_apart
from onnxslim_core.calibration.batches import first_of, samples_in
from onnxslim_core.measure.scores import OutputFidelity, Parts, Tally, as_array, columns_of
from onnxslim_core.measure.session import open_session, run
from onnxslim_core.model import wrap
from onnxslim_core.rewrite import Sample

__all__ = ["Judge", "Score"]

_LEAST = 1e-30
"""Probabilities below count as so much."""
_FEWEST = 8
"""Answers below which one that flips is no verdict on the share that agrees."""


@dataclass(frozen=True, slots=True)
class Score:
    """What one variant answers beside the float model.

    Attributes:
        cosine: Of the worst part, mean over samples.
        agreement: Of the worst part that has a first answer: the share where it is the same; None where none has one.
        damage: The largest share of what may be lost; at most 1 where the target is met. Few samples may be lucky, so
            one standard error counts as lost too.
        strain: The same with what the logarithms of probabilities lose on top, to compare variants by.
        parts: Cosine by part.
    """

    cosine: float
    agreement: float | None
    damage: float
    strain: float
    parts: Mapping[str, float]


class Judge:
    """The float model's answers, kept.

    Args:
        model: The float model.
        samples: What is asked.
        min_cosine: What every part has to reach.
        min_agreement: The share of equal first answers that every part with scores has to reach.
        parts: By output: axis and columns that are judged apart.
        threads: For onnxruntime.
    """

    def __init__(
        self,
        model: ir.Model,
        samples: Sequence[Sample],
        *,
        min_cosine: float,
        min_agreement: float | None = None,
        parts: Mapping[str, Parts] | None = None,
        threads: int = 1,
    ) -> None:
        self._samples = samples
        self._threads = threads
        self._min_cosine = min_cosine
        self._min_agreement = min_agreement
        self._answers = answers_of(model, samples, threads)
        self._parts = dict(parts or {})
        self._probable = {name for name in (self._answers[0] if self._answers else ()) if self._is_probable(name)}
        for name, value in (self._answers[0] if self._answers else {}).items():
            found = told_apart([as_array(each[name]) for each in self._answers]) if name not in self._parts else None
            if found is not None and isinstance(value, np.ndarray):
                self._parts[name] = found

    @property
    def answers(self) -> int:
        """How many samples there are, however many are in a batch."""
        return sum(samples_in(sample) for sample in self._samples)

    def fewer(self, answers: int) -> Judge:
        """The same judge with the first batches that hold so many answers; what is told apart stays so.

        To a few samples the empty margin of a map would look like columns of another kind.
        """
        other = copy.copy(self)
        other._samples = first_of(self._samples, answers)
        other._answers = self._answers[: len(other._samples)]
        return other

    def look(self, model: ir.Model) -> Score:
        """Run a variant on the samples.

        Raises:
            MeasureError: if it does not run.
        """
        session = open_session(wrap(model), threads=self._threads)
        tallies: dict[str, Tally] = {}
        singles: dict[str, list[float]] = {}
        hidden: dict[str, list[float]] = {}
        for sample, expected in zip(self._samples, self._answers, strict=True):
            batch = samples_in(sample)
            for name, answer in run(session, sample).items():
                if name in self._probable and isinstance(answer, np.ndarray) and answer.ndim:
                    hidden.setdefault(name, []).extend(_lost(_log(expected[name]), _log(answer), batch))
                for part, ours, theirs in self._split(name, expected[name], answer):
                    tallies.setdefault(part, Tally()).add(ours, theirs, batch)
                    singles.setdefault(part, []).extend(_lost(ours, theirs, batch))
        return self._score({part: tally.result(None) for part, tally in tallies.items()}, singles, hidden)

    def _is_probable(self, name: str) -> bool:
        """Whether an output holds probabilities, which sum to one along its last axis."""
        arrays = [as_array(each[name]) for each in self._answers]
        if any(a.dtype.kind != "f" or a.ndim < 1 or a.shape[-1] < 2 or not a.size or a.min() < 0 for a in arrays):
            return False
        return all(bool(np.allclose(a.sum(axis=-1), 1, atol=1e-3)) for a in arrays)

    def _split(self, name: str, expected: Any, answer: Any) -> list[tuple[str, Any, Any]]:
        whole = [(name, expected, answer)]
        if name not in self._parts or np.shape(expected) != np.shape(answer):
            return whole
        ours, theirs = (columns_of(each, self._parts[name]) for each in (expected, answer))
        return whole + [(f"{name}.{part}", ours[part], theirs[part]) for part in ours]

    def _score(
        self,
        found: Mapping[str, OutputFidelity],
        singles: Mapping[str, Sequence[float]],
        hidden: Mapping[str, Sequence[float]],
    ) -> Score:
        cosines, agreements, damage = {}, [], 0.0
        for part, each in found.items():
            # integers and texts answer for themselves: the share that is equal stands where a cosine would
            cosine = each.cosine if each.kind == "float" else each.equal_share
            cosine = 0.0 if cosine is None or not np.isfinite(cosine) else cosine
            cosines[part] = cosine
            lost = 1 - cosine + (_standard_error(singles[part]) if cosine > 0 else 0.0)
            damage = max(damage, lost / max(1 - self._min_cosine, 1e-6))
            if each.top1 is not None and each.answers >= _FEWEST:
                agreements.append(each.top1)
        agreement = min(agreements, default=None)
        if self._min_agreement is not None and agreement is not None:
            damage = max(damage, (1 - agreement) / max(1 - self._min_agreement, 1e-6))
        behind = max((float(np.mean(lost)) for lost in hidden.values() if lost), default=0.0)
        strain = damage + behind / max(1 - self._min_cosine, 1e-6)
        return Score(min(cosines.values(), default=1.0), agreement, damage, strain, cosines)


def _log(probabilities: Any) -> Any:
    """What a Softmax reads, moved so that its mean is zero."""
    found = np.log(np.maximum(as_array(probabilities).astype(np.float64), _LEAST))
    return found - found.mean(axis=-1, keepdims=True)


def _lost(ours: Any, theirs: Any, batch: int) -> list[float]:
    """One less the cosine, answer by answer; nothing where that has no meaning."""
    a, b = as_array(ours), as_array(theirs)
    if a.dtype.kind != "f" or a.shape != b.shape or not a.size:
        return []
    rows = batch if batch > 1 and a.ndim and a.shape[0] == batch else 1
    a, b = (each.reshape(rows, -1).astype(np.float64) for each in (a, b))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return [float(each) for each in 1 - np.einsum("ij,ij->i", a, b)[norms > 0] / norms[norms > 0]]


def _standard_error(values: Sequence[float]) -> float:
    """Of the mean."""
    usable = np.asarray(values, np.float64)
    usable = usable[np.isfinite(usable)]
    return float(usable.std(ddof=1) / len(usable) ** 0.5) if len(usable) > 1 else 0.0

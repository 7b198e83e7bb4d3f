"""Whether a candidate still gives the answers of a reference, output by output.

Both graphs run as they are written, with onnxruntime's own rewrites off, since some of those change answers (a zero Pad
merged into MaxPool). The default session is compared as well, for that is what is used: a candidate must not move
further from the reference there than the reference itself does. Every figure stands beside the noise floor, which is
what one unit in the last place of the input does to the output.

Samples stream through: what is kept per output is of the size of one answer, however many samples there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxslim_core.errors import MeasureError
from onnxslim_core.measure.inputs import indexed_tables
from onnxslim_core.measure.scores import OutputFidelity, Parts, Tally, as_array, columns_of
from onnxslim_core.measure.session import open_session, run
from onnxslim_core.rewrite import Sample

if TYPE_CHECKING:
    import onnxruntime as ort

    from onnxslim_core.model import Model

__all__ = ["Fidelity", "Metric", "OutputFidelity", "Parts", "compare"]

Metric = Callable[[Mapping[str, np.ndarray], Any], float]
"""A user's measure: (outputs by name, all samples one after the other; labels) -> a figure, larger is better."""

Answers = dict[str, Any]

_NOISE_SAMPLES = 4
_DEFAULT_SAMPLES = 32
_TRUTH_BYTES = 2**28
"""Answers of the reference that are kept for the comparisons that follow, at least one."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How far a candidate's answers are from a reference's.

    Attributes:
        outputs: Per output, and per named column of one as OUTPUT.PART; both sessions without optimization.
        default: The candidate's default session against the same reference, over the first samples.
        reference_default: The reference's own default session against it: what onnxruntime's optimizer does.
        samples: How many were compared.
        data: "random" or "given".
        verified: False where nothing could be run; all figures are then absent.
        metric: What the user's metric says of the reference and of the candidate; None without one.
    """

    outputs: Mapping[str, OutputFidelity] = field(default_factory=dict)
    default: Mapping[str, OutputFidelity] = field(default_factory=dict)
    reference_default: Mapping[str, OutputFidelity] = field(default_factory=dict)
    samples: int = 0
    data: str = "random"
    verified: bool = False
    metric: tuple[float, float] | None = None

    def __getitem__(self, output: str) -> OutputFidelity:
        """The figures of one output."""
        return self.outputs[output]

    @property
    def min_cosine(self) -> float:
        """Of the worst output, mean over samples; NaN where there is no figure or one is NaN."""
        return self._worst(np.min, "cosine")

    @property
    def min_centred_cosine(self) -> float:
        """Of the worst output; see `min_cosine`."""
        return self._worst(np.min, "centred_cosine")

    @property
    def max_relative_l2(self) -> float:
        """Of the worst output; see `min_cosine`."""
        return self._worst(np.max, "relative_l2")

    @property
    def max_abs(self) -> float:
        """Of the worst output; see `min_cosine`."""
        return self._worst(np.max, "max_abs")

    @property
    def min_top1_agreement(self) -> float:
        """Of the worst output that is a score vector; NaN where none is."""
        return self._worst(np.min, "top1")

    @property
    def metric_drop(self) -> float | None:
        """By how much the user's metric falls."""
        return None if self.metric is None else self.metric[0] - self.metric[1]

    def not_finite(self) -> list[str]:
        """Outputs where the candidate answers NaN or infinity and the reference does not, in words."""
        found = {**{f"{n} (default session)": o for n, o in self.default.items()}, **self.outputs}
        return [f"{name}: {o.not_finite} of the candidate's values" for name, o in found.items() if o.not_finite]

    def equal(self, tolerance: float = 1e-5) -> bool:
        """True where every output is the same in real arithmetic, as far as running can tell.

        That is: max|d| / max|reference| is at most the larger of the tolerance and 4 times the noise floor, integers
        and texts are equal (up to 4 times the share that noise flips), NaN and infinities stand at the same places, and
        the default session does not leave the reference far: its kernels sum in another order, so ten times as much
        is allowed there, or 4 times what the reference's own default session does.
        """
        if not self.verified or not self.outputs:
            return False
        for name, figures in self.outputs.items():
            least = tolerance if figures.kind == "float" else 0.0
            allowed = max(least, 4 * (figures.noise_floor or 0.0))
            if not figures.within(allowed):
                return False
            own, deployed = self.reference_default.get(name), self.default.get(name)
            # an error that is NaN: onnxruntime's optimizer breaks the reference itself, which proves nothing
            if own is None or deployed is None or math.isnan(own.error):
                continue
            if not deployed.within(max(10 * allowed, 4 * own.error)):
                return False
        return True

    def _worst(self, pick: Callable[[Any], Any], key: str) -> float:
        found = [value for o in self.outputs.values() if (value := getattr(o, key)) is not None]
        return float(pick(found)) if found else float("nan")


def compare(
    reference: Model,
    candidate: Model,
    samples: Sequence[Sample],
    *,
    data: str = "given",
    parts: Mapping[str, Parts] | None = None,
    threads: int = 1,
    metric: Metric | None = None,
    labels: object = None,
    seed: int = 0,
) -> Fidelity:
    """Run both models over samples and compare what they answer.

    Args:
        reference: What the candidate is held against.
        candidate: Takes the same samples and has the same outputs.
        samples: At least one.
        data: "given", or "random" where the samples are made up.
        parts: By output: the axis and the columns that mean different things and are also judged apart.
        threads: Within one operator.
        metric: A user's measure.
        labels: Handed to the metric.
        seed: Of the noise.

    Raises:
        MeasureError: if there is no sample, a model does not run, or an output is missing.
    """
    if not samples:
        raise MeasureError("no samples to compare on")
    plain = [open_session(model, threads=threads, optimize=False) for model in (reference, candidate)]
    names = _same_outputs(*plain)
    for name in parts or {}:
        if name not in names:
            raise MeasureError(f"parts are given for '{name}', which is no output", f"outputs: {', '.join(names)}")
    tally = _Tallies(names, parts or {})
    truths: list[Answers] = []
    room = _TRUTH_BYTES
    kept: list[tuple[Answers, Answers]] = []
    for sample in samples:
        ours, theirs = run(plain[0], sample), run(plain[1], sample)
        tally.add(ours, theirs, sample)
        room -= sum(as_array(value).nbytes for value in ours.values())
        if not truths or (room > 0 and len(truths) < _DEFAULT_SAMPLES):
            truths.append(ours)
        if metric is not None:
            kept.append((ours, theirs))
    noise = _noise(
        reference, plain[0], samples[: min(_NOISE_SAMPLES, len(truths))], truths, tally.fresh(), threads, seed
    )
    del plain
    own = _default_session(reference, samples, truths, tally.fresh(), threads)
    return Fidelity(
        outputs=tally.results(noise),
        default=_default_session(candidate, samples, truths, tally.fresh(), threads) if own else {},
        reference_default=own,
        samples=len(samples),
        data=data,
        verified=True,
        metric=None if metric is None else (_scored(metric, kept, 0, labels), _scored(metric, kept, 1, labels)),
    )


class _Tallies:
    """One tally per output and per part of one."""

    def __init__(self, names: Sequence[str], parts: Mapping[str, Parts]) -> None:
        self._names, self._parts = names, parts
        self._tallies: dict[str, Tally] = {}
        for name in names:
            self._tallies[name] = Tally()
            columns = parts[name][1] if name in parts else ()
            self._tallies.update({f"{name}.{part}": Tally() for part in columns})

    def fresh(self) -> _Tallies:
        """Empty ones of the same names."""
        return _Tallies(self._names, self._parts)

    def add(self, ours: Answers, theirs: Answers, sample: Sample) -> None:
        """The outputs of one call of each model."""
        batch = _batch(sample)
        for name in self._names:
            self._tallies[name].add(ours[name], theirs[name], batch)
            if name not in self._parts:
                continue
            pair = [columns_of(answers[name], self._parts[name]) for answers in (ours, theirs)]
            for part in self._parts[name][1]:
                self._tallies[f"{name}.{part}"].add(pair[0][part], pair[1][part], batch)

    def results(self, noise: Mapping[str, OutputFidelity]) -> dict[str, OutputFidelity]:
        """The figures, each beside its noise floor."""
        return {name: tally.result(noise.get(name)) for name, tally in self._tallies.items()}


def _same_outputs(reference: ort.InferenceSession, candidate: ort.InferenceSession) -> list[str]:
    names = [output.name for output in reference.get_outputs()]
    others = [output.name for output in candidate.get_outputs()]
    for name in names:
        if name not in others:
            raise MeasureError(f"the candidate has no output '{name}'", f"its outputs: {', '.join(others)}")
    for name in others:
        if name not in names:
            raise MeasureError(f"the reference has no output '{name}'", f"its outputs: {', '.join(names)}")
    return names


def _noise(
    model: Model,
    session: ort.InferenceSession,
    samples: Sequence[Sample],
    truths: Sequence[Answers],
    tally: _Tallies,
    threads: int,
    seed: int,
) -> dict[str, OutputFidelity]:
    """The reference against itself with every float of the input moved by one unit in its last place.

    Where the inputs are ids and no floats, the rows of the tables that they pick are moved instead.
    """
    rng = np.random.default_rng(seed)
    is_real = any(array.dtype.kind == "f" for array in samples[0].values() if isinstance(array, np.ndarray))
    if not is_real:
        moved = _with_moved_tables(model, rng)
        if moved is None:
            return {}
        session = open_session(moved, threads=threads, optimize=False)
    for sample, truth in zip(samples, truths, strict=False):
        shaken = {name: _shaken(array, rng) for name, array in sample.items()}
        tally.add(truth, run(session, shaken), sample)
    return tally.results({})


def _with_moved_tables(model: Model, rng: np.random.Generator) -> Model | None:
    """A copy whose float tables that inputs index are moved by one unit in the last place; None where none is."""
    copy = model.copy()
    tables = {table for _, table, _ in indexed_tables(copy.ir) if table.const_value is not None}
    moved = False
    for table in tables:
        tensor = table.const_value
        if tensor is None or tensor.numpy().dtype.kind != "f":
            continue
        table.const_value = ir.tensor(_shaken(tensor.numpy(), rng), name=table.name)
        moved = True
    return copy if moved else None


def _shaken(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or not array.size:
        return array
    up = rng.random(array.shape) < 0.5
    towards = np.where(up, np.inf, -np.inf).astype(array.dtype)
    return np.where(np.isfinite(array) & (array != 0), np.nextafter(array, towards), array)


def _default_session(
    model: Model, samples: Sequence[Sample], truths: Sequence[Answers], tally: _Tallies, threads: int
) -> dict[str, OutputFidelity]:
    """A model's default session against the reference as it is written."""
    session = open_session(model, threads=threads)
    for sample, truth in zip(samples, truths, strict=False):
        tally.add(truth, run(session, sample), sample)
    return tally.results({})


def _batch(sample: Sample) -> int:
    """How many answers a call holds: the first axis that all inputs share, else 1."""
    sizes = {array.shape[0] for array in sample.values() if getattr(array, "ndim", 0) > 1}
    return int(sizes.pop()) if len(sizes) == 1 else 1


def _scored(metric: Metric, kept: Sequence[tuple[Answers, Answers]], which: int, labels: object) -> float:
    outputs = {}
    for name in kept[0][which]:
        arrays = [as_array(pair[which][name]) for pair in kept]
        is_batched = arrays[0].ndim > 0 and len({a.shape[1:] for a in arrays}) == 1
        outputs[name] = np.concatenate(arrays) if is_batched else np.stack(arrays)
    figure = metric(outputs, labels)
    if isinstance(figure, bool) or not isinstance(figure, int | float | np.integer | np.floating):
        raise MeasureError(f"the metric returned {type(figure).__name__}, a number is needed")
    return float(figure)

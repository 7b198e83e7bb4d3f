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
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxslim_core.errors import MeasureError
from onnxslim_core.measure.scores import OutputFidelity, Parts, as_array
from onnxslim_core.measure.truth import Answers, Plain, Tallies, Truth
from onnxslim_core.rewrite import Sample

if TYPE_CHECKING:
    import onnxruntime as ort

    from onnxslim_core.model import Model

__all__ = ["Fidelity", "Metric", "OutputFidelity", "Parts", "Truth", "beside", "compare", "scored"]

Metric = Callable[[Mapping[str, np.ndarray], Any], float]
"""A user's measure: (outputs by name, all samples one after the other; labels) -> a figure, larger is better."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How far a candidate's answers are from a reference's.

    Attributes:
        outputs: Per output, and per named column of one as OUTPUT.PART; both sessions without optimization.
        default: The candidate's default session against the same reference, over the first samples.
        reference_default: The reference's own default session against it: what onnxruntime's optimizer does. Empty
            where it was not asked, since the candidate's stays near enough.
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

    def blank(self) -> list[str]:
        """Outputs where both answer nothing but NaN and infinities, in words: whoever sets limits learns nothing."""
        found = ((name, o) for name, o in self.outputs.items() if o.blank)
        return [f"{name}: no finite number to compare in {o.blank} of {o.answers} answers" for name, o in found]

    def shows_nothing(self) -> bool:
        """True where no output holds anything to compare: only NaN, infinities, or no numbers at all."""
        return bool(self.outputs) and all(o.kind == "float" and o.blank for o in self.outputs.values())

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
            allowed = figures.allowed(tolerance)
            if not figures.within(allowed):
                return False
            own, deployed = self.reference_default.get(name), self.default.get(name)
            # an error that is NaN: onnxruntime's optimizer breaks the reference itself, which proves nothing
            if own is None or deployed is None or math.isnan(own.error):
                continue
            if not deployed.within(max(10 * allowed, 4 * own.error)):
                return False
        return True

    def stays_near(self, tolerance: float = 1e-5) -> bool:
        """True where the default session is near enough for `equal`, whatever the reference's own does."""
        pairs = ((figures, self.default.get(name)) for name, figures in self.outputs.items())
        return all(o is None or o.within(10 * figures.allowed(tolerance)) for figures, o in pairs)

    def _worst(self, pick: Callable[[Any], Any], key: str) -> float:
        found = [value for o in self.outputs.values() if (value := getattr(o, key)) is not None]
        return float(pick(found)) if found else float("nan")


def compare(
    reference: Model | Truth,
    candidate: Model,
    samples: Sequence[Sample] = (),
    *,
    data: str = "given",
    parts: Mapping[str, Parts] | None = None,
    threads: int = 1,
    metric: Metric | None = None,
    labels: object = None,
    seed: int = 0,
    sparing: bool = False,
) -> Fidelity:
    """Run both models over samples and compare what they answer.

    Args:
        reference: What the candidate is held against; a `Truth` brings its samples, parts, threads and seed along.
        candidate: Takes the same samples and has the same outputs.
        samples: At least one.
        data: "given", or "random" where the samples are made up.
        parts: By output: the axis and the columns that mean different things and are also judged apart.
        threads: Within one operator.
        metric: A user's measure.
        labels: Handed to the metric.
        seed: Of the noise.
        sparing: The reference's default session is only asked where the candidate's leaves the reference too far for
            `Fidelity.equal`; `reference_default` is else empty.

    Raises:
        MeasureError: if there is no sample, a model does not run, or an output is missing.
    """
    truth = reference if isinstance(reference, Truth) else Truth(reference, samples, parts or {}, threads, seed)
    other = truth.plain if candidate is truth.plain.model else Plain(candidate, truth.threads)
    if truth.is_large:
        truth.plain.close()
    names = _same_outputs(truth.names, other.session)
    tally = Tallies(names, truth.parts)
    kept: list[tuple[Answers, Answers]] = []
    for sample, ours, theirs in truth.beside(other):
        tally.add(ours, theirs, sample)
        if metric is not None:
            kept.append((ours, theirs))
    if other is not truth.plain:
        other.close()
    found = Fidelity(
        outputs=tally.results(truth.noise()),
        default=truth.deployed(candidate),
        samples=len(truth.samples),
        data=data,
        verified=True,
        metric=None
        if metric is None
        else (scored(metric, [pair[0] for pair in kept], labels), scored(metric, [pair[1] for pair in kept], labels)),
    )
    if sparing and found.stays_near():
        return found
    return replace(found, reference_default=truth.own_deployed())


def beside(expected: Answers, found: Answers, sample: Sample, known: Fidelity | None = None) -> Fidelity:
    """The answers to one sample beside those that are expected.

    Args:
        expected: By output.
        found: By output.
        sample: What was asked.
        known: Where the noise floors are taken from.
    """
    if expected.keys() != found.keys():
        raise MeasureError(f"the outputs are {', '.join(found)} where {', '.join(expected)} are expected")
    tally = Tallies(list(expected), {})
    tally.add(expected, found, sample)
    floors = {name: figures.noise_floor for name, figures in known.outputs.items()} if known is not None else {}
    figures = {name: replace(each, noise_floor=floors.get(name)) for name, each in tally.results({}).items()}
    return Fidelity(figures, samples=1, verified=True)


def _same_outputs(names: list[str], candidate: ort.InferenceSession) -> list[str]:
    others = [output.name for output in candidate.get_outputs()]
    for name in names:
        if name not in others:
            raise MeasureError(f"the candidate has no output '{name}'", f"its outputs: {', '.join(others)}")
    for name in others:
        if name not in names:
            raise MeasureError(f"the reference has no output '{name}'", f"its outputs: {', '.join(names)}")
    return names


def scored(metric: Metric, answers: Sequence[Answers], labels: object) -> float:
    """What a user's metric says of a model's answers to all samples, call after call.

    Raises:
        MeasureError: if it returns no number.
    """
    outputs = {}
    for name in answers[0]:
        arrays = [as_array(each[name]) for each in answers]
        is_batched = arrays[0].ndim > 0 and len({a.shape[1:] for a in arrays}) == 1
        outputs[name] = np.concatenate(arrays) if is_batched else np.stack(arrays)
    figure = metric(outputs, labels)
    if isinstance(figure, bool) or not isinstance(figure, int | float | np.integer | np.floating):
        raise MeasureError(f"the metric returned {type(figure).__name__}, a number is needed")
    return float(figure)

"""Facts against a budget, one row per key; and the one row that may ask for more, the timing.

`judge` is pure, so that tests can hand it any facts. A key whose figure cannot be computed fails, and so does a figure
that is not a number.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxslim_core.errors import BudgetError
from onnxslim_core.recipe import Budget
from onnxslim_core.rewrite import Timing
from onnxslim_core.verdict.record import FAIL, INCONCLUSIVE, PASS, Row, shown

if TYPE_CHECKING:
    from onnxslim_core.measure.fidelity import OutputFidelity

__all__ = ["ANSWERS", "Facts", "check_judges", "check_outputs", "decide_timing", "judge", "pool", "standard"]

ANSWERS = {
    "min_cosine": "cosine",
    "min_centred_cosine": "centred_cosine",
    "max_relative_l2": "relative_l2",
    "max_abs": "max_abs",
    "min_top1_agreement": "top1",
}
"""Budget key to the figure of an output (see `measure.fidelity`)."""

RATIOS = {
    "max_size_ratio": "bytes of the file",
    "max_params_ratio": "parameters",
    "max_macs_ratio": "multiply-accumulates",
    "max_memory_ratio": "peak bytes of activations",
}

FIRST_SECONDS = 6.0
"""Of the first timing; each further one takes twice as long."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of the two models.

    Attributes:
        outputs: Names of the reference's outputs.
        interface: How the candidate's inputs and outputs differ from the reference's; empty where they do not.
        figures: Of the answers, by output, and by OUTPUT.PART for one that is judged in parts.
        default: The same of the candidate in onnxruntime's default session.
        reference_default: The same of the reference in its default session.
        parts: Output to the names of its parts.
        not_finite: Outputs where the candidate answers NaN or infinity and the reference does not, or where there is
            nothing else in either, in words.
        metric: The user's metric on (reference, candidate), or None.
        ratios: Budget key to (reference, candidate); None where it could not be computed.
        domains: Of all operators that the candidate uses; '' is the standard one.
        opset: Of the standard domain, in the candidate; None where it imports none.
        real_data: False for seeded random inputs.
        samples: How many inputs were judged.
    """

    outputs: Sequence[str]
    interface: Sequence[str]
    figures: Mapping[str, OutputFidelity]
    default: Mapping[str, OutputFidelity]
    reference_default: Mapping[str, OutputFidelity]
    parts: Mapping[str, Sequence[str]]
    not_finite: Sequence[str]
    metric: tuple[float, float] | None
    ratios: Mapping[str, tuple[float | None, float | None]]
    domains: frozenset[str]
    opset: int | None
    real_data: bool
    samples: int

    def judged(self, output: str) -> list[str]:
        """Under which names an output is judged: its own, or those of its parts."""
        return [f"{output}.{part}" for part in self.parts.get(output, ())] or [output]


def check_judges(budget: Budget) -> None:
    """Refuse a budget without a single limit.

    Raises:
        BudgetError: if nothing would be judged.
    """
    settings = {"require_data", "allow_inconclusive", "output"}
    limits = [getattr(budget, f.name) for f in dataclasses.fields(budget) if f.name not in settings]
    limits += [getattr(entry, key) for entry in budget.output.values() for key in ANSWERS]
    if all(limit is None for limit in limits):
        raise BudgetError("the budget sets no limit: nothing would be judged", "set one, such as min_cosine = 0.99")


def check_outputs(budget: Budget, outputs: Sequence[str]) -> None:
    """Refuse limits for an output that is not there.

    Raises:
        BudgetError: names the output.
    """
    for name in budget.output:
        if name not in outputs:
            known = ", ".join(outputs)
            raise BudgetError(f"budget.output.{name}: no output is called '{name}'", f"outputs: {known}")


def judge(budget: Budget, facts: Facts) -> list[Row]:
    """Facts against a budget, all keys but the timing.

    Raises:
        BudgetError: if the budget names an output that the model does not have.
    """
    check_outputs(budget, facts.outputs)
    rows = [_interface_row(facts), _finite_row(facts)]
    if budget.require_data:
        note = "" if facts.real_data else "the inputs are seeded random numbers; give --data"
        rows.append(Row("require_data", "data", "data" if facts.real_data else "random", _word(facts.real_data), note))
    rows += _answer_rows(budget, facts)
    rows += _metric_rows(budget, facts)
    rows += [_ratio_row(key, limit, facts) for key in RATIOS if (limit := getattr(budget, key)) is not None]
    if budget.allowed_domains is not None:
        allowed = {standard(name) for name in budget.allowed_domains}
        extra = sorted(facts.domains - allowed)
        found = ", ".join(map(_domain_shown, sorted(facts.domains)))
        note = f"not allowed: {', '.join(map(_domain_shown, extra))}" if extra else ""
        limit = ", ".join(map(_domain_shown, sorted(allowed)))
        rows.append(Row("allowed_domains", limit, found, _word(not extra), note))
    if budget.max_opset is not None:
        fits = facts.opset is not None and facts.opset <= budget.max_opset
        note = "" if facts.opset is not None else "the candidate imports no standard operator set"
        rows.append(Row("max_opset", budget.max_opset, facts.opset, _word(fits), note))
    return rows


def _word(passes: bool) -> str:
    return PASS if passes else FAIL


def _interface_row(facts: Facts) -> Row:
    same = not facts.interface
    return Row("interface", None, "same" if same else "differs", _word(same), "; ".join(facts.interface))


def _finite_row(facts: Facts) -> Row:
    if not facts.figures or facts.samples < 1:
        return Row("finite", None, None, FAIL, "no output was compared")
    bad = facts.not_finite
    return Row("finite", None, "not finite" if bad else "finite", _word(not bad), "; ".join(bad))


def _answer_rows(budget: Budget, facts: Facts) -> Iterator[Row]:
    """The limits for all outputs, then those for single ones; a limit of its own takes an output out of the former."""
    for key in ANSWERS:
        limit = getattr(budget, key)
        own = {name: value for name, entry in budget.output.items() if (value := getattr(entry, key)) is not None}
        if limit is not None:
            others = [part for name in facts.outputs if name not in own for part in facts.judged(name)]
            yield _answer_row(key, key, limit, others, facts, strict=False)
        for name, value in own.items():
            yield _answer_row(f"output.{name}.{key}", key, value, facts.judged(name), facts, strict=True)
    if budget.judges_answers and budget.min_top1_agreement is None:
        yield from _equal_row(budget, facts)


def _equal_row(budget: Budget, facts: Facts) -> Iterator[Row]:
    """Integers, booleans and texts have no cosine: they are equal, or a budget says which share of them must be."""
    excused = {name for name, entry in budget.output.items() if entry.min_top1_agreement is not None}
    judged = {name: facts.figures[name] for name in facts.outputs if name in facts.figures and name not in excused}
    exact = {name: figures for name, figures in judged.items() if figures.kind == "exact"}
    unequal = [name for name, figures in exact.items() if not figures.equal]
    if exact:
        note = f"{', '.join(unequal)}; min_top1_agreement allows a share" if unequal else ", ".join(exact)
        yield Row("equal", None, "unequal" if unequal else "equal", _word(not unequal), note)


def _figure(key: str, figures: OutputFidelity | None) -> float | None:
    if figures is None:
        return None
    if key == "min_top1_agreement" and figures.kind == "exact":
        return figures.equal_share
    found: float | None = getattr(figures, ANSWERS[key])
    return found


def _answer_row(label: str, key: str, limit: float, names: Sequence[str], facts: Facts, *, strict: bool) -> Row:
    """The worst of some outputs against a limit.

    Outputs that have no such figure are named; where the limit is for this very output (`strict`) they fail, and so
    does a limit that no output has the figure for.
    """
    figures = {name: _figure(key, facts.figures.get(name)) for name in names}
    found = {name: float(value) for name, value in figures.items() if value is not None}
    without = [name for name in names if name not in found]
    if not found or (strict and without):
        return Row(label, limit, None, FAIL, f"no such figure for {', '.join(without) or 'any output'}")
    broken = [name for name, value in found.items() if math.isnan(value)]
    if broken:
        return Row(label, limit, math.nan, FAIL, f"not a number at {', '.join(broken)}")
    worst = (min if key.startswith("min_") else max)(found, key=lambda name: found[name])
    notes = [f"worst: {worst}"] if len(found) > 1 else []
    notes += [f"not judged by this: {', '.join(without)}"] if without else []
    notes += _constant_note(key, facts.figures[worst])
    passes = _keeps(key, limit, found[worst])
    deployed = _default_breaches(key, limit, names, facts) if passes else []
    return Row(label, limit, found[worst], _word(passes and not deployed), "; ".join([*deployed, *notes]))


def _keeps(key: str, limit: float, value: float) -> bool:
    return value >= limit if key.startswith("min_") else value <= limit


def _constant_note(key: str, figures: OutputFidelity) -> list[str]:
    """What a model that always answers the same would score, so that a reader can see what the figure means."""
    constant = {"min_cosine": figures.constant_cosine, "max_relative_l2": figures.constant_relative_l2}.get(key)
    return [] if constant is None or math.isnan(constant) else [f"a constant answer would score {shown(constant)}"]


def _default_breaches(key: str, limit: float, names: Sequence[str], facts: Facts) -> list[str]:
    """Where the candidate breaks a limit in the default session, which gets used, and the reference does not."""
    found = []
    for name in names:
        value, own = (_figure(key, entry.get(name)) for entry in (facts.default, facts.reference_default))
        if value is None or _keeps(key, limit, value):
            continue
        if own is None or _keeps(key, limit, own):
            found.append(f"{name} has {shown(value)} in onnxruntime's default session")
    return found


def _metric_rows(budget: Budget, facts: Facts) -> Iterator[Row]:
    for key in ("min_metric", "max_metric_drop"):
        limit = getattr(budget, key)
        if limit is None:
            continue
        if facts.metric is None:
            yield Row(key, limit, None, FAIL, "no metric was given; name one by --metric file.py:function")
            continue
        reference, candidate = facts.metric
        found = candidate if key == "min_metric" else reference - candidate
        passes = math.isfinite(found) and (found >= limit if key == "min_metric" else found <= limit)
        yield Row(key, limit, found, _word(passes), f"reference {shown(reference)}, candidate {shown(candidate)}")


def _ratio_row(key: str, limit: float, facts: Facts) -> Row:
    reference, candidate = facts.ratios.get(key, (None, None))
    if reference is None or candidate is None or not reference > 0 or not candidate >= 0:
        note = f"{RATIOS[key]}: reference {shown(reference)}, candidate {shown(candidate)}, so no ratio"
        return Row(key, limit, None, FAIL, note)
    ratio = candidate / reference
    passes = math.isfinite(ratio) and ratio <= limit
    return Row(key, limit, ratio, _word(passes), f"{RATIOS[key]}: {_count(reference)} to {_count(candidate)}")


def _count(value: float) -> str:
    return f"{value:,.0f}"


def standard(name: str) -> str:
    """The name of a domain; the standard one is ''."""
    return "" if name == "ai.onnx" else name


def _domain_shown(name: str) -> str:
    return name or "ai.onnx"


# ---------------------------------------------------------------------------------------------------- timing


@dataclass(frozen=True, slots=True)
class Pooled:
    """What several timings say together."""

    ratio: float
    low: float
    high: float


def decide_timing(
    limit: float,
    measure: Callable[[float, int], Timing],
    max_seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Row, list[Timing]]:
    """Measure until the interval of the ratio lies on one side of the limit, for about `max_seconds` at most.

    Pass: the whole interval is at or below the limit. Fail: the whole interval is above it. Else it is measured again,
    twice as long, and all timings are pooled; what still straddles the limit at the end is inconclusive.

    Args:
        limit: `max_latency_ratio`.
        measure: (seconds, round) -> timing.
        max_seconds: For all measurements together; none is begun after that.
        clock: For tests.

    Returns:
        The row and every timing taken.
    """
    started, seconds = clock(), min(FIRST_SECONDS, max_seconds)
    timings: list[Timing] = []
    while True:
        timings.append(measure(seconds, len(timings)))
        pooled = pool(timings)
        verdict = FAIL if pooled is None else _side(pooled, limit)
        left = max_seconds - (clock() - started)
        if verdict != INCONCLUSIVE or left < FIRST_SECONDS / 2:
            break
        seconds = min(2 * seconds, left)
    if pooled is None:
        return Row("max_latency_ratio", limit, math.nan, FAIL, "the timing is no number"), timings
    count = f"{len(timings)} timing{'s' if len(timings) > 1 else ''} in {clock() - started:.0f} s"
    note = f"interval {pooled.low:.3f} to {pooled.high:.3f}, {count}"
    noise = getattr(timings[-1], "noise", None)
    if noise is not None:
        note += f"; the reference against itself: {noise.low:.3f} to {noise.high:.3f}"
    if verdict == INCONCLUSIVE:
        note += "; the interval straddles the limit"
    return Row("max_latency_ratio", limit, pooled.ratio, verdict, note), timings


def pool(timings: Sequence[Timing]) -> Pooled | None:
    """Timings taken one after the other as one, in logarithms: each weighs by the inverse square of its interval.

    Where they disagree by more than their intervals allow, the common interval is widened by Birge's ratio (R. T.
    Birge, "The calculation of errors by the method of least squares", Physical Review 40, 1932).

    Returns:
        None if a timing is broken; a single timing as it is.
    """
    # comparisons with NaN are false, so NaN is broken; one round of sessions has the interval from 0 to infinity
    if not all(0 < t.ratio < math.inf and 0 <= t.low <= t.ratio <= t.high for t in timings):
        return None
    bounded = [t for t in timings if t.low > 0 and t.high < math.inf]
    if len(bounded) < 2:
        best = (bounded or timings)[-1]
        return Pooled(best.ratio, best.low, best.high)
    centres = [math.log(t.ratio) for t in bounded]
    halves = [max(math.log(t.high / t.low) / 2, 1e-9) for t in bounded]
    weights = [half**-2 for half in halves]
    centre = math.fsum(w * c for w, c in zip(weights, centres, strict=True)) / math.fsum(weights)
    # halves are about 1.96 standard deviations
    spread = math.fsum(w * (c - centre) ** 2 for w, c in zip(weights, centres, strict=True)) * 1.96**2
    half = math.sqrt(max(1.0, spread / (len(bounded) - 1)) / math.fsum(weights))
    return Pooled(math.exp(centre), math.exp(centre - half), math.exp(centre + half))


def _side(timing: Pooled, limit: float) -> str:
    if timing.high <= limit:
        return PASS
    return FAIL if timing.low > limit else INCONCLUSIVE

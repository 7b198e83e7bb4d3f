"""Budgets: what a result may lose and must gain, read in full and judged without mercy for an absent figure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from onnxslim_core._options import Errors, finite, fit, read_text, read_toml, shown, take
from onnxslim_core.errors import BudgetError

if TYPE_CHECKING:
    from onnxslim_core.measure.cost import Cost
    from onnxslim_core.measure.fidelity import Fidelity

__all__ = ["Budget", "OutputBudget", "answer_breaches", "gain_breaches", "load_budget", "read_budget"]


@dataclass(frozen=True, slots=True)
class OutputBudget:
    """`[budget.output.NAME]`: limits for one output, and how its columns are judged apart.

    Attributes:
        axis: The axis that `parts` cuts; negative counts from the end.
        parts: Part name to (first, end), end excluded.
    """

    min_cosine: float | None = None
    min_centred_cosine: float | None = None
    max_relative_l2: float | None = None
    max_abs: float | None = None
    min_top1_agreement: float | None = None
    axis: int | None = None
    parts: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a result may lose and must gain; None: no limit.

    The limits on answers hold for the worst output, as the mean over the samples; ratios are candidate over
    reference.

    Attributes:
        max_abs: In the units of the output.
        min_metric: Of the user's metric on the candidate.
        max_metric_drop: Reference minus candidate, in the metric's units.
        max_latency_ratio: Median time over median time, interleaved.
        max_size_ratio: Bytes of the files, external data included.
        max_memory_ratio: Peak bytes of activations.
        allowed_domains: Operator domains that may occur; '' is the standard one.
        require_data: Seeded random inputs are not enough for a verdict.
        allow_inconclusive: A timing that stays inconclusive is no failure.
        output: Limits for single outputs.
    """

    min_cosine: float | None = None
    min_centred_cosine: float | None = None
    max_relative_l2: float | None = None
    max_abs: float | None = None
    min_top1_agreement: float | None = None
    min_metric: float | None = None
    max_metric_drop: float | None = None
    max_latency_ratio: float | None = None
    max_size_ratio: float | None = None
    max_params_ratio: float | None = None
    max_macs_ratio: float | None = None
    max_memory_ratio: float | None = None
    allowed_domains: tuple[str, ...] | None = None
    max_opset: int | None = None
    require_data: bool = False
    allow_inconclusive: bool = False
    output: Mapping[str, OutputBudget] = field(default_factory=dict)

    @classmethod
    def parse(cls, table: Mapping[str, Any], origin: str = "budget") -> Budget:
        """A budget from a table of keys.

        Raises:
            BudgetError: with every mistake.
        """
        errors = Errors(origin)
        found = read_budget(table, errors)
        errors.check(BudgetError)
        return found

    @property
    def judges_answers(self) -> bool:
        """True where any limit needs the two models' answers."""
        limits = [getattr(self, key) for key in (*_ANSWER_RANGES, "min_metric", "max_metric_drop")]
        return any(limit is not None for limit in limits) or any(self.output.values())

    @property
    def parts(self) -> dict[str, tuple[int, dict[str, tuple[int, int]]]]:
        """Output name to (axis, parts) for those outputs whose columns are judged apart."""
        return {
            name: (entry.axis if entry.axis is not None else -1, dict(entry.parts))
            for name, entry in self.output.items()
            if entry.parts
        }


_ANSWER_RANGES: dict[str, tuple[float, float]] = {
    "min_cosine": (-1.0, 1.0),
    "min_centred_cosine": (-1.0, 1.0),
    "max_relative_l2": (0.0, math.inf),
    "max_abs": (0.0, math.inf),
    "min_top1_agreement": (0.0, 1.0),
}
_RATIO_KEYS = ("max_latency_ratio", "max_size_ratio", "max_params_ratio", "max_macs_ratio", "max_memory_ratio")
_RANGES: dict[str, tuple[float, float]] = {
    **_ANSWER_RANGES,
    "min_metric": (-math.inf, math.inf),
    "max_metric_drop": (-math.inf, math.inf),
    **dict.fromkeys(_RATIO_KEYS, (0.0, math.inf)),
}


def _read_limits(
    table: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]], where: str, errors: Errors
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, (low, high) in ranges.items():
        if key not in table:
            continue
        number = finite(table[key])
        if number is None:
            errors.add(where, f"'{key}' is {shown(table[key])}, not a finite number")
        elif not low <= number <= high or (key in _RATIO_KEYS and number == 0):
            allowed = f"between {low:g} and {high:g}" if high < math.inf else f"above {low:g}"
            errors.add(where, f"'{key}' is {number:g}, allowed is {allowed}")
        else:
            found[key] = number
    return found


def read_budget(table: object, errors: Errors) -> Budget:
    if not isinstance(table, Mapping):
        errors.add("budget", "not a table")
        return Budget()
    errors.keys("budget", table, [f.name for f in dataclasses.fields(Budget)])
    found = _read_limits(table, _RANGES, "budget", errors)
    for key, hint in (("allowed_domains", tuple[str, ...]), ("max_opset", int)):
        take(table, key, hint, "budget", errors, found)
    for key in ("require_data", "allow_inconclusive"):
        take(table, key, bool, "budget", errors, found)
    if found.get("max_opset", 1) < 1:
        errors.add("budget", f"'max_opset' is {found['max_opset']}, allowed is 1 and above")
    outputs = table.get("output", {})
    if not isinstance(outputs, Mapping):
        errors.add("budget.output", "not a table; write [budget.output.NAME]")
        outputs = {}
    found["output"] = {name: _read_output_budget(name, entry, errors) for name, entry in outputs.items()}
    return Budget(**found)


def _read_output_budget(name: str, table: object, errors: Errors) -> OutputBudget:
    where = f"budget.output.{name}"
    if not isinstance(table, Mapping):
        errors.add(where, "not a table of limits")
        return OutputBudget()
    errors.keys(where, table, [f.name for f in dataclasses.fields(OutputBudget)])
    found = _read_limits(table, _ANSWER_RANGES, where, errors)
    take(table, "axis", int, where, errors, found)
    parts = table.get("parts", {})
    found["parts"] = {}
    if not isinstance(parts, Mapping):
        errors.add(where, "'parts' is not a table such as {boxes = [0, 4]}")
        parts = {}
    for part, bounds in parts.items():
        fits, pair = fit(bounds, tuple[int, int])
        if fits and 0 <= pair[0] < pair[1]:
            found["parts"][part] = pair
        else:
            errors.add(where, f"part '{part}' is {shown(bounds)}, not [first, end] with 0 <= first < end")
    if "axis" in found and not parts:
        errors.add(where, "'axis' has no meaning without 'parts'")
    if parts and "axis" not in table:
        errors.add(where, "'parts' needs 'axis', the axis that they cut")
    return OutputBudget(**found)


def load_budget(path: str | Path | Budget) -> Budget:
    """Read a budget file: TOML with one `[budget]` table. A budget is given back.

    Raises:
        BudgetError: where the file is missing, no TOML, empty, or wrong in any key.
    """
    if isinstance(path, Budget):
        return path
    if not isinstance(path, str | PurePath):
        raise BudgetError(f"a {type(path).__name__} is no budget", "a Budget (Budget.parse reads a table) or a path")
    path = Path(path)
    raw = read_toml(read_text(path, BudgetError), path.name, BudgetError)
    errors = Errors(path.name)
    errors.keys("", raw, ["budget"], "table")
    if "budget" not in raw:
        errors.add("", "a budget file holds one table, [budget]")
    elif not raw["budget"]:
        errors.add("budget", "empty: nothing would be judged")
    budget = read_budget(raw.get("budget", {}), errors)
    errors.check(BudgetError)
    return budget


_ANSWERS = {
    "min_cosine": "cosine",
    "min_centred_cosine": "centred_cosine",
    "max_relative_l2": "relative_l2",
    "max_abs": "max_abs",
    "min_top1_agreement": "top1",
}
"""Budget key to the figure of an output in `Fidelity`."""


def answer_breaches(budget: Budget, fidelity: Fidelity) -> list[str]:
    """Each limit on answers that is not met, one line each; NaN and infinities that are new break any budget.

    A limit for all outputs holds for each output that has no limit of its own, and for its parts instead where it is
    cut into parts. A figure that is no number is a breach; one that does not exist (the cosine of integers) is a
    breach where the limit is for this very output, or where no output has it.

    Raises:
        BudgetError: if the budget names an output that is not there.
    """
    for name in budget.output:
        if name not in fidelity.outputs:
            raise BudgetError(f"budget.output.{name}: no such output; the model has {', '.join(fidelity.outputs)}")
    lines = [f"'{name}': {found.mismatch}" for name, found in fidelity.outputs.items() if found.mismatch]
    lines += [f"not finite: {line}" for line in fidelity.not_finite()]
    if budget.judges_answers:
        lines += [f"not finite: {line}" for line in fidelity.blank()]
    places = _places(budget, fidelity)
    for key, figure in _ANSWERS.items():
        shared, found = getattr(budget, key), 0
        for place, name in places.items():
            own = getattr(budget.output[name], key) if name in budget.output else None
            limit = shared if own is None else own
            if limit is None:
                continue
            value = getattr(fidelity.outputs[place], figure)
            if key == "min_top1_agreement" and value is None:  # integers and labels answer for themselves
                value = fidelity.outputs[place].equal_share
            found += value is not None
            if value is not None or own is not None:
                lines += _breach(key, limit, value, place)
        if shared is not None and not found:
            lines.append(f"{key}: no output has this figure")
    return lines + _metric_breaches(budget, fidelity)


def _places(budget: Budget, fidelity: Fidelity) -> dict[str, str]:
    """What is judged, by the output it belongs to: an output, or each of its parts instead."""
    parts = {f"{name}.{part}": name for name, entry in budget.output.items() for part in entry.parts}
    whole = {name: name for name in fidelity.outputs if name not in parts and name not in budget.parts}
    return {**whole, **{place: name for place, name in parts.items() if place in fidelity.outputs}}


def _breach(key: str, limit: float, value: float | None, where: str = "") -> list[str]:
    """The line for a limit that is not met; NaN and an absent figure never meet one."""
    at = f" at '{where}'" if where else ""
    if value is None or math.isnan(value):
        return [f"{key}: no figure{at}, the limit is {limit:g}"]
    met = value >= limit if key.startswith("min_") else value <= limit
    return [] if met else [f"{key}: {value:.6g}{at}, the limit is {limit:g}"]


def _metric_breaches(budget: Budget, fidelity: Fidelity) -> list[str]:
    if budget.min_metric is None and budget.max_metric_drop is None:
        return []
    after = None if fidelity.metric is None else fidelity.metric[1]
    pairs = (
        ("min_metric", budget.min_metric, after),
        ("max_metric_drop", budget.max_metric_drop, fidelity.metric_drop),
    )
    return [line for key, limit, value in pairs if limit is not None for line in _breach(key, limit, value)]


def gain_breaches(
    budget: Budget, before: Cost, after: Cost, *, domains: frozenset[str], opset: int, given: bool
) -> list[str]:
    """Limits on size, cost, operators and data that are not met, one line each.

    Args:
        budget: The limits.
        before: Of the reference.
        after: Of the candidate.
        domains: Of the candidate's operators, '' for the standard one.
        opset: Of the standard domain in the candidate.
        given: Whether the samples are real ones.
    """
    ratios = {
        "max_size_ratio": _ratio(after.bytes, before.bytes),
        "max_params_ratio": _ratio(after.params, before.params),
        "max_macs_ratio": _ratio(after.macs, before.macs),
        "max_memory_ratio": _ratio(after.peak_activation_bytes, before.peak_activation_bytes),
    }
    limits = {key: getattr(budget, key) for key in ratios}
    lines = [line for key, limit in limits.items() if limit is not None for line in _breach(key, limit, ratios[key])]
    if budget.allowed_domains is not None:
        allowed = {_domain(name) for name in budget.allowed_domains}
        extra = {_domain(name) for name in domains} - allowed
        lines += [f"allowed_domains: '{name or 'ai.onnx'}' is used" for name in sorted(extra)]
    if budget.max_opset is not None and opset > budget.max_opset:
        lines.append(f"max_opset: {opset}, the limit is {budget.max_opset}")
    if budget.require_data and not given:
        lines.append("require_data: the inputs are seeded random numbers, give --data")
    return lines


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _ratio(new: float, old: float) -> float:
    return new / old if old else (1.0 if new == old else math.inf)

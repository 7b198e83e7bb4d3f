"""The job `compress --pareto`: one recipe at several targets, and what of it is worth having.

Every target is a run of `compress`, judged as always: answers on samples that no pass has seen, time call by call
against the model given, the budget, the roll-back of what is not worth it. A point is dominated where another one loses
no more and takes no more time, and then it is not written. The first point is the recipe without its lossy passes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxslim_core._checks import numbers
from onnxslim_core.errors import RecipeError
from onnxslim_core.model import load
from onnxslim_core.pipeline import Result, compress
from onnxslim_core.recipe import Recipe
from onnxslim_core.rewrite import Progress

__all__ = ["TARGETS", "Front", "Point", "pareto"]

TARGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Shares kept of what the recipe's pass counts."""


@dataclass(frozen=True, slots=True)
class Point:
    """One run.

    Attributes:
        target: Of the passes that have one; None for the exact passes alone.
        result: What came out.
        loss: By how much the user's metric falls; without one 1 - cosine of the worst output, 0 where no lossy step
            holds; NaN where nothing was compared.
        time: Latency over that of the model given; None where nothing was timed.
        macs: Multiply-adds over those of the model given; None where they are not known.
        size: Bytes over those of the model given.
        why: Why it is not on the front; empty where it is.
    """

    target: float | None
    result: Result
    loss: float
    time: float | None
    macs: float | None
    size: float
    why: str = ""

    @property
    def name(self) -> str:
        """In a few words."""
        return "exact passes" if self.target is None else f"target {self.target:g}"


@dataclass(frozen=True, slots=True)
class Front:
    """What all runs gave.

    Attributes:
        points: Every run, in order of targets.
        counted: What stands against the loss: "latency", "macs" or "size".
    """

    points: tuple[Point, ...]
    counted: str

    @property
    def best(self) -> tuple[Point, ...]:
        """The front: the least loss first."""
        return tuple(sorted((point for point in self.points if not point.why), key=lambda point: point.loss))

    @property
    def passed(self) -> bool:
        """False where no point meets the budget."""
        return bool(self.best)

    def paths(self, path: str | Path) -> list[Path]:
        """Where the points of the front go: OUT-1.onnx, OUT-2.onnx and so on, the least loss first."""
        return numbered(path, len(self.best))

    def save(self, path: str | Path, *, locks: bool = False) -> list[Path]:
        """Write the models of the front, each as `Result.save` does.

        Args:
            path: OUT.onnx stands for OUT-1.onnx, OUT-2.onnx and so on.
            locks: Write the lock of each beside it.

        Raises:
            ModelError: if a model cannot be written or does not answer as it should.
            OutputError: if a lock cannot be written.
        """
        paths = self.paths(path)
        for point, target in zip(self.best, paths, strict=True):
            with point.result.lock().staged(f"{target}.lock") if locks else nullcontext():
                point.result.save(target)
        return paths

    def document(self, path: str | Path | None = None) -> dict[str, Any]:
        """All of it as plain data, for JSON; with the names of the files where `path` is given to `save`."""
        files = {id(p): file.name for p, file in zip(self.best, self.paths(path), strict=True)} if path else {}
        rows = [
            {
                "target": point.target,
                "file": files.get(id(point)),
                "why": point.why,
                **{key: getattr(point, key) for key in ("loss", "time", "macs", "size")},
                "report": point.result.report,
            }
            for point in self.points
        ]
        return {"schema": 1, "verb": "compress", "pareto": rows, "counted": self.counted, "passed": self.passed}


def numbered(path: str | Path, count: int) -> list[Path]:
    """OUT-1.onnx to OUT-COUNT.onnx for OUT.onnx."""
    path = Path(path)
    return [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, count + 1)]


def pareto(
    model: object,
    recipe: Recipe | str | Path,
    targets: Sequence[float] = TARGETS,
    *,
    keep_feedable: bool = False,
    external_data_root: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Front:
    """Run a recipe at several targets, and keep what no other run beats in both loss and time.

    Args:
        model: As in `compress`; it is read once.
        recipe: As in `compress`. One or more of its passes say a `target` (`slim`, `prune_channels`); that is what
            varies.
        targets: Between 0 and 1; they run from the largest to the smallest.
        keep_feedable: As in `compress`.
        external_data_root: As in `compress`.
        progress: Told how far the work is, each step with its target.
        options: As in `compress`.

    Raises:
        RecipeError: if no pass has a target, a target is out of range, or anything that `compress` raises it for.
        ModelError: as in `compress`, likewise DataError and MeasureError.
    """
    if options.get("verify") is False:
        raise RecipeError("a front needs the loss of every point, and --no-verify compares no answers")
    runs = _recipes(Recipe.of(recipe), numbers("targets", targets))
    given = load(model, external_data_root=external_data_root, keep_feedable=True)
    found: list[Point] = []
    for target, how in runs:
        name = "exact" if target is None else f"{target:g}"
        tell = None if progress is None else _prefixed(progress, name)
        result = compress(
            given, how, keep_feedable=keep_feedable, external_data_root=external_data_root, progress=tell, **options
        )
        found.append(_point(target, result))
    return _front(found)


def _prefixed(progress: Progress, name: str) -> Progress:
    return lambda step, done, total: progress(f"{name}: {step}", done, total)


def _recipes(recipe: Recipe, targets: Sequence[float]) -> list[tuple[float | None, Recipe]]:
    """The recipe without lossy passes, then at each target."""
    if not any("target" in step.options for step in recipe.steps):
        raise RecipeError(
            f"{recipe.name} has no pass with a target, which is what a front varies",
            "give slim or prune_channels a target, or take --preset balanced",
        )
    if wrong := [target for target in targets if not 0 < target < 1]:
        raise RecipeError(f"target {wrong[0]:g} of a front", "shares between 0 and 1")
    if not targets:
        raise RecipeError("a front of no targets", "shares between 0 and 1, such as 0.8,0.6,0.4")
    exact = dataclasses.replace(recipe, steps=tuple(step for step in recipe.steps if step.exact))
    found: list[tuple[float | None, Recipe]] = [(None, exact)]
    for target in sorted(set(targets), reverse=True):
        steps = tuple(
            dataclasses.replace(step, options={**step.options, "target": target}) if "target" in step.options else step
            for step in recipe.steps
        )
        found.append((target, dataclasses.replace(recipe, steps=steps)))
    return found


def _point(target: float | None, result: Result) -> Point:
    """The figures of a run."""
    report = result.report
    found, before, after = report.fidelity, report.cost_before, report.cost_after
    loss = math.nan
    if found is not None and found.metric_drop is not None:
        loss = found.metric_drop
    elif report.outcome in ("exact", "unchanged"):
        loss = 0.0
    elif found is not None:
        loss = 1 - found.min_cosine
    time = None if report.latency is None else report.latency.ratio
    if report.outcome == "unchanged" and report.asked.options.get("latency"):
        time = 1.0
    macs = None
    if before is not None and after is not None and before.macs and after.macs is not None:
        macs = after.macs / before.macs
    return Point(
        target, result, loss, time, macs, report.sizes[1] / max(report.sizes[0], 1), _ruled_out(target, result)
    )


def _ruled_out(target: float | None, result: Result) -> str:
    """Why a run gives no point, whatever the others gave."""
    report = result.report
    if not result.passed:
        return f"over budget: {'; '.join(report.breaches)}"
    if target is None or report.outcome == "compressed":
        return ""
    lossy = [step for step in report.steps if not step.exact and step.outcome != "nothing to do"]
    reasons = [step.reason or next((change.reason for change in step.refused), step.outcome) for step in lossy]
    return f"no more than exact: {reasons[0]}" if reasons else "no more than exact"


def _front(points: Sequence[Point]) -> Front:
    """Mark what another point beats."""
    open_ = [point for point in points if not point.why]
    counted = next(
        (name for name, key in _COUNTED.items() if open_ and all(getattr(p, key) is not None for p in open_)), "size"
    )
    costs = {id(point): float(getattr(point, _COUNTED[counted]) or math.nan) for point in open_}
    marked = []
    for number, point in enumerate(points):
        why = point.why
        if not why and (other := _better(point, number, points, costs)) is not None:
            why = f"{other.name} loses no more and takes no more {_WORDS[counted]}"
        marked.append(dataclasses.replace(point, why=why))
    return Front(tuple(marked), counted)


_COUNTED: Mapping[str, str] = {"latency": "time", "macs": "macs", "size": "size"}
_WORDS: Mapping[str, str] = {"latency": "time", "macs": "multiply-adds", "size": "bytes"}


def _better(point: Point, number: int, points: Sequence[Point], costs: Mapping[int, float]) -> Point | None:
    """A point that is as good in both and better in one; of two that are equal the earlier one stays."""
    for place, other in enumerate(points):
        if other.why or other is point:
            continue
        mine, theirs = (point.loss, costs[id(point)]), (other.loss, costs[id(other)])
        if theirs[0] <= mine[0] and theirs[1] <= mine[1] and (theirs != mine or place < number):
            return other
    return None

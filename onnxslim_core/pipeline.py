"""The job `compress`: a model and a recipe in, a smaller or faster model and a report out.

    load -> samples -> for each step: pass, cleanup, judge -> verify, compare, time -> keep or roll back

This is the way in and out; `_job.py` keeps the promises on the way, `_feeds.py` finds what the models are fed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxslim_core._checks import check_run, seconds, sizes, table
from onnxslim_core._collect import few_collections, long_lived
from onnxslim_core._feeds import open_feeds
from onnxslim_core._files import digest_of_file
from onnxslim_core._job import Clock, Job, said
from onnxslim_core.calibration.code import call_source, load_metric
from onnxslim_core.calibration.source import Data
from onnxslim_core.errors import BudgetError, ModelError, RecipeError
from onnxslim_core.lock import Lock, take
from onnxslim_core.measure.fidelity import beside
from onnxslim_core.measure.session import open_file, open_session, run
from onnxslim_core.measure.truth import Plain
from onnxslim_core.model import LARGE, Model, load, save, tell_nodes_apart
from onnxslim_core.recipe import Budget, Recipe, load_budget
from onnxslim_core.report import Asked, Report, plain
from onnxslim_core.rewrite import Progress, Sample

__all__ = ["Result", "compress", "compress_file"]


@dataclass(frozen=True, slots=True)
class Result:
    """What `compress` gives.

    Attributes:
        made: The result, also where it does not meet the budget, sealed; it is asked for as `model`.
        report: What was done and measured.
        sample: An input that runs, for the check of the written file; None where nothing runs.
        answers: What the model answered to it in the session without onnxruntime's rewrites, where that is known.
        digest: Of the bytes that onnxruntime was given for those answers; None for models of several files.
        given: The model as it was given.
        given_sha256: Of its file; None where it is large or was given in memory.
    """

    made: Model
    report: Report
    sample: Sample | None = None
    answers: Mapping[str, Any] | None = None
    digest: str | None = None
    given: Model | None = None
    given_sha256: str | None = None

    @property
    def model(self) -> Model:
        """The result, also where it does not meet the budget. It may be changed, `save` then writes what it is now."""
        if self.given is self.made:  # nothing was done, and a lock still wants to know what was given
            object.__setattr__(self, "given", self.made.copy())
        self.made.seal(False)
        return self.made

    @property
    def passed(self) -> bool:
        """False where a budget was given and is not met."""
        return self.report.passed

    @property
    def exit_code(self) -> int:
        """0, or 1 where the budget said no."""
        return 0 if self.passed else 1

    def save(self, path: str | Path) -> None:
        """Write the model: whole or not at all, and only if onnxruntime reads back what is in memory.

        Raises:
            ModelError: if the budget is not met, or the file cannot be written or does not answer as it should.
        """
        if not self.passed:
            raise ModelError("the budget is not met, so there is no model to save", "; ".join(self.report.breaches))
        save(self.made, path, check=self._check)

    def lock(self) -> Lock:
        """What was decided, to be done again by `apply` without samples or search: `result.lock().save("net.lock")`.

        Raises:
            ModelError: if the model that it was made from is not known.
        """
        if self.given is None:
            raise ModelError("this result does not know the model that it was made from, so it has no lock")
        return take(self.given, self.made, self.report, self.given_sha256)

    def _check(self, path: Path) -> None:
        """Let onnxruntime load the written file, run it, and compare its answers with those of the model in memory.

        A file that is byte by byte what was loaded, run and compared needs no second run; where no answers are to be
        compared, the file is not run.

        Raises:
            ModelError: if its answers differ.
            MeasureError: if it does not load or run.
        """
        if self.report.data.kind == "none":
            load(path, keep_feedable=True)
            return
        if not self.report.asked.options["verify"] or (self.digest is not None and digest_of_file(path) == self.digest):
            return
        threads = int(self.report.asked.options["threads"])
        session = open_file(path, threads=threads, large=self.made.nbytes >= LARGE)
        if self.sample is None:
            return
        found = run(session, self.sample)
        del session
        if self.answers is not None and self._otherwise(self.answers, found) is None:
            return
        # nobody knows what to expect, or the model was changed since
        expected = run(open_session(self.made, threads=threads, optimize=False), self.sample)
        if problem := self._otherwise(expected, found):
            raise ModelError(f"the file written does not answer like the model in memory: {problem}")

    def _otherwise(self, expected: Mapping[str, Any], found: dict[str, Any]) -> str | None:
        """How answers to the sample differ from those that are expected."""
        return said(beside(dict(expected), found, self.sample or {}, self.report.fidelity))


@few_collections()
def compress(
    model: object,
    recipe: Recipe | str | Path | None = None,
    *,
    data: Data | None = None,
    budget: Budget | str | Path | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, object] | None = None,
    threads: int = 1,
    seed: int | None = None,
    verify: bool = True,
    measure_latency: bool = True,
    allow_code: bool = False,
    latency_seconds: float = 20.0,
    metric: Callable[..., float] | str | None = None,
    progress: Progress | None = None,
    keep_feedable: bool = False,
    external_data_root: str | Path | None = None,
) -> Result:
    """Run a recipe over a model, prove what came out, and keep what holds.

    Args:
        model: A path, bytes, a ModelProto, an `onnx_ir.Model`, an `onnx_graphsurgeon.Graph`, or a loaded `Model`; it is
            not changed.
        recipe: A recipe, its file, or the name of a preset; exact passes only where there is none.
        data: Replaces the recipe's source; the recipe's `[data]` still says names, layout and scale. Half of it is
            shown to passes, the other half judges. Without data both are seeded random.
        budget: Replaces the recipe's.
        shapes: Sizes for inputs, over the recipe's `[inputs]`.
        values: What to fill inputs with, over the recipe's `[inputs]`.
        threads: For every measurement.
        seed: Over the recipe's.
        verify: False compares no answers; the report then says "unverified".
        measure_latency: False times nothing and says so.
        allow_code: Lets a recipe's `file.py:function` run, as source of samples or as a pass.
        latency_seconds: Bound on the final timing.
        metric: A user's metric, (outputs, labels) -> float, or `file.py:function`.
        progress: Told how far the work is.
        keep_feedable: Keep initializers that are listed as inputs feedable.
        external_data_root: A folder from which external data may be read.

    Returns:
        The result; `result.passed` is False where a budget was given and cannot be met.

    Raises:
        RecipeError: if an option, a shape or the budget is wrong.
        ModelError: if the model is missing, broken or not supported.
        DataError: if the data is missing, broken or does not fit.
        MeasureError: if onnxruntime cannot load the model at all.
    """
    clock = Clock()
    check_run(threads=threads, seed=seed)
    latency_seconds = seconds("latency_seconds", latency_seconds)
    own_sizes, own_fills = sizes(shapes), table("values", values)
    recipe = (Recipe.exact() if recipe is None else Recipe.of(recipe)).with_code(allowed=allow_code)
    limits = recipe.budget if budget is None else load_budget(budget)
    _check_request(limits, verify, measure_latency, metric)
    scorer = load_metric(metric)
    seed = recipe.seed if seed is None else seed
    with clock("load"), long_lived():
        root = None if external_data_root is None else Path(external_data_root)
        start = load(model, external_data_root=root, keep_feedable=keep_feedable)
        given_sha256 = None if start.nbytes >= LARGE or start.source is None else _digest(start.source)
        # what is held against the result is the model as it was given, so that what loading gained counts too
        reference = load(model, external_data_root=root, keep_feedable=True) if start.notes else start
        for each in {id(each): each for each in (start, reference)}.values():
            tell_nodes_apart(each)
            each.seal()
    with clock("samples"):
        known = {name: spec.shape for name, spec in recipe.inputs.items() if spec.shape is not None} | own_sizes
        fills = {name: spec.value for name, spec in recipe.inputs.items() if spec.value is not None}
        source = _source(data, recipe, allow_code)
        given = Plain(start, threads)
        fills.update(own_fills)
        asks = verify or measure_latency
        feeds = open_feeds(given, recipe, source, known, fills, seed, asks=asks)
        if not verify or start.nbytes >= LARGE:
            given.close()  # nobody asks it again, or soon enough to keep its memory
    job = Job(
        start=start,
        reference=reference,
        recipe=recipe,
        budget=limits,
        feeds=feeds,
        clock=clock,
        threads=threads,
        seed=seed,
        compares=verify and feeds.runs,
        times=measure_latency and feeds.runs,
        metric=scorer,
        latency_seconds=latency_seconds,
        progress=progress or _silent,
        plain=given,
        given_bytes=_bytes_of(start) if isinstance(model, str | Path) else None,
    )
    options = {"seed": seed, "threads": threads, "shapes": known, "verify": verify, "latency": measure_latency}
    asked = Asked(
        _name_of(model),
        recipe.name,
        tuple({"name": step.name, **step.options} for step in recipe.steps),
        None if limits is None else _set_keys(limits),
        {**options, "keep_feedable": keep_feedable},
    )
    final, report = job.run(asked, feeds.used.note if verify else "asked not to compare answers (--no-verify)")
    answers, digest = job.answers(final)
    return Result(final, report, feeds.judging[0] if job.compares else None, answers, digest, reference, given_sha256)


@few_collections()
def compress_file(
    source: str | Path,
    target: str | Path,
    recipe: Recipe | str | Path | None = None,
    lock: str | Path | None = None,
    **options: Any,
) -> Result:
    """`compress`, and write the model if the budget is met; where it is not, nothing is written.

    Args:
        source: The model's file.
        target: Where the result goes; may be the source.
        recipe: As in `compress`.
        lock: Where the lock goes, beside the model; None writes none.
        options: As in `compress`.
    """
    result = compress(source, recipe, **options)
    if result.passed:
        with contextlib.nullcontext() if lock is None else result.lock().staged(lock):
            result.save(target)
    return result


def _bytes_of(start: Model) -> int | None:
    """What the file of a model takes, which may be less than we would write; None where weights lie elsewhere."""
    with contextlib.suppress(OSError):
        size = start.source.stat().st_size if start.source is not None else 0
        return size if size >= start.nbytes else None
    return None


def _digest(path: Path) -> str | None:
    """sha256 of a file; None where it has gone by now."""
    try:
        return digest_of_file(path)
    except OSError:
        return None


def _silent(step: str, done: int, total: int) -> None:
    return None


def _check_request(
    budget: Budget | None, verify: bool, measure_latency: bool, metric: Callable[..., float] | str | None
) -> None:
    """Refuse what cannot be judged, before any work: an absent figure is never a pass."""
    if budget is None:
        return
    if budget.judges_answers and not verify:
        raise BudgetError("the budget limits the answers, which --no-verify does not compare")
    if budget.max_latency_ratio is not None and not measure_latency:
        raise BudgetError("the budget has max_latency_ratio, which --no-latency does not measure")
    if metric is None and (budget.min_metric is not None or budget.max_metric_drop is not None):
        raise BudgetError("the budget limits a metric, and none is given", "give --metric file.py:function")


def _name_of(source: object) -> str:
    if isinstance(source, Model) and source.source is not None:
        return source.source.name
    return Path(source).name if isinstance(source, str | Path) else f"a {type(source).__name__} in memory"


def _set_keys(budget: Budget) -> dict[str, Any]:
    """The keys of a budget that say something."""
    default = Budget()
    keys = [entry.name for entry in dataclasses.fields(budget)]
    return {key: plain(getattr(budget, key)) for key in keys if getattr(budget, key) != getattr(default, key)}


def _source(data: Data | None, recipe: Recipe, allow_code: bool) -> Data | None:
    """What to read samples from: what the user names, else what the recipe does."""
    if data is not None:
        # naming a function on the command line is the permission to run it
        found: Data = call_source(data, Path.cwd()) if isinstance(data, str) and ".py:" in data else data
        return found
    named = recipe.data.source
    if named is None:
        return None
    folder = recipe.data.folder or Path.cwd()
    if ".py:" not in named:
        return folder / named
    if not allow_code:
        raise RecipeError(f"{recipe.name}: source '{named}' is code", "let it run with --allow-code")
    told: Data = call_source(named, folder)
    return told

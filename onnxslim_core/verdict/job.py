"""The job `gate`: load two models, gather the facts, judge them."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxslim_core._checks import check_run, table, whole
from onnxslim_core._checks import seconds as check_seconds
from onnxslim_core._checks import sizes as sizes_given
from onnxslim_core.calibration.spec import DataSpec
from onnxslim_core.errors import MeasureError, RecipeError
from onnxslim_core.graph import all_nodes
from onnxslim_core.model import Model, load
from onnxslim_core.recipe import Budget, Recipe, load_budget
from onnxslim_core.report import machine
from onnxslim_core.rewrite import Progress, Sample, Timing
from onnxslim_core.verdict.judge import Facts, check_judges, check_outputs, decide_timing, judge, standard
from onnxslim_core.verdict.record import FAIL, Row, Verdict

if TYPE_CHECKING:
    from onnxslim_core.calibration.source import Data
    from onnxslim_core.measure.cost import Cost

__all__ = ["Samples", "differences", "domains", "from_recipe", "gate", "gather_samples"]

SAMPLES = 256
"""At most so many given samples are judged."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What two models are judged on.

    Attributes:
        samples: At least one.
        labels: One array per sample, for a metric; None where there are none.
        said: Where they come from, in words.
        real: False for seeded random numbers.
    """

    samples: list[Sample]
    labels: list[np.ndarray] | None
    said: str
    real: bool

    def document(self) -> dict[str, object]:
        """What JSON says about them."""
        return {"source": self.said, "real": self.real, "samples": len(self.samples)}


def gather_samples(
    model: Model,
    data: Data | None,
    *,
    spec: DataSpec | None = None,
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    values: Mapping[str, object] | None = None,
    count: int = 4,
    limit: int = SAMPLES,
) -> Samples:
    """Given samples, or else seeded random ones.

    Args:
        model: Whose inputs they must fit.
        data: See `calibration.source.Data`; None: what the spec names, else random.
        spec: How arrays become inputs.
        seed: Of random inputs and crops.
        shapes: Sizes of random inputs, and of images where the model leaves them open.
        values: Contents of random inputs, and of those that the data has nothing for.
        count: How many random samples; of given ones one where this is 1.
        limit: At most so many given samples.

    Raises:
        DataError: if the data is missing, broken or empty.
        MeasureError: if there is no data and no random input runs.
    """
    from onnxslim_core.calibration.code import call_source
    from onnxslim_core.calibration.source import open_source
    from onnxslim_core.measure.inputs import random_samples

    if isinstance(data, str) and ".py:" in data:
        data = call_source(data, Path.cwd())  # naming it is the permission to run it
    if data is None and spec is not None and spec.source is not None:
        data = _recipe_source(spec)
    if data is None:
        drawn = random_samples(model, count=count, seed=seed, shapes=shapes, values=values)
        return Samples(list(drawn), None, f"{len(drawn)} seeded random inputs (seed {seed}), no data given", False)
    limit = 1 if count == 1 else limit
    source = open_source(data, model, spec, limit=limit, seed=seed, shapes=shapes, values=values)
    source = source.first(limit) if spec is None or spec.samples is None else source
    if idle := [name for name in (*(shapes or {}), *(values or {})) if not source.uses(name)]:
        text = f"size or value of '{idle[0]}' is for random inputs, and data was given"
        raise RecipeError(text, "leave one of them out")
    samples: list[Sample] = list(source)
    said = f"{len(samples)} samples of {source.name}"
    said += f" (assumed: {', '.join(source.assumed)})" if source.assumed else ""
    return Samples(samples, source.labels, said, True)


def _recipe_source(spec: DataSpec) -> Path:
    """The file that a recipe names.

    Raises:
        RecipeError: if it is code, which only the command line may name.
    """
    if ".py:" in str(spec.source):
        raise RecipeError(f"the recipe's source '{spec.source}' is code", "name it by --data to let it run")
    return (spec.folder or Path()) / str(spec.source)


def gate(
    reference: object,
    candidate: object,
    budget: Budget | str | Path,
    *,
    data: Data | None = None,
    recipe: Recipe | str | Path | None = None,
    labels: str | None = None,
    metric: str | Callable[..., float] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    values: Mapping[str, object] | None = None,
    samples: int = SAMPLES,
    threads: int = 1,
    seed: int = 0,
    max_seconds: float = 60.0,
    external_data_root: str | Path | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Judge a candidate against a reference.

    Args:
        reference: Whatever `model.load` takes.
        candidate: The same.
        budget: A budget, or the path of a budget file.
        data: Samples to judge on; without, seeded random inputs, which the verdict says.
        recipe: One, its file or the name of a preset. Its `[data]` and `[inputs]` say how the data is prepared; nothing
            else of it is used.
        labels: The array of labels in the data, for the metric.
        metric: `(outputs, labels) -> float`, or `file.py:function`, for `min_metric` and `max_metric_drop`.
        shapes: Sizes of inputs, where they are random.
        values: Contents of inputs, where they are random.
        samples: At most so many of the data, evenly spread.
        threads: Of both models.
        seed: Of the random inputs and of the order of timing.
        max_seconds: At most so long is timed before a timing is called inconclusive.
        external_data_root: See `model.load`.
        progress: Told (step, done, total).

    Raises:
        RecipeError: if an argument is wrong.
        BudgetError: if the budget is wrong or judges nothing.
        RecipeError: if an option is wrong.
        ModelError: if a model is missing or broken.
        DataError: if the data is missing, broken or empty.
        MeasureError: if a model does not run.
    """
    from onnxslim_core.calibration.code import load_metric

    started = time.monotonic()
    check_run(threads=threads, seed=seed)
    samples = whole("samples", samples, 1)
    max_seconds = check_seconds("max_seconds", max_seconds)
    shapes, values = sizes_given(shapes), table("values", values)
    tell = progress or (lambda _step, _done, _total: None)
    limits = load_budget(budget)
    how = None if recipe is None else Recipe.of(recipe)
    check_judges(limits)
    if labels is not None and data is None and (how is None or how.data.source is None):
        raise RecipeError(f"labels '{labels}' are an array of the data, and no data is given", "give --data")
    scorer = load_metric(metric)
    tell("load", 0, 0)
    root = None if external_data_root is None else Path(external_data_root)
    # as they are: a weight that is listed as an input costs time, and whoever deploys the file pays for it
    pair = (
        load(reference, external_data_root=root, keep_feedable=True),
        load(candidate, external_data_root=root, keep_feedable=True),
    )
    tell("find inputs that run", 0, 0)
    spec, sizes, contents = from_recipe(how, labels, shapes, values, random=data is None)
    found = gather_samples(pair[0], data, spec=spec, seed=seed, shapes=sizes, values=contents, limit=samples)
    check_outputs(limits, [str(v.name) for v in pair[0].ir.graph.outputs])
    facts, details = _facts(pair, limits, found, threads, scorer, tell)
    rows = judge(limits, facts)
    if limits.max_latency_ratio is not None and not facts.figures:
        note = "not timed, since the candidate does not run in the reference's place"
        rows.append(Row("max_latency_ratio", limits.max_latency_ratio, None, FAIL, note))
    elif limits.max_latency_ratio is not None:
        row, timings = _time(pair, limits.max_latency_ratio, found.samples[0], threads, seed, max_seconds, tell)
        rows.append(row)
        details["latency"] = timings
    return Verdict(
        rows=tuple(rows),
        reference=_named(reference, "reference"),
        candidate=_named(candidate, "candidate"),
        data=found.said,
        real_data=found.real,
        samples=len(found.samples),
        allow_inconclusive=limits.allow_inconclusive,
        seconds=time.monotonic() - started,
        details={"seed": seed, "threads": threads, "machine": machine(), **details},
    )


def _named(source: object, otherwise: str) -> str:
    return Path(source).name if isinstance(source, str | os.PathLike) else otherwise


def from_recipe(
    recipe: Recipe | None,
    labels: str | None,
    shapes: Mapping[str, tuple[int, ...]] | None,
    values: Mapping[str, object] | None,
    *,
    random: bool,
) -> tuple[DataSpec | None, dict[str, tuple[int, ...]], dict[str, object]]:
    """How data is prepared, and sizes and contents of random inputs; what is given beats the recipe."""
    spec = recipe.data if recipe is not None else None
    if labels is not None:
        spec = dataclasses.replace(spec or DataSpec(), labels=labels)
    sizes: dict[str, tuple[int, ...]] = {}
    contents: dict[str, object] = {}
    if recipe is not None and random and recipe.data.source is None:
        sizes = {name: entry.shape for name, entry in recipe.inputs.items() if entry.shape is not None}
        contents = {name: entry.value for name, entry in recipe.inputs.items() if entry.value is not None}
    return spec, {**sizes, **(shapes or {})}, {**contents, **(values or {})}


def _facts(
    pair: tuple[Model, Model],
    budget: Budget,
    found: Samples,
    threads: int,
    metric: Callable[..., float] | None,
    tell: Progress,
) -> tuple[Facts, dict[str, Any]]:
    from onnxslim_core.measure.cost import cost
    from onnxslim_core.measure.fidelity import Fidelity, compare

    reference, candidate = pair
    interface = differences(reference.ir, candidate.ir)
    tell("compare answers", 0, 0)
    try:
        answers = compare(
            reference,
            candidate,
            found.samples,
            data="given" if found.real else "random",
            parts=budget.parts,
            threads=threads,
            metric=metric,
            labels=found.labels,
        )
    except MeasureError as err:
        if not interface:
            raise
        # of another form than the reference: that is what the verdict says, not an error
        answers = Fidelity()
        interface.append(str(err))
    interface += [f"output {name}: {entry.mismatch}" for name, entry in answers.outputs.items() if entry.mismatch]
    tell("count", 0, 0)
    # a candidate of another form has no cost at the reference's sizes
    costs = (cost(reference, found.samples[0]), cost(candidate, found.samples[0] if answers.outputs else None))
    ratios = _ratios(sizes_of(pair, costs), costs)
    opsets = candidate.ir.opset_imports
    facts = Facts(
        outputs=[str(v.name) for v in reference.ir.graph.outputs],
        interface=interface,
        figures=answers.outputs,
        default=answers.default,
        reference_default=answers.reference_default,
        parts={name: list(parts) for name, (_, parts) in budget.parts.items()},
        not_finite=[*answers.not_finite(), *answers.blank()],
        metric=answers.metric,
        ratios=ratios,
        domains=domains(candidate.ir),
        opset=opsets.get("", opsets.get("ai.onnx")),
        real_data=found.real,
        samples=len(found.samples),
    )
    return facts, {"fidelity": answers, "counts": ratios}


def _ratios(sizes: tuple[int, int], costs: tuple[Cost, Cost]) -> dict[str, tuple[float | None, float | None]]:
    """(reference, candidate) by key; None where a count leaves more out in the candidate than in the reference."""
    first, second = costs
    # what has no known shape or lies in a body counts as nothing, and would make a candidate look cheap
    shapes = second.unknown_shapes > first.unknown_shapes
    hidden = shapes or (second.has_bodies and not first.has_bodies)
    return {
        "max_size_ratio": sizes,
        "max_params_ratio": (first.params, second.params),
        "max_macs_ratio": (first.macs, None if hidden else second.macs),
        "max_memory_ratio": (first.peak_activation_bytes, None if hidden else second.peak_activation_bytes),
    }


def sizes_of(pair: tuple[Model, Model], costs: tuple[Cost, Cost]) -> tuple[int, int]:
    """Bytes of the two files; where one has no file, or weights outside of it, both as one file would hold them."""
    found = []
    for model in pair:
        plain = model.source.stat().st_size if model.source is not None and model.source.is_file() else 0
        if plain < model.nbytes:
            return costs[0].bytes, costs[1].bytes
        found.append(plain)
    return found[0], found[1]


def _time(
    pair: tuple[Model, Model],
    limit: float,
    sample: Sample,
    threads: int,
    seed: int,
    max_seconds: float,
    tell: Progress,
) -> tuple[Row, list[Timing]]:
    from onnxslim_core.measure.latency import compare_latency

    def measure(seconds: float, turn: int) -> Timing:
        tell(f"time, for {seconds:.0f} s", 0, 0)
        return compare_latency(*pair, sample, threads=threads, seconds=seconds, seed=seed + turn)

    return decide_timing(limit, measure, max_seconds)


def differences(reference: ir.Model, candidate: ir.Model) -> list[str]:
    """How the candidate's interface breaks the reference's, in words.

    Names, their order and types are the same. An input takes every size that the reference takes (a fixed size may
    become open, an open one not fixed); a size that both declare for an output is the same.
    """
    found: list[str] = []
    for kind, ours, theirs in (
        ("input", _fed(reference), _fed(candidate)),
        ("output", list(reference.graph.outputs), list(candidate.graph.outputs)),
    ):
        names, others = [str(v.name) for v in ours], [str(v.name) for v in theirs]
        if names != others:
            found.append(f"{kind}s are {', '.join(others) or 'none'}, not {', '.join(names) or 'none'}")
            continue
        for mine, other in zip(ours, theirs, strict=True):
            found += _value_differences(kind, mine, other)
    return found


def _fed(model: ir.Model) -> list[ir.Value]:
    return [v for v in model.graph.inputs if v.name not in model.graph.initializers]


def _value_differences(kind: str, mine: ir.Value, other: ir.Value) -> Iterator[str]:
    name = mine.name
    if mine.type is not None and other.type is not None and mine.type != other.type:
        yield f"{kind} {name} is {other.type}, not {mine.type}"
        return
    if mine.shape is None or other.shape is None:
        if kind == "input" and mine.shape is None and other.shape is not None:
            yield f"input {name} is declared {other.shape}, the reference takes any shape"
        return
    if len(mine.shape) != len(other.shape):
        yield f"{kind} {name} has {len(other.shape)} axes, not {len(mine.shape)}"
        return
    for axis, (size, new) in enumerate(zip(mine.shape, other.shape, strict=True)):
        fixed_now = isinstance(new, int) and new >= 0
        if not fixed_now or size == new:
            continue
        if isinstance(size, int) and size >= 0:
            yield f"{kind} {name} has size {new} on axis {axis}, not {size}"
        elif kind == "input":
            yield f"input {name} takes only size {new} on axis {axis}, the reference takes any"


def domains(model: ir.Model) -> frozenset[str]:
    """The domains of all operators in use, bodies and functions included; '' is the standard one."""
    local = {(f.domain, f.name) for f in model.functions.values()}
    nodes = [*all_nodes(model.graph), *(node for f in model.functions.values() for node in f.all_nodes())]
    return frozenset(standard(n.domain) for n in nodes if (n.domain, n.op_type) not in local)

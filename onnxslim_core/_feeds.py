"""What the models of a job are fed: to compare, to decide with, to judge on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxslim_core.calibration.source import Data, Source, open_source
from onnxslim_core.errors import MeasureError
from onnxslim_core.measure.cost import Cost, cost
from onnxslim_core.measure.inputs import random_samples
from onnxslim_core.measure.session import open_session, run
from onnxslim_core.model import Model
from onnxslim_core.recipe import Recipe
from onnxslim_core.report import DataUsed
from onnxslim_core.rewrite import Sample

__all__ = ["Feeds", "open_feeds"]

RANDOM_SAMPLES = 8
"""Seeded random inputs: the first half to decide with, the second to judge on; half as many of costly models."""

COSTLY_MACS = 5e8
"""Of one call of a costly model."""

JUDGING_MACS = 4e11
"""Given data is cut down to about so many multiply-accumulates per comparison, so that judging ends in minutes."""


@dataclass(frozen=True, slots=True)
class Feeds:
    """What the models are fed.

    Attributes:
        exact: For checking that answers are equal; the very list of `judging` where both are random.
        deciding: For passes.
        judging: For the verdict; none of them is in `deciding`.
        labels: Of the judging samples, for a user's metric.
        used: For the report.
        cost: Of the model at the sizes of the samples for judging, where it was counted.
        misdeclared: Outputs whose answers contradict their declared shape, in words: a flaw of the model as given.
    """

    exact: Sequence[Sample]
    deciding: Sequence[Sample]
    judging: Sequence[Sample]
    labels: Sequence[Any] | None
    used: DataUsed
    cost: Cost | None = None
    misdeclared: Mapping[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        """False where no input was found that the model runs on."""
        return bool(self.judging)


def open_feeds(
    model: Model,
    recipe: Recipe,
    data: Data | None,
    shapes: Mapping[str, tuple[int, ...]],
    values: Mapping[str, object],
    seed: int,
    threads: int,
) -> Feeds:
    """Find inputs that run, and cut given data into a half to decide with and a half to judge on.

    Args:
        model: As it was loaded.
        recipe: Its `[data]` says names, layout, scale and number of samples.
        data: Given samples; None draws seeded random ones.
        shapes: Sizes for random inputs.
        values: Contents for random inputs.
        seed: Of the random inputs.
        threads: For the run that proves that given data fits.

    Raises:
        MeasureError: if onnxruntime cannot load the model, or not run it on given data.
        DataError: if given data is missing, broken or does not fit.
        RecipeError: if a shape or value does not fit the model.
    """
    session = open_session(model, threads=threads, optimize=False)
    drawn: list[dict[str, Any]] = []
    problem = ""
    try:
        drawn = random_samples(model, count=RANDOM_SAMPLES, seed=seed, shapes=shapes, values=values, session=session)
    except MeasureError as err:
        problem = f"{err}; {err.hint}" if err.hint else str(err)
    if data is None:
        if not drawn:
            return Feeds((), (), (), None, DataUsed("none", note=problem))
        costs = cost(model, drawn[0])
        if costs.macs > COSTLY_MACS:
            drawn = drawn[: RANDOM_SAMPLES // 2]
        half = len(drawn) // 2
        used = DataUsed("random", f"seed {seed}", half, len(drawn) - half, shapes=_shapes(drawn[0]))
        judged = drawn[half:]
        misdeclared = _misdeclared(model, run(session, judged[0]))
        return Feeds(judged, drawn[:half] or judged, judged, None, used, costs, misdeclared)
    source = _cut(open_source(data, model, recipe.data), model, recipe)
    misdeclared = _misdeclared(model, run(session, source[0]))
    deciding, judging = source.split()
    used = DataUsed(
        "given", source.name, len(deciding), len(judging), source.digest, _shapes(source[0]), _shortage(deciding)
    )
    exact = [*drawn[:2], *judging.first(2)]
    return Feeds(exact, deciding or drawn, judging, judging.labels, used, misdeclared=misdeclared)


def _cut(source: Source, model: Model, recipe: Recipe) -> Source:
    """Fewer samples of costly models; as many as the recipe says where it says so."""
    if recipe.data.samples is not None:
        return source
    macs = cost(model, source[0]).macs
    return source.first(max(16, int(JUDGING_MACS / macs)) if macs else len(source))


def _misdeclared(model: Model, outputs: Mapping[str, Any]) -> dict[str, str]:
    """Outputs whose rank or fixed sizes are declared otherwise than they are; onnxruntime only warns of it."""
    found: dict[str, str] = {}
    for value in model.ir.graph.outputs:
        answer = outputs.get(str(value.name))
        if value.shape is None or not isinstance(answer, np.ndarray):
            continue
        declared = [size if isinstance(size, int) and size >= 0 else None for size in value.shape]
        pairs = zip(declared, answer.shape, strict=False)
        if len(declared) != answer.ndim or any(want not in (None, have) for want, have in pairs):
            found[str(value.name)] = f"it is declared {value.shape} and answers {list(answer.shape)}"
    return found


def _shortage(deciding: Sequence[Sample]) -> str:
    return "" if deciding else "one sample only: it judges, and passes decide with random ones"


def _shapes(sample: Sample) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in sample.items()}

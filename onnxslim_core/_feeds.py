"""What the models of a job are fed: to compare, to decide with, to judge on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim_core.calibration.diversity import distinct, looks_like_noise, shortage
from onnxslim_core.calibration.plausible import unlike_training
from onnxslim_core.calibration.source import Data, Source, open_source
from onnxslim_core.errors import DataError, MeasureError
from onnxslim_core.graph import all_nodes, attribute, bodies, is_op
from onnxslim_core.measure.cost import Cost, cost
from onnxslim_core.measure.inputs import likely_sample, random_samples
from onnxslim_core.measure.session import run
from onnxslim_core.measure.shapes import concrete_shapes
from onnxslim_core.measure.truth import Plain
from onnxslim_core.model import Model
from onnxslim_core.recipe import Recipe
from onnxslim_core.report import DataUsed
from onnxslim_core.rewrite import Sample

__all__ = ["Feeds", "open_feeds"]

RANDOM_SAMPLES = 8
"""Seeded random inputs: the first half to decide with, the second to judge on; half as many of costly models."""

COSTLY_MACS, COSTLY_NODES = 5e8, 4_000
"""Of one call of a costly model, and of a model whose calls are costly because it is long."""

DECIDING_MACS, DECIDING_LEAST = 4e11, 48
"""Given data to decide with is cut down to about so many multiply-accumulates, but not below so many samples: ranges
and widths that were taken from a dozen do not hold on others."""
JUDGING_MACS, JUDGING_LEAST = 2e11, 16
"""Likewise for a comparison, so that judging ends in minutes."""

NOISE_SAMPLES = 8
"""Looked at to tell pictures from noise."""

WIDEST = 4096
"""A Gemm or MatMul that sums over more reads a flattened map, which has fewer channels than elements."""

RANDOM_WARNING = (
    "NO DATA: inputs are seeded random numbers, and what they say of a lossy pass is worth little; "
    "give --data, or for an image model a folder of some forty photos with --set data.crops=1024"
)

NOISE_WARNING = (
    "THE DATA LOOKS LIKE NOISE: neighbouring pixels do not correlate, so passes do not decide on it; "
    "--set data.force_random=true says that it is meant to be like that"
)


@dataclass(frozen=True, slots=True)
class Feeds:
    """What the models are fed.

    Attributes:
        exact: For checking that answers are equal; the very list of `judging` where both are random.
        deciding: For passes.
        judging: For the verdict; none of them is in `deciding`, and none is of an origin that is.
        labels: Of the judging samples, for a user's metric.
        used: For the report.
        cost: Of the model at the sizes of the samples for judging, where it was counted.
        misdeclared: Outputs whose answers contradict their declared shape, in words: a flaw of the model as given.
        decides: True where passes may decide on samples: given ones that are no noise, or any where it was asked for.
        origins: Of the samples to decide with; see `rewrite.Context`.
        proven: False where nothing showed that all of the model runs, as of bodies of If, Loop and Scan nothing does:
            then what it says of itself may be contradictory.
    """

    exact: Sequence[Sample]
    deciding: Sequence[Sample]
    judging: Sequence[Sample]
    labels: Sequence[Any] | None
    used: DataUsed
    cost: Cost | None = None
    misdeclared: Mapping[str, str] = field(default_factory=dict)
    decides: bool = False
    origins: Sequence[int] = ()
    proven: bool = True

    @property
    def runs(self) -> bool:
        """False where no input was found that the model runs on."""
        return bool(self.judging)


def open_feeds(
    plain: Plain,
    recipe: Recipe,
    data: Data | None,
    shapes: Mapping[str, tuple[int, ...]],
    values: Mapping[str, object],
    seed: int,
    *,
    asks: bool = True,
) -> Feeds:
    """Find inputs that run, and cut given data into a half to decide with and a half to judge on.

    Args:
        plain: Of the model as it was loaded; its session proves that what is found runs.
        recipe: Its `[data]` says names, layout, scale and number of samples.
        data: Given samples; None draws seeded random ones.
        shapes: Sizes for random inputs, and for images where the model leaves them open.
        values: Contents for random inputs, and for those that given data has nothing for.
        seed: Of the random inputs and of random crops.
        asks: False where nothing is to be run: then sizes at which every shape can be inferred need no session.

    Raises:
        MeasureError: if onnxruntime cannot load the model, or not run it on given data.
        DataError: if given data is missing, broken or does not fit.
        RecipeError: if a shape or value does not fit the model.
    """
    exact = all(step.exact for step in recipe.steps)
    if not asks and exact and data is None and (found := _inferred(plain.model, shapes, values, seed)) is not None:
        return found
    model, session = plain.model, plain.session
    drawn: list[dict[str, Any]] = []
    problem = ""
    try:
        count = RANDOM_SAMPLES if len(model.ir.graph) < COSTLY_NODES else RANDOM_SAMPLES // 2
        drawn = random_samples(model, count=count, seed=seed, shapes=shapes, values=values, session=session)
    except MeasureError as err:
        problem = f"{err}; {err.hint}" if err.hint else str(err)
    lossy = not exact
    forced = recipe.data.force_random
    proven = not any(bodies(node) for node in model.ir.graph)
    if data is None:
        if not drawn:
            return Feeds((), (), (), None, DataUsed("none", note=problem), proven=False)
        costs = cost(model, drawn[0])
        if costs.macs > COSTLY_MACS:
            drawn = drawn[: RANDOM_SAMPLES // 2]
        half = len(drawn) // 2
        warnings = (RANDOM_WARNING,) if lossy else ()
        shapes = _shapes(drawn[0])
        used = DataUsed("random", f"seed {seed}", half, len(drawn) - half, shapes=shapes, warnings=warnings)
        judged = drawn[half:]
        misdeclared = _misdeclared(model, _shapes(run(session, judged[0])))
        return Feeds(judged, drawn[:half] or judged, judged, None, used, costs, misdeclared, forced, proven=proven)
    source = open_source(data, model, recipe.data, seed=seed, shapes=shapes, values=values)
    misdeclared = _misdeclared(model, _shapes(run(session, source[0])))
    apart = None if recipe.data.judging is None else _judges(source, model, recipe, seed, shapes, values)
    deciding, judging = sides(source, apart, model, recipe)
    noisy = looks_like_noise(judging.first(NOISE_SAMPLES))
    used = DataUsed(
        "given",
        source.name,
        len(deciding),
        len(judging),
        source.digest,
        _shapes(source[0]),
        _shortage(deciding, judging),
        distinct(deciding.origins),
        source.assumed,
        _warnings(model, deciding, noisy) if lossy else (),
    )
    compared = [*drawn[:2], *judging.first(2)]
    decides = forced or (len(deciding) > 0 and not noisy)
    return Feeds(
        exact=compared,
        deciding=deciding or drawn,
        judging=judging,
        labels=judging.labels,
        used=used,
        misdeclared=misdeclared,
        decides=decides,
        origins=tuple(deciding.origins),
        proven=proven,
    )


def _inferred(
    model: Model, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, object], seed: int
) -> Feeds | None:
    """One random sample that nobody ran, at likely sizes; None where a shape cannot be inferred at them."""
    try:
        sample = likely_sample(model, seed=seed, shapes=shapes, values=values)
    except MeasureError:
        return None
    known = concrete_shapes(model.ir, sample, may_run=False)
    costs = cost(model, sample, known)
    if costs.unknown_shapes or costs.has_bodies:
        return None
    answers = {str(v.name): known.shape[v] for v in model.ir.graph.outputs if v in known.shape}
    used = DataUsed("random", f"seed {seed}", 1, 1, shapes=_shapes(sample), note="sizes only: nothing was run")
    return Feeds([sample], [sample], [sample], None, used, costs, _misdeclared(model, answers), proven=False)


def sides(source: Source, judging: Source | None, model: Model, recipe: Recipe) -> tuple[Source, Source]:
    """Samples to decide with and to judge on: fewer of costly models; as many as the recipe says where it says so.

    Args:
        source: Given data; it is split where nothing is given to judge on.
        judging: What a recipe sets apart for that.
        model: Whose cost counts.
        recipe: Its `[data]` says how many, and which share is held out.
    """
    said = recipe.data
    deciding, judging = source.split(said.held_out) if judging is None else (source, judging)
    if said.samples is not None or said.max_samples is not None or said.crops is not None:
        return deciding, judging
    macs = max(cost(model, source[0]).macs, 1)
    return (
        deciding.first(max(DECIDING_LEAST, int(DECIDING_MACS / macs))),
        judging.first(max(JUDGING_LEAST, int(JUDGING_MACS / macs))),
    )


def _judges(
    source: Source,
    model: Model,
    recipe: Recipe,
    seed: int,
    shapes: Mapping[str, tuple[int, ...]],
    values: Mapping[str, object],
) -> Source:
    """The samples that a recipe sets apart for judging.

    Raises:
        DataError: if some of them are among those that decide.
    """
    said = recipe.data
    most = said.max_samples or said.samples or said.crops
    spec = dataclasses.replace(said, samples=None, crops=None, max_samples=most)
    path = (said.folder or Path.cwd()) / str(said.judging)
    judging = open_source(path, model, spec, seed=seed, shapes=shapes, values=values)
    if count := judging.common(source):
        text = f"{count} samples of {judging.name} are also in {source.name}: what decides must not judge"
        raise DataError(text, "leave them out of one of the two")
    return judging


def _warnings(model: Model, deciding: Source, noisy: bool) -> tuple[str, ...]:
    """What is to be feared where something is decided on these samples."""
    found = [unlike_training(model.ir, deciding), shortage(deciding.origins, _widest_sum(model))]
    return tuple(text for text in [*found, NOISE_WARNING if noisy else ""] if text)


def _widest_sum(model: Model) -> int:
    """Channels that the widest Conv, Gemm or MatMul sums over; a flattened map counts by its channels no more."""
    widest = 0
    for node in all_nodes(model.ir.graph):
        weight = node.inputs[1] if is_op(node, "Conv", "Gemm", "MatMul") and len(node.inputs) > 1 else None
        shape = weight.shape if weight is not None and weight.const_value is not None else None
        if shape is None or len(shape) < 2 or not all(isinstance(size, int) for size in shape):
            continue
        sides = [int(size) for size in shape[-2:]]  # type: ignore[arg-type]
        summed = int(shape[1]) if node.op_type == "Conv" else sides[1 if attribute(node, "transB", 0) else 0]  # type: ignore[arg-type]
        widest = max(widest, summed) if node.op_type == "Conv" or summed <= WIDEST else widest
    return widest


def _misdeclared(model: Model, answers: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Outputs whose rank or fixed sizes are declared otherwise than they are; onnxruntime only warns of it."""
    found: dict[str, str] = {}
    for value in model.ir.graph.outputs:
        answer = answers.get(str(value.name))
        if value.shape is None or answer is None:
            continue
        declared = [size if isinstance(size, int) and size >= 0 else None for size in value.shape]
        pairs = zip(declared, answer, strict=False)
        if len(declared) != len(answer) or any(want not in (None, have) for want, have in pairs):
            found[str(value.name)] = f"it is declared {value.shape} and answers {list(answer)}"
    return found


def _shortage(deciding: Source, judging: Source) -> str:
    if len(deciding):
        return ""
    what = "one sample only" if len(judging) == 1 else f"{len(judging)} samples of one image or recording"
    return f"{what}: it judges, and nothing is left to decide with"


def _shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items() if isinstance(array, np.ndarray)}

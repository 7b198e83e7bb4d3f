"""The verbs of the Python interface that are not jobs of their own: what is loaded and fed is settled here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, overload

from onnxslim_core._checks import check_run, sizes, table, whole
from onnxslim_core._checks import seconds as check_seconds
from onnxslim_core.calibration.code import load_metric
from onnxslim_core.calibration.source import Data
from onnxslim_core.errors import MeasureError
from onnxslim_core.measure.fidelity import Fidelity
from onnxslim_core.measure.fidelity import compare as compare_answers
from onnxslim_core.measure.latency import Alone, Latency, compare_latency, measure_alone
from onnxslim_core.model import Model, load
from onnxslim_core.verdict.job import Samples, gather_samples

if TYPE_CHECKING:
    from onnxslim_core.cli.inspection import Inspection

__all__ = ["benchmark", "compare", "inspect"]

RANDOM_SAMPLES = 8


def _open(model: object) -> Model:
    return model if isinstance(model, Model) else load(model, keep_feedable=True)


def _feed(
    model: Model,
    data: Data | None,
    shapes: Mapping[str, Sequence[int]] | None,
    values: Mapping[str, object] | None,
    seed: int,
    count: int,
) -> Samples:
    return gather_samples(model, data, seed=seed, shapes=sizes(shapes), values=table("values", values), count=count)


def inspect(
    model: object,
    *,
    explain: bool = True,
    data: Data | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, object] | None = None,
    seed: int = 0,
) -> Inspection:
    """Layers, cost, groups of channels, what can go and why the rest cannot.

    Args:
        model: A path, bytes, a proto, a graph or a `Model`.
        explain: False leaves the channels out.
        data: Gives the sizes at which it is counted; seeded random inputs do otherwise.
        shapes: Sizes for random inputs.
        values: Contents for random inputs.
        seed: Of random inputs.

    Raises:
        RecipeError: if an argument is wrong.
        ModelError: if the model cannot be read.
    """
    from onnxslim_core.cli.inspection import inspect as look

    whole("seed", seed)
    opened, note, sample = _open(model), "", None
    try:
        sample = _feed(opened, data, shapes, values, seed, 1).samples[0]
    except MeasureError as err:
        note = f"not run: {err}"
    return look(opened, sample, explain=explain, note=note)


def compare(
    reference: object,
    candidate: object,
    *,
    data: Data | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, object] | None = None,
    threads: int = 1,
    seed: int = 0,
    metric: Callable[..., float] | str | None = None,
) -> Fidelity:
    """How far the answers of two models are apart, output by output.

    Args:
        reference: A path, bytes, a proto, a graph or a `Model`.
        candidate: Likewise; takes the same inputs.
        data: Samples; seeded random inputs do otherwise, and say little about real answers.
        shapes: Sizes for random inputs.
        values: Contents for random inputs.
        threads: For onnxruntime, within one operator.
        seed: Of random inputs.
        metric: A user's metric, (outputs, labels) -> float, or `file.py:function`.

    Raises:
        RecipeError: if an argument is wrong.
        ModelError: if a model cannot be read.
        DataError: if the data does not fit.
        MeasureError: if a model does not run.
    """
    check_run(threads=threads, seed=seed)
    measure = load_metric(metric)
    first, second = _open(reference), _open(candidate)
    fed = _feed(first, data, shapes, values, seed, RANDOM_SAMPLES)
    kind = "given" if fed.real else "random"
    return compare_answers(
        first, second, fed.samples, data=kind, threads=threads, metric=measure, labels=fed.labels, seed=seed
    )


@overload
def benchmark(
    reference: object,
    candidate: None = None,
    *,
    data: Data | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, object] | None = None,
    threads: int = 1,
    seconds: float = 20.0,
    seed: int = 0,
) -> Alone: ...


@overload
def benchmark(
    reference: object,
    candidate: object,
    *,
    data: Data | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, object] | None = None,
    threads: int = 1,
    seconds: float = 20.0,
    seed: int = 0,
) -> Latency: ...


def benchmark(
    reference: object,
    candidate: object | None = None,
    *,
    data: Data | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, object] | None = None,
    threads: int = 1,
    seconds: float = 20.0,
    seed: int = 0,
) -> Latency | Alone:
    """Time two models against each other, call by call in turns, or one alone.

    Args:
        reference: A path, bytes, a proto, a graph or a `Model`.
        candidate: Likewise; None times the first alone.
        data: Its first sample is the input.
        shapes: Sizes for random inputs.
        values: Contents for random inputs.
        threads: For onnxruntime, within one operator.
        seconds: Bound on the time it takes.
        seed: Of random inputs and of the order of calls.

    Raises:
        RecipeError: if an argument is wrong.
        ModelError: if a model cannot be read.
        MeasureError: if a model does not run.
    """
    check_run(threads=threads, seed=seed)
    seconds = check_seconds("seconds", seconds)
    first = _open(reference)
    sample = _feed(first, data, shapes, values, seed, 1).samples[0]
    if candidate is None:
        return measure_alone(first, sample, threads=threads, seconds=seconds, seed=seed)
    return compare_latency(first, _open(candidate), sample, threads=threads, seconds=seconds, seed=seed)

"""Samples put together, where the model takes more than one at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxslim_core.errors import MeasureError
from onnxslim_core.measure.cost import bytes_of
from onnxslim_core.measure.session import open_session, run
from onnxslim_core.measure.shapes import concrete_shapes
from onnxslim_core.model import wrap
from onnxslim_core.rewrite import Sample

__all__ = ["first_of", "samples_in", "stacked"]

_NOTE = "onnxslim_core.takes_batches"
_SIZE = "onnxslim_core.bytes_between"
_BYTES = 4 << 20
"""The inputs of one batch take at most so many."""
_BETWEEN = 1 << 29
"""All that lies between the layers takes at most so many in one batch: who looks at all layers at once holds it."""


def samples_in(batch: Sample) -> int:
    """How many samples a batch holds: the first size of its first array that has one."""
    return next((len(array) for array in batch.values() if np.ndim(array)), 1)


def first_of(batches: Sequence[Sample], count: int) -> list[Sample]:
    """So many batches that they hold at least `count` samples, where there are so many."""
    found, held = list[Sample](), 0
    for batch in batches:
        if held >= count:
            break
        found.append(batch)
        held += samples_in(batch)
    return found


def stacked(model: ir.Model, samples: Sequence[Sample], size: int = 32) -> list[Sample]:
    """Samples joined along the first axis in groups of up to `size`, in order; fewer where samples are large.

    Only where every input declares an unknown first dimension of one name, all samples have equal shapes, and
    onnxruntime runs two of them together: an exporter may have written the size of its example into a Reshape. Else the
    samples are returned as they are.
    """
    inputs = [value for value in model.graph.inputs if value.name in (samples[0] if samples else ())]
    firsts = {str(value.shape[0]) for value in inputs if value.shape is not None and len(value.shape)}
    fixed = any(value.shape is None or not len(value.shape) or isinstance(value.shape[0], int) for value in inputs)
    shapes = {tuple((name, array.shape) for name, array in sorted(sample.items())) for sample in samples}
    if not inputs or fixed or len(firsts) != 1 or len(shapes) != 1:
        return list(samples)
    large = max(sum(array.nbytes for array in sample.values()) for sample in samples)
    size = min(size, max(_BYTES // max(large, 1), 1), max(_BETWEEN // max(_between(model, samples[0]), 1), 1))
    if min(size, len(samples)) < 2 or not _takes_two(model, _joined(samples[:2])):
        return list(samples)
    groups = [samples[start : start + size] for start in range(0, len(samples), size)]
    return [_joined(group) for group in groups]


def _joined(samples: Sequence[Sample]) -> Sample:
    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}


def _between(model: ir.Model, sample: Sample) -> int:
    """Bytes of all results of one call, as far as they are known; noted at the model."""
    if _SIZE not in model.meta:
        found = concrete_shapes(model, sample, may_run=False)
        results = [v for node in model.graph for v in node.outputs if v in found.shape and v in found.dtype]
        model.meta[_SIZE] = sum(bytes_of(found.shape[v], found.dtype[v]) for v in results)
    return int(model.meta[_SIZE])


def _takes_two(model: ir.Model, two: Sample) -> bool:
    """Whether the model runs with two samples, noted at the model: passes ask more than once."""
    if _NOTE not in model.meta:
        session = open_session(wrap(model), optimize=False)
        try:
            run(session, two)
        except MeasureError:
            model.meta[_NOTE] = False
        else:
            model.meta[_NOTE] = True
    return bool(model.meta[_NOTE])

"""Whether samples look to a network like what it was trained on: its first BatchNormalization remembers.

A BatchNormalization keeps mean and variance of what it saw in training. Samples that are scaled otherwise (0..255 for
0..1, no mean taken off) give others. The distance of two normal distributions, N(m, v) remembered and N(n, w) seen,

    J = (w/v + v/w) / 2 - 1 + (n - m)^2 (1/v + 1/w) / 2        (Jeffreys, Proc. R. Soc. A 186, 1946)

is near 0 for the right preprocessing, also with photos of other things, and from 1 to 10,000 for a wrong one. It is the
median over channels, since some are dead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.calibration.images import ImageColumn
from onnxslim_core.calibration.lockstep import Walk
from onnxslim_core.calibration.source import Source
from onnxslim_core.calibration.spec import DataInput
from onnxslim_core.errors import MeasureError
from onnxslim_core.rewrite import Sample

__all__ = ["distance", "first_memory", "unlike_training"]

SAMPLES = 8
"""Are looked at."""

FAR, OFF = 1.0, 30.0
"""Images are warned of from FAR on, where a usual preprocessing comes four times nearer; arrays from OFF on."""

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
USUAL = {
    "range = [0, 1]": DataInput(scale=255.0),
    "range = [-1, 1]": DataInput(scale=255.0, mean=(0.5,), std=(0.5,)),
    "scale = 1": DataInput(scale=1.0),
    "scale = 255, mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225]": DataInput(
        scale=255.0, mean=_IMAGENET[0], std=_IMAGENET[1]
    ),
}
"""What most networks are trained behind, as keys of a recipe."""


def unlike_training(model: ir.Model, source: Source, threads: int = 1) -> str:
    """A warning where samples look otherwise than in training; empty where they do not, or nothing remembers.

    Args:
        model: As it was given, before a pass takes its BatchNormalizations away.
        source: The samples.
        threads: For onnxruntime.
    """
    node = first_memory(model)
    few = source.first(SAMPLES)
    if node is None or not len(few):
        return ""
    try:
        found = distance(model, node, list(few), threads)
        if found <= FAR:
            return ""
        others = {keys: distance(model, node, list(other), threads) for keys, other in _otherwise(few).items()}
    except MeasureError:
        return ""
    keys = min(others, key=others.__getitem__, default="")
    if keys and others[keys] < found / 4:
        times = found / others[keys]
        return (
            f"THE PREPROCESSING IS PROBABLY ANOTHER: '{keys}' in [data.inputs] comes {times:,.0f} times nearer to what "
            f"{verbs.label_of(node)} remembers of training"
        )
    if found <= OFF:
        return ""
    return (
        f"THE SAMPLES ARE PROBABLY SCALED OTHERWISE than in training: {verbs.label_of(node)} remembers other means and "
        "variances; see 'scale', 'mean' and 'std' in [data.inputs]"
    )


def first_memory(model: ir.Model) -> ir.Node | None:
    """The first BatchNormalization that remembers something."""
    for node in model.graph:
        if verbs.is_op(node, "BatchNormalization") and not verbs.attribute(node, "training_mode", 0):
            mean, variance = verbs.array_of(node.inputs[3]), verbs.array_of(node.inputs[4])
            if mean is not None and variance is not None and bool((np.asarray(variance) > 0).any()):
                return node
    return None


def distance(model: ir.Model, node: ir.Node, samples: Sequence[Sample], threads: int = 1) -> float:
    """Jeffreys' distance between what a BatchNormalization remembers and what samples give; median over channels.

    Raises:
        MeasureError: if the part before it does not run.
    """
    value = verbs.first_input(node)
    seen = [x.reshape(x.shape[0], x.shape[1], -1) for x in Walk(model, samples, threads).value(value)]
    places = sum(x.shape[0] * x.shape[2] for x in seen)
    first = np.sum([x.sum(axis=(0, 2), dtype=np.float64) for x in seen], axis=0) / places
    squares = [np.square(x - first[:, None]).sum(axis=(0, 2), dtype=np.float64) for x in seen]
    second = np.sum(squares, axis=0) / places
    mean, variance = (np.asarray(verbs.array_of(node.inputs[place]), np.float64) for place in (3, 4))
    alive = variance > 1e-4 * variance.max()
    m, v = mean[alive], variance[alive]
    n, w = first[alive], np.maximum(second[alive], 1e-12 * v)
    return float(np.median((w / v + v / w) / 2 - 1 + np.square(n - m) * (1 / v + 1 / w) / 2))


def _otherwise(source: Source) -> dict[str, Source]:
    """The same images behind each usual preprocessing."""
    found: dict[str, Source] = {}
    for name, column in source.columns.items():
        if not isinstance(column, ImageColumn) or column.dtype.kind != "f":
            continue
        for keys, entry in USUAL.items():
            if len(entry.mean) in (0, 1) or column.channels != "gray":
                spec = replace(column.spec, scale=entry.scale, mean=entry.mean, std=entry.std)
                found[keys] = replace(source, columns={**source.columns, name: replace(column, spec=spec)})
    return found

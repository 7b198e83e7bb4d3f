"""The part of prune_channels that looks at samples: curves per group and what a single cut does to the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onnxslim_core.calibration.batches import stacked
from onnxslim_core.calibration.consumers import (
    Consumer,
    bias_of,
    consumers_of,
    kept_outputs,
    put_weights,
    readers_of,
    weights_of,
)
from onnxslim_core.calibration.moments import Moments
from onnxslim_core.calibration.study import study
from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.channels.removal import remove_atoms
from onnxslim_core.channels.trace import trace
from onnxslim_core.criteria.curves import Curve, Setting
from onnxslim_core.criteria.table import MEASURED, curve_of
from onnxslim_core.graph import label_of
from onnxslim_core.measure.session import open_session, run
from onnxslim_core.model import wrap
from onnxslim_core.repair.least_squares import solve
from onnxslim_core.rewrite import Context, Sample

__all__ = ["Calibrated", "repaired_nodes"]

_PROBE = 128
"""Samples on which the damage of a single cut is measured."""


@dataclass(slots=True)
class Calibrated:
    """What the samples tell about a channel graph."""

    channels: ChannelGraph
    context: Context
    batches: Sequence[Sample]
    consumers: dict[ir.Node, Consumer]
    moments: dict[ir.Node, Moments]
    answers: list[dict[str, NDArray[np.float64]]] = field(default_factory=list)

    @classmethod
    def of(cls, channels: ChannelGraph, context: Context) -> Calibrated:
        """Run the samples through the model once."""
        model = channels.flow.model
        batches = stacked(model, context.samples)
        consumers = consumers_of(channels)
        moments = study(
            model, batches, consumers, seed=context.seed, threads=context.threads, progress=context.progress
        )
        return cls(channels, context, batches, consumers, moments)

    def readers(self, group: Group) -> list[tuple[Consumer, Moments]] | str:
        """Every sum that reads the group, or why one of them cannot be solved for."""
        found = readers_of(self.channels, group, self.consumers)
        if isinstance(found, str):
            return found
        large = next((each.node for each in found if each.node not in self.moments), None)
        if large is not None:
            return f"{label_of(large)} has too many inputs per output to be solved for"
        return [(each, self.moments[each.node]) for each in found]

    def curve(self, group: Group, criterion: str) -> Curve | str:
        """The order of removal and what it loses; or why a reader cannot be solved for."""
        readers = self.readers(group)
        if isinstance(readers, str):
            return readers
        setting = Setting(self.channels, group, self.context.seed)
        if criterion in MEASURED:
            setting = replace(setting, measure=lambda chosen: self.measured(group, np.array(chosen, np.int32)))
        with threadpool_limits(self.context.threads):
            return curve_of(criterion, readers, group.classes[group.free], setting)

    def damage(self, group: Group, curve: Curve) -> float:
        """Squared error of the answers over their variance, with half of the group gone and its readers solved anew."""
        return self.measured(group, curve.order[: max(len(curve.order) // 2, 1)])

    def measured(self, group: Group, classes: NDArray[np.int32]) -> float:
        """Squared error of the answers over their variance without these classes, their readers solved anew."""
        readers = self.readers(group)
        assert not isinstance(readers, str)
        model = self.channels.flow.model
        probe = model.clone()
        twin = ChannelGraph(trace(probe, self.context.samples[0], _Moved(self.channels, probe)), self.channels.classes)
        gone = twin.gone(classes.tolist())
        solved = {str(each.node.name): _solved(each, moments, gone, classes) for each, moments in readers}
        kept = kept_outputs(twin, gone)
        remove_atoms(twin, gone)
        for node in list(probe.graph):
            if str(node.name) in solved:
                weights, bias = solved[str(node.name)]
                keep = kept.get(str(node.name))
                put_weights(probe, node, *((weights, bias) if keep is None else (weights[:, keep], bias[keep])))
        return self._error(probe)

    def _error(self, probe: ir.Model) -> float:
        """Mean over the outputs of the squared error over the variance, on the first samples."""
        batches = _first(self.batches, _PROBE)
        if not self.answers:
            session = open_session(wrap(self.channels.flow.model), threads=self.context.threads)
            self.answers = [_floats(run(session, batch)) for batch in batches]
        session = open_session(wrap(probe), threads=self.context.threads)
        lost = dict.fromkeys(self.answers[0], 0.0)
        for batch, before in zip(batches, self.answers, strict=True):
            after = run(session, batch)
            for name, answer in before.items():
                lost[name] += float(np.square(np.asarray(after[name], np.float64) - answer).sum())
        shares = [error / max(_variance([a[name] for a in self.answers]), 1e-12) for name, error in lost.items()]
        return float(np.mean(shares)) if shares else 0.0


def _floats(answers: Mapping[str, object]) -> dict[str, NDArray[np.float64]]:
    return {
        name: np.asarray(answer, np.float64)
        for name, answer in answers.items()
        if isinstance(answer, np.ndarray) and answer.dtype.kind == "f"
    }


def _variance(answers: Sequence[NDArray[np.float64]]) -> float:
    """Summed squares around the mean answer; around zero where there is but one answer, or shapes differ."""
    if len({answer.shape[1:] for answer in answers}) > 1 or answers[0].ndim == 0:
        return float(sum(np.square(answer).sum() for answer in answers))
    together = np.concatenate(answers)
    return float(np.square(together - together.mean(axis=0) if len(together) > 1 else together).sum())


def _solved(
    consumer: Consumer, moments: Moments, gone: NDArray[np.bool_], classes: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The best weights and bias of a reader without these classes, from the original's own moments."""
    start = weights_of(consumer.node)
    stays = np.repeat(~np.isin(consumer.classes, classes), consumer.taps)
    target = moments.h @ start
    part = Moments(
        moments.rows,
        moments.mean_x[stays],
        moments.mean_x @ start,
        moments.h[np.ix_(stays, stays)],
        target[stays],
        moments.v,
    )
    weights, shift = solve(part, start[stays])
    return weights, shift + bias_of(consumer.node, start.shape[1])


class _Moved:
    """The shapes of one model for its clone, value by value."""

    def __init__(self, channels: ChannelGraph, clone: ir.Model) -> None:
        self.shape: dict[ir.Value, tuple[int, ...]] = {}
        self.value: dict[ir.Value, np.ndarray] = {}
        known = channels.flow.shapes
        for old, new in _pairs(channels.flow.model, clone):
            if old in known.shape:
                self.shape[new] = known.shape[old]
            if old in known.value:
                self.value[new] = known.value[old]


def _pairs(model: ir.Model, clone: ir.Model) -> list[tuple[ir.Value, ir.Value]]:
    pairs = list(zip(model.graph.inputs, clone.graph.inputs, strict=True))
    pairs += [(value, clone.graph.initializers[name]) for name, value in model.graph.initializers.items()]
    for old, new in zip(model.graph, clone.graph, strict=True):
        pairs += list(zip(old.outputs, new.outputs, strict=True))
    return pairs


def _first(batches: Sequence[Sample], count: int) -> list[Sample]:
    found: list[Sample] = []
    for batch in batches:
        found.append(batch)
        count -= len(next(iter(batch.values())))
        if count <= 0:
            break
    return found


def repaired_nodes(channels: ChannelGraph, classes: Sequence[int]) -> list[str]:
    """Names of the linear nodes that read one of these classes, in the order of the graph."""
    wanted = np.array(sorted(classes), np.int64)
    return [str(node.name) for node, each in consumers_of(channels).items() if np.isin(each.classes, wanted).any()]

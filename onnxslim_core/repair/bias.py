"""What a removed channel is expected to be goes into the next bias; from samples, or without any.

With samples (`mend`) the weights stay and the mean answer becomes what it was: b = mean_y - mean_x' W. Without:

With z ~ N(beta, gamma^2) behind a BatchNormalization, E[f(z)] is known for every activation f: for a Relu
beta Phi(a) + |gamma| phi(a) with a = beta / |gamma| (Nagel et al., Data-Free Quantization, ICCV 2019, appendix C).
It is computed here for any f by a weighted sum over a fine grid of z, with f run by onnx's reference implementation;
f may be several nodes, as in z * Sigmoid(z). A sum of several z is taken for normal, too, and for independent ones.
Then `b += W[:, k] * E_k` at every consumer. Zero padding makes it wrong by the missing taps in a border ring.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.calibration.moments import Moments
from onnxslim_core.channels.biases import Shift, shifts_of
from onnxslim_core.channels.groups import ChannelGraph
from onnxslim_core.channels.records import BATCHNORM, BatchNormRecord
from onnxslim_core.channels.sums import sums_of
from onnxslim_core.ops.consts import Consts, evaluate
from onnxslim_core.ops.flow import Flow, Rule
from onnxslim_core.ops.keep import NUMERIC
from onnxslim_core.ops.table import rule_of

__all__ = ["Means", "expected_shifts", "mend"]

Floats = NDArray[np.float64]

_GRID = np.linspace(-8.0, 8.0, 801)
_WEIGHT = np.exp(-np.square(_GRID) / 2)
_WEIGHT /= _WEIGHT.sum()
_SUMS = ("Add", "Sub", "Sum")
_ELEMENTWISE = (*NUMERIC, *_SUMS, "Div", "Identity", "Max", "Min", "Mul", "PRelu", "Pow")


def mend(moments: Moments, start: Floats, taps: int, ridge: float | None = None) -> tuple[Floats, Floats]:
    """A row of the table of repairs: weights as they are, and the bias that keeps the mean answer."""
    return start, moments.mean_y - moments.mean_x @ start


class Means(Consts):
    """Expected values of channels, from what BatchNormalizations promise; exact constants stay what they are."""

    def __init__(self, flow: Flow) -> None:
        self._drawn: dict[ir.Value, tuple[ir.Value, Floats]] = {}
        """Value -> (where its z comes from, what it is at each z of the grid; the grid is the last axis)."""
        self._waiting: dict[ir.Value, int] = {}
        super().__init__(flow, self._rule)

    def _rule(self, node: ir.Node) -> Rule | None:
        """The rule of the node, followed by what is known of its distribution."""
        rule = rule_of(node)
        if rule is None:
            return None
        known = rule.value

        def value(consts: Consts, node: ir.Node) -> None:
            if known is not None:
                known(consts, node)
            if node.outputs and self.flow.labels(node.outputs[0]) is not None:
                self._after(node)

        return Rule(rule.label, rule.cut, value)

    def _after(self, node: ir.Node) -> None:
        promised = self._promised(node)
        if promised is not None:
            self._note(node.outputs[0], node.outputs[0], promised)
        elif verbs.is_op(node, *_ELEMENTWISE):
            self._through(node)
        for value in dict.fromkeys(node.inputs):
            if value in self._drawn:  # a grid is large: drop it once every reader has seen it
                self._waiting[value] -= sum(v is value for v in node.inputs)
                if self._waiting[value] == 0:
                    del self._drawn[value]

    def _promised(self, node: ir.Node) -> Floats | None:
        """What a BatchNormalization makes of z, at every z of the grid."""
        promise = _promise(node)
        labels = self.flow.labels(node.outputs[0])
        if promise is None or labels is None:
            return None
        axis = 1 if node.op_type in ("Conv", "ConvTranspose", "BatchNormalization") else labels.ndim - 1
        if labels.shape[axis] != len(promise[0]):
            return None
        beta, gamma = (part.reshape([-1 if i == axis else 1 for i in range(labels.ndim)]) for part in promise)
        drawn = beta[..., None] + np.abs(gamma)[..., None] * _GRID
        exact = np.broadcast_to(self.full(node.outputs[0])[..., None], (*labels.shape, 1))
        return np.where(np.isfinite(exact), exact, np.broadcast_to(drawn, (*labels.shape, _GRID.size)))

    def _note(self, value: ir.Value, source: ir.Value, drawn: Floats) -> None:
        self._drawn[value] = (source, drawn)
        self._waiting[value] = len(value.uses())
        self.set(value, drawn @ _WEIGHT)

    def _through(self, node: ir.Node) -> None:
        """E[f(z)] for a node whose inputs all come from one z; of a sum of several the mean and the variance."""
        drawn = {v: self._drawn[v] for v in node.inputs if v is not None and v in self._drawn}
        given: list[Floats | None] = []
        for value in node.inputs:
            operand = None if value is None else drawn[value][1] if value in drawn else self.operand(value)
            if value is not None and operand is None:
                return
            given.append(operand if operand is None or value in drawn or operand.size == 1 else operand[..., None])
        sources = dict.fromkeys(source for source, _ in drawn.values())
        result = node.outputs[0]
        if len(sources) == 1:
            found = evaluate(node, given, self.opset)
            labels = self.flow.labels(result)
            if found is not None and labels is not None and np.shape(found[0]) == (*labels.shape, _GRID.size):
                self._note(result, next(iter(sources)), np.asarray(found[0], np.float64))
        elif len(drawn) == len(given) == len(sources) and verbs.is_op(node, *_SUMS):
            parts = [part for _, part in drawn.values()]
            means = [part @ _WEIGHT for part in parts]
            variance = sum((np.square(p) @ _WEIGHT - np.square(m) for p, m in zip(parts, means, strict=True)), 0.0)
            mean = means[0] - means[1] if node.op_type == "Sub" else sum(means[1:], means[0])
            spread = np.sqrt(np.maximum(variance, 0.0))
            self._note(result, result, np.asarray(mean[..., None] + np.asarray(spread)[..., None] * _GRID))


def _promise(node: ir.Node) -> tuple[Floats, Floats] | None:
    """Beta and gamma of the outputs of a node."""
    record = node.meta.get(BATCHNORM)
    if isinstance(record, BatchNormRecord):
        return record.beta, record.gamma
    if verbs.is_op(node, "BatchNormalization"):
        gamma, beta = verbs.array_of(node.inputs[1]), verbs.array_of(node.inputs[2])
        if gamma is not None and beta is not None:
            return np.asarray(beta, np.float64), np.asarray(gamma, np.float64)
    return None


def expected_shifts(channels: ChannelGraph, classes: set[int]) -> list[Shift]:
    """What to add to the bias of every consumer once these classes are gone; to be found before they are.

    What a type cannot hold is left out.
    """
    shifts = shifts_of(channels, sums_of(channels, Means(channels.flow)), classes)
    return [shift for shift in shifts if shift.fits]

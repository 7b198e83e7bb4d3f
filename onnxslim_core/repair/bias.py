"""What a removed channel is expected to be goes into the next bias; no data needed.

With z ~ N(beta, gamma^2) behind a BatchNormalization, E[f(z)] is known for every activation f: for a Relu
beta Phi(a) + |gamma| phi(a) with a = beta / |gamma| (Nagel et al., Data-Free Quantization, ICCV 2019, appendix C).
It is computed here for any f by a weighted sum over a fine grid of z, with f run by onnx's reference implementation.
Then `b += W[:, k] * E_k` at every consumer. Zero padding makes it wrong by the missing taps in a border ring.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.channels.biases import Shift, shifts_of
from onnxslim_core.channels.groups import ChannelGraph
from onnxslim_core.channels.records import BATCHNORM, BatchNormRecord
from onnxslim_core.channels.sums import sums_of
from onnxslim_core.ops.consts import Consts, evaluate
from onnxslim_core.ops.flow import Flow, Rule
from onnxslim_core.ops.keep import NUMERIC
from onnxslim_core.ops.table import rule_of

__all__ = ["Means", "expected_shifts"]

Floats = NDArray[np.float64]

_GRID = np.linspace(-8.0, 8.0, 1601)
_WEIGHT = np.exp(-np.square(_GRID) / 2)
_WEIGHT /= _WEIGHT.sum()


class Means(Consts):
    """Expected values of channels, from what BatchNormalizations promise; exact constants stay what they are."""

    def __init__(self, flow: Flow) -> None:
        self._spread: dict[ir.Value, tuple[Floats, Floats]] = {}
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
            self._after(node)

        return Rule(rule.label, rule.cut, value)

    def _after(self, node: ir.Node) -> None:
        promise = _promise(node)
        labels = self.flow.labels(node.outputs[0]) if node.outputs else None
        if promise is not None and labels is not None:
            beta, gamma = promise
            axis = 1 if node.op_type in ("Conv", "ConvTranspose", "BatchNormalization") else labels.ndim - 1
            if labels.shape[axis] == len(beta):
                shape = [-1 if i == axis else 1 for i in range(labels.ndim)]
                mean, spread = beta.reshape(shape), np.abs(gamma).reshape(shape)
                exact = self.full(node.outputs[0])
                self._spread[node.outputs[0]] = (mean, spread)
                self.set(node.outputs[0], np.where(np.isfinite(exact), exact, mean))
            return
        source = node.inputs[0] if node.inputs else None
        if source in self._spread and verbs.is_op(node, *NUMERIC):
            self._through(node, *self._spread[source])

    def _through(self, node: ir.Node, mean: Floats, spread: Floats) -> None:
        """E[f(z)] for an activation of one input and, at most, constant parameters."""
        others = [None if value is None else self.operand(value) for value in node.inputs[1:]]
        if any(v is not None and o is None for v, o in zip(node.inputs[1:], others, strict=True)):
            return
        points = mean[..., None] + spread[..., None] * _GRID
        found = evaluate(node, [points, *others], self.opset)
        if found is not None and np.shape(found[0]) == points.shape:
            self.set(node.outputs[0], np.asarray(found[0], np.float64) @ _WEIGHT)


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
    """What to add to the bias of every consumer once these classes are gone; to be found before they are."""
    return shifts_of(channels, sums_of(channels, Means(channels.flow)), classes)

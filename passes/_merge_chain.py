"""Two linear nodes in a row: their product, and how the composition of two Convs slides."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim_core.graph import attribute, is_op

from ._merge_place import Merge, Single
from ._merge_terms import Geometry, only_reader, term_at, term_of

__all__ = ["Chain", "chain_at"]


@dataclass(frozen=True, slots=True, eq=False)
class Chain(Merge):
    """The second of two terms reads the first: W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2)."""

    def nodes(self) -> tuple[ir.Node, ...]:
        """All of both."""
        return tuple(node for term in self.terms for node in term.nodes())

    def taken_in(self) -> ir.Value:
        """What the second makes."""
        return self.terms[1].out

    def work(self) -> tuple[int, int]:
        """Per output position: the first runs at the stride of the second as often."""
        first, second = self.terms
        c, m, n = first.inputs, first.outputs, second.outputs
        if first.geometry is None or second.geometry is None:
            return c * m + m * n, c * n
        found = compose(first.geometry, second.geometry)
        assert found is not None
        often = math.prod(second.geometry.strides)
        before = often * math.prod(first.geometry.kernel) * c * m + math.prod(second.geometry.kernel) * m * n
        return before, math.prod(found.kernel) * c * n

    def compute(self) -> Single:
        """The product of both."""
        first, second = self.terms
        b1, b2 = first.bias(), second.bias()
        w1, w2 = first.weight(), second.weight()
        taps = w2.reshape(*w2.shape[:2], -1).sum(axis=2).T if second.geometry is not None else w2
        with np.errstate(all="ignore"):
            bias = b2 if b1 is None else b1 @ taps + (0.0 if b2 is None else b2)
        if first.geometry is None or second.geometry is None:
            gemm = is_op(first.node, "Gemm") or is_op(second.node, "Gemm")
            turned = bool(attribute(first.node, "transA", 0))
            with np.errstate(all="ignore"):
                return Single(second, w1 @ w2, bias, None, "Gemm" if gemm else "MatMul", turned)
        found = compose(first.geometry, second.geometry)
        assert found is not None
        return Single(second, _convolve(w1, w2, first.geometry, second.geometry, found), bias, found, "Conv")


def compose(first: Geometry, second: Geometry) -> Geometry | None:
    """How the composition of two Convs slides; None where SAME padding leaves it open.

    Per axis the second's tap i and the first's tap p read the input at s1*s2*o - (p1 + s1*p2) + s1*d2*i + d1*p. Taps
    lie apart as in one of them where the other has only one, else side by side.
    """
    if first.auto or second.auto:
        if not first.auto:
            return second if first.is_pointwise else None
        return first if second.is_pointwise else None
    kernel, dilations = [], []
    for k1, s1, d1, k2, d2 in zip(
        first.kernel, first.strides, first.dilations, second.kernel, second.dilations, strict=True
    ):
        if k1 == 1 or k2 == 1:
            kernel.append(max(k1, k2))
            dilations.append(s1 * d2 if k2 > 1 else d1)
        else:
            kernel.append(d1 * (k1 - 1) + s1 * d2 * (k2 - 1) + 1)
            dilations.append(1)
    begin, end = (
        tuple(a + s * b for a, s, b in zip(one, first.strides, two, strict=True))
        for one, two in ((first.begin, second.begin), (first.end, second.end))
    )
    strides = tuple(a * b for a, b in zip(first.strides, second.strides, strict=True))
    return Geometry(tuple(kernel), strides, tuple(dilations), begin, end)


def _convolve(w1: np.ndarray, w2: np.ndarray, first: Geometry, second: Geometry, found: Geometry) -> np.ndarray:
    """K[n, c, s1*d2*i + d1*p] += sum over m of W2[n, m, i] * W1[m, c, p], per axis, in steps of the dilation found."""
    # taps first, so that each is a matrix
    result = np.zeros((*found.kernel, w2.shape[0], w1.shape[1]), np.float64)
    taps1, taps2 = (np.moveaxis(w, (0, 1), (-2, -1)) for w in (w1, w2))
    for p in itertools.product(*map(range, first.kernel)):
        for i in itertools.product(*map(range, second.kernel)):
            steps = zip(p, i, first.strides, first.dilations, second.dilations, found.dilations, strict=True)
            at = tuple((s * d2 * b + d1 * a) // d for a, b, s, d1, d2, d in steps)
            with np.errstate(all="ignore"):
                result[at] += taps2[i] @ taps1[p]
    return np.ascontiguousarray(np.moveaxis(result, (-2, -1), (0, 1)))


def chain_at(node: ir.Node, model: ir.Model) -> Chain | None:
    """This linear node alone reads another one."""
    source = node.inputs[0] if node.inputs else None
    second = term_of(node)
    first = term_at(source, node.graph)
    if first is None or second is None or only_reader(first.out) is not node:
        return None
    if second.groups != 1 or first.groups != 1 or first.outputs != second.inputs:
        return None
    if (first.geometry is None) != (second.geometry is None):
        return None
    if first.geometry is not None and second.geometry is not None:
        if (
            len(first.geometry.kernel) != len(second.geometry.kernel)
            or compose(first.geometry, second.geometry) is None
        ):
            return None
    elif attribute(node, "transA", 0) or (attribute(first.node, "transA", 0) and not is_op(first.node, "Gemm")):
        return None
    if first.bias_value is None and second.add is not None:
        second = term_of(node, with_add=False)  # its bias stays where it is
        assert second is not None
    return Chain(node, model, (first, second))

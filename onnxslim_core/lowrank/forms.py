"""Every way to write one layer as two or three cheaper ones: what it costs, what it loses, what it amounts to.

    form      nodes                                     kinds                                file
    matrix    d x r, r x n                              Gemm, MatMul                         channel.py
    channel   kernel to r channels, 1 x 1               Conv of any rank                     channel.py
    spatial   kh x 1 to r channels, 1 x kw              Conv with both sides above 1         spatial.py
    tucker    1 x 1 to p, kernel from p to q, 1 x 1     Conv with more than one tap          tucker.py

An offer is one form at one rank. All offers of a form share one decomposition.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core.calibration.consumers import bias_of
from onnxslim_core.graph import attribute, is_op
from onnxslim_core.lowrank.channel import Channel, Matrix
from onnxslim_core.lowrank.gather import Seen
from onnxslim_core.lowrank.linear import Curve, Linear
from onnxslim_core.lowrank.spatial import Spatial
from onnxslim_core.lowrank.tucker import Tucker
from onnxslim_core.lowrank.weights import shifted, weight_of
from onnxslim_core.lowrank.whitened import of_responses, whiten

__all__ = ["FORMS", "Offer", "held_error", "judged", "offers", "shift_of", "weights_like"]

Floats = NDArray[np.float64]

FORMS = ("matrix", "channel", "spatial", "tucker")

_JUDGED = 6
"""Offers of a form that are judged on rows held out."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One form of a layer at one rank.

    Attributes:
        form: One of `FORMS`.
        ranks: (r,), or (p, q) of a Tucker form.
        error: Squared error of the answers over their variance, on the samples that were seen; without samples, of
            the weights over their squares.
        macs: Multiply-accumulates of one run, where the shapes were known; else per position.
        params: Weights, the bias not counted.
        curve: What makes the weights.
        mean: Of the inputs, (d,), where the bias makes up for the mean error.
    """

    form: str
    ranks: tuple[int, ...]
    error: float
    macs: int
    params: int
    curve: Curve = dataclasses.field(repr=False, compare=False)
    mean: Floats | None = dataclasses.field(repr=False, compare=False, default=None)

    @property
    def nodes(self) -> int:
        """How many nodes take the place of one."""
        return len(self.ranks) + 1

    @property
    def rank(self) -> int:
        """The rank; the larger one of a Tucker form."""
        return max(self.ranks)

    def parts(self) -> list[Floats]:
        """Weights of the nodes, first to last, in the layout of their operators (matrices d x r and r x n)."""
        return self.curve.parts(self.ranks)

    def dense(self) -> Floats:
        """What the nodes amount to: d x n."""
        return self.curve.dense(self.ranks)


def offers(
    node: ir.Node,
    seen: Seen | None,
    x: tuple[int, ...] = (),
    y: tuple[int, ...] = (),
    *,
    forms: Sequence[str] = FORMS,
    grid: int | None = None,
    weights: Floats | None = None,
) -> list[Offer]:
    """What one layer can become, each with fewer multiply-accumulates than it has; dear to cheap.

    Args:
        node: Conv without groups, Gemm or MatMul with a constant weight; see `weights.weight_of`.
        seen: What the samples say of its input (`Seen.of(moments)`); None: the plain decomposition of the weight.
        x: Concrete shape of its input; () where it is not known.
        y: The same of its output.
        forms: Which forms; those that do not fit the layer are passed over.
        grid: Ranks are multiples of this; None takes 16 from 64 on, 8 from 8 on, 4 from 4 on, 1 below.
        weights: d x n, what is approximated: the weights by default. A least squares solution from a changed input to
            the old answers makes it a reduced-rank regression, its own error not counted.

    Raises:
        ValueError: where the weight, or what was seen, holds no finite numbers or only zeros.
    """
    found = weight_of(node)
    if found is None:
        raise ValueError(f"{node.op_type} has no weight that can be split")
    _, array, kernel = found
    weight = array.astype(np.float64) if weights is None else weights
    if not np.isfinite(weight).all() or not weight.any():
        raise ValueError("the weight holds inf or nan, or only zeros")
    linear = Linear.of((weight.shape[0], weight.shape[1]), kernel, x, y)
    mean = seen.mean if seen is not None and shifted(node) is not None else None
    total = float(np.square(weight).sum()) if seen is None else seen.variance(weight)
    if not math.isfinite(total) or total <= 0:
        raise ValueError("the answers do not vary")
    options: list[Offer] = []
    for curve in _curves(linear, weight, seen, mean is None, forms):
        rows = []
        for ranks in curve.options(grid):
            stages = curve.stages(ranks)
            macs, params = sum(w * at for w, at in stages), sum(w for w, _ in stages)
            rows.append(Offer(curve.form, ranks, curve.error(ranks) / total, macs, params, curve, mean))
        options += _undominated(rows)
    return sorted(options, key=lambda offer: (-offer.macs, offer.form, offer.ranks))


def _undominated(rows: Sequence[Offer]) -> list[Offer]:
    """Those that nothing of the same form beats in both cost and error."""
    kept: list[Offer] = []
    for offer in sorted(rows, key=lambda offer: (offer.macs, offer.error)):
        if not kept or offer.error < kept[-1].error:
            kept.append(offer)
    return kept


def _curves(linear: Linear, weight: Floats, seen: Seen | None, around_zero: bool, forms: Sequence[str]) -> list[Curve]:
    """The forms that fit a layer, decomposed."""
    gram = penalty = None
    if seen is not None:
        penalty = seen.penalty
        if seen.gram is not None:
            gram = seen.gram + np.outer(seen.mean, seen.mean) if around_zero else seen.gram
    curves: list[Curve] = []
    if ("channel" if linear.kernel else "matrix") in forms:
        if seen is not None and gram is None:
            answers, shift = seen.answers, seen.mean @ weight
            assert answers is not None
            covariance = answers + np.outer(shift, shift) if around_zero else answers
            found = of_responses(weight, covariance, seen.penalty)
        else:
            found = whiten(weight, gram, penalty or 0.0)
        curves.append(Channel(linear, found) if linear.kernel else Matrix(linear, found))
    if seen is not None and gram is None:
        return curves  # the others need the covariance of the input
    if "spatial" in forms and len(linear.kernel) == 2 and min(linear.kernel) > 1:
        curves.append(Spatial.of(linear, weight, gram, penalty or 0.0))
    if "tucker" in forms and linear.taps > 1 and min(linear.channels, linear.outputs) > 1:
        curves.append(Tucker.of(linear, weight, gram, penalty or 0.0))
    return curves


def judged(node: ir.Node, found: Sequence[Offer], seen: Seen) -> list[Offer]:
    """The same offers with their errors on rows held out.

    Of every form some ranks are judged (`held_error`); how much more the others lose than on the rows they are made
    from is interpolated between those, in logarithms over the cost. What is chosen in the end should be judged itself.

    Raises:
        ValueError: as of `held_error`.
    """
    result = list[Offer]()
    for form in FORMS:
        mine = sorted((offer for offer in found if offer.form == form), key=lambda offer: offer.macs)
        if not mine:
            continue
        at = sorted({round(part) for part in np.linspace(0, len(mine) - 1, _JUDGED)})
        floor = 1e-9  # of the variance: what float32 can tell
        more = [np.log(max(held_error(node, mine[i], seen), floor) / max(mine[i].error, floor)) for i in at]
        grown = np.exp(np.interp([o.macs for o in mine], [mine[i].macs for i in at], more))
        result += [
            dataclasses.replace(offer, error=max(offer.error, floor) * float(factor))
            for offer, factor in zip(mine, grown, strict=True)
        ]
    return sorted(result, key=lambda offer: (-offer.macs, offer.form, offer.ranks))


def held_error(node: ir.Node, offer: Offer, seen: Seen) -> float:
    """Squared error over the variance of the answers, on rows that the decomposition has not seen.

    Raises:
        ValueError: where no rows were held out, or their answers do not vary.
    """
    found = weight_of(node)
    if found is None or seen.held is None:
        raise ValueError("no rows were held out")
    weight = found[1].astype(np.float32)
    change = weight - offer.dense().astype(np.float32)
    rows = seen.held - seen.mean.astype(np.float32)
    lost = rows @ change
    if offer.mean is None:
        lost = lost + (seen.mean @ change).astype(np.float32)
    variance = float(np.var(seen.held @ weight, axis=0, dtype=np.float64).sum())
    if not math.isfinite(variance) or variance <= 0:
        raise ValueError("the answers of the rows held out do not vary")
    return float(np.square(lost, dtype=np.float64).sum() / len(rows) / variance)


def shift_of(node: ir.Node, offer: Offer) -> Floats | None:
    """What is added to the answers so that their mean stays, (n,); None where nothing is."""
    found = weight_of(node)
    if offer.mean is None or found is None:
        return None
    factor = float(attribute(node, "alpha", 1.0)) if is_op(node, "Gemm") else 1.0
    return factor * (offer.mean @ (found[1].astype(np.float64) - offer.dense()))


def weights_like(node: ir.Node, offer: Offer) -> tuple[Floats, Floats]:
    """The one layer that answers as the split one does: for trials without changing the graph's structure.

    Returns:
        Weights (d, n) and bias (n,) as `consumers.put_weights` takes them: a Gemm's alpha and beta and the Add behind a
        MatMul included.
    """
    weights = offer.dense()
    if is_op(node, "Gemm"):
        weights = weights * float(attribute(node, "alpha", 1.0))
    shift = shift_of(node, offer)
    return weights, bias_of(node, weights.shape[1]) + (0.0 if shift is None else shift)

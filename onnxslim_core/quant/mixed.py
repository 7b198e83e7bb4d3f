"""Which layers stay in float: each is measured alone, and those that cost most for what they gain are left out.

Rounding errors of different layers hardly meet, so the damage of a set is about the sum of the damages of its layers,
each quantized alone (Dong et al., "HAWQ", ICCV 2019, make the same assumption with second derivatives in place of
measurements). One layer of fifty often makes half of it. The sum only orders the layers; every set that is chosen has
been measured as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.quant.draft import Draft
from onnxslim_core.quant.insert import Rounded
from onnxslim_core.quant.judge import Judge, Score
from onnxslim_core.rewrite import Progress

__all__ = ["MARGIN", "Choice", "Variants", "alone", "choose", "effort", "leaving", "mended_set"]

MARGIN = 0.9
"""Of what may be lost, so much is used: other samples lose a little more."""
_SECOND_LOOKS = 6
_MENDINGS = 4
"""Sets that are mended as a whole, at most: each takes a pass of the samples."""


class Variants(Protocol):
    """A float model and what can be made of it: `draft.Draft`, `dynamic.Dynamic`."""

    @property
    def linear(self) -> Sequence[ir.Node]:
        """The layers that can be int8, in order."""

    def layout(self, linear: Collection[ir.Node], left: Collection[ir.Node] = ()) -> Any:
        """What it means that these are."""

    def variant(self, layout: Any, weights: Mapping[ir.Node, Rounded] | None = None) -> ir.Model:
        """The model in which they are."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A set of layers in int8, and what it was measured to do.

    Attributes:
        linear: The layers, in order.
        score: Of the whole.
    """

    linear: tuple[ir.Node, ...]
    score: Score

    @property
    def holds(self) -> bool:
        """True where the target is met, with a margin."""
        return self.score.damage <= MARGIN


def alone(
    draft: Variants,
    damage: Callable[[ir.Model], float],
    left: Collection[ir.Node] = (),
    progress: Progress | None = None,
) -> dict[ir.Node, float]:
    """The damage of each layer with all others in float.

    Args:
        draft: The model.
        damage: Measured on a variant.
        left: Nodes between the layers that stay in float.
        progress: Told after every layer.
    """
    found: dict[ir.Node, float] = {}
    for number, node in enumerate(draft.linear):
        found[node] = damage(draft.variant(draft.layout([node], left)))
        if progress is not None:
            progress("layers alone", number + 1, len(draft.linear))
    return found


def effort(draft: Draft) -> dict[ir.Node, float]:
    """About what each layer takes in float: multiply-adds, and values moved, which count as several."""
    found: dict[ir.Node, float] = {}
    for node in draft.linear:
        weights, source = verbs.array_of(node.inputs[1]), node.inputs[0]
        assert weights is not None and source is not None
        out, into = (draft.spreads[v].shape if v in draft.spreads else () for v in (node.outputs[0], source))
        size = math.prod(out)
        per_value = weights.size / max(out[1 if node.op_type == "Conv" else -1], 1) if out else 1.0
        found[node] = size * per_value + 8.0 * (size + math.prod(into))
    return found


def choose(
    draft: Variants,
    judge: Judge,
    damages: Mapping[ir.Node, float],
    efforts: Mapping[ir.Node, float],
    *,
    left: Collection[ir.Node] = (),
    weights: Mapping[ir.Node, Rounded] | None = None,
    progress: Progress | None = None,
) -> Choice | None:
    """The layers that can be int8 together; None where not even one can.

    Layers leave in the order of damage over effort until the rest holds, the number by bisection; where not even the
    last of them holds, in the order of damage. Then those that left are tried again, the largest effort first.

    Args:
        draft: The model.
        judge: What a set has to satisfy.
        damages: From `alone`.
        efforts: From `effort`.
        left: Nodes between the layers that stay in float.
        weights: Rounded with care.
        progress: Told after every set.
    """
    scores: dict[frozenset[ir.Node], Score] = {}

    def measured(nodes: Collection[ir.Node]) -> Choice:
        inside = tuple(node for node in draft.linear if node in nodes)
        if frozenset(inside) not in scores:
            if progress is not None:
                progress("sets of layers", len(scores), len(scores) + 1)
            scores[frozenset(inside)] = judge.look(draft.variant(draft.layout(inside, left), weights))
        return Choice(inside, scores[frozenset(inside)])

    def bisected(order: Sequence[ir.Node]) -> Choice | None:
        low, high, best = 0, len(order), None
        middle = min(_first_guess(order, damages, MARGIN), high - 1)
        while low < high:
            choice = measured(set(order[middle:]))
            if choice.holds:
                high, best = middle, choice
            else:
                low = middle + 1
            middle = (low + high) // 2
        return best

    best = bisected(leaving(draft.linear, damages, efforts))
    best = best or bisected(sorted(draft.linear, key=damages.__getitem__, reverse=True))
    if best is None:
        return None
    out = [node for node in draft.linear if node not in best.linear]
    for node in sorted(out, key=efforts.__getitem__, reverse=True)[:_SECOND_LOOKS]:
        choice = measured({*best.linear, node})
        best = choice if choice.holds else best
    return best


def leaving(
    linear: Sequence[ir.Node], damages: Mapping[ir.Node, float], efforts: Mapping[ir.Node, float]
) -> list[ir.Node]:
    """The order in which layers go back to float: most damage for its effort first."""
    return sorted(linear, key=lambda node: damages[node] / max(efforts[node], 1.0), reverse=True)


def mended_set(
    order: Sequence[ir.Node],
    damages: Mapping[ir.Node, float],
    share: float,
    mended: Callable[[tuple[ir.Node, ...]], Score],
    *,
    least: int = 1,
) -> Choice | None:
    """The largest set, in the order of leaving, that holds once it has been mended as a whole; None where none was met.

    How much of the damages is left by mending says how many layers have to leave; from the first set that holds on,
    the number is bisected.

    Args:
        order: From `leaving`.
        damages: From `alone`, in the order of the layers.
        share: Of the sum of the damages, what was left when all layers were mended.
        mended: Mends a set of layers and measures it.
        least: How many layers leave at least.
    """
    low, high, best = least, len(order), None
    middle = max(_first_guess(order, damages, MARGIN / max(share, 1e-12)), low)
    for _ in range(_MENDINGS):
        if not low <= middle < high:
            break
        inside = set(order[middle:])
        nodes = tuple(node for node in damages if node in inside)
        choice = Choice(nodes, mended(nodes))
        if choice.holds:
            high, best = middle, choice
        else:
            low = middle + 1
            share = choice.score.damage / max(sum(damages[node] for node in nodes), 1e-12)
        middle = (low + high) // 2
        if best is None:
            middle = max(_first_guess(order, damages, MARGIN / max(share, 1e-12)), low)
    return best


def _first_guess(order: Sequence[ir.Node], damages: Mapping[ir.Node, float], limit: float) -> int:
    """How many have to leave if damages add up."""
    rest = sum(damages[node] for node in order)
    for count, node in enumerate(order):
        if rest <= limit:
            return count
        rest -= damages[node]
    return len(order)

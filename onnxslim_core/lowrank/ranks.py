"""Ranks for several matrices under one target: those that lose least give most."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim_core.lowrank.svd import break_even, round_rank

__all__ = ["Offers", "ranks_for_target"]

Offer = tuple[float, float, int]
"""(cost, share of energy lost, rank); rank 0 is the matrix as it is."""


@dataclass(frozen=True, slots=True, eq=False)
class Offers:
    """What one matrix can give.

    Attributes:
        sizes: d and n.
        energy: Share of its energy kept at each rank 1 ... min(d, n), rising to 1.
        cost: Multiply-accumulates of the whole matrix, in any unit that all matrices share.
    """

    sizes: tuple[int, int]
    energy: np.ndarray
    cost: float

    def listed(self, grid: int | None) -> list[Offer]:
        """All offers that save something, from dear to cheap; the matrix as it is comes first."""
        rows, columns = self.sizes
        ranks = {round_rank(rank, grid, up=False) for rank in range(1, break_even(rows, columns) + 1)}
        per_rank = self.cost * (rows + columns) / (rows * columns)
        cheaper = [(rank * per_rank, 1.0 - float(self.energy[rank - 1]), rank) for rank in sorted(ranks, reverse=True)]
        return [(self.cost, 0.0, 0), *cheaper]


def ranks_for_target(offers: Sequence[Offers], target: float, grid: int | None = None) -> list[int]:
    """Ranks that bring all matrices together to a share of their cost at the least loss of energy.

    Each matrix loses a share of its own energy; the sum of these shares is made small. Only offers on the lower
    convex hull of (cost, loss) can be part of a best choice, and they are taken in the order of loss per cost saved:
    the greedy solution of the continuous problem, off by at most one step from the best.

    Args:
        offers: One per matrix.
        target: Share of the cost to keep, in (0, 1). Where it cannot be reached, the cheapest offers are taken.
        grid: As of `round_rank`.

    Returns:
        A rank per matrix; 0 leaves it as it is.
    """
    steps = []
    for index, matrix in enumerate(offers):
        for dear, cheap in itertools.pairwise(_hull(matrix.listed(grid))):
            steps.append((_slope(dear, cheap), index, cheap[2], dear[0] - cheap[0]))
    ranks, spent = [0] * len(offers), sum(matrix.cost for matrix in offers)
    limit = target * spent
    for _, index, rank, saved in sorted(steps):
        if spent <= limit:
            break
        ranks[index] = rank
        spent -= saved
    return ranks


def _hull(offers: Sequence[Offer]) -> list[Offer]:
    """The lower convex hull of offers in the order of falling cost."""
    hull: list[Offer] = []
    for offer in offers:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], offer):
            hull.pop()
        hull.append(offer)
    return hull


def _slope(dear: Offer, cheap: Offer) -> float:
    return (cheap[1] - dear[1]) / (dear[0] - cheap[0])

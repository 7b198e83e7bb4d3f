"""One offer for each of several layers under one target: those that lose least give most."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

__all__ = ["choose"]

Point = tuple[float, float, int]
"""(cost, loss, number of the offer); number -1 is the layer as it is."""


def choose(costs: Sequence[float], offers: Sequence[Sequence[tuple[float, float]]], target: float) -> list[int]:
    """Offers that bring all layers together to a share of their cost at the least sum of losses.

    Only offers on the lower convex hull of (cost, loss) can be part of a best choice, and they are taken in the order
    of loss per cost saved: the greedy solution of the continuous problem, off by at most one step from the best.

    Args:
        costs: Of each layer as it is, in any unit that all share.
        offers: For each layer (cost, loss) of what it can become, in any order.
        target: Share of the cost to keep, in (0, 1). Where it cannot be reached, the cheapest offers are taken.

    Returns:
        The number of an offer per layer; -1 leaves it as it is.
    """
    steps = []
    for index, (cost, given) in enumerate(zip(costs, offers, strict=True)):
        for dear, cheap in itertools.pairwise(_hull(_falling(cost, given))):
            steps.append((_slope(dear, cheap), index, dear[0] - cheap[0], cheap[2]))
    chosen, spent = [-1] * len(costs), float(sum(costs))
    limit = target * spent
    for _, index, saved, number in sorted(steps):
        if spent <= limit:
            break
        chosen[index] = number
        spent -= saved
    return chosen


def _falling(cost: float, offers: Sequence[tuple[float, float]]) -> list[Point]:
    """In the order of falling cost, the best of each cost."""
    points = [(each, loss, number) for number, (each, loss) in enumerate(offers) if each < cost]
    found: list[Point] = [(cost, 0.0, -1)]
    for point in sorted(points, key=lambda point: (-point[0], point[1])):
        if point[0] < found[-1][0]:
            found.append(point)
    return found


def _hull(points: Sequence[Point]) -> list[Point]:
    """The lower convex hull of points in the order of falling cost."""
    hull: list[Point] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(dear: Point, cheap: Point) -> float:
    return (cheap[1] - dear[1]) / (dear[0] - cheap[0])

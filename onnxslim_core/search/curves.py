"""Widths from what each is measured to lose: the plan of least loss under a target in multiply-adds.

Every group has a curve (what is lost with its first r classes gone) and a saving per class. On the lower convex hull
of loss against saving, steps are taken in the order of loss per saving over all groups; the shortest run of steps
that meets the target is the plan (the Lagrangian solution of the knapsack, optimal up to one step). Savings are
counted exactly on the whole plan, since the cost of a layer depends on both of its sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.criteria.obs import Curve
from onnxslim_core.search.widths import Limits, Plan

__all__ = ["Option", "plan_by_curves"]


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """A group with its curve; `loss[r]` is comparable over groups."""

    group: Group
    curve: Curve
    loss: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Step:
    slope: float
    option: int
    removed: int


def plan_by_curves(channels: ChannelGraph, options: Sequence[Option], target: float, limits: Limits) -> Plan:
    """The plan that keeps at most `target` of the multiply-adds, or all that the limits allow to go.

    Args:
        channels: The channel graph.
        options: Groups that may be cut.
        target: Share of the multiply-adds kept.
        limits: The grid of widths and the least that stays.
    """
    steps = sorted(
        (step for number, option in enumerate(options) for step in _hull(channels, number, option, limits)),
        key=lambda step: (step.slope, step.option, step.removed),
    )
    full = channels.macs()
    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        plan = _after(options, steps[:middle])
        if channels.macs(channels.gone(plan.all())) <= target * full:
            high = middle
        else:
            low = middle + 1
    return _after(options, steps[:low])


def _after(options: Sequence[Option], steps: Sequence[_Step]) -> Plan:
    removed = [0] * len(options)
    for step in steps:
        removed[step.option] = max(removed[step.option], step.removed)
    return Plan(
        tuple(tuple(int(c) for c in option.curve.order[:r]) for option, r in zip(options, removed, strict=True))
    )


def _hull(channels: ChannelGraph, number: int, option: Option, limits: Limits) -> list[_Step]:
    """Steps along the lower convex hull of (saving, loss) over the admissible widths."""
    group, order = option.group, option.curve.order
    allowed = [r for r in range(1, len(order) + 1) if limits.kept(group, group.width - r) == group.width - r]
    saving = np.concatenate([[0.0], np.cumsum(channels.class_macs[order])])
    steps: list[_Step] = []
    here = 0
    while ahead := [r for r in allowed if r > here and saving[r] > saving[here]]:
        slopes = [(option.loss[r] - option.loss[here]) / (saving[r] - saving[here]) for r in ahead]
        best = int(np.argmin(slopes))
        steps.append(_Step(float(slopes[best]), number, ahead[best]))
        here = ahead[best]
    return steps

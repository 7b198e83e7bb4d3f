"""How many classes of each group stay: uniform, by one threshold over all groups, or to a target in multiply-adds.

A plan is the set of classes that go. Kept widths are rounded up to the grid, so that a plan never takes more than
was asked for; a group never loses more than `max_ratio` of its classes nor falls below `min_width` of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.search.grid import kept_classes

__all__ = ["ALLOCATIONS", "Candidate", "Limits", "Plan", "allocate", "cheapest"]

ALLOCATIONS = ("uniform", "global", "macs")


@dataclass(frozen=True, slots=True)
class Limits:
    """What no plan may break.

    Attributes:
        round_to: `auto` or a number of channels.
        max_ratio: The largest share of a group that may go.
        min_width: The least classes that stay in a group.
    """

    round_to: int | str = "auto"
    max_ratio: float = 0.9
    min_width: int = 1

    def kept(self, group: Group, wanted: int) -> int:
        """Classes that stay where `wanted` would do."""
        stuck = int((~group.free).sum())
        least = max(self.min_width, stuck, int(np.ceil(group.width * (1 - self.max_ratio) - 1e-9)), 1)
        return kept_classes(max(wanted, least), group.width, group.unit, self.round_to)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A group that may be cut, with a score per class: higher stays."""

    group: Group
    scores: NDArray[np.float64]

    def order(self) -> NDArray[np.int32]:
        """Free classes, the first to go first; equal scores by number, so that the order is reproducible."""
        free = np.flatnonzero(self.group.free)
        return self.group.classes[free[np.argsort(self.scores[free], kind="stable")]]

    def normalised(self) -> NDArray[np.float64]:
        """Scores over their mean, so that groups can be compared."""
        mean = float(np.mean(self.scores))
        return self.scores / mean if mean > 0 else self.scores


@dataclass(frozen=True, slots=True)
class Plan:
    """Classes that go, per candidate in the order of the candidates."""

    removed: tuple[tuple[int, ...], ...]

    def all(self) -> list[int]:
        """Every class that goes."""
        return [root for classes in self.removed for root in classes]


def _take(candidate: Candidate, wanted: int, limits: Limits) -> tuple[int, ...]:
    kept = limits.kept(candidate.group, wanted)
    return tuple(int(root) for root in candidate.order()[: candidate.group.width - kept])


def _uniform(candidates: Sequence[Candidate], ratio: float, limits: Limits) -> Plan:
    """The same share of every group; a half is rounded up to what stays."""
    return Plan(tuple(_take(c, int(np.ceil(c.group.width * (1 - ratio) - 1e-9)), limits) for c in candidates))


def _threshold(candidates: Sequence[Candidate], level: float, limits: Limits) -> Plan:
    """Everything scored at most `level` times the mean of its group."""
    removed = []
    for candidate in candidates:
        below = int(((candidate.normalised() <= level) & candidate.group.free).sum())
        removed.append(_take(candidate, candidate.group.width - below, limits))
    return Plan(tuple(removed))


def cheapest(channels: ChannelGraph, candidates: Sequence[Candidate], limits: Limits) -> float:
    """The least share of the multiply-adds that any plan within the limits keeps."""
    plan = _threshold(candidates, float("inf"), limits)
    return channels.macs(channels.gone(plan.all())) / max(channels.macs(), 1)


def allocate(
    channels: ChannelGraph, candidates: Sequence[Candidate], allocation: str, amount: float, limits: Limits
) -> Plan:
    """Choose what goes.

    Args:
        channels: The channel graph.
        candidates: Groups that may be cut.
        allocation: `uniform`: `amount` is the share of every group removed. `global`: the share of all free classes
            kept, by one threshold on normalised scores. `macs`: the share of the multiply-adds kept.
        amount: In 0..1; see `allocation`.
        limits: What no plan may break.

    Returns:
        The plan that keeps most and still meets the amount; where none does, the one that takes all it may.
    """
    if allocation == "uniform":
        return _uniform(candidates, amount, limits)
    levels = np.unique(np.concatenate([[0.0], *(c.normalised()[c.group.free] for c in candidates)]))
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        if _share(channels, candidates, _threshold(candidates, levels[middle], limits), allocation) <= amount:
            high = middle
        else:
            low = middle + 1
    return _threshold(candidates, float(levels[low]), limits)


def _share(channels: ChannelGraph, candidates: Sequence[Candidate], plan: Plan, allocation: str) -> float:
    if allocation == "macs":
        return channels.macs(channels.gone(plan.all())) / max(channels.macs(), 1)
    free = sum(int(c.group.free.sum()) for c in candidates)
    return 1 - len(plan.all()) / max(free, 1)

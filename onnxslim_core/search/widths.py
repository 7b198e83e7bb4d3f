"""How many classes of each group stay: uniform, by one threshold over all groups, or to a target in multiply-adds.

A plan is the set of classes that go. Kept widths are rounded up to the grid, so that a plan never takes more than
was asked for; a group never loses more than `max_ratio` of its classes nor falls below `min_width` channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.search.grid import kept_classes

__all__ = ["ALLOCATIONS", "Candidate", "Limits", "Plan", "allocate", "share_kept"]

ALLOCATIONS = ("uniform", "global", "macs")


@dataclass(frozen=True, slots=True)
class Limits:
    """What no plan may break.

    Attributes:
        round_to: `auto` or a number of channels.
        max_ratio: The largest share of a group that may go.
        min_width: The least channels that stay in a group.
        of_group: Other limits of single groups.
    """

    round_to: int | str = "auto"
    max_ratio: float = 0.9
    min_width: int = 1
    of_group: Callable[[Group], Limits] | None = None

    def kept(self, group: Group, wanted: int) -> int:
        """Classes that stay where `wanted` would do."""
        if self.of_group is not None:
            return self.of_group(group).kept(group, wanted)
        stuck = int((~group.free).sum())
        floor = -(-self.min_width // group.unit)
        least = max(floor, stuck, int(np.ceil(group.width * (1 - self.max_ratio) - 1e-9)), 1)
        return kept_classes(max(wanted, least), group.width, group.unit, self.round_to, group.beside)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A group that may be cut.

    Attributes:
        group: The group.
        scores: One per class, higher stays; shape (classes,).
        absolute: Whether the scores of all groups can be compared as they are; else each counts over its group's mean.
        ratio: The share removed under `uniform`, where the group has one of its own.
    """

    group: Group
    scores: NDArray[np.float64]
    absolute: bool = False
    ratio: float | None = None

    def order(self) -> NDArray[np.int32]:
        """Free classes, the first to go first; equal scores by number, so that the order is reproducible."""
        free = np.flatnonzero(self.group.free)
        return self.group.classes[free[np.argsort(self.scores[free], kind="stable")]]

    def compared(self) -> NDArray[np.float64]:
        """Scores that can be compared over the groups."""
        mean = float(np.mean(self.scores))
        return self.scores if self.absolute or mean <= 0 else self.scores / mean


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
    shares = [ratio if c.ratio is None else c.ratio for c in candidates]
    wanted = [int(np.ceil(c.group.width * (1 - share) - 1e-9)) for c, share in zip(candidates, shares, strict=True)]
    return Plan(tuple(_take(c, count, limits) for c, count in zip(candidates, wanted, strict=True)))


def _threshold(candidates: Sequence[Candidate], level: float, limits: Limits) -> Plan:
    """Everything whose compared score is at most `level`."""
    removed = []
    for candidate in candidates:
        below = int(((candidate.compared() <= level) & candidate.group.free).sum())
        removed.append(_take(candidate, candidate.group.width - below, limits))
    return Plan(tuple(removed))


def allocate(
    channels: ChannelGraph, candidates: Sequence[Candidate], allocation: str, amount: float, limits: Limits
) -> Plan:
    """Choose what goes.

    Args:
        channels: The channel graph.
        candidates: Groups that may be cut.
        allocation: `uniform`: `amount` is the share of every group removed. `global`: the share of all free channels
            kept, by one threshold on compared scores. `macs`: the share of the multiply-adds kept.
        amount: In 0..1; see `allocation`.
        limits: What no plan may break.

    Returns:
        The plan that keeps most and still meets the amount; where none does (see `share_kept`), the one that takes
        all it may.
    """
    if allocation == "uniform":
        return _uniform(candidates, amount, limits)
    groups = [candidate.group for candidate in candidates]
    levels = np.unique(np.concatenate([[-1.0], *(c.compared()[c.group.free] for c in candidates)]))
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        if share_kept(channels, groups, _threshold(candidates, levels[middle], limits), allocation) <= amount:
            high = middle
        else:
            low = middle + 1
    plan = _threshold(candidates, float(levels[low]), limits)
    return _give_back(channels, candidates, plan, amount, limits) if allocation == "macs" else plan


def share_kept(channels: ChannelGraph, groups: Sequence[Group], plan: Plan, allocation: str) -> float:
    """What a plan keeps of what the allocation counts: multiply-adds for `macs`, else channels that may go."""
    if allocation == "macs":
        return channels.macs(channels.gone(plan.all())) / max(channels.macs(), 1)
    free = sum(int(group.free.sum()) * group.unit for group in groups)
    gone = sum(len(classes) * group.unit for group, classes in zip(groups, plan.removed, strict=True))
    return 1 - gone / max(free, 1)


def _give_back(
    channels: ChannelGraph, candidates: Sequence[Candidate], plan: Plan, amount: float, limits: Limits
) -> Plan:
    """The widest plan within this one that meets the amount: group by group, the best of what went first.

    A threshold moves many groups at once, and each by a step of the grid, so it can end far below a target.
    """
    removed = list(plan.removed)
    groups = [candidate.group for candidate in candidates]

    def best(number: int) -> tuple[float, int]:
        gone = np.isin(groups[number].classes, removed[number])
        return -float(candidates[number].compared()[gone].max(initial=-1.0)), number

    for number in sorted(range(len(groups)), key=best):
        group, gone = groups[number], removed[number]
        fewer = [r for r in range(len(gone) + 1) if limits.kept(group, group.width - r) == group.width - r]
        low, high = 0, len(fewer) - 1
        while low < high:
            middle = (low + high) // 2
            removed[number] = gone[: fewer[middle]]
            if share_kept(channels, groups, Plan(tuple(removed)), "macs") <= amount:
                high = middle
            else:
                low = middle + 1
        removed[number] = gone[: fewer[high]] if fewer else gone
    return Plan(tuple(removed))

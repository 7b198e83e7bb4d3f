"""One row per unit of a table of options, so that least is lost at a given cost.

A unit is something that is decided on its own: the width of a group of channels, the rank of a layer, whether a block
stays. Its rows are the options there are; the first changes nothing. What rows lose is added up. What they cost is
not separable, since the cost of a layer depends on both of its sides: each term of the cost is a product over the
factors of a layer of what its units leave of it.

    cost(choice) = fixed + sum over terms of  base * prod over factors of (1 - sum over units of part * (1 - left))

For separable costs this is the multiple-choice knapsack, solved exactly (up to the buckets) by dynamic programming.
For coupled ones the savings are linearised around the last choice and solved for again until nothing moves; every
choice that counts is judged by its true cost, and what slack is left is given back, the largest loss first.

A layer that can work on other numbers (int8) has a term per kind of numbers, of which its unit lets one count, and
each reads its own column of shares: half the channels may be half the time in float, and no time in int8. Where two
neighbours differ, the conversion between them is a term with a factor from each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Costs", "Row", "Term", "Unit", "cheapest", "choose", "loss_of"]

Floats = NDArray[np.float64]
Choice = tuple[int, ...]

_BUCKETS = 3000
_ROUNDS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """An option of a unit.

    Attributes:
        what: In a few words, for the record.
        loss: Of the answers, comparable over units.
        left: Share of the unit's cost that is left, 0..1 (above 1: it costs more than what it replaces).
        payload: What the option is, for whoever carries it out.
        other: The same share in the second column (of what layers take in int8); None where it is the same.
    """

    what: str
    loss: float
    left: float
    payload: Any = None
    other: float | None = None

    def share(self, column: int) -> float:
        """What is left, as a term of this column sees it: 0 or 1."""
        return self.left if column == 0 or self.other is None else self.other


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """Something to be decided; the first row changes nothing."""

    name: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Term:
    """A cost, and per factor which part of it belongs to which unit.

    Attributes:
        base: In full.
        factors: Per factor: unit -> the part (0..1) of that factor that is the unit's.
        instead: A unit whose share counts in place of all factors where it is smaller: two ways to make a layer
            cheaper of which the second gains nothing on top of the first; -1 where there is none.
        columns: Per factor, which share of a row it reads; empty where all read the first.
    """

    base: float
    factors: tuple[Mapping[int, float], ...]
    instead: int = -1
    columns: tuple[int, ...] = ()

    def pairs(self) -> list[tuple[Mapping[int, float], int]]:
        """Each factor with its column."""
        return list(zip(self.factors, self.columns or (0,) * len(self.factors), strict=True))

    @property
    def column(self) -> int:
        """That of the first factor, which `instead` reads too."""
        return self.columns[0] if self.columns else 0

    def units(self) -> set[int]:
        """The units that it depends on."""
        return {unit for factor in self.factors for unit in factor} | ({self.instead} - {-1})


@dataclass(frozen=True, slots=True)
class Costs:
    """All terms, and what no option touches."""

    terms: tuple[Term, ...]
    fixed: float = 0.0
    _of: dict[int, list[Term]] = field(default_factory=dict, compare=False)

    def total(self, units: Sequence[Unit], choice: Sequence[int]) -> float:
        """The cost of a choice."""
        return self.fixed + sum(_cost(term, units, choice) for term in self.terms)

    def savings(self, units: Sequence[Unit], choice: Sequence[int]) -> list[Floats]:
        """Per unit: what each row would save against the first one, while the others stay as chosen."""
        if not self._of:
            for term in self.terms:
                for concerned in term.units():
                    self._of.setdefault(concerned, []).append(term)
        left = [[unit.rows[row].share(column) for unit, row in zip(units, choice, strict=True)] for column in (0, 1)]
        found = []
        for number, unit in enumerate(units):
            own = [np.array([row.share(column) for row in unit.rows]) for column in (0, 1)]
            costs = np.zeros(len(unit.rows))
            for term in self._of.get(number, ()):
                share = np.ones(len(unit.rows))
                for factor, c in term.pairs():
                    others = 1.0 - sum(part * (1.0 - left[c][u]) for u, part in factor.items() if u != number)
                    share *= np.maximum(others - factor.get(number, 0.0) * (1.0 - own[c]), 0.0)
                if term.instead >= 0:
                    c = term.column
                    share = np.minimum(share, own[c] if term.instead == number else left[c][term.instead])
                costs += term.base * share
            found.append(costs[0] - costs)
        return found


def _cost(term: Term, units: Sequence[Unit], choice: Sequence[int]) -> float:
    share = 1.0
    for factor, c in term.pairs():
        share *= max(1.0 - sum(part * (1.0 - units[u].rows[choice[u]].share(c)) for u, part in factor.items()), 0.0)
    if term.instead >= 0:
        share = min(share, units[term.instead].rows[choice[term.instead]].share(term.column))
    return term.base * share


def loss_of(units: Sequence[Unit], choice: Sequence[int]) -> float:
    """What a choice is expected to lose."""
    return float(sum(unit.rows[row].loss for unit, row in zip(units, choice, strict=True)))


def choose(units: Sequence[Unit], costs: Costs, target: float, starts: Sequence[Choice] = ()) -> Choice | None:
    """The choice of least loss among those found that cost at most `target`; None where no choice is that cheap.

    Args:
        units: What is decided.
        costs: What the rows cost together.
        target: In the unit of the costs.
        starts: Where to begin as well: from "nothing" no way may lead to a choice that pays only as a whole.
    """
    best: Choice | None = None
    seen: set[Choice] = set()
    for start in ((0,) * len(units), *starts):
        choice: Choice = start
        for _ in range(_ROUNDS):
            if choice in seen:
                break
            seen.add(choice)
            savings = costs.savings(units, choice)
            here = costs.total(units, choice)
            need = here - target + sum(float(saved[row]) for saved, row in zip(savings, choice, strict=True))
            choice = _knapsack(units, savings, need)
            found = _mended(units, costs, target, choice)
            if found is not None and (best is None or loss_of(units, found) < loss_of(units, best)):
                best = found
    if best is None:
        least = tuple(int(np.argmin([row.left for row in unit.rows])) for unit in units)
        best = _mended(units, costs, target, least)
    return best


def cheapest(units: Sequence[Unit], costs: Costs, start: Choice, may: Collection[int]) -> Choice:
    """What becomes of a choice if single units change for what costs less, the largest gain first, until none does.

    Args:
        units: What is decided; losses do not count.
        costs: What the rows cost together.
        start: Where to begin.
        may: Numbers of the units that may change.
    """
    now = list(start)
    while True:
        savings = costs.savings(units, now)
        moves = [
            (saved[row] - saved[now[u]], -u, -row) for u in may for saved in [savings[u]] for row in range(len(saved))
        ]
        gain, number, row = max(moves, default=(0.0, 0, 0))
        if gain <= 1e-9 * costs.total(units, now):
            return tuple(now)
        now[-number] = -row


def _knapsack(units: Sequence[Unit], savings: Sequence[Floats], need: float) -> Choice:
    """Least loss whose savings add up to `need`; where none do, the largest savings."""
    if need <= 0:
        return (0,) * len(units)
    steps = [np.clip(np.floor(saved / need * _BUCKETS + 1e-9), 0, _BUCKETS).astype(np.int64) for saved in savings]
    best = np.full(_BUCKETS + 1, np.inf)
    best[0] = 0.0
    taken = np.zeros((len(units), _BUCKETS + 1), np.int32)
    came = np.zeros((len(units), _BUCKETS + 1), np.int32)
    for number, (unit, step) in enumerate(zip(units, steps, strict=True)):
        after = np.full(_BUCKETS + 1, np.inf)
        for row in range(len(unit.rows)):
            shift, loss = int(step[row]), unit.rows[row].loss
            place = np.minimum(np.arange(_BUCKETS + 1) + shift, _BUCKETS)
            candidate = best + loss
            # several buckets meet in the last one: the best of them counts
            inner = np.flatnonzero(candidate[: _BUCKETS + 1 - shift] < after[shift:])
            after[shift + inner], taken[number, shift + inner], came[number, shift + inner] = (
                candidate[inner],
                row,
                inner,
            )
            if shift:
                over = np.flatnonzero(place == _BUCKETS)
                first = int(over[np.argmin(candidate[over])])
                if candidate[first] < after[_BUCKETS]:
                    after[_BUCKETS], taken[number, _BUCKETS], came[number, _BUCKETS] = candidate[first], row, first
        best = after
    bucket = int(np.flatnonzero(np.isfinite(best)).max())
    choice = []
    for number in reversed(range(len(units))):
        choice.append(int(taken[number, bucket]))
        bucket = int(came[number, bucket])
    return tuple(reversed(choice))


def _mended(units: Sequence[Unit], costs: Costs, target: float, choice: Choice) -> Choice | None:
    """The choice made cheap enough, step by step, and then as good as its slack allows; None where it cannot be."""
    now = list(choice)
    while costs.total(units, now) > target:
        savings = costs.savings(units, now)
        steps = [
            ((unit.rows[row].loss - unit.rows[now[u]].loss) / (saved[row] - saved[now[u]]), u, row)
            for u, (unit, saved) in enumerate(zip(units, savings, strict=True))
            for row in range(len(unit.rows))
            if saved[row] > saved[now[u]] + 1e-12
        ]
        if not steps:
            return None
        _, number, chosen = min(steps)
        now[number] = chosen
    while True:
        slack = target - costs.total(units, now)
        savings = costs.savings(units, now)
        gains = [
            (units[u].rows[now[u]].loss - units[u].rows[row].loss, -u, -row)
            for u, saved in enumerate(savings)
            for row in range(len(units[u].rows))
            if units[u].rows[row].loss < units[u].rows[now[u]].loss and saved[now[u]] - saved[row] <= slack
        ]
        if not gains:
            return tuple(now)
        _, number, chosen = max(gains)
        now[-number] = -chosen

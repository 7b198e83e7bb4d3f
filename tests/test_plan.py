"""The plan of least loss: against every choice there is, where they can be counted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxslim_core.search.plan import Costs, Row, Term, Unit, cheapest, choose, loss_of


def _units(rng: np.random.Generator, count: int, rows: int) -> list[Unit]:
    units = []
    for number in range(count):
        left = [1.0, *np.sort(rng.uniform(0, 1, rows - 1))[::-1]]
        loss = [0.0, *np.sort(rng.exponential(1, rows - 1))]
        units.append(
            Unit(
                f"u{number}",
                tuple(Row(str(i), float(a), float(b)) for i, (a, b) in enumerate(zip(loss, left, strict=True))),
            )
        )
    return units


def _best(units: list[Unit], costs: Costs, target: float) -> float | None:
    choices = itertools.product(*(range(len(unit.rows)) for unit in units))
    losses = [loss_of(units, choice) for choice in choices if costs.total(units, choice) <= target]
    return min(losses) if losses else None


@pytest.mark.parametrize("seed", range(20))
def test_separable_costs_are_solved_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    units = _units(rng, 5, 4)
    costs = Costs(tuple(Term(float(rng.integers(1, 50)), ({u: 1.0},)) for u in range(5)), fixed=7.0)
    for share in (0.9, 0.6, 0.3):
        target = share * costs.total(units, (0,) * 5)
        found, best = choose(units, costs, target), _best(units, costs, target)
        if best is None:
            assert found is None
            continue
        assert found is not None and costs.total(units, found) <= target
        assert loss_of(units, found) == pytest.approx(best, rel=0.02, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_coupled_costs_are_met_and_little_more_is_lost_than_must_be(seed: int) -> None:
    rng = np.random.default_rng(seed)
    units = _units(rng, 5, 4)
    # a chain: every layer has the width of one unit on one side and of the next on the other
    terms = tuple(Term(float(rng.integers(5, 50)), ({u: 1.0}, {u + 1: 1.0})) for u in range(4))
    costs = Costs(terms, fixed=3.0)
    for share in (0.8, 0.5, 0.3):
        target = share * costs.total(units, (0,) * 5)
        found, best = choose(units, costs, target), _best(units, costs, target)
        assert (found is None) == (best is None)
        if found is not None and best is not None:
            assert costs.total(units, found) <= target
            assert loss_of(units, found) <= 1.35 * best + 1e-9


def test_parts_of_a_factor_add_up() -> None:
    units = [Unit(str(i), (Row("keep", 0.0, 1.0), Row("half", 1.0, 0.5))) for i in range(2)]
    costs = Costs((Term(8.0, ({0: 0.25, 1: 0.75},)),))
    assert costs.total(units, (1, 0)) == pytest.approx(8 * (1 - 0.25 * 0.5))
    assert costs.total(units, (1, 1)) == pytest.approx(4.0)


def test_nothing_is_cut_where_nothing_has_to_be() -> None:
    units = [Unit("u", (Row("keep", 0.0, 1.0), Row("half", 0.0, 0.5)))]
    assert choose(units, Costs((Term(8.0, ({0: 1.0},)),)), 8.0) == (0,)


def test_of_two_ways_to_make_a_layer_cheaper_the_better_one_counts() -> None:
    units = [Unit(str(i), (Row("keep", 0.0, 1.0), Row("less", 1.0, left))) for i, left in enumerate((0.5, 0.7))]
    costs = Costs((Term(10.0, ({0: 1.0},), instead=1),))
    assert [costs.total(units, choice) for choice in ((0, 0), (1, 0), (0, 1), (1, 1))] == [10.0, 5.0, 7.0, 5.0]
    for choice in ((0, 0), (1, 0), (0, 1), (1, 1)):
        for number, saved in enumerate(costs.savings(units, choice)):
            one = list(choice)
            totals = []
            for row in (0, 1):
                one[number] = row
                totals.append(costs.total(units, one))
            assert saved[1] == pytest.approx(totals[0] - totals[1])


def _precise(count: int, wide: float, narrow: float, edge: float) -> tuple[list[Unit], Costs]:
    """A chain of layers, each in one of two kinds of numbers; what is before and behind it is wide."""
    rows = (Row("wide", 0.0, 1.0, other=0.0), Row("narrow", 0.1, 0.0, other=1.0))
    units = [Unit(str(number), rows) for number in range(count)]
    terms = [Term(base, ({u: 1.0},), columns=(c,)) for u in range(count) for c, base in ((0, wide), (1, narrow))]
    for u in range(count - 1):
        terms += [Term(edge, ({u: 1.0}, {u + 1: 1.0}), columns=columns) for columns in ((0, 1), (1, 0))]
    terms += [Term(edge, ({u: 1.0},), columns=(1,)) for u in (0, count - 1)]
    return units, Costs(tuple(terms))


def test_a_layer_costs_what_its_kind_of_numbers_costs_and_neighbours_that_differ_pay() -> None:
    units, costs = _precise(3, 10.0, 4.0, 1.0)
    assert costs.total(units, (0, 0, 0)) == 30.0
    assert costs.total(units, (1, 1, 1)) == 3 * 4.0 + 2.0
    assert costs.total(units, (1, 0, 1)) == 4.0 + 10.0 + 4.0 + 4.0
    assert costs.total(units, (0, 1, 0)) == 10.0 + 4.0 + 10.0 + 2.0


@pytest.mark.parametrize("seed", range(5))
def test_savings_are_differences_of_totals_in_both_columns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    units, costs = _precise(4, 10.0, 4.0, 1.5)
    width = Unit("w", (Row("keep", 0.0, 1.0), Row("half", 1.0, 0.5, other=0.9)))
    units = [*units, width]
    terms = tuple(Term(t.base, (*t.factors, {4: 0.7}), columns=(*t.columns, t.columns[0])) for t in costs.terms)
    costs = Costs(terms, fixed=2.0)
    choice = [int(row) for row in rng.integers(0, 2, 5)]
    for number, saved in enumerate(costs.savings(units, choice)):
        totals = [costs.total(units, [*choice[:number], row, *choice[number + 1 :]]) for row in (0, 1)]
        assert saved[1] == pytest.approx(totals[0] - totals[1])


def test_a_conversion_on_each_side_keeps_single_layers_wide_and_all_together_pay() -> None:
    units, costs = _precise(5, 10.0, 7.0, 2.0)
    assert cheapest(units, costs, (0,) * 5, range(5)) == (0,) * 5, "one alone costs 4 to convert and saves 3"
    assert cheapest(units, costs, (1,) * 5, range(5)) == (1,) * 5
    assert choose(units, costs, 40.0, [(1,) * 5]) == (1,) * 5


def test_the_slow_ones_at_the_end_of_a_chain_stay_wide() -> None:
    units, costs = _precise(5, 10.0, 4.0, 1.0)
    slow = Costs((*costs.terms, Term(20.0, ({0: 1.0},), columns=(1,)), Term(20.0, ({1: 1.0},), columns=(1,))))
    assert cheapest(units, slow, (1,) * 5, range(5)) == (0, 0, 1, 1, 1)
    assert cheapest(units, slow, (1,) * 5, [0]) == (0, 1, 1, 1, 1), "only what may change does"


def test_fewer_channels_may_save_nothing_in_the_other_column() -> None:
    rows = (Row("wide", 0.0, 1.0, other=0.0), Row("narrow", 0.1, 0.0, other=1.0))
    width = Unit("w", (Row("keep", 0.0, 1.0, other=1.0), Row("half", 0.2, 0.5, other=1.0)))
    both = ({0: 1.0}, {1: 1.0})
    costs = Costs((Term(10.0, both, columns=(0, 0)), Term(6.0, both, columns=(1, 1))))
    units = [Unit("p", rows), width]
    assert choose(units, costs, 6.0) == (1, 0)
    assert choose(units, costs, 5.0) == (0, 1)

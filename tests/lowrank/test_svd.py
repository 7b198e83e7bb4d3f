"""Factors against what defines them: nothing of the same rank is nearer, in either norm (Eckart and Young)."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim_core.lowrank.ranks import choose
from onnxslim_core.lowrank.svd import break_even, decompose, ranks_up_to


def _matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Singular values that fall, so that truncation is not the same everywhere."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((rows, min(rows, columns))))[0]
    right = np.linalg.qr(rng.standard_normal((columns, min(rows, columns))))[0]
    return np.asarray((left * 0.8 ** np.arange(min(rows, columns))) @ right.T)


@pytest.mark.parametrize(("rows", "columns"), [(20, 13), (13, 20), (9, 9)])
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_error_is_what_was_dropped(rows: int, columns: int, rank: int) -> None:
    weight = _matrix(rows, columns)
    found = decompose(weight).factors(rank)
    error = weight - found.a @ found.b
    values = 0.8 ** np.arange(min(rows, columns))
    assert found.a.shape == (rows, rank)
    assert found.b.shape == (rank, columns)
    assert np.linalg.norm(error, 2) == pytest.approx(values[rank], rel=1e-9)
    assert found.first_dropped == pytest.approx(values[rank], rel=1e-9)
    assert np.linalg.norm(error) ** 2 == pytest.approx((values[rank:] ** 2).sum(), rel=1e-9)


def test_no_other_product_of_the_rank_is_nearer() -> None:
    weight, rank, rng = _matrix(15, 12), 4, np.random.default_rng(1)
    found = decompose(weight).factors(rank)
    best = np.linalg.norm(weight - found.a @ found.b)
    best_spectral = np.linalg.norm(weight - found.a @ found.b, 2)
    for scale in (1e-6, 1e-3, 1e-1, 1.0):
        for _ in range(50):
            # any column space, with the factor that fits it best: a random start and one near the optimum
            a = found.a + scale * rng.standard_normal(found.a.shape)
            b = np.linalg.lstsq(a, weight, rcond=None)[0]
            assert np.linalg.norm(weight - a @ b) >= best * (1 - 1e-12)
            assert np.linalg.norm(weight - a @ b, 2) >= best_spectral * (1 - 1e-9)


def test_alternating_least_squares_from_afar_ends_at_the_same_error() -> None:
    weight, rank = _matrix(15, 12), 3
    a = np.random.default_rng(2).standard_normal((15, rank))
    for _ in range(300):
        b = np.linalg.lstsq(a, weight, rcond=None)[0]
        a = np.linalg.lstsq(b.T, weight.T, rcond=None)[0].T
    found = decompose(weight).factors(rank)
    assert np.linalg.norm(weight - a @ b) == pytest.approx(np.linalg.norm(weight - found.a @ found.b), rel=1e-6)


def test_full_rank_gives_the_matrix_back() -> None:
    weight = _matrix(7, 5)
    found = decompose(weight).factors(5)
    assert np.allclose(found.a @ found.b, weight, atol=1e-14)
    assert found.first_dropped == 0.0


def test_float16_is_decomposed_in_float64() -> None:
    weight = (_matrix(40, 30) * 100).astype(np.float16)
    found = decompose(weight).factors(10)
    assert found.a.dtype == found.b.dtype == np.float64
    error = np.linalg.norm(weight.astype(np.float64) - found.a @ found.b, 2)
    assert error == pytest.approx(found.first_dropped, rel=1e-9)


def test_both_factors_are_of_like_scale() -> None:
    found = decompose(_matrix(30, 20) * 1e6).factors(5)
    assert np.linalg.norm(found.a) == pytest.approx(np.linalg.norm(found.b), rel=1e-9)


@pytest.mark.parametrize(("rows", "columns"), [(1, 9), (2, 2), (3, 6), (6, 3), (64, 48), (25088, 64)])
def test_break_even_is_the_largest_rank_that_saves_anything(rows: int, columns: int) -> None:
    rank = break_even(rows, columns)
    assert rank * (rows + columns) < rows * columns
    assert (rank + 1) * (rows + columns) >= rows * columns


@pytest.mark.parametrize(
    ("largest", "grid", "ranks"),
    [
        (0, None, []),
        (7, None, [1, 2, 3, 4]),
        (70, None, [1, 2, 3, 4, *range(8, 65, 8)]),
        (11, 5, [5, 10]),
        (3, 4, []),
        (90, None, [1, 2, 3, 4, *range(8, 65, 8), 80]),
    ],
)
def test_only_ranks_on_the_grid_are_offered(largest: int, grid: int | None, ranks: list[int]) -> None:
    assert ranks_up_to(largest, grid) == ranks


@pytest.mark.parametrize("weight", [np.ones(4), np.ones((0, 3)), np.array([[1.0, np.nan]]), np.array([[np.inf]])])
def test_what_has_no_singular_values_is_refused(weight: np.ndarray) -> None:
    with pytest.raises(ValueError):
        decompose(weight)


@pytest.mark.parametrize("rank", [0, 4, -1])
def test_ranks_out_of_range_are_refused(rank: int) -> None:
    with pytest.raises(ValueError):
        decompose(np.eye(3)).factors(rank)


def _offers(seed: int, power: int, cost: float) -> list[tuple[float, float]]:
    """(cost, loss) of a matrix of 12 x 10 at every rank that saves something, in a jumbled order."""
    found = decompose(_matrix(12, 10, seed) ** power)
    lost = found.tail() / np.square(found.s).sum()
    ranks = np.random.default_rng(seed).permutation(np.arange(1, break_even(12, 10) + 1))
    return [(cost * int(rank) * 22 / 120, float(lost[rank - 1])) for rank in ranks]


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7, 0.9])
def test_target_is_met_and_nearly_as_well_as_by_trying_everything(target: float) -> None:
    costs = [500.0, 1000.0, 200.0]
    offers = [_offers(seed, power, cost) for (seed, power), cost in zip(((0, 1), (1, 3), (2, 1)), costs, strict=True)]
    taken = [
        each[at] if at >= 0 else (cost, 0.0)
        for each, at, cost in zip(offers, choose(costs, offers, target), costs, strict=True)
    ]
    spent, lost = (sum(part) for part in zip(*taken, strict=True))
    rows = [[(cost, 0.0), *each] for cost, each in zip(costs, offers, strict=True)]
    tried = [(a[0] + b[0] + c[0], a[1] + b[1] + c[1]) for a in rows[0] for b in rows[1] for c in rows[2]]
    best = min(loss for cost, loss in tried if cost <= target * sum(costs))
    # one step more of the dearest matrix is what greedy may be off by
    slack = min(loss for cost, loss in tried if cost <= target * sum(costs) - 1000 * 22 / 120)
    assert spent <= target * sum(costs)
    assert best - 1e-12 <= lost <= slack + 1e-12


def test_a_target_out_of_reach_takes_the_cheapest() -> None:
    assert choose([1.0], [[(0.5, 0.1), (0.1, 0.9), (0.3, 0.2)]], 0.001) == [1]
    assert choose([], [], 0.5) == []


def test_an_offer_that_costs_more_or_loses_more_than_another_is_not_taken() -> None:
    offers = [[(2.0, 0.0), (0.5, 0.3), (0.5, 0.2), (0.6, 0.9)]]
    assert choose([1.0], offers, 0.7) == [2]
    assert choose([1.0], [[(2.0, 0.0)]], 0.7) == [-1]

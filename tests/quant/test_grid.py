"""Grids and ranges against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim_core.quant.grid import grid_of, on_grid, quantize_bias, quantize_weights, scales_of
from onnxslim_core.quant.mend import with_feedback
from onnxslim_core.quant.ranges import METHODS, Spread, range_of


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (0.0, 6.0), (-1.0, 0.0), (0.5, 2.0), (-2e-9, 7e-9), (0.0, 0.0)])
def test_grid_holds_zero_and_rounds_to_half_a_step(low: float, high: float) -> None:
    grid = grid_of(low, high)
    assert grid.low <= 0 <= grid.high
    values = np.random.default_rng(0).uniform(min(low, 0), max(high, 0), 1000)
    back = (on_grid(values, grid).astype(np.float64) - grid.zero_point) * grid.scale
    # the zero point is a whole number, so either end may lie half a step outside
    assert np.abs(back - values).max() <= grid.scale * 1.0001
    assert on_grid(np.zeros(1), grid)[0] == grid.zero_point
    if low == high:
        assert (back == 0).all()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_weights_have_one_scale_per_slice(axis: int) -> None:
    array = np.random.default_rng(1).normal(size=(5, 4, 3)) * np.arange(1, 6)[:, None, None]
    array[2] = 0
    scales = scales_of(array, axis)
    q = quantize_weights(array, scales, axis)
    shape = [-1 if i == axis % 3 else 1 for i in range(3)]
    assert q.dtype == np.int8 and scales.shape == (array.shape[axis],)
    assert np.abs(q * scales.reshape(shape) - array).max() <= scales.max() / 2 * 1.001
    assert q.min() >= -127


def test_bias_too_large_for_its_scale_widens_it() -> None:
    scales = np.array([1e-3, 1e-12])
    q, wide = quantize_bias(np.array([1.0, 1.0]), scales)
    assert wide[0] == 1e-3 and wide[1] > 1e-12
    np.testing.assert_allclose(q * wide, 1.0, rtol=1e-6)


def spread_of(values: np.ndarray, batches: int = 4) -> Spread:
    spread = Spread()
    for part in np.array_split(values.astype(np.float32), batches):
        spread.add(part[:, None], True)
    return spread


def test_histogram_survives_growing() -> None:
    values = np.random.default_rng(2).normal(size=4000)
    values *= np.linspace(0.01, 30, 4000)  # later batches are larger, so bins are merged on the way
    spread = spread_of(values, 8)
    assert spread.bins.sum() == 4000
    edges = (np.arange(4097) - 2048) * spread.width
    np.testing.assert_array_equal(spread.bins, np.histogram(values.astype(np.float32), edges)[0])
    assert (spread.low, spread.high) == pytest.approx((values.min(), values.max()), rel=1e-6)


def test_percentile_is_numpys() -> None:
    values = np.random.default_rng(3).normal(size=20000)
    low, high = range_of(spread_of(values), "percentile", 99.0)
    assert low == pytest.approx(np.percentile(values, 0.5), abs=0.02)
    assert high == pytest.approx(np.percentile(values, 99.5), abs=0.02)


def rounding_error(values: np.ndarray, low: float, high: float) -> float:
    grid = grid_of(low, high)
    back = (on_grid(values, grid).astype(np.float64) - grid.zero_point) * grid.scale
    return float(np.square(back - values).mean())


@pytest.mark.parametrize("relu", [False, True])
def test_mse_rounds_better_than_minmax_where_there_are_outliers(relu: bool) -> None:
    values = np.random.default_rng(4).normal(size=20000)
    values[:3] = 40, 60, 80
    values = np.maximum(values, 0) if relu else values
    spread = spread_of(values)
    plain, best = (rounding_error(values[3:], *range_of(spread, method)) for method in ("minmax", "mse"))
    whole = [rounding_error(values, *range_of(spread, method)) for method in ("minmax", "mse")]
    assert whole[1] < whole[0]
    assert best < plain


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("relu", [False, True])
def test_every_method_covers_the_bulk(method: str, relu: bool) -> None:
    values = np.random.default_rng(5).normal(size=20000)
    values = np.maximum(values, 0) if relu else values
    low, high = range_of(spread_of(values), method)
    assert values.min() <= low <= 0 <= high <= values.max() * 1.001
    assert high > 1.5 and (relu or low < -1.5)


def test_feedback_keeps_what_correlated_inputs_sum_to() -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(5000, 1)) + 0.05 * rng.normal(size=(5000, 24))  # nearly one number, 24 times
    weights = rng.normal(size=(1, 24, 6))
    scales = np.abs(weights).max(axis=1) / 127
    nearest = np.rint(weights / scales[:, None])
    found = with_feedback(weights, (x.T @ x / len(x))[None], scales)
    errors = [float(np.square(x @ ((q * scales[:, None] - weights)[0])).mean()) for q in (nearest, found)]
    assert errors[1] < 0.2 * errors[0]
    assert (np.abs(found) <= 127).all() and (found == np.rint(found)).all()


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_zeros(method: str) -> None:
    assert range_of(spread_of(np.zeros(100)), method) == (0.0, 0.0)

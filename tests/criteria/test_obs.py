"""The curve of removal against solving directly for every kept set."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxslim_core.calibration.consumers import Consumer
from onnxslim_core.calibration.moments import Moments
from onnxslim_core.criteria.obs import removal_curve
from onnxslim_core.repair.least_squares import solve


def problem(channels: int, taps: int, outputs: int, seed: int) -> tuple[Consumer, Moments, np.ndarray]:
    rng = np.random.default_rng(seed)
    d = channels * taps
    x = rng.normal(size=(5000, d)) @ rng.normal(size=(d, d)) + 1.0
    kernel = {1: (), 4: (2, 2)}[taps]
    weight = rng.normal(size=(outputs, channels, *kernel)).astype(np.float32)
    value = ir.Value(name="w", const_value=ir.tensor(weight), shape=ir.Shape(weight.shape))
    ir.Graph([ir.Value(name="x")], [], nodes=[], initializers=[value], name="g")
    node = ir.node("Conv" if kernel else "Gemm", [ir.Value(name="x"), value], {} if kernel else {"transB": 1})
    start = weight.reshape(outputs, d).T.astype(np.float64)
    mean, h = x.mean(0), np.cov(x.T, bias=True)
    c = h @ start
    moments = Moments(5000, mean, mean @ start, h, c, np.sum(start * c, axis=0))
    return Consumer(node, np.arange(10, 10 + channels, dtype=np.int32), taps), moments, start


@pytest.mark.parametrize("taps", [1, 4])
def test_the_error_of_every_width_is_that_of_the_direct_solution(taps: int) -> None:
    consumer, moments, start = problem(6, taps, 5, seed=taps)
    curve = removal_curve([(consumer, moments)], consumer.classes, ridge=1e-9)
    assert len(curve.order) == 5
    assert (np.diff(curve.error) >= 0).all()
    for gone in range(1, 6):
        stays = np.repeat(~np.isin(consumer.classes, curve.order[:gone]), taps)
        part = Moments(
            moments.rows,
            moments.mean_x[stays],
            moments.mean_y,
            moments.h[np.ix_(stays, stays)],
            moments.c[stays],
            moments.v,
        )
        weights, _ = solve(part, start[stays], ridge=1e-9)
        assert curve.error[gone] == pytest.approx(part.error(weights) / moments.v.sum(), rel=1e-5)


def test_each_step_is_the_cheapest() -> None:
    consumer, moments, start = problem(7, 1, 4, seed=9)
    curve = removal_curve([(consumer, moments)], consumer.classes, ridge=1e-9)
    costs = []
    for channel in range(7):
        stays = np.arange(7) != channel
        part = Moments(
            moments.rows,
            moments.mean_x[stays],
            moments.mean_y,
            moments.h[np.ix_(stays, stays)],
            moments.c[stays],
            moments.v,
        )
        costs.append(part.error(solve(part, start[stays], ridge=1e-9)[0]))
    assert curve.order[0] == consumer.classes[int(np.argmin(costs))]


def test_a_channel_that_is_a_copy_of_another_costs_nothing() -> None:
    consumer, moments, start = problem(5, 1, 3, seed=4)
    mixing = np.eye(5)
    mixing[:, 4] = mixing[:, 1]
    h = mixing.T @ moments.h @ mixing
    c = h @ start
    moments = Moments(5000, moments.mean_x @ mixing, moments.mean_y, h, c, np.sum(start * c, axis=0))
    curve = removal_curve([(consumer, moments)], consumer.classes, ridge=1e-9)
    assert curve.order[0] in (11, 14)
    assert curve.error[1] < 1e-3
    assert curve.error[2] > 10 * curve.error[1]


def test_errors_of_two_readers_add_up() -> None:
    first, moments, _ = problem(6, 1, 5, seed=1)
    alone = removal_curve([(first, moments)], first.classes)
    twice = removal_curve([(first, moments), (first, moments)], first.classes)
    assert (alone.order == twice.order).all()
    np.testing.assert_allclose(twice.error, 2 * alone.error, rtol=1e-9)

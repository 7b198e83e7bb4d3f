"""Criteria on samples against direct solutions, explicit contributions and an independent LASSO."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxslim_core.calibration.consumers import Consumer, weights_of
from onnxslim_core.calibration.moments import Moments
from onnxslim_core.criteria import elimination, lasso, wifv
from onnxslim_core.criteria.curves import Readers, Setting, contributions, error_along
from onnxslim_core.criteria.random_search import polish
from onnxslim_core.criteria.table import MEASURED, SAMPLED
from onnxslim_core.errors import InternalError
from onnxslim_core.repair.least_squares import solve_spd

Floats = NDArray[np.float64]
ROWS = 3000


def reader(
    channels: int,
    taps: int,
    outputs: int,
    seed: int,
    *,
    noise: float = 0.0,
    spread: float = 1.0,
    first: int = 10,
) -> tuple[tuple[Consumer, Moments], Floats, Floats]:
    """A Conv or Gemm with rows of its input and its target; channel i is of class `first` + i."""
    rng = np.random.default_rng(seed)
    d = channels * taps
    x = np.maximum(rng.normal(size=(ROWS, d)) @ rng.normal(size=(d, d)) * spread + 0.5, 0.0)
    shape = (outputs, channels, 2, 2) if taps == 4 else (outputs, channels)
    weight = rng.normal(size=shape).astype(np.float32)
    value = ir.Value(name="w", const_value=ir.tensor(weight), shape=ir.Shape(shape))
    ir.Graph([ir.Value(name="x")], [], nodes=[], initializers=[value], name="g")
    node = ir.node("Conv" if taps == 4 else "Gemm", [ir.Value(name="x"), value], {} if taps == 4 else {"transB": 1})
    y = x @ weights_of(node) + noise * rng.normal(size=(ROWS, outputs)) + 2.0
    mean_x, mean_y = x.mean(0), y.mean(0)
    h, c = x.T @ x / ROWS - np.outer(mean_x, mean_x), x.T @ y / ROWS - np.outer(mean_x, mean_y)
    zeros = (x.reshape(ROWS, channels, taps)[:, :, taps // 2] == 0).mean(0)
    moments = Moments(ROWS, mean_x, mean_y, (h + h.T) / 2, c, y.var(0), zeros)
    classes = np.arange(first, first + channels, dtype=np.int32)
    return (Consumer(node, classes, taps), moments), x, y


def objective(pair: tuple[Consumer, Moments], gone: NDArray[np.int32], ridge: float | None) -> float:
    """What is minimised, at its minimum without some classes, by solving on the kept set; over the variance."""
    consumer, moments = pair
    start, penalty = weights_of(consumer.node), moments.penalty(ridge)
    stays = np.repeat(~np.isin(consumer.classes, gone), consumer.taps)
    weights = np.zeros_like(start)
    if stays.any():
        weights[stays] = solve_spd(moments.h[np.ix_(stays, stays)], moments.c[stays], start[stays], penalty)
    lost = moments.error(weights) + penalty * float(np.square(weights - start).sum())
    return lost / float(moments.v.sum())


CASES: dict[str, tuple[Callable[[], Readers], float | None]] = {
    "matrix": (lambda: [reader(7, 1, 5, 0)[0]], 1e-9),
    "kernel": (lambda: [reader(6, 4, 5, 1)[0]], 1e-9),
    "default ridge": (lambda: [reader(6, 4, 5, 2)[0]], None),
    "a target that is not what the weights answer": (lambda: [reader(7, 1, 5, 3, noise=3.0)[0]], 1e-3),
    "two readers": (lambda: [reader(7, 1, 5, 4)[0], reader(7, 4, 3, 5, spread=0.1)[0]], None),
    "a reader of other classes as well": (lambda: [reader(7, 1, 5, 6)[0], reader(9, 1, 4, 7, first=12)[0]], None),
    "more outputs than inputs": (lambda: [reader(5, 1, 17, 8)[0]], 1e-9),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("criterion", ["obs", "omp", "thinet", "lasso", "wifv", "apoz"])
def test_the_error_of_every_width_is_that_of_the_direct_solution(criterion: str, name: str) -> None:
    make, ridge = CASES[name]
    readers = make()
    classes = np.arange(10, 10 + 5, dtype=np.int32)
    curve = SAMPLED[criterion](readers, classes, Setting(ridge=ridge))
    assert len(curve.order) == 4
    assert set(curve.order.tolist()) < set(classes.tolist())
    for gone in range(5):
        direct = sum(
            objective(pair, curve.order[:gone], ridge) - objective(pair, curve.order[:0], ridge) for pair in readers
        )
        assert curve.error[gone] == pytest.approx(direct, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_obs_removes_the_cheapest_at_every_step(name: str) -> None:
    make, ridge = CASES[name]
    readers = make()
    classes = np.arange(10, 15, dtype=np.int32)
    order = SAMPLED["obs"](readers, classes, Setting(ridge=ridge)).order
    for gone in range(4):
        open_ = [root for root in classes if root not in order[:gone]]
        costs = [sum(objective(pair, np.append(order[:gone], root), ridge) for pair in readers) for root in open_]
        assert order[gone] == open_[int(np.argmin(costs))]


@pytest.mark.parametrize("name", CASES)
def test_omp_chooses_the_most_telling_at_every_step(name: str) -> None:
    make, ridge = CASES[name]
    readers = make()
    classes = np.arange(10, 15, dtype=np.int32)
    order = SAMPLED["omp"](readers, classes, Setting(ridge=ridge)).order
    chosen = [root for root in classes if root not in order]
    for step in range(4, -1, -1):
        if step < 4:
            chosen.append(order[step])
        without = [root for root in classes if root not in chosen[:-1]]
        costs = [
            sum(objective(pair, np.array([r for r in without if r != root], np.int32), ridge) for pair in readers)
            for root in without
        ]
        assert chosen[-1] == without[int(np.argmin(costs))]


def test_many_at_a_time_are_chosen_nearly_as_well_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, _, _ = reader(180, 1, 40, 11)
    for criterion in ("obs", "omp"):
        batched = SAMPLED[criterion]([pair], pair[0].classes, Setting())
        monkeypatch.setattr(elimination, "_ONE_BY_ONE", 1000)
        single = SAMPLED[criterion]([pair], pair[0].classes, Setting())
        monkeypatch.undo()
        for share in (0.25, 0.5, 0.75):
            gone = int(share * 180)
            assert batched.error[gone] == pytest.approx(single.error[gone], rel=0.02)


def test_the_gram_matrix_is_that_of_explicit_contributions() -> None:
    for taps, seed in ((1, 20), (4, 21)):
        (consumer, moments), x, y = reader(6, taps, 5, seed)
        weights = weights_of(consumer.node)
        parts = np.stack([x[:, consumer.columns(r)] @ weights[consumer.columns(r)] for r in consumer.classes])
        for centred in (True, False):
            z = parts - parts.mean(axis=1, keepdims=True) if centred else parts
            target = y - y.mean(0) if centred else y
            gram, cross = contributions([(consumer, moments)], consumer.classes, centred=centred)
            scale = ROWS * moments.v.sum()
            np.testing.assert_allclose(gram, np.einsum("irn,jrn->ij", z, z) / scale, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(cross, np.einsum("irn,rn->i", z, target) / scale, rtol=1e-9, atol=1e-12)


def test_thinet_joins_what_changes_the_answer_least() -> None:
    (consumer, moments), x, _ = reader(6, 4, 5, 22)
    weights = weights_of(consumer.node)
    parts = np.stack([x[:, consumer.columns(r)] @ weights[consumer.columns(r)] for r in consumer.classes])
    order = (SAMPLED["thinet"]([(consumer, moments)], consumer.classes, Setting()).order - 10).tolist()
    for gone in range(5):
        rest = [i for i in range(6) if i not in order[:gone]]
        changed = [float(np.square(parts[[*order[:gone], i]].sum(0)).sum()) for i in rest]
        assert order[gone] == rest[int(np.argmin(changed))]


def test_wifv_is_what_a_removal_costs_where_channels_are_independent() -> None:
    (consumer, moments), x, _ = reader(6, 1, 5, 23)
    alone = Moments(ROWS, moments.mean_x, moments.mean_y, np.diag(np.diag(moments.h)), moments.c, moments.v)
    found = wifv.scores([(consumer, alone)], consumer.classes)
    weights = weights_of(consumer.node)
    for channel in range(6):
        term = np.outer(x[:, channel] - x[:, channel].mean(), weights[channel])
        assert found[channel] == pytest.approx(np.square(term).sum() / ROWS / moments.v.sum(), rel=1e-9)


def test_apoz_removes_the_most_silent_first() -> None:
    (consumer, moments), _, _ = reader(6, 4, 5, 24)
    order = SAMPLED["apoz"]([(consumer, moments)], consumer.classes, Setting()).order
    assert moments.zeros is not None
    assert (np.diff(moments.zeros[order - 10]) <= 0).all()


def descended(gram: Floats, cross: Floats, level: float) -> Floats:
    """The LASSO solution at one lambda, by coordinate descent."""
    beta = np.zeros(len(cross))
    for _ in range(20_000):
        before = beta.copy()
        for i in range(len(cross)):
            rest = cross[i] - gram[i] @ beta + gram[i, i] * beta[i]
            beta[i] = np.sign(rest) * max(abs(rest) - level, 0.0) / gram[i, i]
        if np.abs(beta - before).max() <= 1e-13:
            break
    return beta


@pytest.mark.parametrize("seed", range(6))
def test_the_lasso_path_joins_where_coordinate_descent_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(40, 7)) @ rng.normal(size=(7, 7))  # correlated, so that some leave again
    y = z @ rng.normal(size=7) + rng.normal(size=40)
    gram, cross = z.T @ z / 40, z.T @ y / 40
    joined = lasso.path(gram, cross)
    assert sorted({number for number, _ in joined}) == list(range(7))
    for number, level in joined:
        assert descended(gram, cross, level * 1.001)[number] == pytest.approx(0.0, abs=1e-9)
        assert abs(descended(gram, cross, level * 0.999)[number]) > 1e-9


def test_the_lasso_path_goes_round_what_is_there_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    together = []
    add = lasso._Active.add

    def noted(self: lasso._Active, new: int) -> bool:
        found = add(self, new)
        together.append(set(self.members))
        return found

    monkeypatch.setattr(lasso._Active, "add", noted)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60, 9)) @ rng.normal(size=(9, 9))
    z[:, 4], z[:, 7] = z[:, 1], z[:, 0] + z[:, 2]
    y = z @ rng.normal(size=9)
    with np.errstate(all="raise"):
        joined = [number for number, _ in lasso.path(z.T @ z / 60, z.T @ y / 60)]
    assert len({*joined} & {1, 4}) == 1
    assert len({*joined} & {0, 2, 7}) >= 2  # one may leave before another joins, by what rounding says of a tie
    assert max(len(those & {0, 2, 7}) for those in together) == 2
    assert {3, 5, 6, 8} <= {*joined}


def test_trial_goes_by_what_is_measured() -> None:
    pair, _, _ = reader(6, 1, 5, 25)
    lost = {10: 3.0, 11: 1.0, 12: float("nan"), 13: 0.5, 14: 2.0, 15: 9.0}
    setting = Setting(measure=lambda chosen: lost[chosen[0]])
    assert SAMPLED["trial"]([pair], pair[0].classes, setting).order.tolist() == [13, 11, 14, 10, 15]
    assert {"trial"} == MEASURED
    with pytest.raises(InternalError):
        SAMPLED["trial"]([pair], pair[0].classes, Setting())


def test_random_search_never_loses_and_finds_the_best_of_few() -> None:
    pair, _, _ = reader(6, 1, 5, 26)
    classes = pair[0].classes
    worst = SAMPLED["obs"]([pair], classes, Setting()).order[:-3:-1]
    lost = {two: error_along([pair], np.array(two, np.int32))[-1] for two in permutations(classes.tolist(), 2)}
    found = polish([pair], worst, classes, Setting(), 200)
    assert lost[tuple(found.tolist())] == pytest.approx(min(lost.values()))
    assert min(lost.values()) < lost[tuple(worst.tolist())]
    once = polish([pair], worst, classes, Setting(), 1)
    assert len({*once.tolist()}) == 2 and lost[tuple(once.tolist())] <= lost[tuple(worst.tolist())]
    assert polish([pair], classes, classes, Setting(), 5).tolist() == classes.tolist()
    assert not len(polish([pair], classes[:0], classes, Setting(), 5))


def test_an_output_that_goes_with_its_input_is_no_loss() -> None:
    """A layer that answers into the channels it reads: without a channel nobody asks for its answer."""
    pair, _, _ = reader(5, 1, 5, 27)
    looped = Consumer(pair[0].node, pair[0].classes, 1, pair[0].classes)
    order = np.array([12, 10], np.int32)
    error = error_along([(looped, pair[1])], order)
    stays = np.array([1, 3, 4])
    alone = Moments(ROWS, pair[1].mean_x, pair[1].mean_y[stays], pair[1].h, pair[1].c[:, stays], pair[1].v[stays])
    weight = weights_of(pair[0].node)[:, stays]
    value = ir.Value(name="w", const_value=ir.tensor(weight.T.astype(np.float32)), shape=ir.Shape(weight.T.shape))
    ir.Graph([ir.Value(name="x")], [], nodes=[], initializers=[value], name="g")
    node = ir.node("Gemm", [ir.Value(name="x"), value], {"transB": 1})
    part = error_along([(Consumer(node, pair[0].classes, 1), alone)], order)
    assert error[2] * pair[1].v.sum() == pytest.approx(part[2] * alone.v.sum(), rel=1e-9)
    whole = Consumer(pair[0].node, np.full(5, 10, np.int32), 1, np.full(5, 10, np.int32))  # a group of a Conv that goes
    curve = SAMPLED["obs"]([(whole, pair[1]), pair], pair[0].classes, Setting())
    np.testing.assert_allclose(curve.error, SAMPLED["obs"]([pair], pair[0].classes, Setting()).error, atol=1e-12)

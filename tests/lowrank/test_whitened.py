"""Factors in the metric of the data: the error is what was dropped, and nothing of the same rank is nearer."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim_core.lowrank.channel import Channel, Matrix
from onnxslim_core.lowrank.linear import Curve, Linear
from onnxslim_core.lowrank.nested import Nested
from onnxslim_core.lowrank.spatial import Spatial
from onnxslim_core.lowrank.svd import Decomposition, decompose
from onnxslim_core.lowrank.tucker import Tucker
from onnxslim_core.lowrank.whitened import of_responses, whiten


def _problem(d: int, n: int, rows: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of inputs that depend on each other, and a weight."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, d)) @ (rng.standard_normal((d, d)) * 0.9 ** np.arange(d))
    return x, rng.standard_normal((d, n))


def _lost(x: np.ndarray, change: np.ndarray) -> float:
    return float(np.square(x @ change).sum() / len(x))


@pytest.mark.parametrize(("d", "n"), [(20, 13), (13, 20), (9, 9), (30, 1)])
@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_error_is_what_was_dropped_at_every_rank(d: int, n: int, penalty: float) -> None:
    x, weight = _problem(d, n)
    found = whiten(weight, x.T @ x / len(x), penalty)
    for rank in range(1, min(d, n)):
        factors = found.factors(rank)
        change = weight - factors.a @ factors.b
        error = _lost(x, change) + penalty * float(np.square(change).sum())
        assert error == pytest.approx(found.tail()[rank - 1], rel=1e-7, abs=1e-10 * found.tail()[0])
    assert np.allclose(found.u * found.s @ found.vt, weight, atol=1e-8)


def test_no_other_product_of_the_rank_is_nearer_in_the_answers() -> None:
    x, weight = _problem(12, 10)
    rank, rng, gram = 4, np.random.default_rng(1), x.T @ x / len(x)
    found = whiten(weight, gram)
    best = found.factors(rank)
    for scale in (1e-4, 1e-2, 1.0):
        for _ in range(30):
            a = best.a + scale * rng.standard_normal(best.a.shape)
            b = np.linalg.solve(a.T @ gram @ a, a.T @ gram @ weight)  # the best partner of any a
            assert _lost(x, weight - a @ b) >= found.tail()[rank - 1] * (1 - 1e-9)


@pytest.mark.parametrize(("d", "n"), [(20, 13), (13, 20)])
def test_data_of_one_variance_give_the_plain_decomposition(d: int, n: int) -> None:
    weight = _problem(d, n)[1]
    assert np.allclose(whiten(weight, np.eye(d)).s[: min(d, n)], decompose(weight).s)
    assert np.allclose(whiten(weight, None).s, decompose(weight).s)


def test_the_covariance_of_the_answers_is_enough() -> None:
    x, weight = _problem(20, 7)
    found = of_responses(weight, np.cov((x @ weight).T, bias=True), 0.1)
    direct = whiten(weight, np.cov(x.T, bias=True), 0.1)
    assert np.allclose(found.s, direct.s)
    for rank in (2, 5):
        ours, theirs = found.factors(rank), direct.factors(rank)
        assert np.allclose(ours.a @ ours.b, theirs.a @ theirs.b)


@pytest.mark.parametrize("seen", [1, 3])
def test_inputs_that_never_vary_do_no_harm(seen: int) -> None:
    x, weight = _problem(12, 30)
    x[:, seen:] = 0
    found = whiten(weight, x.T @ x / len(x), 1e-6)
    factors = found.factors(12)
    assert np.isfinite(factors.a).all()
    assert np.isfinite(factors.b).all()
    assert np.allclose(factors.a @ factors.b, weight, atol=1e-6)
    # what the samples see takes as many ranks as there are directions in it
    assert _lost(x, weight - found.factors(seen).a @ found.factors(seen).b) < 1e-8 * _lost(x, weight)
    with pytest.raises(ValueError, match="zero"):
        whiten(weight, np.zeros((12, 12)))


def test_factors_are_of_like_norm_whatever_the_scale_of_the_data() -> None:
    x, weight = _problem(20, 13)
    for scale in (1e-8, 1.0, 1e8):
        factors = whiten(weight, scale**2 * x.T @ x / len(x)).factors(5)
        assert np.allclose(np.linalg.norm(factors.a, axis=0), np.linalg.norm(factors.b, axis=1))


def test_nested_regressions_are_those_on_the_leading_regressors() -> None:
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((200, 9)), rng.standard_normal((200, 4))
    found = Nested.of(z.T @ z, z.T @ y)
    for count in range(1, 10):
        coefficients, rest, *_ = np.linalg.lstsq(z[:, :count], y, rcond=None)
        assert np.allclose(found.coefficients(count), coefficients)
        assert np.square(y).sum() - found.gain()[:count].sum() == pytest.approx(rest.sum())


def _curves(gram: np.ndarray | None, penalty: float, weight: np.ndarray, linear: Linear) -> list[Curve]:
    return [
        Channel(linear, whiten(weight, gram, penalty)),
        Spatial.of(linear, weight, gram, penalty),
        Tucker.of(linear, weight, gram, penalty),
    ]


@pytest.mark.parametrize("kernel", [(3, 3), (2, 5), (1, 3)])
@pytest.mark.parametrize("penalty", [0.0, 0.2])
@pytest.mark.parametrize("sampled", [True, False])
def test_the_error_of_every_form_is_that_of_its_weights(kernel: tuple[int, int], penalty: float, sampled: bool) -> None:
    c, n = 5, 7
    linear = Linear(c, n, kernel, (9, 9), (9, 9), 2)
    x, weight = _problem(linear.depth, n)
    gram = x.T @ x / len(x) if sampled else None
    metric = np.eye(linear.depth) if gram is None else gram + penalty * np.eye(linear.depth)
    for curve in _curves(gram, penalty, weight, linear):
        if curve.form == "spatial" and min(kernel) == 1:
            continue
        options = curve.options(1)
        assert options, curve.form
        for ranks in options:
            change = weight - curve.dense(ranks)
            assert curve.error(ranks) == pytest.approx(np.sum(change * (metric @ change)), rel=1e-6), (
                curve.form,
                ranks,
            )


def test_a_kernel_that_is_a_product_is_found_out() -> None:
    """Each form has zero error at the rank that the weight really has."""
    c, n, rng = 8, 9, np.random.default_rng(0)
    linear = Linear(c, n, (3, 3), (9, 9), (9, 9))
    gram = np.cov(_problem(72, n)[0].T)
    a, b = rng.standard_normal((c, 3, 2)), rng.standard_normal((2, 3, n))
    flat = np.einsum("cir,rjn->cijn", a, b).reshape(72, n)
    core = np.einsum("cp,ptq,qn->ctn", *(rng.standard_normal(s) for s in ((c, 2), (2, 9, 3), (3, n)))).reshape(72, n)
    low = rng.standard_normal((72, 4)) @ rng.standard_normal((4, n))
    for curve, ranks in (
        (Spatial.of(linear, flat, gram), (2,)),
        (Tucker.of(linear, core, gram), (2, 3)),
        (Channel(linear, whiten(low, gram)), (4,)),
    ):
        weight = {"spatial": flat, "tucker": core, "channel": low}[curve.form]
        assert np.allclose(curve.dense(ranks), weight, atol=1e-6 * np.abs(weight).max()), curve.form
        assert curve.error(ranks) < 1e-9 * np.sum(weight * (gram @ weight))


def test_costs_of_the_forms_are_those_of_their_weights() -> None:
    linear = Linear(16, 24, (3, 5), (20, 30), (10, 15), 4)
    weight = _problem(linear.depth, 24)[1]
    for curve in _curves(None, 0.0, weight, linear):
        ranks = curve.options(1)[-1]
        parts, stages = curve.parts(ranks), curve.stages(ranks)
        assert [part.size for part in parts] == [size for size, _ in stages]
        assert sum(size * at for size, at in stages) < linear.macs
    assert linear.macs == 16 * 24 * 15 * 4 * 150
    assert Spatial.of(linear, weight, None).stages((3,)) == [(16 * 3 * 3, 4 * 10 * 30), (3 * 5 * 24, 4 * 150)]
    assert Tucker.of(linear, weight, None).stages((2, 3))[0] == (16 * 2, 4 * 600)
    assert Matrix(Linear(8, 6, rows=5), Decomposition(*np.linalg.svd(weight[:8, :6]))).stages((2,)) == [
        (16, 5),
        (12, 5),
    ]

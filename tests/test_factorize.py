"""Factorize: what the two factors are, what is put on record, when it refuses, and what is timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser
from onnxslim_core.passes.factorize import Factorize

from onnxslim_core.errors import RecipeError
from onnxslim_core.rewrite import Change, Context
from tests import oracles, pages

GEMM = "g (float[N,64] x) => (float[N,48] y) <float[48,64] W, float[48] b> { y = Gemm<transB=1>(x, W, b) }"
THREE = """g (float[N,64] x) => (float[N,64] y) <float[64,80] U, float[80,72] V, float[72,64] W>
    { a = MatMul(x, U)  r = Relu(a)  b = MatMul(r, V)  s = Relu(b)  y = MatMul(s, W) }"""


@dataclass(frozen=True)
class Ratio:
    ratio: float
    low: float
    high: float


def _model(text: str, **arrays: str) -> ir.Model:
    block = "".join(f"{name}: {how}\n" for name, how in arrays.items())
    page = f"## case\n```before\n{text}\n```\n```arrays\n{block}```\n"
    (case,) = pages.read_cases("factorize", page)
    return ir.from_proto(case.before)


def _run(model: ir.Model, context: Context | None = None, **options: object) -> list[Change]:
    changes: list[Change] = Factorize(**{"min_size": 1000, **options}).run(model, context or Context())
    return changes


def _weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: v.const_value.numpy() for name, v in model.graph.initializers.items() if v.const_value is not None}


def test_record_tells_the_truth_about_the_stored_factors() -> None:
    model = _model(GEMM)
    weight = _weights(model)["W"].T.astype(np.float64)
    (change,) = _run(model, ratio=0.5)
    a, b = (part.astype(np.float64) for name, part in _weights(model).items() if name != "b")
    error = np.linalg.svd(weight - a @ b, compute_uv=False)[0]
    values = np.linalg.svd(weight, compute_uv=False)
    rank = change.details["rank"]
    assert change.applied
    assert rank * (64 + 48) <= 0.5 * 64 * 48
    assert change.details["spectral_error"] == pytest.approx(error, rel=1e-6)
    assert change.details["first_dropped"] == pytest.approx(values[rank], rel=1e-9)
    assert error <= values[rank] * (1 + 1e-5)
    assert change.details["energy"] == pytest.approx((values[:rank] ** 2).sum() / (values**2).sum())
    assert change.details["latency"] == "not measured"
    assert change.bytes_saved == 4 * (64 * 48 - rank * (64 + 48))


@pytest.mark.parametrize("energy", [0.5, 0.7, 0.8])
def test_energy_is_kept(energy: float) -> None:
    model = _model(GEMM)
    (change,) = _run(model, energy=energy)
    assert change.applied
    assert change.details["energy"] >= energy


def test_a_matrix_of_low_rank_is_found_out_and_answers_the_same() -> None:
    model = _model(GEMM)
    low = pages.draw("L", (48, 5), np.dtype(np.float32)) @ pages.draw("R", (5, 64), np.dtype(np.float32))
    model.graph.initializers["W"].const_value = ir.tensor(low, name="W")
    before = ir.to_proto(model)
    (change,) = _run(model, energy=0.999999)
    assert change.details["rank"] == 5
    oracles.assert_equal(before, ir.to_proto(model), Factorize.kind, tolerance=1e-5)


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"energy": 0.6}])
def test_the_answer_moves_by_no_more_than_the_error_allows(options: dict[str, Any]) -> None:
    model = _model(GEMM)
    before = ir.to_proto(model)
    (change,) = _run(model, **options)
    after = ir.to_proto(model)
    for feeds in oracles.runnable_feeds(before):
        moved = oracles.run(before, feeds)[0] - oracles.run(after, feeds)[0]
        assert np.linalg.norm(moved) > 0
        for row, x in zip(moved, feeds["x"], strict=True):
            assert np.linalg.norm(row) <= change.details["spectral_error"] * np.linalg.norm(x) * (1 + 1e-4)


def test_target_is_met_over_all_layers() -> None:
    model = _model(THREE)
    sample = {"x": np.zeros((3, 64), np.float32)}
    changes = _run(model, Context(samples=[sample]), target=0.5)
    before = 3 * (64 * 80 + 80 * 72 + 72 * 64)
    macs = before - sum(c.details["macs_before"] - c.details["macs_after"] for c in changes if c.applied)
    assert macs <= 0.5 * before
    assert {c.details["macs_before"] for c in changes if c.applied} <= {3 * 64 * 80, 3 * 80 * 72, 3 * 72 * 64}


def test_only_and_largest_choose() -> None:
    assert [c.where for c in _run(_model(THREE), ratio=0.5, only=("U", "W"), largest=1)] == [("MatMul -> 'a'",)]
    assert [c.where for c in _run(_model(THREE), ratio=0.5, only=("W",))] == [("MatMul -> 'y'",)]
    assert _run(_model(THREE), ratio=0.5, ignored=("*",)) == []


def test_float16_stays_float16() -> None:
    model = _model("g (float16[N,64] x) => (float16[N,48] y) <float16[64,48] W> { y = MatMul(x, W) }")
    before = ir.to_proto(model)
    (change,) = _run(model, energy=0.9999999, round_to=1, measure="never")
    assert not change.applied  # full rank saves nothing
    (change,) = _run(model, ratio=0.5)
    assert change.applied
    assert {w.dtype for w in _weights(model).values()} == {np.dtype(np.float16)}
    feeds = oracles.runnable_feeds(before)[0]
    assert np.isfinite(oracles.run(ir.to_proto(model), feeds)[0]).all()


@pytest.mark.parametrize(
    ("timing", "applied"), [(Ratio(0.6, 0.5, 0.7), True), (Ratio(0.95, 0.8, 1.1), False), (Ratio(1.4, 1.3, 1.5), False)]
)
def test_only_what_is_measured_faster_is_kept(timing: Ratio, applied: bool) -> None:
    seen: list[tuple[ir.Model, ir.Model]] = []

    def latency(reference: ir.Model, candidate: ir.Model) -> Ratio:
        seen.append((reference, candidate))
        return timing

    model = _model(GEMM)
    source = ir.to_proto(model).SerializeToString(deterministic=True)
    sample = {"x": np.zeros((7, 64), np.float32)}
    (change,) = _run(model, Context(samples=[sample], latency=latency), ratio=0.5)
    assert change.applied is applied
    assert change.details["latency"] == {"ratio": timing.ratio, "low": timing.low, "high": timing.high}
    if not applied:
        assert change.guard == "measured_faster"
        assert ir.to_proto(model).SerializeToString(deterministic=True) == source
    ((reference, candidate),) = seen
    x = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)
    whole, feeds = oracles.run(ir.to_proto(_model(GEMM)), {"x": x})[0], {"layer/input": x}
    assert np.allclose(oracles.run(ir.to_proto(reference), feeds)[0], whole, atol=1e-5)
    assert len(candidate.graph) == 2
    assert not np.allclose(oracles.run(ir.to_proto(candidate), feeds)[0], whole, atol=1e-5)


def test_measuring_is_asked_for_by_option() -> None:
    assert _run(_model(GEMM), ratio=0.5, measure="auto")[0].applied
    assert _run(_model(GEMM), ratio=0.5, measure="never")[0].applied
    refused = _run(_model(GEMM), ratio=0.5, measure="always")[0]
    assert (refused.applied, refused.guard) == (False, "measured_faster")


@pytest.mark.parametrize(
    "options",
    [
        {"energy": 0.0},
        {"energy": 1.5},
        {"ratio": 1.0},
        {"target": 0.0},
        {"energy": 0.9, "ratio": 0.5},
        {"round_to": 0},
        {"round_to": "fast"},
        {"min_size": 0},
        {"largest": 0},
        {"measure": "maybe"},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="factorize: "):
        Factorize(**options)


def test_a_body_is_left_alone() -> None:
    text = """g (bool c, float[N,64] x) => (float[N,48] y) <float[64,48] W> {
        y = If(c) <then_branch = t () => (float[N,48] p) { p = MatMul(x, W) },
                   else_branch = e () => (float[N,48] q) { q = MatMul(x, W) }> }"""
    parser.parse_model(pages.HEADER + text)
    assert _run(_model(text), ratio=0.5) == []

"""Factorize: what the two factors are, what is put on record, when it refuses, and what is timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
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
    assert change.details["rank"] == 8  # the next one on the grid
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
        {"layers": ("Conv", "LSTM")},
        {"form": "cp"},
        {"criterion": "l2"},
        {"repair": "bias"},
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


CNN = """g (float[N,16,12,12] x) => (float[N,10] y)
    <float[48,16,3,3] U, float[48] u, float[48,48,3,3] V, float[48] v, float[48,10] W>
    { a = Conv<pads=[1,1,1,1]>(x, U, u)  r = Relu(a)  b = Conv<pads=[1,1,1,1], strides=[2,2]>(r, V, v)  s = Relu(b)
      p = GlobalAveragePool(s)  f = Flatten(p)  y = MatMul(f, W) }"""


def _images(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Smooth maps of channels that depend on each other."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(9).standard_normal((16, 16)) * 0.7 ** np.arange(16)
    found = []
    for _ in range(count):
        x = np.cumsum(rng.standard_normal((1, 12, 12, 16)), axis=1).cumsum(axis=2) @ mix / 12
        found.append({"x": x.transpose(0, 3, 1, 2).astype(np.float32)})
    return found


def _real(count: int = 24) -> Context:
    return Context(samples=_images(count), samples_are_real=True)


def _far(before: onnx.ModelProto, after: onnx.ModelProto, samples: list[dict[str, np.ndarray]]) -> float:
    a, b = (
        np.concatenate([oracles.run(model, sample)[0].astype(np.float64) for sample in samples])
        for model in (before, after)
    )
    return float(np.square(a - b).sum() / np.square(a - a.mean(axis=0)).sum())


def test_samples_take_the_convolutions_in_and_lose_less_than_no_samples() -> None:
    lost = {}
    for criterion in ("output", "weight"):
        model = _model(CNN)
        before = ir.to_proto(model)
        options = {"layers": ("Conv",)} if criterion == "weight" else {}
        changes = _run(model, _real(), target=0.4, criterion=criterion, **options)
        done = [change for change in changes if change.applied]
        assert {change.details["criterion"] for change in done} == {criterion}
        counted = {change.where: change.details["macs_before"] for change in changes if change.details}
        macs = sum(counted.values()) - sum(c.details["macs_before"] - c.details["macs_after"] for c in done)
        assert macs <= 0.4 * (48 * 16 * 9 * 144 + 48 * 48 * 9 * 36)
        lost[criterion] = _far(before, ir.to_proto(model), _images(30, seed=1))
    assert lost["output"] < 0.5 * lost["weight"]


def test_what_is_looked_at_depends_on_samples_and_options() -> None:
    def looked(context: Context, **options: Any) -> set[str]:
        return {change.where[0].split()[0] for change in _run(_model(CNN), context, min_size=400, **options)}

    everything = {"energy": 0.5, "measure": "never"}
    assert looked(_real(), **everything) == {"Conv", "MatMul"}
    assert looked(Context(), **everything) == {"MatMul"}
    assert looked(Context(samples=_images(8)), **everything) == {"MatMul"}  # not said to be real
    assert looked(_real(), criterion="weight", **everything) == {"MatMul"}
    assert looked(_real(), layers=("MatMul",), **everything) == {"MatMul"}
    assert looked(Context(), form="spatial", **everything) == {"Conv"}
    assert looked(_real(), form="matrix", **everything) == {"MatMul"}


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker"])
def test_form_is_taken_at_its_word(form: str) -> None:
    changes = _run(_model(CNN), _real(), ratio=0.5, form=form)
    assert [change.details["form"] for change in changes] == [form, form]
    for change in changes:
        assert change.details["macs_after"] <= 0.5 * change.details["macs_before"]
        assert change.details["error"] < 0.5


@pytest.mark.parametrize("energy", [0.9, 0.99])
def test_energy_is_kept_on_the_samples_held_out(energy: float) -> None:
    model = _model(CNN)
    before = ir.to_proto(model)
    changes = [c for c in _run(model, _real(), energy=energy, only=("U",)) if c.applied]
    assert len(changes) == 1
    assert changes[0].details["energy"] >= energy
    # the layer's own answers, on samples it was neither made from nor judged by
    before.graph.output[0].name, after = "a", ir.to_proto(model)
    after.graph.output[0].name = "a"
    for each in (before, after):
        each.graph.output[0].type.tensor_type.ClearField("shape")
    assert _far_by_channel(before, after, _images(30, seed=3)) < 2 * (1 - energy)


def _far_by_channel(before: onnx.ModelProto, after: onnx.ModelProto, samples: list[dict[str, np.ndarray]]) -> float:
    a, b = (np.concatenate([oracles.run(model, sample)[0] for sample in samples]) for model in (before, after))
    return float(np.square(a - b).sum() / np.square(a - a.mean(axis=(0, 2, 3), keepdims=True)).sum())


def test_without_real_samples_the_output_cannot_be_kept() -> None:
    for context in (Context(), Context(samples=_images(8))):
        (change,) = _run(_model(CNN), context, criterion="output")
        assert (change.applied, change.guard) == (False, "data_given")


def test_too_few_samples_fall_back_to_the_weights_and_say_so() -> None:
    changes = _run(_model(CNN), _real(3), ratio=0.5)
    assert {change.details["criterion"] for change in changes} == {"weight"}
    assert {change.details["criterion_because"] for change in changes} == {"fewer than 4 samples"}


def test_a_layer_that_sees_one_value_falls_back_and_says_so() -> None:
    model = _model("g (float[N,40] x) => (float[N,40] y) <float[40,40] W> { y = MatMul(x, W) }")
    context = Context(samples=[{"x": np.ones((1, 40), np.float32)}] * 8, samples_are_real=True)
    (change,) = _run(model, context, ratio=0.5)
    assert change.details["criterion"] == "weight"
    assert change.details["criterion_because"]


def test_same_samples_and_seed_give_the_same_bytes() -> None:
    made = []
    for _ in range(2):
        model = _model(CNN)
        _run(model, _real(), ratio=0.6)
        made.append(ir.to_proto(model).SerializeToString(deterministic=True))
    assert made[0] == made[1]


def test_equal_layers_are_timed_once_and_the_next_form_is_tried() -> None:
    seen: list[int] = []

    def latency(reference: ir.Model, candidate: ir.Model) -> Ratio:
        seen.append(len(candidate.graph))
        return Ratio(1.2, 1.1, 1.3) if len(seen) < 2 else Ratio(0.6, 0.5, 0.7)

    text = """g (float[N,16,12,12] x) => (float[N,16,12,12] y) <float[16,16,3,3] U, float[16,16,3,3] V>
        { a = Conv<pads=[1,1,1,1]>(x, U)  y = Conv<pads=[1,1,1,1]>(a, V) }"""
    context = _real()
    context.latency = latency
    changes = _run(_model(text), context, ratio=0.4, measure="always")
    assert [change.applied for change in changes] == [True, True]
    forms = [change.details["form"] for change in changes]
    assert len(seen) == len({*forms, "the one that was slower"})


def test_a_split_convolution_is_timed_as_it_is() -> None:
    models: list[tuple[ir.Model, ir.Model]] = []

    def latency(reference: ir.Model, candidate: ir.Model) -> Ratio:
        models.append((reference, candidate))
        return Ratio(0.6, 0.5, 0.7)

    context = _real()
    context.latency = latency
    _run(_model(CNN), context, ratio=0.4, only=("V",), form="channel")
    ((reference, candidate),) = models
    x = np.random.default_rng(0).standard_normal((1, 48, 12, 12)).astype(np.float32)
    a, b = (oracles.run(ir.to_proto(model), {"layer/input": x})[0] for model in (reference, candidate))
    assert a.shape == b.shape == (1, 48, 6, 6)
    assert [tuple(node.attributes) for node in reference.graph] == [("pads", "strides")]


def test_float16_from_samples() -> None:
    text = "g (float16[N,8,9,9] x) => (float16[N,24,9,9] y) <float16[24,8,3,3] W> { y = Conv<pads=[1,1,1,1]>(x, W) }"
    model = _model(text)
    before = ir.to_proto(model)
    samples = [{"x": sample["x"][:, :8, :9, :9].astype(np.float16)} for sample in _images(16)]
    (change,) = _run(model, Context(samples=samples, samples_are_real=True), ratio=0.4)
    assert change.applied
    assert {w.dtype for w in _weights(model).values()} == {np.dtype(np.float16)}
    assert _far(before, ir.to_proto(model), samples) < 2 * change.details["error"] + 1e-3


def test_solving_anew_mends_what_happened_before() -> None:
    lost, names = {}, {}
    for repair in ("none", "auto"):
        model = _model(CNN)
        for number, node in enumerate(model.graph):
            node.name = f"n{number}"
        before = ir.to_proto(model)
        changes = _run(model, _real(48), ratio=0.7, form="spatial", repair=repair)
        names[repair] = [change.where for change in changes if "nodes_solved" in change.details]
        lost[repair] = _far(before, ir.to_proto(model), _images(30, seed=1))
    assert names == {"none": [], "auto": [("n0", "n2")]}
    assert lost["auto"] < 0.95 * lost["none"]


def test_solving_anew_needs_samples() -> None:
    (change,) = _run(_model(CNN), repair="least_squares")
    assert (change.applied, change.guard) == (False, "data_given")

"""Offers on real nodes: the split graph answers as its equivalent weights do, and what is seen is what onnxruntime sees."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from onnxslim_core.calibration import consumers
from onnxslim_core.calibration.moments import Sums
from onnxslim_core.graph import Names
from onnxslim_core.lowrank import gather as gathering
from onnxslim_core.lowrank.forms import FORMS, Offer, held_error, offers, weights_like
from onnxslim_core.lowrank.gather import Seen, gather
from onnxslim_core.lowrank.split import split
from onnxslim_core.lowrank.weights import weight_of
from tests import oracles, pages

CONV = """g (float[N,6,11,13] x) => (float[N,9,H,W] y) <float[9,6,3,3] W, float[9] b> {{ y = Conv<{}>(x, W, b) }}"""
MODELS = {
    "plain": CONV.format("kernel_shape=[3,3]"),
    "padded": CONV.format("pads=[1,2,0,3]"),
    "strides": CONV.format("strides=[2,3], pads=[1,1,1,1]"),
    "dilations": CONV.format("dilations=[2,1], pads=[2,0,2,0]"),
    "all of them": CONV.format("strides=[1,2], dilations=[2,3], pads=[3,1,2,4], kernel_shape=[3,3]"),
    "same upper": CONV.format('auto_pad="SAME_UPPER", strides=[2,2]'),
    "same lower": CONV.format('auto_pad="SAME_LOWER", strides=[1,2]'),
    "valid": CONV.format('auto_pad="VALID", strides=[2,1]'),
    "no bias": "g (float[N,6,11,13] x) => (float[N,9,H,W] y) <float[9,6,3,5] W> { y = Conv<pads=[1,2,1,2]>(x, W) }",
    "1 x 1": "g (float[N,12,7,7] x) => (float[N,9,H,W] y) <float[9,12,1,1] W> { y = Conv<strides=[2,2]>(x, W) }",
    "1-D": "g (float[N,6,20] x) => (float[N,9,L] y) <float[9,6,5] W, float[9] b> { y = Conv<strides=[2], pads=[1,2]>(x, W, b) }",
    "3-D": "g (float[N,4,6,7,8] x) => (float[N,9,A,B,C] y) <float[9,4,3,3,3] W> { y = Conv<pads=[1,0,1,1,1,0]>(x, W) }",
    "gemm": "g (float[N,20] x) => (float[N,9] y) <float[9,20] W, float[9] b> { y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, W, b) }",
    "gemm without C": "g (float[20,N] x) => (float[N,9] y) <float[20,9] W> { y = Gemm<transA=1, alpha=2.0>(x, W) }",
    "gemm with beta 0": "g (float[N,20] x) => (float[N,9] y) <float[20,9] W, float[9] b> { y = Gemm<beta=0.0>(x, W, b) }",
    "gemm with one number": "g (float[N,20] x) => (float[N,9] y) <float[20,9] W, float[1] b> { y = Gemm<beta=3.0>(x, W, b) }",
    "matmul": "g (float[N,5,20] x) => (float[N,5,9] y) <float[20,9] W> { y = MatMul(x, W) }",
    "matmul and add": "g (float[N,5,9] x) => (float[N,5,20] y) <float[9,20] W, float[20] b> { m = MatMul(x, W)  y = Add(b, m) }",
    "matmul from the left": "g (float[N,20,5] x) => (float[N,9,5] y) <float[9,20] W> { y = MatMul(W, x) }",
    "left and add": "g (float[N,20,5] x) => (float[N,9,5] y) <float[9,20] W, float[9,1] b> { m = MatMul(W, x)  y = Add(m, b) }",
}


def _model(text: str) -> ir.Model:
    (case,) = pages.read_cases("factorize", f"## case\n```before\n{text}\n```\n")
    return ir.from_proto(case.before)


def _samples(model: ir.Model, count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Inputs of unlike, dependent channels, around a mean that is not zero."""
    shape = [size if isinstance(size, int) else 3 for size in model.graph.inputs[0].shape or ()]
    rng, found = np.random.default_rng(seed), []
    mix = rng.standard_normal((64, 64)) * 0.8 ** np.arange(64)
    for _ in range(count):
        x = rng.standard_normal(shape)
        axis = 1 if len(shape) != 2 or shape[0] == 3 else 0
        width = shape[axis]
        x = np.moveaxis(np.moveaxis(x, axis, -1) @ mix[:width, :width] + mix[0, :width] * 2, -1, axis)
        found.append({"x": x.astype(np.float32)})
    return found


def _linear(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if weight_of(node) is not None)


def _seen(model: ir.Model, samples: list[dict[str, np.ndarray]]) -> Seen:
    node = _linear(model)
    ((found, seen),) = gather(model, samples, {node: weight_of(node)[1]})  # type: ignore[index]
    assert found is node
    return seen


def _per_form(found: list[Offer]) -> Iterator[Offer]:
    for form in FORMS:
        mine = [offer for offer in found if offer.form == form]
        yield from mine[:: max(len(mine) // 2, 1)]


def _answers(model: ir.Model, samples: list[dict[str, np.ndarray]]) -> np.ndarray:
    proto = ir.to_proto(model)
    return np.concatenate([oracles.run(proto, sample)[0].reshape(-1) for sample in samples])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sampled", [True, False])
def test_the_split_graph_answers_as_the_weights_it_amounts_to(name: str, sampled: bool) -> None:
    model = _model(MODELS[name])
    samples = _samples(model, 4)
    node = _linear(model)
    found = offers(node, _seen(model, samples) if sampled else None, grid=1)
    tried = set()
    for offer in _per_form(found):
        tried.add(offer.form)
        halves, whole = model.clone(), model.clone()
        made = split(halves, _linear(halves), offer)
        twin = _linear(whole)
        consumers.put_weights(whole, twin, *weights_like(twin, offer))
        a, b = _answers(halves, samples), _answers(whole, samples)
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max(), offer
        assert len(made) == offer.nodes == sum(n.op_type == node.op_type for n in halves.graph)
        assert halves.graph.outputs[0].name == "y"
        oracles.assert_not_bigger(ir.to_proto(whole), ir.to_proto(halves), allowed=2000)
    expected = {"matrix"} if node.op_type != "Conv" else {"channel", "spatial", "tucker"}
    if node.op_type == "Conv" and len(node.inputs[1].shape) != 4:  # type: ignore[union-attr, arg-type]
        expected -= {"spatial"}
    assert tried == (expected if name != "1 x 1" else {"channel"})


@pytest.mark.parametrize("name", MODELS)
def test_the_error_of_an_offer_is_measured_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the samples it is made from, with no penalty and every position looked at, and on those held out."""
    monkeypatch.setattr(Seen, "penalty", 0.0)
    monkeypatch.setattr(gathering, "_PER_DEPTH", 100000)
    monkeypatch.setattr(gathering, "_HELD", 1000000)
    model = _model(MODELS[name])
    samples = _samples(model, 12)
    seen, node = _seen(model, samples), _linear(model)
    first = np.arange(3 * 12) % 4 != 3  # of every three rows of a batch, over all batches
    for offer in _per_form(offers(node, seen, grid=1)):
        halves = model.clone()
        split(halves, _linear(halves), offer)
        ours, theirs = _rows(model, samples, first), _rows(halves, samples, first)
        for a, b, told in ((ours[0], theirs[0], offer.error), (ours[1], theirs[1], held_error(node, offer, seen))):
            error = np.square(a - b).sum() / np.square(a - a.mean(axis=0)).sum()
            assert told == pytest.approx(error, rel=2e-3, abs=1e-6), offer


def _rows(model: ir.Model, samples: list[dict[str, np.ndarray]], first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answers as rows by output channel: of the samples that were looked at, and of those held out."""
    answers = [oracles.run(ir.to_proto(model), sample)[0] for sample in samples]
    node = _linear(model)
    on_left = node.op_type == "MatMul" and weight_of(node)[0] == 0  # type: ignore[index]
    axis = 1 if node.op_type == "Conv" or on_left else -1
    together = np.moveaxis(np.concatenate(answers), axis, -1)
    return tuple(part.reshape(-1, part.shape[-1]) for part in (together[first], together[~first]))


@pytest.mark.parametrize("name", ["padded", "matmul and add", "gemm"])
def test_the_mean_answer_stays(name: str) -> None:
    model = _model(MODELS[name])
    samples = _samples(model, 30)
    offer = offers(_linear(model), _seen(model, samples), grid=1)[-1]
    halves, bare = model.clone(), model.clone()
    split(halves, _linear(halves), offer)
    split(bare, _linear(bare), dataclasses.replace(offer, mean=None))
    before, after, without = (_answers(each, samples).mean() for each in (model, halves, bare))
    assert abs(after - before) < 0.2 * abs(without - before)


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker"])
def test_data_beat_no_data_on_other_samples(form: str) -> None:
    model = _model(
        "g (float[N,24,9,9] x) => (float[N,24,9,9] y) <float[24,24,3,3] W> { y = Conv<pads=[1,1,1,1]>(x, W) }"
    )
    samples = _samples(model, 60)
    seen, other, node = _seen(model, samples[:40]), _seen(model, samples[40:]), _linear(model)
    lost = []
    for statistics in (seen, None):
        found = offers(node, statistics, forms=(form,), grid=1)
        mine = [offer for offer in found if offer.macs <= 0.5 * offer.curve.linear.macs]
        lost.append(held_error(node, min(mine, key=lambda offer: offer.error), other))
    assert lost[0] < 0.75 * lost[1]


@pytest.mark.parametrize("n", [4, 12])
def test_long_inputs_are_seen_through_their_answers(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same factors, whether the covariance of the inputs is taken or that of the answers."""
    model = _model(f"g (float[N,20] x) => (float[N,{n}] y) <float[20,{n}] W, float[{n}] b> {{ y = Gemm(x, W, b) }}")
    samples = _samples(model, 200)
    whole = offers(_linear(model), _seen(model, samples), grid=1)
    monkeypatch.setattr(gathering, "LARGEST", 15)
    seen = _seen(model, samples)
    assert seen.gram is None
    assert seen.answers is not None
    short = offers(_linear(model), seen, grid=1)
    assert [offer.ranks for offer in short] == [offer.ranks for offer in whole]
    for a, b in zip(short, whole, strict=True):
        assert a.error == pytest.approx(b.error, rel=1e-3)
        assert held_error(_linear(model), a, seen) == pytest.approx(held_error(_linear(model), b, seen), rel=1e-3)


def test_moments_of_a_study_serve_as_well() -> None:
    model = _model(MODELS["gemm"])
    x = np.concatenate([sample["x"] for sample in _samples(model, 60)])
    sums = Sums()
    sums.add(x, np.zeros((len(x), 9), np.float32))
    found = offers(_linear(model), Seen.of(sums.moments()), grid=1)
    assert [offer.ranks for offer in found] == [(6,), (5,), (4,), (3,), (2,), (1,)]
    assert np.all(np.diff([offer.error for offer in found]) > 0)


def test_costs_come_from_the_shapes() -> None:
    model = _model(MODELS["strides"])
    found = offers(_linear(model), None, (2, 6, 11, 13), (2, 9, 6, 5), grid=1)
    assert found[0].curve.linear.macs == 2 * 6 * 5 * 9 * 54
    for offer in found:
        assert offer.macs < found[0].curve.linear.macs
        assert offer.params == sum(part.size for part in offer.parts())
    assert [offer.macs for offer in found] == sorted((offer.macs for offer in found), reverse=True)


def test_nothing_of_a_form_costs_more_and_loses_more() -> None:
    model = _model(MODELS["padded"])
    found = offers(_linear(model), _seen(model, _samples(model, 20)), grid=1)
    for form in ("channel", "spatial", "tucker"):
        mine = sorted((o.macs, o.error) for o in found if o.form == form)
        assert all(a[1] > b[1] for a, b in itertools.pairwise(mine))


def test_the_weights_may_be_others() -> None:
    """A least squares solution for a changed input, approximated in the metric of that input."""
    model = _model(MODELS["padded"])
    seen, node = _seen(model, _samples(model, 20)), _linear(model)
    other = weight_of(node)[1] * 2.0  # type: ignore[index]
    for offer, twice in zip(offers(node, seen, grid=1), offers(node, seen, grid=1, weights=other), strict=True):
        assert np.allclose(2 * offer.dense(), twice.dense(), atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,6,9,9] x) => (float[N,9,H,W] y) <float[9,3,3,3] W> { y = Conv<group=2>(x, W) }",
        "g (float[N,6,9,9] x, float[9,6,3,3] W) => (float[N,9,H,W] y) { y = Conv(x, W) }",
        "g (float[N,6] x, float[6,9] W) => (float[N,9] y) { y = MatMul(x, W) }",
        "g (float[N,6] x) => (float[N,6] y) <float[6] W> { y = Add(x, W) }",
    ],
)
def test_what_has_no_weight_of_its_own_is_refused(text: str) -> None:
    model = _model(text)
    node = next(iter(model.graph))
    assert weight_of(node) is None
    with pytest.raises(ValueError, match="no weight"):
        offers(node, None)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    model = _model(MODELS["gemm"])
    model.graph.initializers["W"].const_value = ir.tensor(np.full((9, 20), value, np.float32), name="W")
    with pytest.raises(ValueError, match="inf or nan, or only zeros"):
        offers(_linear(model), None)


def test_answers_that_never_vary_are_refused() -> None:
    model = _model(MODELS["gemm"])
    seen = dataclasses.replace(_seen(model, _samples(model, 9)), gram=np.zeros((20, 20)))
    with pytest.raises(ValueError, match="do not vary"):
        offers(_linear(model), seen)


def test_float16_is_split_in_float16() -> None:
    model = _model(
        "g (float16[N,6,11,13] x) => (float16[N,9,H,W] y) <float16[9,6,3,3] W> { y = Conv<pads=[1,1,1,1]>(x, W) }"
    )
    samples = [{"x": sample["x"].astype(np.float16)} for sample in _samples(model, 8)]
    seen = _seen(model, samples)
    for offer in _per_form(offers(_linear(model), seen, grid=1)):
        halves = model.clone()
        split(halves, _linear(halves), offer, Names(halves))
        kinds = {v.const_value.numpy().dtype for v in halves.graph.initializers.values() if v.const_value is not None}
        assert kinds == {np.dtype(np.float16)}
        before, after = _answers(model, samples).astype(np.float64), _answers(halves, samples).astype(np.float64)
        error = np.square(before - after).sum() / np.square(before - before.mean()).sum()
        assert error < offer.error * 1.5 + 1e-3

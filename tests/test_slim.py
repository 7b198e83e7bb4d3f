"""slim and drop_blocks: the target is met as counted anew, dropping equals masking, and what is refused is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnxslim_core.passes import pass_class

from onnxslim_core.channels.branches import branches_of, drop
from onnxslim_core.errors import RecipeError
from onnxslim_core.measure.cost import cost
from onnxslim_core.measure.latency import Interval
from onnxslim_core.model import wrap
from onnxslim_core.rewrite import Change, Context
from onnxslim_core.search.bypass import bypass_of
from tests import smooth
from tests.smooth import samples


def network(blocks: int = 4, width: int = 12, seed: int = 0) -> ir.Model:
    """A stem, residual blocks of two 3x3 Convs each, and a Gemm on the mean; the later ones matter little."""
    rng = np.random.default_rng(seed)
    weights: list[Any] = []

    def conv(x: str, y: str, out: int, into: int, gain: float = 1.0) -> Any:
        array = rng.normal(0, gain * (2 / (9 * into)) ** 0.5, (out, into, 3, 3))
        weights.append(numpy_helper.from_array(array.astype(np.float32), f"{y}.w"))
        weights.append(numpy_helper.from_array(rng.normal(0, 0.1, out).astype(np.float32), f"{y}.b"))
        return helper.make_node("Conv", [x, f"{y}.w", f"{y}.b"], [y], name=y, pads=[1, 1, 1, 1])

    nodes = [conv("x", "stem", width, 3), helper.make_node("Relu", ["stem"], ["s0"], name="s0")]
    for number in range(blocks):
        nodes += [
            conv(f"s{number}", f"a{number}", 20, width),
            helper.make_node("Relu", [f"a{number}"], [f"r{number}"], name=f"r{number}"),
            conv(f"r{number}", f"b{number}", width, 20, 0.9 if number < 2 else 0.2),
            helper.make_node("Add", [f"b{number}", f"s{number}"], [f"t{number}"], name=f"t{number}"),
            helper.make_node("Relu", [f"t{number}"], [f"s{number + 1}"], name=f"s{number + 1}"),
        ]
    nodes += [
        helper.make_node("GlobalAveragePool", [f"s{blocks}"], ["p"], name="p"),
        helper.make_node("Flatten", ["p"], ["f"], name="f"),
        helper.make_node("Gemm", ["f", "fc"], ["y"], name="head", transB=1),
    ]
    weights.append(numpy_helper.from_array(rng.normal(0, 0.3, (7, width)).astype(np.float32), "fc"))
    return smooth.network(nodes, weights, (7,))


def by_macs(reference: ir.Model, candidate: ir.Model) -> Interval:
    before, after = (cost(wrap(each), samples(1, 0)[0]).macs for each in (reference, candidate))
    return Interval(after / before, after / before, after / before)


def context(real: bool = True, latency: Callable[..., Interval] | None = by_macs, cache: Path | None = None) -> Context:
    return Context(samples=samples(80, 1), samples_are_real=real, latency=latency, cache=cache)


def run(name: str, model: ir.Model, given: Context, **options: Any) -> list[Change]:
    found: list[Change] = pass_class(name)(**options).run(model, given)
    return found


def answers(model: ir.Model) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, each)[0] for each in samples(64, 2)])


def lost(model: ir.Model, original: ir.Model) -> float:
    expected = answers(original)
    return float(np.square(answers(model) - expected).sum() / np.square(expected - expected.mean(0)).sum())


def share(model: ir.Model, original: ir.Model) -> float:
    return by_macs(original, model).ratio


@pytest.mark.parametrize("forms", [["width"], ["width", "gone"], ["width", "gone", "rank"]])
@pytest.mark.parametrize("allocation", ["macs", "sensitivity"])
def test_the_target_is_met_as_counted_anew(forms: list[str], allocation: str) -> None:
    original, model = network(), network()
    run("slim", model, context(), target=0.6, allocation=allocation, round_to=1, forms=tuple(forms))
    assert 0.4 < share(model, original) <= 0.602
    assert lost(model, original) < 0.5


def test_more_forms_do_not_lose_much_more() -> None:
    original, narrow, every = network(), network(), network()
    run("slim", narrow, context(), target=0.5, allocation="macs", round_to=1, forms=("width",))
    run("slim", every, context(), target=0.5, allocation="macs", round_to=1)
    assert lost(every, original) < 1.5 * lost(narrow, original)


def test_a_latency_target_is_planned_until_the_whole_meets_it(tmp_path: Path) -> None:
    original, model = network(), network()
    changes = run("slim", model, context(cache=tmp_path), target=0.6, round_to=4)
    assert any(change.applied for change in changes), changes
    assert share(model, original) <= 0.6
    assert list(tmp_path.glob("latency-*.json")), "what was timed is kept"


def test_without_a_clock_there_is_no_plan_by_latency() -> None:
    model = network()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    changes = run("slim", model, context(latency=None), target=0.6)
    assert [change.guard for change in changes if change.guard == "timing_on"]
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(("name", "options"), [("slim", {"target": 0.5}), ("drop_blocks", {})])
def test_noise_is_no_calibration_data(name: str, options: dict[str, Any]) -> None:
    model = network()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    (change,) = run(name, model, context(real=False), **options)
    assert change.guard == "data_given" and "--data" in change.reason
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_target_out_of_reach_is_refused() -> None:
    model = network()
    options = {"target": 0.1, "allocation": "macs", "max_ratio": 0.2, "forms": ("width",)}
    changes = run("slim", model, context(), **options)
    assert not any(change.applied for change in changes)
    assert any(change.guard == "target_reachable" for change in changes)


def test_what_is_ignored_stays() -> None:
    original, model = network(), network()
    run("slim", model, context(), target=0.7, allocation="macs", round_to=1, ignored=("a0", "b0", "t0"))
    for name in ("a0.w", "b0.w"):
        assert model.graph.initializers[name].const_value.shape == original.graph.initializers[name].const_value.shape  # type: ignore[union-attr]


@pytest.mark.parametrize("repair", ["none", "least_squares"])
def test_blocks_that_matter_least_go(repair: str) -> None:
    original, model = network(), network()
    changes = run("drop_blocks", model, context(), count=2, repair=repair)
    assert {change.where[0] for change in changes if change.applied and change.where} == {"Add 't2'", "Add 't3'"}
    assert {str(node.name) for node in original.graph} - {str(node.name) for node in model.graph} >= {"a3", "b3", "t3"}
    if repair == "least_squares":
        assert lost(model, original) < 0.3


def test_a_dropped_block_equals_one_that_adds_zeros() -> None:
    masked, model = network(), network()
    for number in (1, 2):
        for part in ("w", "b"):
            value = masked.graph.initializers[f"b{number}.{part}"]
            array = value.const_value.numpy()  # type: ignore[union-attr]
            value.const_value = ir.tensor(np.zeros_like(array), name=value.name)
    branches = {branch.add.name: branch for branch in branches_of(model, shapes_of(model))}
    for number in (1, 2):
        drop(model, branches[f"t{number}"])
    assert len(model.graph) == len(masked.graph) - 10, "the Relu after the sum goes too"
    np.testing.assert_allclose(answers(model), answers(masked), rtol=1e-5, atol=1e-6)


def test_the_repair_answers_nearer_than_none() -> None:
    original, plain, mended = network(), network(), network()
    run("drop_blocks", plain, context(), count=3, repair="none")
    run("drop_blocks", mended, context(), count=3)
    assert lost(mended, original) < 0.8 * lost(plain, original)


@pytest.mark.parametrize("repair", ["none", "least_squares"])
def test_a_branch_that_adds_nothing_may_go(repair: str) -> None:
    """As of networks that are trained from a last scale of zero."""
    model = network()
    for name in ("b1.w", "b1.b"):
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(np.zeros_like(value.const_value.numpy()), name=name)  # type: ignore[union-attr]
    original = model.clone()
    changes = run("drop_blocks", model, context(), count=1, repair=repair)
    assert any(change.applied for change in changes) and lost(model, original) < 0.05


def test_a_net_without_branches_is_refused() -> None:
    model = network(blocks=0)
    (change,) = run("drop_blocks", model, context())
    assert change.guard == "has_blocks"


def test_the_same_seed_gives_the_same_bytes() -> None:
    found = []
    for _ in range(2):
        model = network()
        run("slim", model, context(), target=0.6, allocation="macs", round_to=1)
        found.append(ir.to_proto(model).SerializeToString(deterministic=True))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "options",
    [
        {"target": 0.0},
        {"target": 0.5, "allocation": "uniform"},
        {"target": 0.5, "forms": ()},
        {"target": 0.5, "forms": ("depth",)},
        {"target": 0.5, "criterion": "best"},
        {"target": 0.5, "round_to": 0},
        {"target": 0.5, "min_width": 0},
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        pass_class("slim")(**options)
    assert "\n" not in str(caught.value)


def shapes_of(model: ir.Model) -> dict[ir.Value, tuple[int, ...]]:
    from onnxslim_core.measure.shapes import concrete_shapes

    return dict(concrete_shapes(model, samples(1, 0)[0]).shape)


def test_blocks_in_a_row_are_made_up_for_by_whoever_stands_before_the_first() -> None:
    model = network()
    shapes = shapes_of(model)
    first, second, third, _ = branches_of(model, shapes)
    alone, behind = (bypass_of(second, shapes, gone) for gone in ((), (first, second, third)))
    assert alone is not None and alone.maker.name == "b0" and alone.other is not None
    assert behind is not None and behind.maker.name == "stem" and behind.other is None
    assert behind.target is alone.target is second.add.outputs[0]
    assert (alone.stream.name, behind.stream.name) == ("t0", "stem")

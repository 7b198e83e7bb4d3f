"""slim with int8: the plan knows what int8 saves and loses layer by layer, and what it writes answers as it should.

Time is counted, not measured, so that a test can reckon with it: a multiply-add in int8 takes a share of one in float,
and a conversion a little per value. `test_a_real_clock` measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnxslim_core.passes import pass_class
from onnxslim_core.passes._precision import Narrow, narrow_part, stays
from onnxslim_core.passes._precision_clock import edges_of, seconds_of
from onnxslim_core.passes._quantize_static import Search

from onnxslim_core import _job
from onnxslim_core import graph as verbs
from onnxslim_core.errors import RecipeError
from onnxslim_core.lock import apply
from onnxslim_core.measure.cost import cost
from onnxslim_core.measure.latency import Interval, Latency
from onnxslim_core.measure.pieces import Table
from onnxslim_core.measure.session import open_piece, run
from onnxslim_core.measure.shapes import concrete_shapes
from onnxslim_core.model import Model, load, wrap
from onnxslim_core.pipeline import compress_file
from onnxslim_core.quant.layout import linear_nodes
from onnxslim_core.recipe import Recipe
from onnxslim_core.rewrite import Change, Context, Sample
from onnxslim_core.search.segments import part_of
from tests.smooth import samples
from tests.test_slim import answers, lost, network

PER_VALUE = 2.0
ONE = samples(1, 0)[0]


def is_int8(node: ir.Node) -> bool:
    weight = node.inputs[1].producer() if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return node.op_type in ("Conv", "Gemm") and verbs.is_op(weight, "DequantizeLinear")


def int8_layers(model: ir.Model) -> set[str]:
    return {str(node.name) for node in model.graph if is_int8(node)}


@dataclass(frozen=True)
class Clock:
    """Counted time: what a multiply-add takes in int8, layer by layer."""

    share: float = 0.4
    dear: tuple[str, ...] = ()
    per_value: float = PER_VALUE

    def seconds(self, model: ir.Model, sample: Sample) -> float:
        shapes = concrete_shapes(model, sample).shape
        total = 0.0
        for node in model.graph:
            out = shapes.get(node.outputs[0], ())
            if node.op_type in ("Conv", "Gemm"):
                weight = node.inputs[1]
                assert weight is not None
                size = shapes[weight]
                work = float(np.prod(out)) * float(np.prod(size)) / (size[0] if out else 1)
                share = 3.0 if str(node.name) in self.dear else self.share
                total += work * (share if is_int8(node) else 1.0)
            elif self._converts(node):
                total += self.per_value * float(np.prod(out))
        return total

    def _converts(self, node: ir.Node) -> bool:
        down = node.op_type == "QuantizeLinear" and not self._stays(node)
        return down or (node.op_type == "DequantizeLinear" and self._leaves(node))

    @staticmethod
    def _stays(node: ir.Node) -> bool:
        """Whether what is rounded was made by an int8 node: then it is fused into that."""
        maker = node.inputs[0].producer() if node.inputs[0] is not None else None
        while maker is not None and maker.op_type in ("Relu", "Add", "Flatten", "GlobalAveragePool"):
            maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
        return maker is not None and (is_int8(maker) or verbs.is_op(maker, "DequantizeLinear"))

    @staticmethod
    def _leaves(node: ir.Node) -> bool:
        """Whether a float layer reads it."""
        source = node.inputs[0]
        if source is None or source.producer() is None:
            return False
        return any(user.op_type in ("Conv", "Gemm") and not is_int8(user) for user, _ in node.outputs[0].uses())

    def latency(self, reference: ir.Model, candidate: ir.Model) -> Interval:
        before, after = (self.seconds(each, ONE) for each in (reference, candidate))
        return Interval(after / before, after / before, after / before)

    def measure(self, protos: Sequence[onnx.ModelProto], sample: Sample) -> list[float]:
        models = [load(each.SerializeToString()).ir for each in protos]
        own = [{i.name: sample[i.name] for i in each.graph.inputs if i.name is not None} for each in models]
        return [1e-6 + 1e-9 * self.seconds(m, s) for m, s in zip(models, own, strict=True)]


def planned(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, model: ir.Model | None = None, **options: Any
) -> tuple[ir.Model, list[Change]]:
    monkeypatch.setattr(Table, "_measure", lambda table, protos, sample: clock.measure(protos, sample))
    model = network() if model is None else model
    context = Context(samples=samples(80, 1), samples_are_real=True, latency=clock.latency, cache=tmp_path)
    changes = pass_class("slim")(**{"round_to": 4, "forms": ("width", "gone", "int8"), **options}).run(model, context)
    return model, changes


def cosine(model: ir.Model, original: ir.Model) -> float:
    a, b = answers(model), answers(original)
    return float(np.mean(np.sum(a * b, 1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))))


def test_int8_alone_is_the_plan_where_it_suffices(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    model, changes = planned(Clock(), monkeypatch, tmp_path, target=0.6, forms=("gone", "int8"))
    assert int8_layers(model), changes
    assert cosine(model, network()) > 0.995
    assert Clock().latency(network(), model).ratio <= 0.6


def test_a_target_below_int8_is_met_by_cutting_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    model, changes = planned(Clock(), monkeypatch, tmp_path, target=0.35)
    assert int8_layers(model), changes
    assert cost(wrap(model), ONE).macs < cost(wrap(network()), ONE).macs
    assert Clock().latency(network(), model).ratio <= 0.35
    assert lost(model, network()) < 0.35
    details = next(change.details for change in changes if change.applied and "layers in int8" in change.action)
    assert details["latency"] <= 0.35 and details["cosine"] >= 0.99


def test_where_int8_is_slower_nothing_is_int8(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    model, changes = planned(Clock(share=1.3), monkeypatch, tmp_path, target=0.7)
    assert any(change.applied for change in changes) and not int8_layers(model)
    assert Clock().latency(network(), model).ratio <= 0.7


def test_a_layer_that_is_slow_in_int8_stays_in_float(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    clock = Clock(dear=("stem",))  # equal parts are timed once, so it is one that has no equal
    model, changes = planned(clock, monkeypatch, tmp_path, target=0.5, forms=("int8",))
    assert int8_layers(model) and "stem" not in int8_layers(model), changes
    assert clock.latency(network(), model).ratio <= 0.5


def test_what_is_ignored_stays_in_float(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    model, _ = planned(Clock(), monkeypatch, tmp_path, target=0.7, ignored=("b2", "a3.w"))
    assert int8_layers(model) and not int8_layers(model) & {"b2", "a3"}


def test_a_target_out_of_reach_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    before = ir.to_proto(network()).SerializeToString(deterministic=True)
    model, changes = planned(Clock(), monkeypatch, tmp_path, target=0.2, forms=("int8",))
    assert [c.guard for c in changes if c.guard == "target_reachable"] and not any(c.applied for c in changes)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_the_same_seed_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    options = {"target": 0.5, "forms": ("gone", "int8")}
    made = [planned(Clock(), monkeypatch, tmp_path, network(blocks=2), **options)[0] for _ in range(2)]
    first, second = (ir.to_proto(each).SerializeToString(deterministic=True) for each in made)
    assert first == second


def test_ranks_are_int8_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    wide = network(blocks=2, width=48)
    model, changes = planned(Clock(), monkeypatch, tmp_path, wide, forms=("rank", "int8"), target=0.36)
    split = [change for change in changes if change.applied and change.action.startswith("split it")]
    assert split and len(int8_layers(model)) > len(linear_nodes(network(blocks=2))) - 2, changes


def test_where_no_layer_answers_near_enough_in_int8_the_plan_is_a_float_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(Search, "run", lambda search: (None, ()))
    model, changes = planned(Clock(), monkeypatch, tmp_path, network(blocks=2), target=0.7)
    assert not int8_layers(model) and any(change.applied for change in changes), changes
    assert Clock().latency(network(blocks=2), model).ratio <= 0.7


def test_a_layer_that_the_check_puts_back_into_float_is_made_up_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    search = Search.run

    def without_b0(self: Search) -> Any:
        self.wanted = replace(self.wanted, nodes=[node for node in self.wanted.nodes if node.name != "b0"])
        return search(self)

    monkeypatch.setattr(Search, "run", without_b0)
    original = network(blocks=2)
    model, changes = planned(Clock(), monkeypatch, tmp_path, network(blocks=2), target=0.45)
    assert int8_layers(model) and "b0" not in int8_layers(model), changes
    assert Clock().latency(original, model).ratio <= 0.45 * 1.02


@pytest.mark.parametrize(
    ("names", "together"),
    [(("w_a", "w_b"), True), (("onnx::Conv_491", "onnx::Conv_494"), False), (("w_a", "v_b"), False)],
)
def test_the_first_half_of_a_layer_goes_with_it_and_no_other_does(names: tuple[str, str], together: bool) -> None:
    """As where a block of a MobileNet ends without an activation, and the next begins."""
    nodes = [helper.make_node("Conv", [x, w], [y]) for x, w, y in zip("xh", names, "hy", strict=True)]
    nodes[1].name = "second"
    weights = [numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), name) for name in names]
    given, made = ([helper.make_tensor_value_info(name, 1, [1, 4, 2, 2])] for name in "xy")
    model = ir.from_proto(helper.make_model(helper.make_graph(nodes, "g", given, made, weights)))
    assert stays(next(iter(model.graph)), {"second"}) == together


def quantized(clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> tuple[ir.Model, Change]:
    monkeypatch.setattr(Table, "_measure", lambda table, protos, sample: clock.measure(protos, sample))
    model = network()
    context = Context(samples=samples(40, 1), samples_are_real=True, latency=clock.latency, cache=tmp_path)
    (change,) = pass_class("quantize")().run(model, context)
    return model, change


def test_quantize_leaves_in_float_what_is_slower_in_int8(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    model, change = quantized(Clock(dear=("stem",)), monkeypatch, tmp_path)
    assert change.details["slower_in_int8"] == ["Conv 'stem'"]
    assert int8_layers(model) == {str(node.name) for node in linear_nodes(network())} - {"stem"}


def test_quantize_takes_all_layers_where_the_whole_is_not_faster_without_some(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    parts, whole = Clock(dear=("stem",)), Clock()
    monkeypatch.setattr(
        Clock, "latency", lambda clock, a, b: Interval(*[whole.seconds(b, ONE) / whole.seconds(a, ONE)] * 3)
    )
    model, change = quantized(parts, monkeypatch, tmp_path)
    assert "slower_in_int8" not in change.details and "stem" in int8_layers(model)


def test_int8_needs_a_plan_by_latency() -> None:
    with pytest.raises(RecipeError, match="holds 'int8', allocation is 'macs'"):
        pass_class("slim")(target=0.5, allocation="macs", forms=("width", "int8"))


def test_a_lock_replays_it_to_the_byte(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """What was decided by time is in the lock: a replay asks no clock."""
    clock = Clock()

    def timed(reference: Model, candidate: Model, sample: Sample, **_: Any) -> Latency:
        ratio = clock.latency(reference.ir, candidate.ir).ratio
        return Latency(ratio, ratio, ratio, 1.0, ratio, None, 1, 1, 1, 1, 0.0, "thread")

    monkeypatch.setenv("ONNXSLIM_CORE_CACHE", str(tmp_path))
    monkeypatch.setattr(Table, "_measure", lambda table, protos, sample: clock.measure(protos, sample))
    monkeypatch.setattr(_job, "compare_latency", timed)
    source, out, lock = (tmp_path / name for name in ("net.onnx", "out.onnx", "out.onnx.lock"))
    onnx.save(ir.to_proto(network()), source)
    np.savez(tmp_path / "data.npz", x=np.concatenate([each["x"] for each in samples(80, 1)]))
    recipe = Recipe.parse(
        'version = 1\n[[pass]]\nname = "slim"\ntarget = 0.38\nround_to = 4\nforms = ["width", "gone", "int8"]\n'
    )
    result = compress_file(source, out, recipe, lock=lock, data=str(tmp_path / "data.npz"), measure_latency=True)
    assert result.report.outcome == "compressed", result.report.headline
    assert int8_layers(ir.from_proto(onnx.load(out)))
    monkeypatch.setattr(_job, "compare_latency", None)
    apply(lock, source).save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()


def _part(model: ir.Model, name: str) -> tuple[Any, Narrow]:
    node = next(each for each in model.graph if each.name == name)
    segment = part_of(model, concrete_shapes(model, ONE), [node])
    assert segment is not None
    narrow = narrow_part(segment, (), Context(samples=samples(2, 0)))
    assert narrow is not None
    return segment, narrow


def test_a_part_in_int8_reads_and_answers_in_8_bits() -> None:
    _, narrow = _part(network(), "a1")
    session = open_piece(narrow.protos[0])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert given.type == made.type == "tensor(uint8)"
    (answer,) = run(session, narrow.sample).values()
    assert answer.dtype == np.uint8 and answer.shape == (1, 10, 8, 20), "channels last"


def test_a_part_in_int8_has_no_conversion_left(tmp_path: Any) -> None:
    _, narrow = _part(network(), "a1")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(narrow.protos[0].SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert "QLinearConv" in kinds and not {"QuantizeLinear", "DequantizeLinear"} & set(kinds), kinds


def test_layers_and_the_edges_between_them_are_timed(tmp_path: Any) -> None:
    model, table = network(), Table(1, None)
    shapes = concrete_shapes(model, ONE)
    nodes = linear_nodes(model)
    context = Context(samples=samples(2, 0))
    both = seconds_of(model, nodes, shapes, table, context)
    assert set(both) == set(nodes) and all(0 < each < 1e-2 for pair in both.values() for each in pair)
    ends = {
        (e.source and e.source.name, e.reader and e.reader.name) for e in edges_of(model, nodes, shapes, table, context)
    }
    assert {(None, "stem"), ("stem", "a0"), ("a0", "b0"), ("b0", "a1"), ("b3", "head")} <= ends


def test_batch_normalization_between_layers_is_no_conversion() -> None:
    rng = np.random.default_rng(0)
    arrays = [numpy_helper.from_array(rng.uniform(0.5, 1, 12).astype(np.float32), f"n{i}") for i in range(4)]
    proto = ir.to_proto(network(blocks=1))
    place = next(i for i, node in enumerate(proto.graph.node) if node.name == "s0")
    names = ["stem", *(each.name for each in arrays)]
    proto.graph.node.insert(place, helper.make_node("BatchNormalization", names, ["normal"], name="normal"))
    proto.graph.node[place + 1].input[0] = "normal"
    proto.graph.initializer.extend(arrays)
    model, context = ir.from_proto(proto), Context(samples=samples(2, 0))
    nodes, shapes = linear_nodes(model), concrete_shapes(model, ONE)
    ends = {
        (e.source and e.source.name, e.reader and e.reader.name)
        for e in edges_of(model, nodes, shapes, Table(), context)
    }
    assert ("stem", "a0") in ends and (None, "a0") not in ends


def test_a_real_clock(tmp_path: Path) -> None:
    model = network(blocks=1)
    context = Context(samples=samples(40, 1), samples_are_real=True, latency=Clock().latency, cache=tmp_path)
    pass_class("slim")(target=0.8, forms=("int8",)).run(model, context)
    assert cosine(model, network(blocks=1)) > 0.99
    assert list(tmp_path.glob("latency-*.json")), "what was timed is kept"

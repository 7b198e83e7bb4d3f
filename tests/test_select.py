"""select_channels and select_idle: selecting equals masking, only what is measured faster is done, repair repairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxslim_core.passes import pass_class

from onnxslim_core.errors import MeasureError, RecipeError
from onnxslim_core.measure.latency import Interval
from onnxslim_core.model import load
from onnxslim_core.rewrite import Change, Context, Kind
from onnxslim_core.verify import Interface, verify
from tests import oracles
from tests.smooth import samples


@dataclass
class Builder:
    """Nodes and weights under way."""

    rng: np.random.Generator
    nodes: list[Any]
    weights: list[Any]

    def weight(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def add(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def conv(self, x: str, name: str, out: int, into: int, kernel: int = 3, rank: int = 2) -> str:
        array = self.rng.normal(0, (1 / (kernel**rank * into)) ** 0.5, (out, into, *[kernel] * rank))
        return self.add("Conv", [x, self.weight(f"{name}.w", array)], name, pads=[kernel // 2] * (2 * rank))

    def norm_relu(self, x: str, name: str, width: int, dead: Sequence[int] = ()) -> str:
        gamma, beta = self.rng.uniform(0.5, 1.5, width), self.rng.normal(0, 0.3, width)
        gamma[list(dead)], beta[list(dead)] = 0, -0.1
        gamma *= np.where(np.arange(width) % 3 == 0, 0.1, 1)  # a third matters little to this branch
        parts = [gamma, beta, self.rng.normal(0, 0.3, width), self.rng.uniform(0.5, 2, width)]
        names = [self.weight(f"{name}.{i}", part) for i, part in enumerate(parts)]
        return self.add("Relu", [self.add("BatchNormalization", [x, *names], f"{name}.bn")], f"{name}.relu")

    def model(self, x: str, width: int, rank: int = 2) -> ir.Model:
        pooled = self.add("Flatten", [self.add("GlobalAveragePool", [x], "pool")], "flat")
        self.add("Gemm", [pooled, self.weight("fc", self.rng.normal(0, 0.3, (width, 7)))], "y")
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, *[10, 8, 6][:rank]])
        graph = helper.make_graph(
            self.nodes, "g", [given], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 7])], self.weights
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return load(proto).ir


def resnet(blocks: int = 3, width: int = 32, rank: int = 2, dead: Sequence[int] = ()) -> ir.Model:
    """Pre-activation blocks of two Convs on one stream."""
    b = Builder(np.random.default_rng(0), [], [])
    x = b.conv("x", "stem", width, 3, rank=rank)
    for n in range(blocks):
        inner = b.conv(b.norm_relu(x, f"p{n}", width, dead), f"a{n}", 12, width, rank=rank)
        x = b.add("Add", [b.conv(b.norm_relu(inner, f"q{n}", 12), f"b{n}", width, 12, rank=rank), x], f"s{n}")
    return b.model(b.norm_relu(x, "last", width), width, rank)


def densenet(layers: int = 4, grow: int = 16) -> ir.Model:
    """Every layer reads all before it through its own Concat, as exporters write it."""
    b = Builder(np.random.default_rng(1), [], [])
    parts, width = [b.conv("x", "stem", 16, 3)], 16
    for n in range(layers):
        x = b.add("Concat", parts, f"c{n}", axis=1) if n else parts[0]
        inner = b.conv(b.norm_relu(x, f"p{n}", width), f"a{n}", 24, width, kernel=1)
        parts.append(b.conv(b.norm_relu(inner, f"q{n}", 24), f"b{n}", grow, 24))
        width += grow
    return b.model(b.norm_relu(b.add("Concat", parts, "all", axis=1), "last", width), width)


def clock(ratio: float | Callable[[ir.Model, ir.Model], float]) -> Callable[[ir.Model, ir.Model], Interval]:
    def measure(reference: ir.Model, candidate: ir.Model) -> Interval:
        found = ratio(reference, candidate) if callable(ratio) else ratio
        return Interval(found, found - 0.01, found + 0.01)

    return measure


def context(latency: Any = None, rank: int = 2) -> Context:
    return Context(samples=samples(96, 1, (5, 4, 3)[:rank]), samples_are_real=True, latency=latency)


def run(name: str, model: ir.Model, given: Context, **options: Any) -> list[Change]:
    interface = Interface.of(model)
    found: list[Change] = pass_class(name)(**options).run(model, given)
    assert not (problems := verify(model, interface)), problems
    return found


def proto(model: ir.Model) -> onnx.ModelProto:
    return ir.to_proto(model)


def selections(model: ir.Model) -> dict[str, np.ndarray]:
    """Kept channels by the name of the BatchNormalization that reads them."""
    found = {}
    for node in model.graph:
        if node.op_type == "Gather":
            (use,) = node.outputs[0].uses()
            assert node.inputs[1] is not None and node.inputs[1].const_value is not None
            found[str(use.node.name)] = node.inputs[1].const_value.numpy()
    return found


def answers(model: onnx.ModelProto, feeds: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, each)[0] for each in feeds])


def lost(model: ir.Model, original: ir.Model) -> float:
    expected = answers(proto(original), samples(64, 2))
    got = answers(proto(model), samples(64, 2))
    return float(np.square(got - expected).sum() / np.square(expected - expected.mean(0)).sum())


NETS: dict[str, tuple[Callable[[], ir.Model], int]] = {
    "pre-activation": (resnet, 2),
    "1-D": (lambda: resnet(rank=1), 1),
    "3-D": (lambda: resnet(rank=3), 3),
    "dense": (densenet, 2),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("criterion", ["obs", "wifv"])
def test_selecting_equals_masking(net: str, criterion: str) -> None:
    """Without repair the answers are those of the same graph with zeros in the columns of what is not read."""
    build, rank = NETS[net]
    model, masked = build(), build()
    run(
        "select_channels",
        model,
        context(rank=rank),
        ratio=0.3,
        criterion=criterion,
        repair="none",
        measure="never",
        round_to=4,
    )
    found = selections(model)
    assert len(found) >= 3
    for node in masked.graph:
        if (kept := found.get(str(node.name))) is None:
            continue
        (relu,) = node.outputs[0].uses()
        (conv,) = relu.node.outputs[0].uses()
        weight = conv.node.inputs[1]
        assert weight is not None and weight.const_value is not None
        array = np.array(weight.const_value.numpy())
        assert 0 < len(kept) < array.shape[1] and len(kept) % 4 == 0
        array[:, np.setdiff1d(np.arange(array.shape[1]), kept)] = 0
        weight.const_value = ir.tensor(array, name=weight.name)
    oracles.assert_equal(proto(masked), proto(model), Kind.ALGEBRAIC, samples(2, 3, (5, 4, 3)[:rank]))
    optimized, expected = (answers(proto(each), samples(2, 3, (5, 4, 3)[:rank])) for each in (model, masked))
    np.testing.assert_allclose(optimized, expected, atol=1e-4)


@pytest.mark.parametrize("net", ["pre-activation", "dense"])
def test_repair_makes_up_for_it_on_new_samples(net: str) -> None:
    build, _ = NETS[net]
    original, plain, mended = build(), build(), build()
    run("select_channels", plain, context(), ratio=0.5, repair="none", measure="never")
    run("select_channels", mended, context(), ratio=0.5, measure="never")
    assert lost(plain, original) > 1e-3
    assert lost(mended, original) < 0.5 * lost(plain, original)


def test_what_a_branch_does_not_hear_goes_first_and_costs_nothing() -> None:
    dead = [1, 4, 5, 8, 10, 14, 20, 23]
    original, model = resnet(dead=dead), resnet(dead=dead)
    run("select_channels", model, context(), ratio=0.25, round_to=4, measure="never", repair="none")
    for kept in selections(model).values():
        np.testing.assert_array_equal(kept, np.setdiff1d(np.arange(32), dead))
    oracles.assert_equal(proto(original), proto(model), Kind.ALGEBRAIC, samples(2, 3))


@pytest.mark.parametrize("name", ["select_channels", "select_idle"])
@pytest.mark.parametrize("ratio", [0.5, 0.995, 1.2])
def test_only_what_is_measured_faster_is_done(name: str, ratio: float) -> None:
    model = resnet(dead=range(16))
    before = proto(model).SerializeToString(deterministic=True)
    changes = run(name, model, context(clock(ratio)), **({"ratio": 0.5} if name == "select_channels" else {}))
    applied = [change for change in changes if change.applied]
    if ratio == 0.5:
        assert len(applied) == len(selections(model)) == 3
        return
    assert not applied and {change.guard for change in changes} == {"measured_faster"}
    assert f"{ratio:.2f}"[:3] in changes[0].reason
    assert proto(model).SerializeToString(deterministic=True) == before


def test_places_are_timed_apart_between_packed_neighbours() -> None:
    """A part is one branch; x comes out of a depthwise Conv and is read elsewhere, in both models of the pair."""
    seen: list[tuple[list[str], list[str]]] = []

    def ratio(reference: ir.Model, candidate: ir.Model) -> float:
        pair = [node.op_type for node in reference.graph], [node.op_type for node in candidate.graph]
        seen.append(pair)
        if "Gemm" in pair[0]:
            return 0.5
        for model in (reference, candidate):
            onnx.checker.check_model(proto(model), full_check=True)
        feeds = {str(v.name): np.ones(v.shape.numpy(), np.float32) for v in reference.graph.inputs if v.shape}
        answers(proto(reference), [feeds])
        answers(proto(candidate), [feeds])
        return 0.5

    run("select_channels", resnet(), context(clock(ratio)), ratio=0.5)
    *parts, whole = seen
    assert len(parts) == 1, "equal places are timed once"
    reference, candidate = parts[0]
    assert sorted(reference) == ["BatchNormalization", "Conv", "Conv", "GlobalAveragePool", "Relu"]
    assert sorted(candidate) == sorted([*reference, "Gather"])
    assert whole[1].count("Gather") == 3


def test_a_whole_that_is_not_faster_takes_all_back() -> None:
    model = resnet()
    before = proto(model).SerializeToString(deterministic=True)
    whole = {"n", "Flatten"}

    def ratio(reference: ir.Model, candidate: ir.Model) -> float:
        return 1.05 if whole & {node.op_type for node in reference.graph} else 0.5

    changes = run("select_channels", model, context(clock(ratio)), ratio=0.5)
    assert [change.guard for change in changes] == ["whole_faster"] and "1.05" in changes[0].reason
    assert proto(model).SerializeToString(deterministic=True) == before


def test_places_alike_but_for_their_width_are_bisected() -> None:
    """A dense block has a width per layer: wide ones pay here, narrow ones do not, and not all are timed."""
    timed: list[int] = []

    def ratio(reference: ir.Model, candidate: ir.Model) -> float:
        if any(node.op_type == "Gemm" for node in reference.graph):
            return 0.9
        shape = reference.graph.inputs[0].shape
        assert shape is not None
        width = int(shape.numpy()[1])
        timed.append(width)
        return 0.8 if width >= 112 else 1.1

    model = densenet(layers=12)
    changes = run("select_channels", model, context(clock(ratio)), ratio=0.5, repair="none")
    widths = sorted(int(change.action.split()[3]) for change in changes if change.applied)
    assert widths == [112, 128, 144, 160, 176, 192]
    assert len(timed) == len(set(timed)) < 8


def test_what_cannot_be_timed_is_not_done() -> None:
    def broken(reference: ir.Model, candidate: ir.Model) -> Interval:
        raise MeasureError("no")

    for name in ("select_channels", "select_idle"):
        changes = run(name, resnet(dead=range(16)), context(broken), round_to=4)
        assert {change.guard for change in changes} == {"measured_faster"}
    (change,) = run("select_channels", resnet(), context(None))
    assert change.guard == "measured_faster"
    (change,) = run("select_channels", resnet(), Context(latency=clock(0.5)))
    assert change.guard == "data_given"


def test_a_second_run_finds_nothing_and_ignored_branches_stay() -> None:
    model = resnet()
    run("select_channels", model, context(), ratio=0.5, measure="never", ignored=("p1.*",))
    assert set(selections(model)) == {"p0.bn", "p2.bn"}
    before = proto(model).SerializeToString(deterministic=True)
    run("select_channels", model, context(), ratio=0.5, measure="never", ignored=("p1.*",))
    assert proto(model).SerializeToString(deterministic=True) == before


def test_channels_can_be_pruned_behind_a_selection() -> None:
    """The channel graph follows the Gather: other passes go on working."""
    model = resnet(dead=range(16))
    run("select_idle", model, context(), measure="never")
    expected = answers(proto(model), samples(4, 3))
    assert any(c.applied for c in run("prune_channels", model, context(), ratio=0.25, round_to=1))
    assert answers(proto(model), samples(4, 3)).shape == expected.shape


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("select_channels", {"ratio": 0.0}),
        ("select_channels", {"ratio": 1.0}),
        ("select_channels", {"criterion": "l2"}),
        ("select_channels", {"criterion": "trial"}),
        ("select_channels", {"repair": "glue"}),
        ("select_channels", {"measure": "always"}),
        ("select_channels", {"round_to": 0}),
        ("select_idle", {"round_to": "even"}),
        ("select_idle", {"measure": "always"}),
    ],
)
def test_options_out_of_range_are_named(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f"of {name} is"):
        pass_class(name)(**options)


@pytest.mark.parametrize("seed", range(12))
def test_all_that_is_planted_is_left_out(seed: int) -> None:
    """Nets of random depth and rank: each branch keeps exactly what it hears, and nobody can tell from the answers."""
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 4))
    model = densenet(layers=int(rng.integers(2, 6))) if rank == 2 and seed % 2 else resnet(blocks=2, rank=rank)
    rank = 2 if any(node.op_type == "Concat" for node in model.graph) else rank
    heard: dict[str, list[int]] = {}
    for node in model.graph:
        if node.op_type != "BatchNormalization" or not str(node.name).startswith("p"):
            continue
        (conv,) = next(iter(node.outputs[0].uses())).node.outputs[0].uses()
        gamma, beta, weight = (conv.node.inputs[1] if i is None else node.inputs[i] for i in (1, 2, None))
        arrays = [np.array(v.const_value.numpy()) for v in (gamma, beta, weight) if v is not None and v.const_value]
        width = len(arrays[0])
        silent, unread = rng.random((2, width)) < 0.3
        arrays[0][silent], arrays[1][silent] = 0, np.where(rng.random(silent.sum()) < 0.7, -0.2, 0.2)
        arrays[2][:, unread] = 0
        for value, array in zip((gamma, beta, weight), arrays, strict=True):
            assert value is not None
            value.const_value = ir.tensor(array, name=value.name)
        gone = unread | (silent & (arrays[1] < 0))
        heard[str(node.name)] = np.flatnonzero(~gone).tolist()
    before = proto(model)
    run("select_idle", model, context(rank=rank), measure="never", round_to=1)
    assert {name: kept.tolist() for name, kept in selections(model).items()} == {
        name: kept for name, kept in heard.items() if name in selections(model)
    }
    assert len(selections(model)) >= len(heard) - 1  # of the stem's 16 channels too few may be silent to save a byte
    oracles.assert_equal(before, proto(model), Kind.ALGEBRAIC, samples(2, 3, (5, 4, 3)[:rank]))
    changes = run("select_idle", model, context(rank=rank), measure="never", round_to=1)
    assert not any(change.applied for change in changes)

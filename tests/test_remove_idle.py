"""remove_idle on random networks: whatever was planted in them is found, and nobody can tell from the answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxslim_core.passes import pass_class

from onnxslim_core.errors import RecipeError
from onnxslim_core.model import load
from onnxslim_core.rewrite import Context, Kind
from onnxslim_core.verify import Interface, verify
from tests import oracles

ACTIVATIONS = ("Relu", "Sigmoid", "HardSwish", "LeakyRelu", "Tanh", "Identity")
PLANTED = ("zero", "constant", "copy", "unread")


@dataclass
class Stream:
    """Channels that go together, whoever makes them.

    Attributes:
        name: Prefix of the weights that make them.
        kinds: For every channel `live` or what is planted.
        sources: For a copy the channel that it copies.
        padded: Whether a node reads them next to zero padding.
    """

    name: str
    kinds: list[str]
    sources: dict[int, int]
    padded: bool = False

    @property
    def width(self) -> int:
        return len(self.kinds)

    def at(self, *kinds: str) -> list[int]:
        return [c for c, kind in enumerate(self.kinds) if kind in kinds]


@dataclass
class Net:
    """A random network under construction; tensors are (name, streams in the order of their channels)."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)

    def stream(self, live: int) -> Stream:
        kinds = ["live"] * live + self.rng.choice(PLANTED, self.rng.integers(0, 5)).tolist()
        self.rng.shuffle(kinds)
        lively = [c for c, kind in enumerate(kinds) if kind == "live"]
        sources = {c: int(self.rng.choice(lively)) for c, kind in enumerate(kinds) if kind == "copy"}
        self.streams.append(Stream(f"s{len(self.streams)}", kinds, sources))
        return self.streams[-1]

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], **attributes))
        return out

    def weight(self, prefix: str, array: np.ndarray) -> str:
        name = f"{prefix}_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def planted(self, stream: Stream, *shape: int, bias: bool = False) -> np.ndarray:
        """Something per channel: equal for copies; nothing for dead ones, but for a bias."""
        array = self.rng.standard_normal((stream.width, *shape))
        array[stream.at("zero") + ([] if bias else stream.at("constant"))] = 0
        for copy, source in stream.sources.items():
            array[copy] = array[source]
        return array

    def conv(self, x: str, read: list[Stream], into: Stream, kernel: int, pad: int, stride: int = 1) -> str:
        columns = sum(s.width for s in read) or 3
        w = self.planted(into, columns, kernel, kernel) / np.sqrt(columns * kernel**2)
        start = 0
        for stream in read:
            w[:, [start + c for c in stream.at("unread")]] = 0
            stream.padded |= pad > 0
            start += stream.width
        names = [x, self.weight(into.name, w)]
        if self.rng.random() < 0.7:
            names.append(self.weight("b", self.planted(into, bias=True)))
        return self.add("Conv", *names, pads=[pad] * 4, strides=[stride] * 2)

    def norm(self, x: str, stream: Stream) -> str:
        parts = [self.planted(stream, bias=True) for _ in range(3)]
        parts.append(np.abs(self.planted(stream, bias=True)) + 0.5)
        return self.add("BatchNormalization", x, *(self.weight("n", part) for part in parts))

    def act(self, x: str) -> str:
        return self.add(str(self.rng.choice(ACTIVATIONS)), x)

    def depthwise(self, x: str, stream: Stream) -> str:
        names = [self.weight("d", self.planted(stream, 1, 3, 3)), self.weight("e", self.planted(stream, bias=True))]
        return self.add("Conv", x, *names, pads=[1] * 4, group=stream.width)

    def gate(self, x: str, stream: Stream) -> str:
        middle = self.stream(3)
        hidden = self.act(self.conv(self.add("GlobalAveragePool", x), [stream], middle, 1, 0))
        return self.add("Mul", x, self.add("Sigmoid", self.conv(hidden, [middle], stream, 1, 0)))

    def residual(self, x: str, stream: Stream) -> str:
        middle = self.stream(int(self.rng.integers(3, 7)))
        inner = self.act(self.conv(x, [stream], middle, 1, 0))
        if self.rng.random() < 0.5:
            inner = self.depthwise(inner, middle)
        return self.add("Add", self.conv(inner, [middle], stream, 3, 1), x)

    def block(self, x: str, read: list[Stream]) -> tuple[str, list[Stream]]:
        stream = self.stream(int(self.rng.integers(3, 8)))
        kernel = int(self.rng.choice([1, 3]))
        x = self.conv(x, read, stream, kernel, kernel // 2 if self.rng.random() < 0.6 else 0)
        steps = [lambda y: self.norm(y, stream), self.act, lambda y: self.residual(y, stream)]
        steps += [lambda y: self.gate(y, stream), lambda y: self.depthwise(y, stream)]
        steps.append(lambda y: self.add("MaxPool", y, kernel_shape=[2, 2], strides=[1, 1]))
        for step in self.rng.choice(len(steps), int(self.rng.integers(1, 5))):
            x = steps[step](x)
        if self.rng.random() < 0.4:
            other = self.stream(int(self.rng.integers(3, 6)))
            branch = self.act(self.conv(x, [stream], other, 3, 1))
            return self.add("Concat", x, branch, axis=1), [stream, other]
        return x, [stream]

    def model(self, blocks: int) -> onnx.ModelProto:
        x, read = "x", list[Stream]()
        for _ in range(blocks):
            x, read = self.block(x, read)
        x = self.add("Flatten", self.add("GlobalAveragePool", x))
        head = self.rng.standard_normal((sum(s.width for s in read), 5))
        start = 0
        for stream in read:
            head[[start + c for c in stream.at("unread")]] = 0
            start += stream.width
        self.nodes.append(helper.make_node("Gemm", [x, self.weight("head", head)], ["y"]))
        image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 17, 15])
        answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])
        graph = helper.make_graph(self.nodes, "random", [image], [answer], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("seed", range(40))
def test_all_that_is_planted_is_found(seed: int) -> None:
    net = Net(np.random.default_rng(seed))
    model = net.model(1 + seed % 4)
    rng = np.random.default_rng(1000 + seed)
    feeds = [{"x": rng.standard_normal((n, 3, 17, 15)).astype(np.float32)} for n in (1, 3)]
    held = load(model)
    interface = Interface.of(held.ir)
    changes = pass_class("remove_idle")(round_to=1).run(held.ir, Context(samples=feeds[:1]))
    assert not (problems := verify(held.ir, interface)), problems
    after = held.to_proto()
    oracles.assert_equal(model, after, Kind.ALGEBRAIC, feeds)
    widths = {t.name.partition("_")[0]: t.dims[0] for t in after.graph.initializer}
    for stream in net.streams:
        live, dead = len(stream.at("live")), stream.at("zero", "constant")
        found = widths[stream.name]
        assert live <= found <= live + bool(dead and stream.padded), (stream, found, changes)
    assert not [change for change in changes if not change.applied]
    again = pass_class("remove_idle")(round_to=1).run(held.ir, Context(samples=feeds[:1]))
    assert not [change for change in again if change.applied]


def test_planted_nets_are_not_all_alike() -> None:
    """The property proves something only where much is planted, next to padding and away from it."""
    nets = [Net(np.random.default_rng(seed)) for seed in range(40)]
    for seed, net in enumerate(nets):
        net.model(1 + seed % 4)
    streams = [stream for net in nets for stream in net.streams]
    for kind in PLANTED:
        assert sum(bool(stream.at(kind)) for stream in streams) > 40
    assert sum(stream.padded for stream in streams) > 40 < sum(not stream.padded for stream in streams)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("samples", [4, 5])
def test_a_sample_of_zeros_is_no_feature_of_zeros(op: str, samples: int) -> None:
    """One sample of what a recurrent node reads is zero; a unit that reads the feature of that number is alive."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    gate, rng = {"LSTM": 3, "GRU": 2, "RNN": 0}[op] * 5 + 1, np.random.default_rng(0)
    arrays = {
        "left": rng.standard_normal((samples, 3)),
        "w": rng.standard_normal((1, gates * 5, 4)),
        "r": rng.standard_normal((1, gates * 5, 5)),
        "o": rng.standard_normal((5, 3)),
    }
    arrays["left"][2] = 0
    arrays["w"][0, gate] = [0, 0, 2, 0]
    arrays["r"][0, gate] = 0
    nodes = [
        helper.make_node("MatMul", ["left", "x"], ["u"]),
        helper.make_node(op, ["u", "w", "r"], ["", "h"], hidden_size=5),
        helper.make_node("MatMul", ["h", "o"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, samples, 3])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    held = load(model)
    pass_class("remove_idle")(round_to=1).run(held.ir, Context())
    oracles.assert_equal(model, held.to_proto(), Kind.ALGEBRAIC)


@pytest.mark.parametrize("round_to", [0, -4, "automatic", 1.5])
def test_a_wrong_option_is_named(round_to: object) -> None:
    with pytest.raises(RecipeError, match="round_to of remove_idle"):
        pass_class("remove_idle")(round_to=round_to)

"""Ways to damage a model, for fuzz.py and the short version of it among the tests.

*edits* change the graph as an exporter with a bug would (inputs swapped, nodes dropped or doubled, sizes and types
changed, other operators and opsets), *flips* change bytes, *cuts* end the file early or take a piece out. The same
generator in the same state gives the same damage.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from importlib import resources

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

KINDS = ("edits", "flips", "cuts")

_BODY = """<ir_version: 8, opset_import: ["" : 17]>"""
SMALL = {
    "branches": _BODY
    + """ g (float[2,3] x, bool c) => (float[2,3] y) <float[3] w = {1, -2, 3}, float[3] v = {1, -2, 3}> {
        h = Relu(x) i = Identity(h) s = Shape(i) r = Reshape(i, s)
        y = If (c) <then_branch = t () => (float[2,3] p) { q = Add(r, w) p = Mul(q, v) },
                    else_branch = e () => (float[2,3] p) { q = Sub(h, v) p = Identity(q) }> }""",
    "functions": """<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
        g (float[n,4] x) => (float[n,4] y) { a = my.twice <k = 0.3> (x) b = my.twice <k = 0.5> (a) y = Identity(b) }
        <domain: "my", opset_import: ["" : 17]> twice <k> (a) => (c) {
            b = LeakyRelu <alpha: float = @k> (a) z = Constant <value_float = 0.5> () s = CastLike(z, b)
            c = Mul(b, s) }""",
    "strings": _BODY
    + """ g (float[4] x) => (float[4] y, string[2] t) { s = Constant <value_strings = ["a", "b"]> () t = Identity(s)
        k = Constant <value_ints = [1, 3]> () q = SplitToSequence <axis = 0> (x, k)
        i = Constant <value_int = 1> () a = SequenceAt(q, i) p = Constant <value_ints = [1, 0]> ()
        b = Pad(a, p) y = Relu(b) }""",
    "sizes": _BODY
    + """ g (float[n,3,8] x) => (float[n,m] y) <int64 one = {1}, int64[1] zero = {0}, float k = {2}> {
        s = Shape(x) d = Gather(s, one) u = Unsqueeze(d, zero) v = Slice(s, zero, u2) u2 = Add(zero, one1)
        one1 = Unsqueeze(one, zero) m1 = Neg(one1) c = Concat <axis = 0> (v, m1) r = Reshape(x, c)
        e = Expand(k, u) f = ReduceSum(e) y = Mul(r, f) }""",
}


def built_in() -> dict[str, bytes]:
    """Small models to damage, by name: the ones above and the network of the demo."""
    found = {name: onnx.parser.parse_model(text).SerializeToString() for name, text in SMALL.items()}
    folder = resources.files("onnxslim_core").joinpath("demo")
    found |= {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name.endswith(".onnx")}
    return found


Edit = Callable[[onnx.ModelProto, random.Random], None]


def _value_names(model: onnx.ModelProto) -> list[str]:
    graph = model.graph
    names = [v.name for v in graph.input] + [t.name for t in graph.initializer]
    return [*names, *(name for node in graph.node for name in node.output if name)]


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _any_node(model: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto:
    return rng.choice([*_nodes(model.graph), *(n for f in model.functions for n in f.node)])


def _rewire(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _any_node(model, rng)
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([*_value_names(model), "", "nowhere"])


def _swap_inputs(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _any_node(model, rng)
    names = list(node.input)
    rng.shuffle(names)
    del node.input[:]
    node.input.extend(names)


def _drop_node(model: onnx.ModelProto, rng: random.Random) -> None:
    del model.graph.node[rng.randrange(len(model.graph.node))]


def _bypass(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _any_node(model, rng)
    node.op_type, node.domain = "Identity", ""
    del node.attribute[:], node.input[1:], node.output[1:]


def _double_node(model: onnx.ModelProto, rng: random.Random) -> None:
    index = rng.randrange(len(model.graph.node))
    twin = onnx.NodeProto.FromString(model.graph.node[index].SerializeToString())
    for place, name in enumerate(twin.output):
        twin.output[place] = f"{name}_twin" if rng.random() < 0.9 else name
    model.graph.node.insert(index + 1, twin)
    if rng.random() < 0.5 and twin.output:
        model.graph.output.add(name=twin.output[0])


def _output_inside(model: onnx.ModelProto, rng: random.Random) -> None:
    name = rng.choice(_value_names(model))
    if name not in {v.name for v in model.graph.output}:
        model.graph.output.add(name=name)


def _attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    chosen = [n for n in _nodes(model.graph) if n.attribute]
    if not chosen:
        return
    node = rng.choice(chosen)
    index = rng.randrange(len(node.attribute))
    attribute = node.attribute[index]
    if rng.random() < 0.2:
        del node.attribute[index]
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = rng.choice((-1, 0, 1, 2, 3, 7, -(2**63), 2**63 - 1, attribute.i + 1))
    elif attribute.type == onnx.AttributeProto.INTS and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice((-1, 0, 1, 2, 9, 2**62))
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice((0.0, -0.0, -1.0, 1e30, float("nan"), float("inf")))
    elif attribute.type == onnx.AttributeProto.STRING:
        attribute.s = rng.choice((b"", b"SAME_UPPER", b"VALID", b"\xff\xfe", b"reflect"))


def _operator(model: onnx.ModelProto, rng: random.Random) -> None:
    others = "Relu Neg Add Sub Mul Div Concat Transpose Reshape Shape Cast Softmax MatMul Gemm Conv Dropout Bernoulli"
    others += " Sqrt Squeeze Flatten Identity Expand Gather Slice Split BatchNormalization MaxPool ReduceSum Nonsense"
    node = _any_node(model, rng)
    node.op_type = rng.choice(others.split())
    if rng.random() < 0.1:
        node.domain = rng.choice(("ai.onnx", "com.microsoft", "nowhere"))


def _weight(model: onnx.ModelProto, rng: random.Random) -> None:
    if not model.graph.initializer:
        return
    index = rng.randrange(len(model.graph.initializer))
    tensor = model.graph.initializer[index]
    choice = rng.randrange(7)
    if choice == 0:
        tensor.data_type = rng.randrange(24)
    elif choice == 1 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((-1, 0, 1, 2, 2**40))
    elif choice == 2:
        tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
    elif choice == 3:
        del model.graph.initializer[index]
    elif choice == 4:
        model.graph.initializer.add().CopyFrom(tensor)
    elif tensor.data_type == TensorProto.FLOAT:
        array = np.array(numpy_helper.to_array(tensor))
        array[rng.random() < np.random.default_rng(rng.getrandbits(32)).random(array.shape)] = rng.choice(
            (0.0, -0.0, float("nan"), float("inf"), 1e-40, 3e38, 1.0)
        )
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _dead_rows(model: onnx.ModelProto, rng: random.Random) -> None:
    """Whole filters zero or alike: what `remove_idle` looks for."""
    floats = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and t.dims]
    for tensor in rng.sample(floats, min(len(floats), 3)):
        array = np.array(numpy_helper.to_array(tensor))
        moved = np.moveaxis(array, rng.randrange(array.ndim), 0)
        for row in range(moved.shape[0]):
            if rng.random() < 0.5:
                moved[row] = 0 if rng.random() < 0.6 else moved[0]
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _feedable(model: onnx.ModelProto, rng: random.Random) -> None:
    for tensor in model.graph.initializer:
        if rng.random() < 0.5:
            model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def _declared(model: onnx.ModelProto, rng: random.Random) -> None:
    value = rng.choice([*model.graph.input, *model.graph.output, *model.graph.value_info])
    kind = value.type.tensor_type
    if rng.random() < 0.3:
        kind.elem_type = rng.choice((1, 7, 10, 11, 9, 6))
    elif kind.shape.dim:
        dim = rng.choice(kind.shape.dim)
        if rng.random() < 0.3:
            dim.dim_param = rng.choice(("n", "m", ""))
        else:
            dim.dim_value = rng.choice((-1, 0, 1, 2, 3, 5, 2**40))


def _stale(model: onnx.ModelProto, rng: random.Random) -> None:
    for name in _value_names(model):
        if rng.random() < 0.2:
            shape = [rng.choice((1, 2, 3, "n")) for _ in range(rng.randrange(4))]
            model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


def _order(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _names(model: onnx.ModelProto, rng: random.Random) -> None:
    for node in _nodes(model.graph):
        if rng.random() < 0.3:
            node.name = rng.choice(("", "n", "a/b:0", "\u65e5\u672c", " ", node.op_type))


def _versions(model: onnx.ModelProto, rng: random.Random) -> None:
    if rng.random() < 0.3:
        model.ir_version = rng.choice((0, 1, 3, 4, 7, 13, 99))
    elif model.opset_import:
        rng.choice(model.opset_import).version = rng.choice((0, 1, 7, 9, 11, 13, 18, 21, 99))


EDITS: tuple[Edit, ...] = (
    *(_rewire, _swap_inputs, _drop_node, _bypass, _double_node, _output_inside, _attribute, _operator, _weight),
    *(_dead_rows, _feedable, _declared, _stale, _order, _names, _versions),
)


def edited(data: bytes, rng: random.Random) -> bytes:
    """One to three edits of the graph."""
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        # the edit before may have left no place for this one, and external data is not there
        with contextlib.suppress(ValueError, IndexError, TypeError, KeyError, onnx.checker.ValidationError):
            rng.choice(EDITS)(model, rng)
    return model.SerializeToString()


def flipped(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed; half of the time near the ends, where the graph is and not the weights."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        near = min(len(damaged), 2000)
        at = rng.randrange(len(damaged))
        if rng.random() < 0.5:
            at = rng.randrange(near) if rng.random() < 0.5 else len(damaged) - 1 - rng.randrange(near)
        damaged[at] = rng.randrange(256) if rng.random() < 0.5 else damaged[at] ^ (1 << rng.randrange(8))
    return bytes(damaged)


def cut(data: bytes, rng: random.Random) -> bytes:
    """The end, or a piece in the middle, is gone."""
    at = rng.randrange(len(data))
    return data[:at] if rng.random() < 0.6 else data[:at] + data[at + rng.randrange(1, 200) :]


DAMAGE = {"edits": edited, "flips": flipped, "cuts": cut}

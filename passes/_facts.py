"""What is certain about the values of a graph: types, sizes, and what is known of integer vectors made from sizes.

Only facts count: the declared types and static sizes of graph inputs (onnxruntime refuses anything else), weights,
and what follows from them by the specification. Declared shapes inside the graph (value_info) may be stale and are not
read. A size that is not known gets a *token*, a string that stands for one unknown number; two sizes with the same
token are equal whatever is fed. Names of symbolic dims are no tokens: a caller may feed different sizes to two inputs
that declare the same name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir

from onnxslim_core.graph import STANDARD, array_of, attribute, bodies, is_op
from onnxslim_core.measure.infer import Inference

from ._sizes import KEPT, VECTORS, Dim, Vector

__all__ = ["Dim", "Facts", "Known", "Vector", "learn_all"]

_SAME = frozenset(
    (
        *("Relu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "HardSigmoid", "HardSwish", "Softplus", "Clip", "Neg", "Abs"),
        *("Exp", "Log", "Sqrt", "Erf", "Softmax", "LogSoftmax", "Gelu", "Mish", "Dropout", "BatchNormalization"),
    )
)
"""Operators whose one output is of the type and sizes of the first input: no need to ask onnx."""

_POOLS = ("MaxPool", "AveragePool", "LpPool")

_SHAPED = ("Reshape", "Expand", "ConstantOfShape")
"""Operators that are handed the shape of their result."""


class Facts:
    """Types, sizes and partially known integers, learned node by node in order.

    Args:
        model: Whose graph inputs, weights and opsets are read.
    """

    def __init__(self, model: ir.Model) -> None:
        self.types: dict[ir.Value, onnx.TypeProto] = {}
        self._vectors: dict[ir.Value, Vector] = {}
        self._arrays: dict[ir.Value, np.ndarray] = {}
        self._tokens = 0
        self._inference = Inference(model)
        self._plain: dict[tuple[int, tuple[int, ...]], onnx.TypeProto] = {}
        self._sizes: dict[int, tuple[onnx.TypeProto, tuple[Dim, ...] | None]] = {}
        self._settled: dict[int, onnx.TypeProto] = {}
        self._shaped: dict[tuple[int, tuple[Dim, ...]], onnx.TypeProto] = {}
        self.enter(model.graph, trusted=True)

    # Reading

    def array(self, value: ir.Value | None) -> np.ndarray | None:
        """The value as a constant: a weight, a Constant, or what was computed from them."""
        if value is None:
            return None
        found = self._arrays.get(value)
        return array_of(value) if found is None else found

    def is_constant(self, value: ir.Value) -> bool:
        """True where `array` has an answer; does not read the weight."""
        producer = value.producer()
        if value in self._arrays or is_op(producer, "Constant"):
            return True
        plain = producer is None and value.const_value is not None
        return plain and value.is_initializer() and not value.is_graph_input()

    def elem_type(self, value: ir.Value | None) -> int | None:
        """The number of the element type in `TensorProto.DataType`, or None where it is not known or no tensor."""
        kind = self._type(value)
        if kind is None or not kind.HasField("tensor_type"):
            return None
        return kind.tensor_type.elem_type or None

    def dims(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """The sizes of a tensor, or None where not even the rank is known."""
        kind = self._type(value)
        if kind is None:
            return None
        known = self._sizes.get(id(kind))
        if known is None:
            known = self._sizes[id(kind)] = kind, _dims(kind)  # kept with it, so that its id stays its own
        return known[1]

    def vector(self, value: ir.Value | None) -> Vector | None:
        """What is known of the elements of an integer scalar or vector."""
        if value is None:
            return None
        found = self._vectors.get(value)
        if found is not None:
            return found
        array = self.array(value)
        if array is None or array.dtype.kind not in "iu" or array.ndim > 1 or array.size > KEPT:
            return None
        return tuple(int(v) for v in array.reshape(-1))

    def same_shape(self, a: ir.Value | None, b: ir.Value | None) -> bool:
        """True where both tensors are certain to have the same sizes."""
        sizes = self.dims(a)
        return sizes is not None and sizes == self.dims(b)

    # Learning

    def enter(self, graph: ir.Graph, *, trusted: bool = False) -> None:
        """Learn the inputs of a graph or body; the declared sizes of a body's inputs are not trusted."""
        for value in graph.inputs:
            if value.type is None or not isinstance(value.type, ir.TensorType):
                continue
            sizes = value.shape if trusted else None
            self.types[value] = self._tensor_type(value.dtype, sizes)

    def set_array(self, value: ir.Value, array: np.ndarray, elem_type: int) -> None:
        """Note that a value is constant."""
        self._arrays[value] = array
        kind = onnx.TypeProto()
        kind.tensor_type.elem_type = elem_type
        kind.tensor_type.shape.SetInParent()
        for size in array.shape:
            kind.tensor_type.shape.dim.add().dim_value = size
        self.types[value] = kind

    def learn(self, node: ir.Node) -> None:
        """Learn the outputs of a node whose inputs are learned; what cannot be inferred stays unknown."""
        op_type, types = node.op_type, self.types
        if node.attributes.data and bodies(node):
            self._learn_control(node)
        elif op_type in _SAME and node.domain in STANDARD and (kind := self._same(node)) is not None:
            types[node.outputs[0]] = kind
        elif op_type != "Constant" or node.domain not in STANDARD:
            self._infer(node)
            if op_type in VECTORS and (vector := self._vector_of(node)) is not None:
                self._vectors[node.outputs[0]] = vector
        for value in node.outputs:
            if value not in types and value.name:
                self._fall_back(value, node)

    def _same(self, node: ir.Node) -> onnx.TypeProto | None:
        """The type of the first input, where the one output has no other."""
        return self._type(node.inputs[0]) if len(node.outputs) == 1 else None

    def _type(self, value: ir.Value | None) -> onnx.TypeProto | None:
        if value is None:
            return None
        found = self.types.get(value)
        if found is not None:
            return found
        producer = value.producer()
        tensor = value.const_value if producer is None and value.is_initializer() else None
        if producer is not None and is_op(producer, "Constant"):
            given = producer.attributes.get("value")
            # `get_const_tensor` renames the tensor of the attribute, which may be the caller's
            tensor = ir.convenience.get_const_tensor(value) if given is None else given.value
        if tensor is None:
            return None
        key = int(tensor.dtype), tuple(tensor.shape.numpy())
        if key not in self._plain:
            self._plain[key] = self._tensor_type(tensor.dtype, tensor.shape)
        self.types[value] = self._plain[key]
        return self.types[value]

    def token(self) -> str:
        """A new token."""
        self._tokens += 1
        return f"~{self._tokens}"

    def _tensor_type(self, dtype: ir.DataType | None, shape: object) -> onnx.TypeProto:
        kind = onnx.TypeProto()
        kind.tensor_type.elem_type = 0 if dtype is None else int(dtype)
        if isinstance(shape, ir.Shape):
            kind.tensor_type.shape.SetInParent()
            for dim in shape:
                if isinstance(dim, int) and dim >= 0:
                    kind.tensor_type.shape.dim.add().dim_value = dim
                else:
                    kind.tensor_type.shape.dim.add().dim_param = self.token()
        return kind

    def _fall_back(self, value: ir.Value, node: ir.Node) -> None:
        """Of a foreign operator the declared element type is known: onnxruntime checks it when it loads the model."""
        if self._inference.schema(node) is None and isinstance(value.type, ir.TensorType):
            self.types[value] = self._tensor_type(value.dtype, None)

    def _infer(self, node: ir.Node) -> None:
        types, kinds = self.types, list[onnx.TypeProto | None]()
        for value in node.inputs:
            kind = None if value is None else types.get(value) or self._type(value)
            if value is not None and kind is None:
                return
            kinds.append(kind)
        found = self._inference.outputs(node, kinds, self._small)
        shaped, pool = node.op_type in _SHAPED, node.op_type in _POOLS
        for value, kind in zip(node.outputs, found, strict=True):
            if kind is None:
                continue
            if id(kind) in self._settled and not pool:
                types[value] = kind
            else:
                types[value] = (self._refined(node, kind) if shaped else None) or self._named(node, kind)

    def _named(self, node: ir.Node, kind: onnx.TypeProto) -> onnx.TypeProto:
        """Give tokens to the sizes that inference left open, and open those that it may have got wrong."""
        if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
            return kind
        doubtful = is_op(node, *_POOLS) and bool(attribute(node, "ceil_mode", 0))
        if not doubtful and all(_is_settled(d) for d in kind.tensor_type.shape.dim):
            self._settled[id(kind)] = kind  # kept, so that its id stays its own
            return kind
        named = onnx.TypeProto()
        named.CopyFrom(kind)
        for axis, dim in enumerate(named.tensor_type.shape.dim):
            known = dim.HasField("dim_value") and dim.dim_value >= 0
            if known and doubtful and axis >= 2 and not self._full_window(node, axis - 2, dim.dim_value):
                known = False
                dim.Clear()
            if not known and not dim.dim_param.startswith("~"):
                dim.Clear()
                dim.dim_param = self.token()
        return named

    def _refined(self, node: ir.Node, kind: onnx.TypeProto) -> onnx.TypeProto | None:
        """The type of a result whose target shape is known in part; None where inference says as much."""
        place = 0 if node.op_type == "ConstantOfShape" else 1
        if node.domain not in STANDARD or len(node.inputs) <= place or not node.outputs[0].name:
            return None
        target, dtype = self.vector(node.inputs[place]), kind.tensor_type.elem_type
        if target is None or not dtype:
            return None
        plain, infers = all(isinstance(t, int) for t in target), node.op_type == "Reshape" and -1 in target
        source = () if place == 0 else self.dims(node.inputs[0])
        if source is None or (plain and not infers):
            return None
        sizes: list[Dim | None] = list(target)
        if node.op_type == "Reshape":
            copies = not attribute(node, "allowzero", 0)
            for axis, size in enumerate(sizes):
                if size == 0 and copies:
                    sizes[axis] = source[axis] if axis < len(source) else None
        if infers and (left := _left_over(source, sizes)) is not None:
            sizes[sizes.index(-1)] = left
        elif plain:
            return None
        if node.op_type == "Expand":
            sizes = _broadcast(source, target)
        settled = [size if isinstance(size, str) or (size is not None and size >= 0) else None for size in sizes]
        return self._of_sizes(dtype, tuple([self.token() if size is None else size for size in settled]))

    def _of_sizes(self, dtype: int, sizes: tuple[Dim, ...]) -> onnx.TypeProto:
        """One proto for all tensors of a type and of the same sizes."""
        found = self._shaped.get((dtype, sizes))
        if found is None:
            found = self._shaped[dtype, sizes] = onnx.TypeProto()
            found.tensor_type.elem_type = dtype
            found.tensor_type.shape.SetInParent()
            for size in sizes:
                if isinstance(size, int):
                    found.tensor_type.shape.dim.add().dim_value = size
                else:
                    found.tensor_type.shape.dim.add().dim_param = size
        return found

    def _full_window(self, node: ir.Node, axis: int, count: int) -> bool:
        """False where the last window of a pool may begin in the padding: runtimes differ in whether it counts."""
        sizes = self.dims(node.inputs[0])
        size = sizes[axis + 2] if sizes is not None else None
        pads = attribute(node, "pads", None)
        strides = attribute(node, "strides", None)
        if not isinstance(size, int) or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET"):
            return False
        before = pads[axis] if pads else 0
        return bool((count - 1) * (strides[axis] if strides else 1) < size + before)

    def _small(self, value: ir.Value) -> np.ndarray | None:
        """A small constant for the inference of one node."""
        if value not in self._arrays and value.producer() is None and value.const_value is None:
            return None
        if value.const_value is not None and value.const_value.size > KEPT:
            return None
        array = self.array(value)
        return None if array is None or array.size > KEPT or array.dtype.kind not in "iufb" else array

    def _learn_control(self, node: ir.Node) -> None:
        """Outputs of If, Loop and Scan: element types, and of an If what both branches agree on."""
        if is_op(node, "If"):
            branches = [body.outputs for body in bodies(node)]
            for index, value in enumerate(node.outputs):
                kinds = [self._type(outputs[index]) for outputs in branches]
                self._agree(value, kinds)
            return
        for body in bodies(node):
            skipped = 1 if is_op(node, "Loop") else 0
            for value, inner in zip(node.outputs, body.outputs[skipped:], strict=False):
                dtype = self.elem_type(inner)
                if dtype is not None:
                    self.types[value] = self._tensor_type(ir.DataType(dtype), None)

    def _agree(self, value: ir.Value, kinds: Sequence[onnx.TypeProto | None]) -> None:
        first = kinds[0]
        if first is None or not first.HasField("tensor_type"):
            return
        for other in kinds[1:]:
            if other is None or other.tensor_type.elem_type != first.tensor_type.elem_type:
                return
        same = all(kind == first for kind in kinds)
        self.types[value] = first if same else self._tensor_type(ir.DataType(first.tensor_type.elem_type), None)

    # Integers made from sizes

    def _vector_of(self, node: ir.Node) -> Vector | None:
        """What is known of the output of a node that computes with sizes."""
        if not is_op(node, node.op_type) or len(node.outputs) != 1:
            return None
        sizes = self.dims(node.outputs[0])
        if sizes is None or len(sizes) > 1 or self.elem_type(node.outputs[0]) not in (6, 7):
            return None
        vector = VECTORS[node.op_type](self, node)
        if vector is None or (sizes and sizes[0] != len(vector)) or (not sizes and len(vector) != 1):
            return None
        return vector if any(v is not None for v in vector) else None


def _is_settled(dim: onnx.TensorShapeProto.Dimension) -> bool:
    return dim.dim_value >= 0 if dim.HasField("dim_value") else dim.dim_param.startswith("~")


def _dims(kind: onnx.TypeProto) -> tuple[Dim, ...] | None:
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.tensor_type.shape.dim)


def learn_all(model: ir.Model) -> Facts:
    """The facts of a whole sorted model, bodies included."""
    facts = Facts(model)
    _learn_graph(facts, model.graph)
    return facts


def _learn_graph(facts: Facts, graph: ir.Graph) -> None:
    for node in graph:
        for body in bodies(node):
            facts.enter(body)
            _learn_graph(facts, body)
        facts.learn(node)


class Known:
    """Sizes, learned when they are first asked for and kept up with what changes.

    Args:
        model: Sorted.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._facts: Facts | None = None

    def dims(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """See `Facts.dims`."""
        if self._facts is None:
            self._facts = learn_all(self._model)
        return self._facts.dims(value)

    def same_shape(self, a: ir.Value | None, b: ir.Value | None) -> bool:
        """True where both tensors are certain to have the same sizes."""
        sizes = self.dims(a)
        return sizes is not None and sizes == self.dims(b)

    def relearn(self, node: ir.Node) -> None:
        """Note that a node is new or reads something else; nothing is known of it where nothing can be inferred."""
        if self._facts is None:
            return
        for value in node.outputs:
            self._facts.types.pop(value, None)
        self._facts.learn(node)


def _left_over(source: Sequence[Dim], sizes: Sequence[Dim | None]) -> Dim | None:
    """What -1 stands for in a Reshape: the one unknown size of the source, where what is known multiplies to the same.

    Of a product of 0 nothing follows, and a copied size that is not known could be 0.
    """
    unknown = [size for size in source if isinstance(size, str)]
    given = [size for size in sizes if isinstance(size, int) and size != -1]
    if len(unknown) != 1 or len(given) != len(sizes) - 1:
        return None
    count = math.prod(given)
    return unknown[0] if count and count == math.prod(size for size in source if isinstance(size, int)) else None


def _broadcast(source: Sequence[Dim], target: Vector) -> list[Dim | None]:
    """Sizes of Expand: aligned at the end, 1 gives way."""
    rank = max(len(source), len(target))
    left = (1,) * (rank - len(source)) + tuple(source)
    right = (1,) * (rank - len(target)) + tuple(target)
    found: list[Dim | None] = []
    for a, b in zip(left, right, strict=True):
        fixed = next((v for v in (a, b) if isinstance(v, int) and v != 1), None)
        found.append(b if a == 1 or a == b else a if b == 1 else fixed)
    return found

"""Concrete shapes of every value of a graph at one sample's sizes, and the small constants that shapes are made of.

The usual case needs no run and one walk over the nodes in order: chains that compute shapes are evaluated
(`evaluate.py`), and onnx infers each other node by itself (`infer.py`), with the inputs at the sample's sizes. What the
file itself says about inner shapes is not read, since it may be wrong or stale. Where that leaves something open
(bodies, functions, sequences), onnx infers a copy of the whole without weights, and evaluation and inference go on in
turns until nothing new comes of it. Only what is still unknown then (foreign operators, loops, shapes that depend on
the data) is looked up in one run of onnxruntime.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import checker, numpy_helper, shape_inference

from onnxslim_core._emit import write_node
from onnxslim_core.errors import MeasureError
from onnxslim_core.graph import STANDARD, array_of, attribute, bodies, is_op, opset_of
from onnxslim_core.measure.evaluate import LIMIT, evaluate
from onnxslim_core.measure.infer import Inference
from onnxslim_core.measure.session import open_session, run_only
from onnxslim_core.model import wrap
from onnxslim_core.ops.bodies import captures, carried, handed
from onnxslim_core.rewrite import Sample

__all__ = ["Shapes", "concrete_shapes"]

_ROUNDS = 12


@dataclass(slots=True)
class Shapes:
    """What is known about the values of the main graph at one sample's sizes.

    Attributes:
        shape: Concrete sizes. A value is absent where its shape is unknown or it is no tensor.
        dtype: Element types.
        value: Arrays of at most 4096 elements that are the same whatever the data: constants, and what is computed
            from constants and sizes. A default that a caller may replace is not among them.
        seen: Values whose shape was read off a run and may depend on the data.
    """

    shape: dict[ir.Value, tuple[int, ...]] = field(default_factory=dict)
    dtype: dict[ir.Value, ir.DataType] = field(default_factory=dict)
    value: dict[ir.Value, np.ndarray] = field(default_factory=dict)
    seen: set[ir.Value] = field(default_factory=set)

    def maps(self) -> tuple[dict[ir.Value, Any], ...]:
        """Shapes, element types and values."""
        return self.shape, self.dtype, self.value


def concrete_shapes(
    model: ir.Model, sample: Sample | None, *, bodies_too: bool = False, may_run: bool = True
) -> Shapes:
    """The shapes of every value of the main graph; the model is not changed.

    Args:
        model: Any.
        sample: An array per input; None takes the declared sizes and leaves unknown what is symbolic.
        bodies_too: Whether bodies of If, Loop and Scan are inferred as well, from what they are handed and capture.
        may_run: Whether what inference does not tell is looked up in a run.

    Returns:
        What could be found. Nothing is raised where inference and run both fail: shapes are then absent.
    """
    work = _Work(model, sample or {}, model.graph)
    work.infer()
    if sample is not None and may_run and (unknown := work.unknown()):
        work.look_up(unknown)
    if bodies_too:
        work.enter()
    return work.found


class _Work:
    def __init__(self, model: ir.Model, sample: Sample, graph: ir.Graph, found: Shapes | None = None) -> None:
        self.model = model
        self.graph = graph
        self.sample = sample
        self.opset = opset_of(model)
        self.found = Shapes() if found is None else found
        self.nodes = [node for node in graph if not is_op(node, "Constant")]
        self.values: dict[str, ir.Value] = {}
        self._captured = captures(graph) if graph is not model.graph else ()
        self._not_tensors: set[ir.Value] = set()
        self._trusted: set[ir.Value] = set()
        self._pending = list(self.nodes)
        self._inference = Inference(model)
        self._protos: dict[ir.Node, onnx.NodeProto] | None = None
        self._types: dict[Any, onnx.TypeProto] = {}
        self._parsed: dict[int, tuple[onnx.TypeProto, tuple[bool, ir.DataType | None, tuple[int, ...] | None]]] = {}
        self._collect()

    # --- what is known from the start

    # --- bodies

    def enter(self) -> None:
        """Infer the bodies of nodes, and theirs in turn.

        What a Loop or Scan hands on has the shape that it had before the first round; where a round changes it, it is
        not known.
        """
        for node in self.nodes:
            for body in bodies(node):
                own = self._entered(node, body)
                for name in ("shape", "dtype", "value"):
                    getattr(self.found, name).update(getattr(own.found, name))
                self.found.seen |= own.found.seen

    def _entered(self, node: ir.Node, body: ir.Graph) -> _Work:
        captured, varying = captures(body), set[ir.Value]()
        while True:
            shape, dtype, value = ({v: known[v] for v in captured if v in known} for known in self.found.maps())
            found = Shapes(shape, dtype, value, self.found.seen & captured)
            for given, (sizes, kind) in handed(node, body, *self.found.maps()[:2]).items():
                found.dtype.update({given: kind} if kind is not None else {})
                found.shape.update({given: sizes} if sizes is not None and given not in varying else {})
            work = _Work(self.model, {}, body, found)
            work.infer()
            news = {v for v, result in carried(node, body) if v in found.shape} & {
                v for v, result in carried(node, body) if found.shape.get(result) != found.shape.get(v)
            }
            if not news:
                work.enter()
                return work
            varying |= news

    def _collect(self) -> None:
        graph = self.graph
        for value in self._captured:
            self.values[str(value.name)] = value
            if value.type is not None and not isinstance(value.type, ir.TensorType):
                self._not_tensors.add(value)
        for value in graph.inputs:
            self._note(value, value.shape if graph is self.model.graph else None, value.dtype)
            if value.type is not None and not isinstance(value.type, ir.TensorType):
                self._not_tensors.add(value)
            if (array := self.sample.get(str(value.name))) is not None and isinstance(array, np.ndarray):
                self.found.shape[value] = array.shape
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or (value.is_graph_input() and str(value.name) in self.sample):
                continue
            self._note(value, tensor.shape, tensor.dtype)
            self._keep_small(value)
        for node in graph:
            for value in node.outputs:
                if value.name:
                    self.values[value.name] = value
            if is_op(node, "Constant"):
                self._constant(node)

    def _constant(self, node: ir.Node) -> None:
        value = node.outputs[0]
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            self._note(value, tensor.shape, tensor.dtype)
            self._keep_small(value)
            return
        # sparse tensors and references are left to the inference
        self.nodes.insert(0, node)

    def _note(self, value: ir.Value, shape: Iterable[object] | None, dtype: ir.DataType | None) -> None:
        self.values[str(value.name)] = value
        sizes = [size for size in shape if isinstance(size, int) and size >= 0] if shape is not None else []
        if shape is not None and len(sizes) == len(list(shape)):
            self.found.shape[value] = tuple(sizes)
        if dtype is not None:
            self.found.dtype[value] = dtype

    def _keep_small(self, value: ir.Value) -> None:
        dtype, shape = self.found.dtype[value], self.found.shape.get(value)
        if shape is None or math.prod(shape) > LIMIT or dtype == ir.DataType.STRING or dtype.bitwidth < 8:
            return
        if (array := array_of(value)) is not None:
            self.found.value[value] = array

    # --- inference and evaluation in turns

    def infer(self) -> None:
        """Node by node; then the whole and evaluation in turns, as long as values come up that it did not have."""
        self._walk()
        for _ in range(_ROUNDS):
            if not self.unknown():
                break
            self._read(self._inferred())
            known = len(self.found.value)
            self._evaluate()
            if len(self.found.value) == known:
                break

    def unknown(self) -> list[ir.Value]:
        """Outputs of nodes, as far as they may be tensors, whose shape is not known."""
        shape = self.found.shape
        outputs = (v for node in self.nodes for v in node.outputs if v.name)
        return [v for v in outputs if v not in shape and v not in self._not_tensors]

    def _walk(self) -> None:
        """One forward walk: evaluate a node, or infer it by itself."""
        later, shape = [], self.found.shape
        for node in self._pending:
            if not self._takes(node):
                later.append(node)
                if any(value not in shape for value in node.outputs if value.name):
                    self._infer_alone(node)
        self._pending = later

    def _infer_alone(self, node: ir.Node) -> None:
        """Note the types that onnx infers of one node, where those of all its inputs are known."""
        shape, dtype, kinds = self.found.shape, self.found.dtype, list[onnx.TypeProto | None]()
        for value in node.inputs:
            if value is None:
                kinds.append(None)
            elif value in shape and value in dtype:
                kinds.append(self._type(dtype[value], shape[value]))
            else:
                return
        if bool(bodies(node)) or is_op(node, "Constant"):
            return
        for value, kind in zip(node.outputs, self._inference.outputs(node, kinds, self._content), strict=True):
            if kind is not None:
                self._note_type(value, kind)

    def _content(self, value: ir.Value) -> np.ndarray | None:
        """What inference is told of an input besides its type."""
        array = self.found.value.get(value)
        if array is None and value.is_initializer() and value.is_graph_input() and str(value.name) not in self.sample:
            array = _small_default(value)
        return array if array is not None and array.dtype.kind in "biuf" and _tells_shapes(value, array) else None

    def _note_type(self, value: ir.Value, kind: onnx.TypeProto) -> None:
        found = self._parsed.get(id(kind))
        if found is None:  # the proto is kept, so that its id stays its own
            found = self._parsed[id(kind)] = kind, _parsed(kind)
        is_tensor, dtype, shape = found[1]
        if not is_tensor:
            self._not_tensors.add(value)
        if dtype is not None:
            self.found.dtype[value] = dtype
        if shape is not None:
            self.found.shape[value] = shape

    def _takes(self, node: ir.Node) -> bool:
        """Whether a node can be evaluated; what it gives is noted."""
        arrays = self._outputs_of(node)
        if arrays is None:
            return False
        for output, array in zip(node.outputs, arrays, strict=False):
            self.found.value[output], self.found.shape[output] = array, array.shape
            self.found.dtype.setdefault(output, ir.DataType.from_numpy(array.dtype))
        return True

    def _evaluate(self) -> None:
        """One forward walk over the nodes that are not evaluated yet; the graph is sorted."""
        self._pending = [node for node in self._pending if not self._takes(node)]

    def _outputs_of(self, node: ir.Node) -> list[np.ndarray] | None:
        if is_op(node, "Shape", "Size"):
            source = node.inputs[0]
            shape = None if source is None or source in self.found.seen else self.found.shape.get(source)
            return None if shape is None else [_shape_or_size(node, shape)]
        value = self.found.value
        if not node.inputs:
            return None
        for operand in node.inputs:
            if operand is not None and operand not in value:
                return None
        if bool(bodies(node)):
            return None
        return evaluate(node, [None if v is None else value[v] for v in node.inputs], self.opset)

    def _inferred(self) -> onnx.GraphProto:
        proto = onnx.ModelProto(ir_version=max(self.model.ir_version or 8, 4))
        versions = {"" if d in STANDARD else d: v for d, v in self.model.opset_imports.items()}
        for node in self.nodes:
            # one missing import would leave everything without a shape
            versions.setdefault("" if node.domain in STANDARD else node.domain, 1)
        for domain, version in versions.items():
            proto.opset_import.add(domain=domain, version=version)
        proto.functions.extend(ir.serde.serialize_function(f) for f in self.model.functions.values())
        graph = proto.graph
        graph.name = "shapes"
        value = self.found.value
        if self._protos is None:
            self._protos = {n: write_node(n) if is_op(n, "Constant") else _bare(write_node(n)) for n in self.nodes}
        graph.node.extend(self._protos[n] for n in self.nodes if not all(v in value for v in n.outputs if v.name))
        self._describe(graph)
        try:
            return shape_inference.infer_shapes(proto, data_prop=True).graph
        except (shape_inference.InferenceError, checker.ValidationError, RuntimeError, ValueError, TypeError):
            return onnx.GraphProto()

    def _describe(self, graph: onnx.GraphProto) -> None:
        """Inputs, weights (as inputs, without their content) and known small arrays (as initializers)."""
        for name, value in self.values.items():
            array = self.found.value.get(value)
            if array is None and value.is_initializer() and value.is_graph_input() and name not in self.sample:
                array = _small_default(value)
            if array is not None and _tells_shapes(value, array):
                graph.initializer.append(_tensor(name, array, self.found.dtype[value]))
            elif array is not None or _is_given(value) or value in self._captured:
                info = graph.input.add(name=name)
                if value in self._not_tensors and value.type is not None:
                    ir.serde.serialize_type_into(info.type, value.type)
                    continue
                info.type.CopyFrom(self._type(self.found.dtype.get(value), self.found.shape.get(value)))
            elif value in self._trusted and value in self.found.dtype:
                info = graph.value_info.add(name=name)
                info.type.CopyFrom(self._type(self.found.dtype[value], self.found.shape[value]))

    def _type(self, dtype: ir.DataType | None, shape: tuple[int, ...] | None) -> onnx.TypeProto:
        """One proto for all tensors of a type and shape."""
        found = self._types.get((dtype, shape))
        if found is None:
            found = self._types[dtype, shape] = onnx.TypeProto()
            _describe_tensor(found.tensor_type, dtype, shape)
        return found

    def _read(self, graph: onnx.GraphProto) -> None:
        seen: dict[bytes, onnx.TypeProto] = {}
        for info in graph.value_info:
            value = self.values.get(info.name)
            if value is not None and value not in self.found.value:
                self._note_type(value, seen.setdefault(info.type.SerializeToString(), info.type))

    # --- one run, for the rest

    def look_up(self, unknown: Sequence[ir.Value]) -> None:
        """Read the shapes of these values off a run, and go on from there.

        A foreign operator (a fused or a quantized one, say) is trusted to be as regular as the standard ones, so its
        shapes are facts to go on from. A shape that inference could not find even so may depend on the data.
        """
        shapes, dtypes = _run_shapes(self.model, unknown, self.sample)
        for name, dtype in dtypes.items():
            self.found.dtype.setdefault(self.values[name], dtype)
        while self._trust_foreign(shapes):
            self.infer()
        rest = {self.values[name]: shape for name, shape in shapes.items()}
        rest = {value: shape for value, shape in rest.items() if value not in self.found.shape}
        self.found.seen.update(rest)
        self.found.shape.update(rest)

    def _trust_foreign(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Take over the shapes of foreign nodes whose inputs are all known; False where there is none left."""
        news = False
        for node in self.nodes:
            if node.domain in STANDARD or bool(bodies(node)):
                continue
            if any(v is not None and v not in self.found.shape and v not in self._not_tensors for v in node.inputs):
                continue
            for output in node.outputs:
                if output not in self.found.shape and str(output.name) in shapes:
                    self.found.shape[output] = shapes[str(output.name)]
                    self._trusted.add(output)
                    news = True
        return news


def _shape_or_size(node: ir.Node, shape: tuple[int, ...]) -> np.ndarray:
    if node.op_type == "Size":
        return np.asarray(math.prod(shape), np.int64)
    window = slice(attribute(node, "start", 0), attribute(node, "end"))
    return np.asarray(shape[window], np.int64)


def _small_default(value: ir.Value) -> np.ndarray | None:
    tensor = value.const_value
    return None if tensor is None or tensor.size > LIMIT or tensor.dtype.bitwidth < 8 else tensor.numpy()


def _tensor(name: str, array: np.ndarray, dtype: ir.DataType) -> onnx.TensorProto:
    if array.dtype.kind in "biuf":
        return numpy_helper.from_array(np.asarray(array), name)
    return ir.serde.serialize_tensor(ir.tensor(np.ascontiguousarray(array), dtype=dtype, name=name))


def _parsed(kind: onnx.TypeProto) -> tuple[bool, ir.DataType | None, tuple[int, ...] | None]:
    """Whether this may be a tensor, its element type, and its sizes where all are known."""
    held = kind.WhichOneof("value")
    if held != "tensor_type":
        return held is None, None, None
    tensor = kind.tensor_type
    sizes = [d.dim_value for d in tensor.shape.dim if d.HasField("dim_value")]
    whole = tensor.HasField("shape") and len(sizes) == len(tensor.shape.dim)
    return True, ir.DataType(tensor.elem_type) if tensor.elem_type else None, tuple(sizes) if whole else None


def _is_given(value: ir.Value) -> bool:
    """True for what no node computes."""
    return value.producer() is None or is_op(value.producer(), "Constant")


def _tells_shapes(value: ir.Value, array: np.ndarray) -> bool:
    """True where inference may want to know the content: floats only say how an image is resized, or are one number."""
    return array.dtype.kind not in "fcV" or array.size <= 1 or any(use.node.op_type in _RESIZES for use in value.uses())


def _describe_tensor(tensor: onnx.TypeProto.Tensor, dtype: ir.DataType | None, shape: Iterable[int] | None) -> None:
    tensor.elem_type = int(dtype or ir.DataType.UNDEFINED)
    if shape is not None:
        tensor.shape.SetInParent()
        for size in shape:
            tensor.shape.dim.add(dim_value=size)


def _bare(node: onnx.NodeProto) -> onnx.NodeProto:
    """Without what bodies claim about their inner shapes."""
    for attr in node.attribute:
        for graph in [attr.g] if attr.HasField("g") else attr.graphs:
            del graph.value_info[:]
            for inner in graph.node:
                _bare(inner)
    if node.domain in STANDARD:
        node.domain = ""
    return node


def _run_shapes(
    model: ir.Model, values: Sequence[ir.Value], sample: Sample
) -> tuple[dict[str, tuple[int, ...]], dict[str, ir.DataType]]:
    """Shapes and types of these values as onnxruntime has them, by name; empty where it cannot load or run the model.

    The first session only tells which of them are tensors, since a Shape node on anything else would not load.
    """
    wanted = [str(v.name) for v in values]
    copy = model.clone()
    own = {v.name: v for node in copy.graph for v in node.outputs}
    copy.graph.outputs.extend(own[name] for name in wanted if not own[name].is_graph_output())
    try:
        session = open_session(wrap(copy), optimize=False)
        types = {output.name: output.type for output in session.get_outputs()}
        dtypes = {name: _TYPES[types[name]] for name in wanted if types.get(name) in _TYPES}
        taps = {_add_tap(copy.graph, own[name], index): name for index, name in enumerate(dtypes)}
        outputs = run_only(open_session(wrap(copy), optimize=False), sample, list(taps))
    except MeasureError:
        return {}, {}
    return {name: tuple(int(s) for s in outputs[tap]) for tap, name in taps.items()}, dtypes


def _add_tap(graph: ir.Graph, value: ir.Value, index: int) -> str:
    node = ir.node("Shape", [value])
    tap = node.outputs[0]
    node.name = tap.name = f"shape_tap_{index}"
    tap.type = ir.TensorType(ir.DataType.INT64)
    graph.append(node)
    graph.outputs.append(tap)
    return tap.name


_RESIZES = ("Resize", "Upsample")

_TYPES = {f"tensor({kind.name.lower()})": kind for kind in ir.DataType}
"""onnxruntime's names of tensor types."""

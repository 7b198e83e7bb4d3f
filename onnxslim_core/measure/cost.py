"""What a model costs on paper: MACs, parameters, bytes and peak activation memory, per layer, from shapes alone.

And what its operators take on this machine by onnxruntime's own profiler, which explains but never judges: a verdict
on speed comes from whole models only (`latency.py`).
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxslim_core._functions import written_out
from onnxslim_core.errors import MeasureError
from onnxslim_core.graph import all_nodes, bodies, is_op, label_of
from onnxslim_core.measure.session import open_session, run
from onnxslim_core.measure.shapes import Shapes, concrete_shapes
from onnxslim_core.ops.macs import macs
from onnxslim_core.rewrite import Sample

if TYPE_CHECKING:
    from onnxslim_core.model import Model

__all__ = ["Cost", "Layer", "OperatorTime", "Size", "bytes_of", "cost", "params_of", "profile", "size_of"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One node of the main graph.

    Attributes:
        name: As messages name it.
        op: The operator's type.
        macs: Multiply-accumulates of one call, at the sample's sizes.
        params: Parameters it is the first to read.
        shape: Of its first output; None where unknown.
    """

    name: str
    op: str
    macs: int
    params: int
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Size:
    """What a file of a model holds; see `Cost`."""

    bytes: int
    nodes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model costs on paper.

    Attributes:
        macs: Multiply-accumulates of one call (see `ops/macs.py` for what counts), without those in bodies.
        params: Elements of weights: float tensors of rank 1 or more, and tensors of at most 8-bit integers of rank 2
            or more (quantized weights, but not their zero points). Initializers and Constant nodes, bodies
            included, each tensor once however often it is read. A single number (rank 0) is no parameter, nor is a
            list of numbers in a Constant's `value_floats`.
        bytes: Of the model in one file.
        peak_activation_bytes: The most that inputs, outputs and intermediate results take up at once, node after node
            in the order of the file, without sharing memory between input and output. Inputs count throughout,
            since the caller holds them.
        nodes: Nodes of the main graph and of bodies, but for Constant; functions count as if they were written out.
        layers: One row per node of the main graph.
        has_bodies: True where there are nodes in If, Loop or Scan, whose MACs are not in the count.
        unknown_shapes: Values whose shape is not known; they count 0.
    """

    macs: int
    params: int
    bytes: int
    peak_activation_bytes: int
    nodes: int
    layers: tuple[Layer, ...]
    has_bodies: bool
    unknown_shapes: int


def cost(model: Model, sample: Sample | None, shapes: Shapes | None = None) -> Cost:
    """The cost of one call of a model.

    Args:
        model: Any.
        sample: Whose sizes to count at; None counts at the declared sizes, and 0 where they are symbolic.
        shapes: What is known at these sizes, where the caller has it.
    """
    plain = written_out(model.ir)
    shapes = concrete_shapes(plain, sample) if shapes is None or plain is not model.ir else shapes
    graph = plain.graph
    outputs = [v for node in graph for v in node.outputs if v.name]
    layers = _layers(graph, shapes)
    return Cost(
        macs=sum(layer.macs for layer in layers),
        params=params_of(plain),
        bytes=_bytes_in_file(model),
        peak_activation_bytes=_peak(graph, shapes),
        nodes=_count_nodes(plain),
        layers=layers,
        has_bodies=any(bodies(node) for node in graph),
        unknown_shapes=sum(v not in shapes.shape for v in outputs),
    )


def size_of(model: Model) -> Size:
    """Bytes and nodes of a model, without looking at shapes; calls of functions are nodes as they stand."""
    return Size(_bytes_in_file(model), _count_nodes(model.ir))


def _bytes_in_file(model: Model) -> int:
    return sum(map(len, model.pieces()))


def _count_nodes(model: ir.Model) -> int:
    return sum(not is_op(node, "Constant") for node in all_nodes(model.graph))


def params_of(model: ir.Model) -> int:
    """Elements of all weights; see `Cost.params` for what counts."""
    return sum(_elements(tensor) for tensor, is_list in _constants(model.graph) if not is_list)


def _constants(graph: ir.Graph) -> Iterator[tuple[ir.TensorProtocol, bool]]:
    """The tensors of initializers and Constant nodes, bodies included; True where it is a list in an attribute."""
    graphs = [graph]
    while graphs:
        current = graphs.pop()
        yield from ((v.const_value, False) for v in current.initializers.values() if v.const_value is not None)
        for node in current:
            if is_op(node, "Constant") and (tensor := ir.convenience.get_const_tensor(node.outputs[0])) is not None:
                yield tensor, "value" not in node.attributes
            graphs.extend(bodies(node))


def _elements(tensor: ir.TensorProtocol) -> int:
    dtype = tensor.dtype
    if dtype in (ir.DataType.STRING, ir.DataType.BOOL):
        return 0
    rank = len(tensor.shape)
    if dtype.is_floating_point():
        return int(tensor.size) if rank >= 1 else 0
    return int(tensor.size) if dtype.bitwidth <= 8 and rank >= 2 else 0


def _layers(graph: ir.Graph, shapes: Shapes) -> tuple[Layer, ...]:
    counted: set[ir.Value] = set()
    rows = []
    for node in graph:
        if is_op(node, "Constant"):
            continue
        params = 0
        for value in node.inputs:
            if value is not None and value not in counted and (tensor := _tensor(value)) is not None:
                counted.add(value)
                params += _elements(tensor)
        shapes_in = [None if v is None else shapes.shape.get(v) for v in node.inputs]
        shapes_out = [shapes.shape.get(v) for v in node.outputs]
        count = macs(node, shapes_in, shapes_out)
        rows.append(Layer(label_of(node), node.op_type, count, params, shapes_out[0] if shapes_out else None))
    return tuple(rows)


def _tensor(value: ir.Value) -> ir.TensorProtocol | None:
    producer = value.producer()
    if producer is None:
        return value.const_value
    is_weight = is_op(producer, "Constant") and "value" in producer.attributes
    return ir.convenience.get_const_tensor(value) if is_weight else None


def _peak(graph: ir.Graph, shapes: Shapes) -> int:
    nodes = [node for node in graph if not is_op(node, "Constant")]
    position: dict[ir.Node, int] = {}
    for index, node in enumerate(nodes):
        position[node] = index
        for body in bodies(node):
            position.update(dict.fromkeys(all_nodes(body), index))
    dies: dict[int, int] = defaultdict(int)
    alive = sum(_size(v, shapes) for v in graph.inputs if v.name not in graph.initializers)
    kept = set(graph.outputs)
    peak = alive
    for index, node in enumerate(nodes):
        for value in node.outputs:
            size = _size(value, shapes)
            alive += size
            if value not in kept:
                dies[max((position[use.node] for use in value.uses()), default=index)] += size
        peak = max(peak, alive)
        alive -= dies.pop(index, 0)
    return peak


def _size(value: ir.Value, shapes: Shapes) -> int:
    shape, dtype = shapes.shape.get(value), shapes.dtype.get(value)
    return 0 if shape is None or dtype is None else bytes_of(shape, dtype)


@lru_cache
def bytes_of(shape: tuple[int, ...], dtype: ir.DataType) -> int:
    """What a tensor takes in memory; texts, which are of no fixed size, count nothing."""
    return 0 if dtype == ir.DataType.STRING else math.ceil(math.prod(shape) * dtype.itemsize)


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """What one node of the graph that onnxruntime made of the model took.

    Attributes:
        name: The node's name; nodes that were fused carry a name of onnxruntime's.
        op: Its operator.
        microseconds: Median over the calls.
        share: Of the sum over all nodes.
    """

    name: str
    op: str
    microseconds: float
    share: float


def profile(model: Model, sample: Sample, *, threads: int = 1, calls: int = 20) -> list[OperatorTime]:
    """Times per operator from onnxruntime's profiler, slowest first: for explanation, not for verdicts.

    Raises:
        MeasureError: if the model does not run or no profile is written.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(model, threads=threads, profile=Path(folder) / "profile")
        for _ in range(calls + 1):
            run(session, sample)
        try:
            events = json.loads(Path(session.end_profiling()).read_text())
        except (OSError, ValueError) as err:
            raise MeasureError(f"onnxruntime wrote no profile: {err}") from err
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            key = (name.removesuffix("_kernel_time"), event.get("args", {}).get("op_name", ""))
            times[key].append(float(event["dur"]))
    # the first call allocates; a node within a loop has several times per call, which add up
    per_call = {k: statistics.median(t[1:] or t) * max(len(t) / (calls + 1), 1) for k, t in times.items()}
    # a node with bodies takes what the nodes in them take, and those have rows of their own
    per_call = {key: took for key, took in per_call.items() if key[1] not in ("If", "Loop", "Scan")}
    total = sum(per_call.values()) or 1.0
    rows = [OperatorTime(name, op, took, took / total) for (name, op), took in per_call.items()]
    return sorted(rows, key=lambda row: -row.microseconds)

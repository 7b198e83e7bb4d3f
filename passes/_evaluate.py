"""Compute one node on constants, exactly as onnxruntime would.

Moves of whole elements are done by numpy, for every element type; anything that computes is run by onnxruntime itself
with its optimizer off, so that overflow wraps and rounding falls as it does there (Python's would not). A session of
one node costs less than 0.1 ms and is kept for the next node of the same kind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxslim_core.graph import attribute

__all__ = ["evaluate"]


def evaluate(node: ir.Node, inputs: Sequence[np.ndarray | None], opset: int) -> list[np.ndarray] | None:
    """The outputs of a standard node for constant inputs (None: an absent input).

    Returns:
        One array per output, empty for an absent one; or None where neither numpy nor onnxruntime can do it (a type
        that it has no kernel for, an index out of range), or the result is of a type that numpy has not: the node then
        stays, and fails or not where it did before.
    """
    present = [a for a in inputs if a is not None]
    move = _MOVES.get(node.op_type)
    if move is not None and len(present) == len(inputs):
        try:
            return [move(node, *present)]
        except (ValueError, TypeError, IndexError):
            return None
    if any(a.dtype.kind not in "iufb" for a in present):
        return None  # bfloat16, 8-bit floats, 4-bit integers and strings do not pass through numpy unharmed
    names = tuple("" if a is None else f"i{i}" for i, a in enumerate(inputs))
    outputs = tuple(f"o{i}" if v.name else "" for i, v in enumerate(node.outputs))
    attributes = tuple(ir.serde.serialize_attribute(a).SerializeToString() for a in node.attributes.values())
    dtypes = tuple(int(ir.DataType.from_numpy(a.dtype)) for a in present)
    run = _runner(node.op_type, attributes, names, dtypes, outputs, opset)
    if run is None:
        return None
    found = run({name: a for name, a in zip(names, inputs, strict=True) if a is not None})
    if found is None or not all(isinstance(a, np.ndarray) and a.dtype.kind in "iufb" for a in found):
        return None
    results = iter(found)
    return [next(results) if name else np.empty(0) for name in outputs]


_Run = Callable[[dict[str, np.ndarray]], list[Any] | None]

_BITS = (8, 16, 32, 64)
_PLAIN = frozenset(
    f"tensor({name})"
    for name in ("bool", "double", "float", "float16", *(f"{sign}int{bits}" for sign in ("", "u") for bits in _BITS))
)
"""Types of results that numpy holds as what they are."""


@functools.lru_cache(maxsize=256)
def _runner(
    op_type: str,
    attributes: tuple[bytes, ...],
    inputs: tuple[str, ...],
    dtypes: tuple[int, ...],
    outputs: tuple[str, ...],
    opset: int,
) -> _Run | None:
    """A session of one node, or None where onnxruntime cannot make it."""
    import onnxruntime as ort  # late: its import is slow

    from onnxslim_core.measure.session import RUNTIME_ERRORS

    model = onnx.ModelProto(ir_version=8)
    model.opset_import.add(version=opset)
    model.graph.name = "constant"
    proto = model.graph.node.add(op_type=op_type, input=inputs, output=outputs)
    proto.attribute.extend(onnx.AttributeProto.FromString(a) for a in attributes)
    for name, dtype in zip([n for n in inputs if n], dtypes, strict=True):
        model.graph.input.add(name=name).type.tensor_type.elem_type = dtype
    for name in outputs:
        if name:
            model.graph.output.add(name=name)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # results outlive the session's memory
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS:
        return None
    if not all(output.type in _PLAIN for output in session.get_outputs()):
        return None  # what has 8 bits or fewer would come back as plain integers, or not at all

    def run(feeds: dict[str, np.ndarray]) -> list[Any] | None:
        try:
            return list(session.run(None, feeds))
        except RUNTIME_ERRORS:
            return None

    return run


def _axes(node: ir.Node, given: Sequence[np.ndarray]) -> tuple[int, ...] | None:
    """Axes from an input (opset 13) or from the attribute."""
    if given:
        return tuple(int(a) for a in given[0].reshape(-1))
    found: tuple[int, ...] | None = attribute(node, "axes", None)
    return found


def _squeeze(node: ir.Node, data: np.ndarray, *axes: np.ndarray) -> np.ndarray:
    return np.squeeze(data, axis=_axes(node, axes) or None)  # no axes at all are all of size 1


def _unsqueeze(node: ir.Node, data: np.ndarray, *axes: np.ndarray) -> np.ndarray:
    where = _axes(node, axes)
    if where is None:
        raise ValueError("no axes")
    return np.expand_dims(data, where)


def _transpose(node: ir.Node, data: np.ndarray) -> np.ndarray:
    perm = attribute(node, "perm", None)  # without it the axes are reversed
    return np.ascontiguousarray(np.transpose(data, perm)) if data.ndim else data


def _reshape(node: ir.Node, data: np.ndarray, shape: np.ndarray) -> np.ndarray:
    sizes = [int(s) for s in shape.reshape(-1)]
    if not attribute(node, "allowzero", 0):  # 0 copies the size
        sizes = [data.shape[i] if s == 0 else s for i, s in enumerate(sizes)]
    return data.reshape(sizes)


def _identity(node: ir.Node, data: np.ndarray) -> np.ndarray:
    return data


_MOVES: dict[str, Callable[..., np.ndarray]] = {
    "Identity": _identity,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}

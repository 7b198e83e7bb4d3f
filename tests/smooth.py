"""Inputs that are smooth, as pictures are, with a little noise; and networks that take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper


def samples(count: int, seed: int, sizes: Sequence[int] = (5, 4)) -> list[dict[str, np.ndarray]]:
    """Feeds of `x` with three channels, each of the sizes doubled."""
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(count, 3, *sizes))
    for axis in range(2, 2 + len(sizes)):
        smooth = smooth.repeat(2, axis=axis)
    return [{"x": (image + 0.3 * rng.normal(size=image.shape))[None].astype(np.float32)} for image in smooth]


def network(
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto],
    answer: Sequence[int],
    sizes: Sequence[int] = (5, 4),
    inputs: Sequence[str] = ("x",),
) -> ir.Model:
    """Nodes with weights as a model of any number of samples: inputs as `samples` makes them, and `y`, [n, *answer]."""
    taken: list[Any] = ["n", 3, *(2 * size for size in sizes)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, taken) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *answer])],
        weights,
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))

"""The rows of a consumer's input: what each sampled output position sees, channel by channel and tap by tap.

Layout: `X[:, i * k + t]` is channel i at tap t, as in `W.reshape(n, m * k)`. Zero padding belongs to the sample, since
the border is part of the data. Taps are gathered at the sampled positions only; nothing is unfolded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs

__all__ = ["Positions", "draw", "input_rows", "output_rows", "pads_of"]

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """Sampled output positions of one batch: for each row the sample and the flat index over the other axes."""

    sample: NDArray[np.int64]
    place: NDArray[np.int64]


def draw(node: ir.Node, shape: tuple[int, ...], per_sample: int, rng: np.random.Generator) -> Positions:
    """Draw positions of a node's output, the same number in every sample.

    Args:
        node: Conv, Gemm or MatMul.
        shape: Of its output for one batch: [N, channels, space...] of a Conv, [N, ..., channels] else.
        per_sample: At most so many; all where there are fewer.
        rng: What draws.
    """
    places = math.prod(shape[2:] if node.op_type == "Conv" else shape[1:-1])
    count = min(per_sample, places)
    chosen = [rng.permutation(places)[:count] if count < places else np.arange(places) for _ in range(shape[0])]
    return Positions(np.repeat(np.arange(shape[0]), count), np.concatenate(chosen).astype(np.int64))


def output_rows(node: ir.Node, y: NDArray[np.generic], at: Positions) -> Array:
    """Outputs at sampled positions; shape (rows, channels), float32."""
    if node.op_type == "Conv":
        flat = y.reshape(y.shape[0], y.shape[1], -1)
        return np.asarray(flat[at.sample, :, at.place], np.float32)
    flat = y.reshape(y.shape[0], -1, y.shape[-1])
    return np.asarray(flat[at.sample, at.place], np.float32)


def input_rows(node: ir.Node, x: NDArray[np.generic], at: Positions, space: tuple[int, ...]) -> Array:
    """Inputs that the sampled positions sum over; shape (rows, channels * taps), float32.

    Args:
        node: Conv without groups, Gemm or MatMul with the constant on the right.
        x: One batch of its input.
        at: Positions of its output.
        space: Output sizes of a Conv along its spatial axes; () else.
    """
    if node.op_type != "Conv":
        if node.op_type == "Gemm" and verbs.attribute(node, "transA", 0):
            x = x.T
        flat = x.reshape(x.shape[0], -1, x.shape[-1])
        return np.asarray(flat[at.sample, at.place], np.float32)
    kernel = _kernel(node)
    strides = verbs.attribute(node, "strides", (1,) * len(kernel))
    dilations = verbs.attribute(node, "dilations", (1,) * len(kernel))
    pads = pads_of(node, x.shape[2:], kernel)
    padded = np.pad(x, [(0, 0), (0, 0), *pads])
    corner = np.unravel_index(at.place, space)
    taps = np.stack(np.unravel_index(np.arange(math.prod(kernel)), kernel))
    index = [
        corner[axis][:, None] * strides[axis] + taps[axis][None, :] * dilations[axis] for axis in range(len(kernel))
    ]
    flat_index = np.ravel_multi_index(tuple(index), padded.shape[2:])
    flat = padded.reshape(x.shape[0], x.shape[1], -1)
    rows = flat[at.sample[:, None], :, flat_index]
    return np.asarray(rows.transpose(0, 2, 1).reshape(len(at.place), -1), np.float32)


def _kernel(node: ir.Node) -> tuple[int, ...]:
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    assert shape is not None
    return tuple(int(size) for size in shape[2:])  # type: ignore[arg-type]


def pads_of(node: ir.Node, space: tuple[int, ...], kernel: tuple[int, ...]) -> list[tuple[int, int]]:
    """(before, after) per spatial axis of a Conv, `auto_pad` worked out (T32)."""
    mode = str(verbs.attribute(node, "auto_pad", "NOTSET"))
    rank = len(kernel)
    if mode in ("NOTSET", "VALID", ""):
        pads = verbs.attribute(node, "pads", (0,) * (2 * rank)) if mode != "VALID" else (0,) * (2 * rank)
        return [(int(pads[axis]), int(pads[axis + rank])) for axis in range(rank)]
    strides = verbs.attribute(node, "strides", (1,) * rank)
    dilations = verbs.attribute(node, "dilations", (1,) * rank)
    found = []
    for axis in range(rank):
        out = -(-space[axis] // strides[axis])
        total = max((out - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - space[axis], 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return found

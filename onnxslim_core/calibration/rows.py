"""The rows of a consumer's input: what each sampled output position sees, channel by channel and tap by tap.

Layout: `X[:, i * k + t]` is channel i at tap t, as in `W.reshape(n, m * k)`. Zero padding belongs to the sample, since
the border is part of the data. Taps are gathered at the sampled positions only; nothing is unfolded or padded. A
ConvTranspose is read backwards: an output position sees those taps whose input pixel exists, and zeros elsewhere, so
that rows times weights are its answer exactly and the same regression fits it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.calibration.consumers import constant_of

__all__ = ["Positions", "draw", "input_rows", "output_rows", "output_shape", "pads_of"]

Array = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """Sampled output positions of one batch.

    Attributes:
        sample: For each row its sample; (rows,).
        place: For each row its flat index over the axes that are neither samples nor channels; (rows,).
        shared: The flat indices where they are the same in every sample, (rows / samples,), samples outermost in the
            rows; None where they are not.
    """

    sample: Ints
    place: Ints
    shared: Ints | None = None

    @classmethod
    def of_all(cls, samples: int, shared: Ints) -> Positions:
        """The same positions in every sample."""
        return cls(np.repeat(np.arange(samples), len(shared)), np.tile(shared, samples), shared)


def _is_kernel(node: ir.Node) -> bool:
    return node.op_type in ("Conv", "ConvTranspose")


def _channels_last(node: ir.Node, array: NDArray[np.generic]) -> NDArray[np.generic]:
    """An operand of a matrix product as [N, places, channels]."""
    if node.op_type == "MatMul" and constant_of(node) == 0:
        array = array.swapaxes(-1, -2)
    if array.ndim == 1:
        array = array[None]
    return array.reshape(array.shape[0], -1, array.shape[-1])


def draw(node: ir.Node, shape: tuple[int, ...], per_sample: int, rng: np.random.Generator) -> Positions:
    """Draw positions of a node's output, the same number in every sample.

    Args:
        node: Conv, ConvTranspose, Gemm or MatMul.
        shape: Of its output for one batch: [N, channels, space...] of a Conv, [N, ..., channels] else, and
            [N, ..., channels, places] of a MatMul with its constant on the left.
        per_sample: At most so many; all where there are fewer.
        rng: What draws.
    """
    if _is_kernel(node):
        places, samples = math.prod(shape[2:]), shape[0]
    elif node.op_type == "MatMul" and constant_of(node) == 0:
        places = math.prod(shape[1:-2]) * shape[-1] if len(shape) > 2 else 1
        samples = shape[0] if len(shape) > 2 else shape[-1]
    else:
        places, samples = math.prod(shape[1:-1]), shape[0] if len(shape) > 1 else 1
    chosen = rng.choice(places, per_sample, replace=False) if per_sample < places else np.arange(places)
    return Positions.of_all(samples, chosen.astype(np.int64))


def output_shape(node: ir.Node, shape: tuple[int, ...], n: int) -> tuple[int, ...]:
    """The shape of a linear node's answer to an input of this shape, with n output channels."""
    if node.op_type == "Gemm":
        return shape[1 if verbs.attribute(node, "transA", 0) else 0], n
    if node.op_type == "MatMul":
        return (*shape[:-2], n, shape[-1]) if constant_of(node) == 0 and len(shape) > 1 else (*shape[:-1], n)
    kernel = _kernel(node)
    strides, dilations = _strides(node, kernel)
    far = [dilations[axis] * (size - 1) + 1 for axis, size in enumerate(kernel)]
    if node.op_type == "Conv":
        pads = pads_of(node, shape[2:], kernel)
        space = [(shape[2 + i] + sum(pads[i]) - far[i]) // strides[i] + 1 for i in range(len(kernel))]
        return shape[0], n, *space
    given = verbs.attribute(node, "output_shape")
    mode = str(verbs.attribute(node, "auto_pad", "NOTSET"))
    if given is not None:
        return shape[0], n, *given[-len(kernel) :]
    sides = verbs.attribute(node, "pads", (0,) * (2 * len(kernel))) if mode != "VALID" else (0,) * (2 * len(kernel))
    extra = verbs.attribute(node, "output_padding", (0,) * len(kernel))
    whole = [strides[i] * (shape[2 + i] - 1) + extra[i] + far[i] for i in range(len(kernel))]
    if mode in ("SAME_UPPER", "SAME_LOWER"):  # nothing is cut off where the kernel is shorter than the stride
        return shape[0], n, *(min(strides[i] * shape[2 + i], whole[i]) for i in range(len(kernel)))
    return shape[0], n, *(whole[i] - sides[i] - sides[i + len(kernel)] for i in range(len(kernel)))


def output_rows(node: ir.Node, y: NDArray[np.generic], at: Positions) -> Array:
    """Outputs at sampled positions; shape (rows, channels), float32."""
    if not _is_kernel(node):
        return _matrix_rows(node, y, at)
    return _taken(y, at.place[None] if at.shared is None else at.shared[None], at)


def _matrix_rows(node: ir.Node, array: NDArray[np.generic], at: Positions) -> Array:
    array = _channels_last(node, array)
    return np.asarray(array[at.sample, at.place], np.float32)


def _taken(array: NDArray[np.generic], index: Ints, at: Positions, seen: NDArray[np.bool_] | None = None) -> Array:
    """Elements of [N, channels, space...] at flat indices (taps, positions), zero where not seen.

    Returns (rows, channels * taps).
    """
    flat, taps = array.reshape(array.shape[0], array.shape[1], -1), len(index)
    if at.shared is None:
        found = flat[at.sample[None], :, index]  # [taps, rows, channels]
        if seen is not None:
            found[~seen] = 0
        return np.asarray(found.transpose(1, 2, 0), np.float32).reshape(len(at.place), -1)
    # all samples at once, which reads memory in order: [N, channels, taps * positions]
    taken = flat[:, :, index.reshape(-1)]
    if seen is not None and not seen.all():
        taken[:, :, ~seen.reshape(-1)] = 0
    taken = taken.reshape(len(flat), flat.shape[1] * taps, -1)
    return np.asarray(taken.swapaxes(0, 1), np.float32).reshape(taken.shape[1], -1).T


def input_rows(node: ir.Node, x: NDArray[np.generic], at: Positions, space: Sequence[int]) -> Array:
    """Inputs that the sampled positions sum over; shape (rows, channels * taps), float32.

    Args:
        node: A linear node.
        x: One batch of its input.
        at: Positions of its output.
        space: Output sizes of a Conv or ConvTranspose along its spatial axes; anything else needs none.
    """
    if not _is_kernel(node):
        if node.op_type == "Gemm" and verbs.attribute(node, "transA", 0):
            x = x.T
        return _matrix_rows(node, x, at)
    kernel = _kernel(node)
    places = np.unravel_index(at.place if at.shared is None else at.shared, tuple(space))
    steps = np.unravel_index(np.arange(math.prod(kernel)), kernel)
    read = _read_by_conv if node.op_type == "Conv" else _read_by_transpose
    index, seen = read(node, x.shape[2:], tuple(space), kernel, places, steps)
    return _taken(x, np.ravel_multi_index(tuple(index), x.shape[2:], mode="clip"), at, seen)


def _read_by_conv(
    node: ir.Node,
    space: tuple[int, ...],
    out: tuple[int, ...],
    kernel: tuple[int, ...],
    places: Sequence[NDArray[np.intp]],
    steps: Sequence[NDArray[np.intp]],
) -> tuple[list[NDArray[np.intp]], NDArray[np.bool_]]:
    """Per axis the input coordinate of (tap, position), and whether it is inside."""
    pads = pads_of(node, space, kernel)
    strides, dilations = _strides(node, kernel)
    index = [
        places[axis][None] * strides[axis] + steps[axis][:, None] * dilations[axis] - pads[axis][0]
        for axis in range(len(kernel))
    ]
    return index, _inside(index, space)


def _read_by_transpose(
    node: ir.Node,
    space: tuple[int, ...],
    out: tuple[int, ...],
    kernel: tuple[int, ...],
    places: Sequence[NDArray[np.intp]],
    steps: Sequence[NDArray[np.intp]],
) -> tuple[list[NDArray[np.intp]], NDArray[np.bool_]]:
    """As `_read_by_conv`, of the operator that goes the other way."""
    strides, dilations = _strides(node, kernel)
    before = _transposed_pads(node, space, out, kernel)
    far = [places[axis][None] + before[axis] - steps[axis][:, None] * dilations[axis] for axis in range(len(kernel))]
    index = [each // strides[axis] for axis, each in enumerate(far)]
    seen = _inside(index, space)
    for axis, each in enumerate(far):
        seen &= each % strides[axis] == 0
    return index, seen


def _inside(index: Sequence[NDArray[np.intp]], space: tuple[int, ...]) -> NDArray[np.bool_]:
    seen = np.ones(index[0].shape, np.bool_)
    for each, size in zip(index, space, strict=True):
        seen &= (each >= 0) & (each < size)
    return seen


def _strides(node: ir.Node, kernel: tuple[int, ...]) -> tuple[Sequence[int], Sequence[int]]:
    ones = (1,) * len(kernel)
    return verbs.attribute(node, "strides", ones), verbs.attribute(node, "dilations", ones)


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
    strides, dilations = _strides(node, kernel)
    found = []
    for axis in range(rank):
        out = -(-space[axis] // strides[axis])
        total = max((out - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - space[axis], 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return found


def _transposed_pads(node: ir.Node, space: tuple[int, ...], out: tuple[int, ...], kernel: tuple[int, ...]) -> list[int]:
    """What a ConvTranspose cuts off before its output, per axis, from the sizes it really has (ConvTranspose-11)."""
    rank = len(kernel)
    mode = str(verbs.attribute(node, "auto_pad", "NOTSET"))
    if mode == "VALID":
        return [0] * rank
    if mode in ("NOTSET", "") and verbs.attribute(node, "output_shape") is None:
        return [int(pad) for pad in verbs.attribute(node, "pads", (0,) * rank)[:rank]]
    strides, dilations = _strides(node, kernel)
    extra = verbs.attribute(node, "output_padding", (0,) * rank)
    found = []
    for axis in range(rank):
        whole = strides[axis] * (space[axis] - 1) + extra[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        total = max(whole - out[axis], 0)
        found.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
    return found

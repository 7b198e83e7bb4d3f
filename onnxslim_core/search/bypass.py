"""Who makes up for a residual block that goes: the last linear layer before it, which is to answer with its stream.

Without its block a stream `s` has to become `s + f(s)`. The layer that makes it, or is added into it last, is solved
for that sum, less what it is added to, as is done for removed channels (He, Zhang, Sun, ICCV 2017, 3.3). Where stream
and sum both go through a Relu, the second one changes nothing, and what goes into the first is solved for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim_core.calibration.consumers import answer_of, blocks_of, is_linear, source_of, taps_of, weights_of
from onnxslim_core.calibration.lockstep import passing
from onnxslim_core.calibration.moments import Moments, Sums
from onnxslim_core.calibration.rows import draw, input_rows, output_rows
from onnxslim_core.calibration.study import LARGEST
from onnxslim_core.channels.branches import Branch
from onnxslim_core.graph import is_op, users_of
from onnxslim_core.rewrite import Sample

__all__ = ["Bypass", "bypass_of", "rows_of"]

_PER_SAMPLE = 24
"""Positions drawn per sample, as in a study of channels."""


@dataclass(frozen=True, slots=True, eq=False)
class Bypass:
    """The layer before a block.

    Attributes:
        maker: The linear node.
        stream: What it makes, alone or together with `other`.
        target: The sum at the end of the block, which the stream is to become.
        other: What the maker is added to in the stream; None where it makes the stream alone.
    """

    maker: ir.Node
    stream: ir.Value
    target: ir.Value
    other: ir.Value | None


def bypass_of(branch: Branch, shapes: Mapping[ir.Value, tuple[int, ...]], gone: Sequence[Branch] = ()) -> Bypass | None:
    """The layer that can make up for a block; None where nothing linear makes its stream.

    Args:
        branch: The block.
        shapes: Concrete shapes.
        gone: All blocks that go: where the stream comes out of one of them, whoever stands before that one.
    """
    stream, target = branch.shortcut, branch.add.outputs[0]
    ends = {each.add: each for each in gone}
    while True:
        source = stream.producer()
        if is_op(source, "Relu") and source is not None:
            users, is_output = users_of(target)
            if is_output or [node.op_type for node, _ in users] != ["Relu"] or source.inputs[0] is None:
                return None
            stream = source.inputs[0]
            source = stream.producer()
        if source is None:
            return None
        if source not in ends:
            break
        stream = ends[source].shortcut
    if (maker := _maker_of(stream)) is not None:
        return _checked(Bypass(maker, stream, target, None), shapes)
    for value, other in (tuple(source.inputs), tuple(reversed(source.inputs))) if is_op(source, "Add") else ():
        maker = None if value is None else _maker_of(value)
        found = None if maker is None else _checked(Bypass(maker, stream, target, other), shapes)
        if found is not None:
            return found
    return None


def _maker_of(value: ir.Value) -> ir.Node | None:
    """The linear node that answers with this value, its bias included."""
    source = value.producer()
    if source is None or is_linear(source):
        return source
    behind = [each.producer() for each in source.inputs if each is not None] if is_op(source, "Add") else []
    return next((n for n in behind if n is not None and is_linear(n) and answer_of(n) is value), None)


def _checked(bypass: Bypass, shapes: Mapping[ir.Value, tuple[int, ...]]) -> Bypass | None:
    values = [bypass.target, answer_of(bypass.maker), *([] if bypass.other is None else [bypass.other])]
    # a summand that is broadcast has another shape
    same = len({shapes.get(value) for value in values}) == 1 and shapes.get(bypass.target) is not None
    return bypass if same and len(weights_of(bypass.maker)) <= LARGEST else None


def rows_of(
    model: ir.Model, batches: Sequence[Sample], bypasses: Sequence[Bypass], *, seed: int = 0, threads: int = 1
) -> list[Moments]:
    """One pass of the samples: what every maker reads, and what it should answer.

    Args:
        model: The model as it is.
        batches: Feeds.
        bypasses: In the order of the graph.
        seed: Of the positions.
        threads: For onnxruntime.
    """
    if not bypasses:
        return []
    rng, sums = np.random.default_rng(seed), [Sums(taps_of(each.maker)) for each in bypasses]
    wanted: dict[ir.Value, None] = {}
    for each in bypasses:
        wanted |= dict.fromkeys([source_of(each.maker), each.target, *([] if each.other is None else [each.other])])
    for held in passing(model, batches, list(wanted), threads):
        for each, total in zip(bypasses, sums, strict=True):
            x, y = held[source_of(each.maker)], held[each.target]
            y = y if each.other is None else y - held[each.other]
            at = draw(each.maker, y.shape, _PER_SAMPLE, rng)
            total.add(input_rows(each.maker, x, at, y.shape[2:]), output_rows(each.maker, y, at))
    return [
        total.moments().within(blocks_of(each.maker, *weights_of(each.maker).shape))
        for each, total in zip(bypasses, sums, strict=True)
    ]

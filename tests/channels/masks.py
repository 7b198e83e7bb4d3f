"""The mask oracle: the judge of every rule of the channel graph.

A removal is right when the smaller model answers what the original answers with zeros multiplied in *at every sum
over the removed channels*, never at the node that makes them, since bias, shift and Sigmoid come after it. Nothing
is trusted on its word: onnxruntime runs both models with its optimizer off, at every size that is handed in; the
plan is random; a mask that does not move the output, a NaN or an Inf proves nothing and fails. What the channel graph
says about weights (`uses`) is compared with what the removal did to them. Where quantized numbers are summed, a zero is
their zero point. A recurrent node that measures the range of its own state has its removed units silenced instead:
with nothing coming in and no bias they answer zero, which no range notices. Norms and means that may lose width are
masked in their statistics: sums over the channels that stay, divided by how many stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.channels.boxes import View
from onnxslim_core.channels.groups import ChannelGraph, analyse
from onnxslim_core.channels.removal import remove_atoms
from onnxslim_core.measure.shapes import concrete_shapes
from onnxslim_core.model import wrap
from onnxslim_core.ops.atoms import compact
from onnxslim_core.ops.flow import Sink, Use, axes_of
from onnxslim_core.ops.macs import macs
from tests import oracles

__all__ = ["Proof", "masked", "plan", "prove", "prove_removal", "to_proto"]

Feeds = Mapping[str, np.ndarray]
Flags = NDArray[np.bool_]

TOLERANCE = 2e-5
"""Largest max|d| / max|ref| of float32 sums whose order differs; a mask has to move the output 50 times as far."""


@dataclass(frozen=True)
class Proof:
    """What was compared, and how well it agreed.

    Attributes:
        free: Classes of channels that may go.
        removed: Those that went.
        error: Largest max|d| / max|ref| between the smaller and the masked model.
        moved: The same between the masked and the original model.
        params: Share of the elements of labelled weights that is left.
    """

    free: int
    removed: int
    error: float
    moved: float
    params: float


def prove(
    model: onnx.ModelProto | ir.Model,
    feeds: Sequence[Feeds],
    view: View,
    seed: int = 0,
    share: float = 0.5,
    *,
    tolerance: float = TOLERANCE,
    strict: bool = True,
    widths: bool = False,
) -> Proof:
    """Analyse at the sizes of the first feed, remove a random share of every group, compare at all feeds.

    Args:
        model: Is not changed.
        feeds: Inputs; the first sets the sizes of the analysis, the others may have different ones.
        view: Of the open choices.
        seed: Of the plan.
        share: Of the free classes of each group that goes.
        tolerance: On max|d| / max|ref|.
        strict: Whether the mask has to move the output, and inference must agree. Where not, the tolerance is widened
            to what a change of one unit in the last place of the input does to the answers, as large models need it.
        widths: Whether norms and means over channels may lose some.

    Raises:
        AssertionError: where the smaller model answers differently, or where nothing would be proven.
    """
    own = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model.clone()
    channels = analyse(own, feeds[0], view=view, widths=widths)
    classes = plan(channels, np.random.default_rng(seed), share)
    return prove_removal(channels, feeds, classes, tolerance=tolerance, strict=strict)


def prove_removal(
    channels: ChannelGraph,
    feeds: Sequence[Feeds],
    classes: Sequence[int],
    *,
    tolerance: float = TOLERANCE,
    strict: bool = True,
) -> Proof:
    """Remove these classes and compare; the channel graph does not describe the model afterwards."""
    model = channels.flow.model
    free = sum(int(group.free.sum()) for group in channels.groups)
    gone = channels.gone(classes)
    left = channels.params(gone) / max(channels.params(), 1.0)
    original = to_proto(model.clone())
    references = [to_proto(masked(channels, gone, feed)) for feed in feeds]
    expected = _expected_weights(channels.uses, gone)
    saved = _macs(model, feeds[0])
    remove_atoms(channels, gone)
    smaller = to_proto(model)
    saved -= _macs(model, feeds[0])
    said = channels.macs() - channels.macs(gone)
    assert not strict or abs(saved - said) <= 1e-6 * abs(said) + 1, f"{saved} multiply-adds went instead of {said}"
    if strict and _infers(original):
        onnx.shape_inference.infer_shapes(smaller, check_type=True, strict_mode=True, data_prop=True)
    oracles.assert_same_interface(original, smaller)
    _check_weights(expected)
    error, moved = 0.0, 0.0
    first, last = oracles.session(original), oracles.session(smaller)
    for feed, reference in zip(feeds, references, strict=True):
        judges = (first, oracles.session(reference), last)
        before, wanted, got = (judge.run(None, dict(feed)) for judge in judges)
        error = max(error, _distance(wanted, got, None if strict else before))
        moved = max(moved, _distance(before, wanted))
        if not strict:
            floors = [
                oracles.noise_floor(judge, feed, out, 0) for judge, out in zip(judges, (before, wanted), strict=False)
            ]
            tolerance = max(tolerance, 8 * max(floors))
    assert error <= tolerance, f"the smaller model is off by {error:.3g} (the mask itself moved by {moved:.3g})"
    assert not strict or not classes or moved > 50 * tolerance, f"the mask moved the output by {moved:.3g} only"
    return Proof(free, len(classes), error, moved, left)


def plan(channels: ChannelGraph, rng: np.random.Generator, share: float) -> list[int]:
    """Random classes: of each group this share of what is free, at least one, never all there is."""
    chosen: list[int] = []
    for group in channels.groups:
        free = group.classes[group.free]
        count = min(max(round(len(free) * share), 1), len(free), len(group.classes) - 1)
        if count > 0:
            chosen += rng.choice(free, count, replace=False).tolist()
    return chosen


def masked(channels: ChannelGraph, gone: Flags, feed: Feeds | None = None) -> ir.Model:
    """A copy of the model in which every sum over removed channels reads zeros there.

    Masks are for the sizes of `feed`; without one, for those of the analysis.
    """
    flow = channels.flow
    shapes = flow.shapes.shape if feed is None else concrete_shapes(flow.model, feed, bodies_too=True).shape
    model = flow.model.clone()
    twins = dict(zip(verbs.all_nodes(flow.model.graph), verbs.all_nodes(model.graph), strict=True))
    names = verbs.Names(model)
    for sink in channels.sinks:
        kept = _kept(channels, sink, gone)
        if kept.all():
            continue
        node = twins[sink.node]
        if node.op_type == "DynamicQuantizeLSTM" and sink.index == 2:
            _silence(model, names, node, kept)
            continue
        source = node.inputs[sink.index]
        original = sink.node.inputs[sink.index]
        assert source is not None and original is not None
        kept = _fitted(kept, shapes[original])
        mask = verbs.add_constant(model.graph, names, kept, "mask")
        dtype = flow.shapes.dtype[original].numpy()  # type: ignore[attr-defined]
        zero = node.inputs[sink.zero] if sink.zero is not None and sink.zero < len(node.inputs) else None
        zero = verbs.add_constant(model.graph, names, np.zeros((), dtype), "zero") if zero is None else zero
        if dtype.kind == "f":
            mask.const_value, operands, op = ir.tensor(kept.astype(dtype), name=mask.name), [source, mask], "Mul"
            mask.type = ir.TensorType(flow.shapes.dtype[original])  # type: ignore[attr-defined]
        else:
            operands, op = [mask, source, zero], "Where"
        verbs.replace_input(node, sink.index, verbs.add_node(names, op, operands, before=node).outputs[0])
    for original_node in flow.averages:
        labels, value = flow.labels(original_node.inputs[0]), original_node.inputs[0]
        assert labels is not None and value is not None
        kept = np.equal(compact(gone[labels].astype(np.int32)), 0)
        if not kept.all():
            first = int(verbs.attribute(original_node, "axis", -1))
            axes = axes_of(flow, original_node, labels.ndim) if original_node.op_type == "ReduceMean" else None
            parts = kept.mean(axis=tuple(axes or range(first, 0)), keepdims=True)
            share = _fitted(kept / np.where(parts, parts, 1.0), shapes[value])
            _mask_average(names, twins[original_node], share.astype(np.float32), flow.opset)
    return model


def _mask_average(names: verbs.Names, node: ir.Node, share: NDArray[np.float32], opset: int) -> None:
    """Give a mean or a norm the statistics of the channels that stay; `share` is 1 / (what stays) there, else 0."""
    graph, x = node.graph, node.inputs[0]
    assert isinstance(graph, ir.Graph) and x is not None
    weight = verbs.add_constant(graph, names, share, "share")

    def add(op: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        return verbs.add_node(names, op, list(inputs), attributes, before=node).outputs[0]

    def mean(value: ir.Value) -> ir.Value:
        axes = list(range(int(verbs.attribute(node, "axis", -1)), 0))
        weighted = add("Mul", value, weight)
        if opset < 18:
            return add("ReduceMean", weighted, axes=axes)
        return add("ReduceMean", weighted, verbs.add_constant(graph, names, np.array(axes, np.int64), "axes"))

    if node.op_type == "ReduceMean":
        verbs.replace_input(node, 0, add("Mul", x, weight))
        return
    assert int(verbs.attribute(node, "axis", -1)) < 0
    epsilon = verbs.add_constant(graph, names, np.array(verbs.attribute(node, "epsilon", 1e-5), np.float32), "epsilon")
    centred = add("Sub", x, mean(x)) if node.op_type == "LayerNormalization" else x
    made = add("Div", centred, add("Sqrt", add("Add", mean(add("Mul", centred, centred)), epsilon)))
    for op, operand in zip(("Mul", "Add"), node.inputs[1:], strict=False):
        made = made if operand is None else add(op, made, operand)
    verbs.replace(node.outputs[0], made, names)


def _silence(model: ir.Model, names: verbs.Names, node: ir.Node, kept: Flags) -> None:
    """Let units of an LSTM have neutral weights and no bias in every gate."""
    gates = np.tile(kept.reshape(-1), 4)
    for index, zero, mask in ((1, 9, gates), (2, 11, gates), (3, None, np.tile(gates, 2))):
        array = verbs.array_of(node.inputs[index])
        assert array is not None
        point = None if zero is None else verbs.array_of(node.inputs[zero])
        neutral = np.zeros(1) if point is None else point.reshape(len(array), 1, -1)
        made = verbs.add_constant(model.graph, names, np.where(mask, array, neutral).astype(array.dtype), "silenced")
        verbs.replace_input(node, index, made)


def _fitted(mask: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """The mask at another size: an axis that holds a symbolic size times channels repeats them."""
    mask = mask.reshape((1,) * (len(shape) - mask.ndim) + mask.shape)
    repeats = [size // axis if axis > 1 else 1 for size, axis in zip(shape, mask.shape, strict=True)]
    return np.tile(mask, repeats)


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as a proto; what `onnx_ir` cannot carry (maps) is carried around it."""
    return wrap(model).to_proto()


def _kept(channels: ChannelGraph, sink: Sink, gone: Flags) -> NDArray[np.bool_]:
    """What the mask lets through: of an activation by its labels, of a constant along its last axis."""
    value = sink.node.inputs[sink.index]
    assert value is not None
    labels = channels.flow.labels(value)
    if labels is None:
        labels = sink.labels[0]
    return np.equal(compact(gone[labels].astype(np.int32)), 0)


def _macs(model: ir.Model, feed: Feeds) -> int:
    shape = concrete_shapes(model, feed).shape
    return sum(
        macs(node, [None if v is None else shape.get(v) for v in node.inputs], [shape.get(v) for v in node.outputs])
        for node in model.graph
    )


def _infers(model: onnx.ModelProto) -> bool:
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def _expected_weights(uses: Iterable[Use], gone: Flags) -> list[tuple[Use, dict[int, NDArray[np.int64]], np.ndarray]]:
    """For each constant operand with labels: what the channel graph says is left of it."""
    keeps: dict[tuple[ir.Node, int], dict[int, NDArray[np.int64]]] = {}
    firsts: dict[tuple[ir.Node, int], Use] = {}
    for use in uses:
        firsts.setdefault((use.node, use.index), use)
        went = np.atleast_2d(gone[use.labels])
        rows = ~went.all(axis=1)
        keeps.setdefault((use.node, use.index), {})[use.axis] = np.flatnonzero(~went[rows].any(axis=0))
    found = []
    for key, use in firsts.items():
        array = verbs.array_of(use.constant)
        if array is not None:
            found.append((use, keeps[key], array))
    return found


def _check_weights(expected: Iterable[tuple[Use, dict[int, NDArray[np.int64]], np.ndarray]]) -> None:
    for use, keeps, before in expected:
        if use.node.graph is None:
            continue
        after = verbs.array_of(use.node.inputs[use.index])
        assert after is not None, f"{verbs.label_of(use.node)} lost a constant"
        said = before
        for axis, keep in keeps.items():
            assert after.shape[axis] == len(keep), f"{verbs.label_of(use.node)}: input {use.index}, axis {axis}"
            said = said.take(keep, axis=axis)
        if said.shape == after.shape:
            assert np.array_equal(said, after), f"{verbs.label_of(use.node)}: input {use.index} holds other entries"


def _distance(reference: Sequence[Any], candidate: Sequence[Any], scale: Sequence[Any] | None = None) -> float:
    """The largest max|d| / max|ref| over the outputs; integers and booleans count as numbers."""
    worst = 0.0
    for left, right, more in zip(reference, candidate, scale or reference, strict=True):
        if not isinstance(left, np.ndarray) or left.dtype.kind not in "fiub" or not left.size:
            continue
        assert left.shape == right.shape, f"shape {right.shape} instead of {left.shape}"
        a, b = left.astype(np.float64), right.astype(np.float64)
        assert np.isfinite(a).all() and np.isfinite(b).all(), "NaN or Inf proves nothing"
        largest = max(float(np.abs(a).max()), float(np.abs(more.astype(np.float64)).max()), 1e-30)
        worst = max(worst, float(np.abs(a - b).max()) / largest)
    return worst

"""Weights rounded so that the answers stay, one layer after the other, each on what it reads by then.

For weights (d, n) the error of a layer on the samples is quadratic, with moments of the input as the 8-bit network
brings it and of the float network's answer as the target. Three ways to the grid are tried, and the one with the least
error on samples that the moments do not hold is taken:

    nearest     W rounded, b + (W - W^)' E[x]   bias correction (Nagel et al., ICCV 2019, 4.2)
    feedback    row by row, what rounding a row does is made up for by the rows that follow:
                W_j: -= e U_j: / U_jj,  U'U = (H + l I)^-1  (Frantar et al., "GPTQ", ICLR 2023, 3)
    solved      the same for W = (H + l I)^-1 (C + l W0), the least-squares weights on the 8-bit inputs

Where a layer is added into a stream, its target is the stream itself less what the 8-bit stream brings, so that the
end of a block mends what happened before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onnxslim_core import graph as verbs
from onnxslim_core.calibration.lockstep import Walk
from onnxslim_core.calibration.rows import draw, input_rows, output_rows
from onnxslim_core.quant.draft import Draft
from onnxslim_core.quant.grid import Grid, as_float32
from onnxslim_core.quant.insert import Rounded, rewrite
from onnxslim_core.quant.layout import Layout
from onnxslim_core.rewrite import Progress, Sample

__all__ = ["mend", "with_feedback"]

Floats = NDArray[np.float64]

_LARGEST = 2400
"""Inputs per output above which only the bias is mended: the inverse of the moments would take minutes."""
_ROWS = (3000, 8000)
_RIDGE = 3e-3
_DAMP = 1e-2
_BLOCK = 64
_LARGEST_Q = 127


@dataclass(slots=True)
class _Sums:
    """Moments under way, by group: x (g, r, d), y (g, r, n)."""

    rows: int = 0
    x: Floats | float = 0.0
    y: Floats | float = 0.0
    xx: Floats | float = 0.0
    xy: Floats | float = 0.0
    yy: float = 0.0

    def add(self, x: NDArray[np.float32], y: NDArray[np.float32], squares: bool) -> None:
        """Take in rows; without squares only the means."""
        self.rows += x.shape[1]
        self.x = self.x + x.sum(axis=1, dtype=np.float64)
        self.y = self.y + y.sum(axis=1, dtype=np.float64)
        if squares:
            turned = x.swapaxes(1, 2)
            self.xx = self.xx + np.asarray(turned @ x, np.float64)
            self.xy = self.xy + np.asarray(turned @ y, np.float64)
            self.yy += float(np.square(y, dtype=np.float64).sum())

    def means(self, has_bias: bool) -> tuple[Floats, Floats]:
        """Of x (g, d) and y (g, n); zeros where no bias can take them up."""
        x, y = np.asarray(self.x) / max(self.rows, 1), np.asarray(self.y) / max(self.rows, 1)
        return (x, y) if has_bias else (np.zeros_like(x), np.zeros_like(y))

    def moments(self, mean_x: Floats, mean_y: Floats) -> tuple[Floats, Floats]:
        """H (g, d, d) and C (g, d, n) around these means."""
        n, x, y = max(self.rows, 1), np.asarray(self.x), np.asarray(self.y)
        around_x, around_y = x / n - mean_x, y / n - mean_y
        h = np.asarray(self.xx) / n - np.einsum("gi,gj->gij", x / n, x / n)
        c = np.asarray(self.xy) / n - np.einsum("gi,gj->gij", x / n, y / n)
        h = h + np.einsum("gi,gj->gij", around_x, around_x)
        return h, c + np.einsum("gi,gj->gij", around_x, around_y)

    def error(self, weights: Floats, bias: Floats) -> float:
        """Mean squared error per row of y ~ x'W + b."""
        n = max(self.rows, 1)
        x, y = np.asarray(self.x) / n, np.asarray(self.y) / n
        squares = np.einsum("gij,gij->", weights, np.asarray(self.xx) @ weights) / n
        cross = np.einsum("gij,gij->", weights, np.asarray(self.xy)) / n
        mean = np.einsum("gi,gij->gj", x, weights)
        return float(squares - 2 * cross + self.yy / n + np.sum(bias * (bias + 2 * mean - 2 * y)))


def mend(
    draft: Draft,
    layout: Layout,
    batches: Sequence[Sample],
    *,
    alone: bool = False,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[ir.Node, Rounded]:
    """New weights for every int8 layer that can be mended.

    Args:
        draft: The float model.
        layout: Which layers are int8.
        batches: Feeds; every third only judges.
        alone: Each layer as if it were the only one: nothing is assumed of what comes before it, so that the weights
            do in any set of layers.
        seed: Of the positions.
        threads: For onnxruntime and BLAS.
        progress: Told after every layer.
    """
    todo = [node for node in draft.linear if node in layout.nodes]
    if alone:
        return _each_alone(draft, layout, todo, Walk(draft.model, batches, threads), seed, threads, progress)
    model, twins = draft.written(layout, {node: _with_bias(node) for node in todo})
    before, after = Walk(draft.model, batches, threads), Walk(model, batches, threads)
    rng = np.random.default_rng(seed)
    for node in todo:
        before.reserve(_targets(node))
        after.reserve([v for v in (twins[node].inputs[0], _other(node, twins[node])) if v is not None])
    found: dict[ir.Node, Rounded] = {}
    waiting = {twins[node] for node in todo}
    with threadpool_limits(threads):
        for number, node in enumerate(todo):
            twin = twins[node]
            waiting.discard(twin)
            other = _other(node, twin)
            held = [v for v in (twin.inputs[0], other) if v is not None]
            if not after.has_run(twin):
                stream = other if other is not None and not waiting.intersection(after.missing(other)) else None
                result = _solve(node, twin, before, after, stream, rng)
                if result is not None:
                    found[node] = result
                    rewrite(twin, result)
            before.release(_targets(node))
            after.release(held)
            if progress is not None:
                progress("rounding", number + 1, len(todo))
    return found


def _each_alone(
    draft: Draft,
    layout: Layout,
    todo: Sequence[ir.Node],
    walk: Walk,
    seed: int,
    threads: int,
    progress: Progress | None,
) -> dict[ir.Node, Rounded]:
    """Every layer on the float network's own values, brought onto the grid of its input."""
    found, rng = {}, np.random.default_rng(seed)
    for node in todo:
        walk.reserve([node.inputs[0], node.outputs[0]])  # type: ignore[list-item]
    with threadpool_limits(threads):
        for number, node in enumerate(todo):
            source = node.inputs[0]
            assert source is not None
            grid = draft.grid(layout.root(source))
            pairs = ((_round_trip(x, grid), y) for x, y in walk.each([source, node.outputs[0]]))
            result = _fit(node, pairs, len(walk), rng)
            walk.release([source, node.outputs[0]])
            if result is not None:
                found[node] = result
            if progress is not None:
                progress("rounding alone", number + 1, len(todo))
    return found


def _round_trip(x: NDArray[np.generic], grid: Grid) -> NDArray[np.float32]:
    q = np.clip(np.rint(x / np.float32(grid.scale)) + grid.zero_point, 0, 255) - grid.zero_point  # type: ignore[operator]
    return np.asarray(q * grid.scale, np.float32)


def _with_bias(node: ir.Node) -> Rounded:
    """Weights to the nearest and a bias even if it is zero: there has to be one that can be changed."""
    weights = grouped(node)
    scales = _scales(weights)
    given = verbs.array_of(node.inputs[2]) if len(node.inputs) > 2 else None
    bias = np.zeros(scales.size) if given is None else np.asarray(given, np.float64)
    return Rounded(ungrouped(node, _nearest(weights, scales)).astype(np.int8), scales.reshape(-1), bias)


def _targets(node: ir.Node) -> list[ir.Value]:
    """What a layer answers in the float model, and the sum that it goes into."""
    add = _sum_behind(node)
    return [node.outputs[0]] if add is None else [node.outputs[0], add.outputs[0]]


def _sum_behind(node: ir.Node) -> ir.Node | None:
    users, is_output = verbs.users_of(node.outputs[0])
    if is_output or len(users) != 1 or not verbs.is_op(users[0][0], "Add") or node.op_type != "Conv":
        return None
    add, index = users[0]
    other = add.inputs[1 - index]
    if other is None or other is node.outputs[0] or other.producer() is None or verbs.array_of(other) is not None:
        return None
    return add


def _other(node: ir.Node, twin: ir.Node) -> ir.Value | None:
    """The other summand in the 8-bit model."""
    add = _sum_behind(node)
    if add is None:
        return None
    place = next(i for i, value in enumerate(add.inputs) if value is not node.outputs[0])
    value = twin.outputs[0]
    for _ in range(3):  # Q and DQ lie between the layer and the sum
        user = next((user for user, _ in verbs.users_of(value)[0]), None)
        if user is None or not verbs.is_op(user, "QuantizeLinear", "DequantizeLinear"):
            break
        value = user.outputs[0]
    user = next((user for user, _ in verbs.users_of(value)[0] if verbs.is_op(user, "Add")), None)
    return None if user is None or len(user.inputs) != 2 else user.inputs[place]


def _solve(
    node: ir.Node, twin: ir.Node, before: Walk, after: Walk, stream: ir.Value | None, rng: np.random.Generator
) -> Rounded | None:
    add = _sum_behind(node)
    if stream is not None and (add is None or twin in after.missing(stream)):
        stream = None
    source, target = twin.inputs[0], add.outputs[0] if stream is not None and add is not None else node.outputs[0]
    assert source is not None
    inputs = after.each([source] if stream is None else [source, stream])
    pairs = (
        (x, y - np.broadcast_to(streams[0], y.shape) if streams else y)
        for (y,), (x, *streams) in zip(before.each([target]), inputs, strict=True)
    )
    return _fit(node, pairs, len(before), rng)


def _fit(
    node: ir.Node,
    pairs: Iterable[tuple[NDArray[np.generic], NDArray[np.generic]]],
    batches: int,
    rng: np.random.Generator,
) -> Rounded | None:
    """New weights from inputs and what should be answered to them, batch by batch."""
    weights = grouped(node)
    groups, d, _ = weights.shape
    squares, per_sample = d <= _LARGEST, 0
    fit, check = _Sums(), _Sums()
    for number, (x, y) in enumerate(pairs):
        per_sample = per_sample or _positions(d, batches, y)
        at = draw(node, y.shape, per_sample, rng)
        into = check if number % 3 == 2 else fit
        into.add(
            _split(input_rows(node, x, at, y.shape[2:]), groups), _split(output_rows(node, y, at), groups), squares
        )
    return _best(node, weights, fit, check if check.rows else fit, squares)


def _positions(d: int, batches: int, y: NDArray[np.generic]) -> int:
    """Positions per sample, so that there are several rows for every unknown, within bounds."""
    wanted = min(max(15 * d, _ROWS[0]), _ROWS[1])
    return max(-(-wanted // max(batches * len(y), 1)), 8)


def _split(rows: NDArray[np.float32], groups: int) -> NDArray[np.float32]:
    """(r, g * d) as (g, r, d)."""
    return np.ascontiguousarray(rows.reshape(len(rows), groups, -1).swapaxes(0, 1))


def _best(node: ir.Node, weights: Floats, fit: _Sums, check: _Sums, squares: bool) -> Rounded | None:
    has_bias = node.op_type != "MatMul"
    mean_x, mean_y = fit.means(has_bias)
    if not np.isfinite(mean_x).all() or not np.isfinite(mean_y).all():
        return None
    scales = _scales(weights)
    tried = [(_nearest(weights, scales), scales)]
    if squares:
        h, c = fit.moments(mean_x, mean_y)
        h = (h + h.swapaxes(1, 2)) / 2
        tried.append((with_feedback(weights, h, scales), scales))
        solved = _least_squares(h, c, weights)
        if np.isfinite(solved).all():
            own = _scales(solved)
            tried.append((with_feedback(solved, h, own), own))
    best, chosen = np.inf, None
    for q, scale in tried:
        made = q * scale[:, None, :]
        bias = mean_y - np.einsum("gi,gij->gj", mean_x, made)
        error = check.error(made, bias) if squares else 0.0
        if error < best:
            best, chosen = error, (q, scale, bias)
    if chosen is None:
        return None
    q, scale, bias = chosen
    layout = ungrouped(node, q)
    return Rounded(layout.astype(np.int8), scale.reshape(-1), bias.reshape(-1) if has_bias else None)


def grouped(node: ir.Node) -> Floats:
    """Weights of a linear node as (groups, d, n)."""
    array = np.asarray(verbs.array_of(node.inputs[1]), np.float64)
    if node.op_type == "Conv":
        groups = int(verbs.attribute(node, "group", 1))
        return np.ascontiguousarray(array.reshape(groups, array.shape[0] // groups, -1).swapaxes(1, 2))
    return (array.T if node.op_type == "Gemm" and verbs.attribute(node, "transB", 0) else array)[None]


def ungrouped(node: ir.Node, weights: Floats) -> Floats:
    """The inverse of `grouped`."""
    shape = node.inputs[1].shape  # type: ignore[union-attr]
    assert shape is not None
    if node.op_type == "Conv":
        return np.ascontiguousarray(weights.swapaxes(1, 2)).reshape(shape.numpy())
    array = weights[0]
    return np.asarray(array.T if node.op_type == "Gemm" and verbs.attribute(node, "transB", 0) else array)


def _scales(weights: Floats) -> Floats:
    """One per group and output: (g, n)."""
    scales = as_float32(np.abs(weights).max(axis=1) / _LARGEST_Q)
    return np.where(scales > 2.0**-100, scales, 1.0)


def _nearest(weights: Floats, scales: Floats) -> Floats:
    return np.asarray(np.clip(np.rint(weights / scales[:, None, :]), -_LARGEST_Q, _LARGEST_Q))


def _damped(h: Floats, share: float) -> Floats:
    mean = np.einsum("gii->g", h) / h.shape[1]
    return np.asarray(h + (share * mean + 1e-12)[:, None, None] * np.eye(h.shape[1]))


def _least_squares(h: Floats, c: Floats, start: Floats) -> Floats:
    """Weights that answer best to the 8-bit input, drawn towards what they were."""
    penalty = _RIDGE * np.einsum("gii->g", h) / h.shape[1] + 1e-12
    try:
        return np.asarray(np.linalg.solve(_damped(h, _RIDGE), c + penalty[:, None, None] * start))
    except np.linalg.LinAlgError:
        return start


def with_feedback(weights: Floats, h: Floats, scales: Floats) -> Floats:
    """Rounding with error feedback; a group's rows in falling order of their own moment."""
    order = np.argsort(-np.einsum("gii->gi", h), axis=1, kind="stable")
    back = np.argsort(order, axis=1)
    sorted_h = np.take_along_axis(np.take_along_axis(h, order[:, :, None], 1), order[:, None, :], 2)
    try:
        upper = np.linalg.cholesky(np.linalg.inv(_damped(sorted_h, _DAMP))).swapaxes(1, 2)
    except np.linalg.LinAlgError:
        return _nearest(weights, scales)
    left = np.take_along_axis(weights, order[:, :, None], 1).copy()
    q = np.empty_like(left)
    d = left.shape[1]
    for start in range(0, d, _BLOCK):
        end = min(start + _BLOCK, d)
        errors = np.empty_like(left[:, start:end])
        for j in range(start, end):
            q[:, j] = np.clip(np.rint(left[:, j] / scales), -_LARGEST_Q, _LARGEST_Q)
            error = (left[:, j] - q[:, j] * scales) / upper[:, j, j, None]
            left[:, j + 1 : end] -= upper[:, j, j + 1 : end, None] * error[:, None, :]
            errors[:, j - start] = error
        if end < d:
            left[:, end:] -= upper[:, start:end, end:].swapaxes(1, 2) @ errors
    return np.take_along_axis(q, back[:, :, None], 1)

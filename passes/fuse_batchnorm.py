"""Fuse BatchNormalization, and Mul, Add, Sub, Div by per-channel constants, into the linear node next to it.

After Conv, ConvTranspose, Gemm, MatMul (with its bias Add) or another BatchNormalization, with y = s*u + t per channel:

    u = W*x + b    ->    y = (s.W)*x + (s*b + t)          s on the output axis of W

Before Conv, Gemm or MatMul, also through Flatten, with u = s*x + t per channel:

    y = W*u + b    ->    y = (W.s)*x + (W*t + b)          s on the input axis of W

where BatchNormalization has s = gamma / sqrt(var + epsilon), t = beta - s*mean. Next to zero padding a shift t is not
the same at the border, so only a scale goes into a padded Conv or into a ConvTranspose behind it.

Exact up to rounding; computed in float64. Saves a node and its constants per match. A weight that another node reads
as well is copied for this one, if the copy is small. gamma and beta stay on record for scoring channels.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import onnx_ir as ir

from onnxslim_core.channels.records import BATCHNORM, BatchNormRecord
from onnxslim_core.errors import InternalError, RecipeError
from onnxslim_core.graph import all_nodes, attribute, is_op, label_of, opset_of, users_of
from onnxslim_core.rewrite import Change, Context, Edit, Guard, Kind, Rewrite

from ._affine import ARITHMETIC, constant, known_shape, misfit, proven_sizes, rank_of, shifts, source_index
from ._fusion import Fusion, after, before, weight_shape
from ._linear import outputs_of

__all__ = ["FuseBatchNorm"]


def inference_mode(m: Fusion, options: FuseBatchNorm) -> str | None:
    """A BatchNormalization in training mode takes mean and variance from the data; spatial = 0 has one per pixel."""
    for node in (m.node, m.linear):
        if not is_op(node, "BatchNormalization"):
            continue
        if attribute(node, "training_mode", 0) or any(v.name for v in node.outputs[1:]):
            return f"{label_of(node)} is in training mode"
        if not attribute(node, "spatial", 1):
            return f"{label_of(node)} has a mean per position (spatial = 0)"
    return None


def nobody_else_reads(m: Fusion, options: FuseBatchNorm) -> str | None:
    """What lies between the fused nodes changes its meaning: another reader would see other numbers."""
    for node in m.nodes()[:-1]:
        users, is_output = users_of(node.outputs[0])
        if is_output:
            return f"'{node.outputs[0].name}' is an output of the graph"
        if len(users) > 1:
            return f"'{node.outputs[0].name}' is read by {len(users)} nodes"
    return None


def weights_are_constant(m: Fusion, options: FuseBatchNorm) -> str | None:
    """Weights that are computed (from int8, say) stay as they are: folding them would make the file bigger."""
    needed = [(m.linear, m.weight())]
    needed += [(node, v) for node in (m.node, m.linear) if is_op(node, "BatchNormalization") for v in node.inputs[1:5]]
    if _moves_bias(m):
        needed.append((m.linear, m.bias_value()))
    for node, value in needed:
        if value is not None and constant(value) is None:
            producer = value.producer()
            how = f"computed by {label_of(producer)}" if producer else "fed from outside"
            return f"'{value.name}' of {label_of(node)} is {how}"
    return None


def bias_is_per_channel(m: Fusion, options: FuseBatchNorm) -> str | None:
    """The C of a Gemm may also differ per row, which no per-channel bias can say; a broken Conv has any other size."""
    bias = constant(m.bias_value()) if _moves_bias(m) and is_op(m.linear, "Gemm", "Conv", "ConvTranspose") else None
    if bias is None or bias.size == 1:
        return None
    wanted = outputs_of(m.linear, _array(m.weight()).shape)
    if bias.shape[-1] == bias.size == wanted:
        return None
    return f"{'C' if m.linear.op_type == 'Gemm' else 'the bias'} of {label_of(m.linear)} has the shape {bias.shape}"


def border_sees_no_shift(m: Fusion, options: FuseBatchNorm) -> str | None:
    """Padding puts zeros beside shifted values; of an unshifted one it would take zeros that stand for the shift."""
    if not m.before or not shifts(m.node) or is_op(m.linear, "Gemm", "MatMul"):
        return None
    if is_op(m.linear, "ConvTranspose"):
        return f"the taps of {label_of(m.linear)} overlap unevenly, a shift is no bias there"
    return f"{label_of(m.linear)} pads with zeros after the shift" if _pads(m.linear) else None


def shape_stays(m: Fusion, options: FuseBatchNorm) -> str | None:
    """A constant of shape [3, 1, 1] also turns one channel into three."""
    if not m.before or is_op(m.node, "BatchNormalization"):
        return None
    index = source_index(m.node)
    assert index is not None
    source, other = m.node.inputs[index], _array(m.node.inputs[1 - index]).shape
    if not other:
        return None
    direct = m.flatten is None and not is_op(m.linear, "MatMul")
    if direct and len(other) < (wanted := _array(m.weight()).ndim):
        rank: int | None = wanted  # what a Conv reads has the rank of its weight: fewer dimensions did not raise it
    else:
        rank = rank_of(source)
    shape = known_shape(source) if math.prod(other) > 1 else None
    if rank is None or (shape is None and math.prod(other) > 1):
        return "the shape of its input is not known"
    sizes = (1,) * (rank - len(other)) + other
    if len(sizes) > rank or any(size not in (1, d) for d, size in zip(shape or sizes, sizes, strict=True)):
        return f"the constant of shape {other} broadcasts its input of shape {shape}"
    return None


def weight_copy_is_small(m: Fusion, options: FuseBatchNorm) -> str | None:
    """A weight that another node reads has to be copied, which makes the file bigger."""
    value, array = m.weight(), _array(m.weight())
    while value is not None:
        users, is_output = users_of(value)
        if (len(users) > 1 or is_output) and array.nbytes > options.max_copy:
            return f"'{value.name}' is read elsewhere, a copy takes {array.nbytes} bytes"
        producer = value.producer()
        value = producer.inputs[0] if producer is not None and producer.inputs else None
    return None


def moderate_scale(m: Fusion, options: FuseBatchNorm) -> str | None:
    """Scaling up a small difference of large numbers shows the rounding of the fused weights."""
    scale, shift = m.coefficients
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return "a scale or shift is not finite, such as by a variance that is not positive"
    largest = float(np.abs(scale).max(initial=0.0))
    return f"a channel is scaled by {largest:.3g}, above max_scale" if largest > options.max_scale else None


def moderate_offset(m: Fusion, options: FuseBatchNorm) -> str | None:
    """Where x is close to a large c, x - c is exact and W*x - W*c is not."""
    if not m.before:
        return None
    shift = m.coefficients[1]
    if is_op(m.node, "BatchNormalization"):
        mean, var = (_array(value).astype(np.float64) for value in m.node.inputs[3:5])
        shift = mean / np.sqrt(var + float(attribute(m.node, "epsilon", 1e-5)))
    largest = float(np.abs(shift).max(initial=0.0))
    return f"its input is moved by {largest:.3g}, above max_offset" if largest > options.max_offset else None


def representable(m: Fusion, options: FuseBatchNorm) -> str | None:
    """The fused numbers must fit into the type of the weights: float16 ends at 65504 and thins out below 6e-5."""
    fused, dtype = m.fused, _array(m.weight()).dtype
    for what, exact in (("weight", fused.weight), ("bias", fused.bias)):
        if exact is not None and (why := misfit(exact, dtype)) is not None:
            return f"the numbers of the fused {what} {why}"
    return None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FuseBatchNorm(Rewrite):
    """Fuse BatchNormalization and per-channel arithmetic into the Conv, ConvTranspose, Gemm or MatMul beside it."""

    name: ClassVar[str] = "fuse_batchnorm"
    kind: ClassVar[Kind] = Kind.ALGEBRAIC
    ops: ClassVar[frozenset[str]] = frozenset({"BatchNormalization", *ARITHMETIC})
    guards: ClassVar[tuple[Guard, ...]] = (
        inference_mode,
        nobody_else_reads,
        weights_are_constant,
        bias_is_per_channel,
        border_sees_no_shift,
        shape_stays,
        weight_copy_is_small,
        moderate_scale,
        moderate_offset,
        representable,
    )

    max_scale: float = 1e6
    """Refuse where a channel would be scaled by more than this."""
    max_offset: float = 256.0
    """Refuse to fuse into the node after it where the input is moved by more: Add and Sub in the input's unit,
    BatchNormalization in standard deviations."""
    max_copy: int = 4096
    """Bytes up to which a weight that another node reads as well is copied."""

    def __post_init__(self) -> None:
        if self.max_scale <= 0:
            raise RecipeError(f"fuse_batchnorm: max_scale must be positive, found {self.max_scale}")
        if self.max_offset <= 0:
            raise RecipeError(f"fuse_batchnorm: max_offset must be positive, found {self.max_offset}")
        if self.max_copy < 0:
            raise RecipeError(f"fuse_batchnorm: max_copy must not be negative, found {self.max_copy}")

    def match(self, node: ir.Node, model: ir.Model) -> Fusion | None:
        """The linear node before, or else the one after; where both are there, the first that no guard refuses."""
        if opset_of(model) < 7:  # arithmetic broadcast by an attribute, BatchNormalization trained by default
            return None
        found = [m for m in (after(node, model), before(node, model)) if m is not None]
        if not is_op(node, "BatchNormalization"):
            # x * sigmoid(x) and the like: nobody would expect a fusion there, so it is no refusal either
            found = [m for m in found if nobody_else_reads(m, self) is None]
        if len(found) < 2:
            return found[0] if found else None
        return next((m for m in found if not any(guard(m, self) for guard in self.guards)), found[0])

    def action(self, m: Fusion) -> str:
        """Which node goes into which."""
        return f"fuse {m.node.op_type} into the {m.linear.op_type} {'after' if m.before else 'before'} it"

    def rewrite(self, m: Fusion, edit: Edit) -> None:
        """Give the linear node its new weights, then take the affine node out of the way of the data."""
        fused, old = m.fused, _array(m.weight())
        weight = edit.constant(m.linear, fused.weight.astype(old.dtype), _hint(m.weight(), m.linear, "weight"))
        bias = None
        if fused.bias is not None:
            array = np.broadcast_to(fused.bias, outputs_of(m.linear, old.shape)).astype(old.dtype)
            bias = edit.constant(m.linear, array, _hint(m.bias_value(), m.linear, "bias"))
        _keep_record(m)
        if not m.before:
            edit.set_input(m.linear, 1, weight)
            edit.replace(m.node.outputs[0], _with_bias(m, bias, edit))
            return
        index = source_index(m.node)
        assert index is not None
        source = m.node.inputs[index]
        if m.flatten is not None:
            edit.set_input(m.flatten, 0, source)
            source = m.flatten.outputs[0]
        if bias is not None and is_op(m.linear, "MatMul") and m.bias is None:
            _with_new_bias(m.linear, [source, weight], bias, edit)
            return
        edit.set_input(m.linear, 1, weight)
        edit.set_input(m.linear, 0, source)
        _with_bias(m, bias, edit)

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Fuse to a fixpoint; each BatchNormalization that is left says why."""
        with proven_sizes(model):
            changes = Rewrite.run(self, model, context)
            left = [n for n in all_nodes(model.graph) if is_op(n, "BatchNormalization") and not self.match(n, model)]
        for node in left:
            changes.append(Change(self.name, (label_of(node),), "fuse BatchNormalization", _lonely(node), "match"))
        return changes


def _moves_bias(m: Fusion) -> bool:
    """False where a scale of the inputs leaves the bias as it is."""
    return not m.before or shifts(m.node)


def _pads(conv: ir.Node) -> bool:
    """True where a Conv reads zeros beside its input; a kernel of one element never does on its own account."""
    auto = attribute(conv, "auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return any(attribute(conv, "pads", ()))
    shape = weight_shape(conv)
    return auto != "VALID" and (shape is None or any(d != 1 for d in shape[2:]))


def _with_bias(m: Fusion, bias: ir.Value | None, edit: Edit) -> ir.Value:
    """Let the linear node add another bias; returns what carries the result."""
    if m.bias is not None and bias is not None:
        index = source_index(m.bias)
        assert index is not None
        edit.set_input(m.bias, 1 - index, bias)
    elif bias is not None and is_op(m.linear, "MatMul"):
        add = edit.node("Add", [m.linear.outputs[0], bias], before=m.node, hint=m.linear.name or "")
        _annotate(add, m.linear)
        return add.outputs[0]
    elif bias is not None:
        edit.set_input(m.linear, 2, bias)
        if is_op(m.linear, "Gemm"):
            edit.set_attribute(m.linear, "beta", None)
    return (m.bias or m.linear).outputs[0]


def _with_new_bias(old: ir.Node, inputs: list[ir.Value | None], bias: ir.Value, edit: Edit) -> None:
    """Put a MatMul and an Add in the place of a MatMul."""
    hint = old.name or ""
    matmul = edit.node("MatMul", inputs, before=old, hint=hint)
    add = edit.node("Add", [matmul.outputs[0], bias], before=old, hint=hint)
    for node in (matmul, add):
        _annotate(node, old)
    matmul.meta.update(old.meta)
    edit.replace(old.outputs[0], add.outputs[0])


def _annotate(node: ir.Node, like: ir.Node) -> None:
    value = like.outputs[0]
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape


def _keep_record(m: Fusion) -> None:
    """Note the distribution of the linear node's outputs as BatchNormalization left it; see BatchNormRecord."""
    if m.before or is_op(m.linear, "BatchNormalization"):
        return
    if is_op(m.node, "BatchNormalization"):
        gamma, beta = (_array(value).astype(np.float64).reshape(-1) for value in m.node.inputs[1:3])
    elif (record := m.linear.meta.get(BATCHNORM)) is not None:
        scale, shift = m.coefficients
        gamma, beta = scale * record.gamma, scale * record.beta + shift
    else:
        return
    m.linear.meta[BATCHNORM] = BatchNormRecord(gamma, beta)


def _hint(value: ir.Value | None, node: ir.Node, what: str) -> str:
    """A name for a new weight that tells where it comes from, also after several fusions."""
    base = value.name if value is not None and value.name else f"{node.name or node.op_type}/{what}"
    return re.sub(r"_fused(_\d+)?$", "", base) + "_fused"


def _array(value: ir.Value | None) -> np.ndarray:
    array = constant(value)
    if array is None:
        raise InternalError("not constant", "fuse_batchnorm")
    return array


def _lonely(node: ir.Node) -> str:
    """Why a BatchNormalization has nothing to go into."""
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    users = sorted({user.op_type for user, _ in users_of(node.outputs[0])[0]})
    before, after = source.op_type if source is not None else "an input", " and ".join(users) or "an output"
    return f"neither {before} before it nor {after} after it can take it"

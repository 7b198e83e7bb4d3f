"""Merge linear nodes: chains of two, sums and neighbours of one input, and readers of a tensor that is there twice.

    W2*(W1*x + b1) + b2        ->  (W2 W1)*x + (W2 b1 + b2)    Conv after Conv, Gemm and MatMul after each other
    (W1*x + b1) + (W2*x + b2)  ->  (W1 + W2)*x + (b1 + b2)     Conv, Gemm, MatMul; x itself, its BatchNormalization
    Concat(f(W1*x), f(W2*x))   ->  f([W1; W2]*x)               filters in order; f an activation or nothing
    W*Concat(x, y, x)          ->  (W_1 + W_3 | W_2)*Concat(x, y)

A kernel of two Convs in a row has the taps s1*d2*i + d1*p, with strides s1*s2 and padding p1 + s1*p2; kernels of
different sizes are added where their taps meet. Next to zero padding of the second, the first must be 1x1 and add
nothing: what it makes beyond the border is not zero otherwise. Groups of one only, but for sums.

Exact up to rounding; computed in float64. Done where it takes no more multiply-adds and no more bytes, and else only
where the place is measured to be faster and all such places together add less than half a per cent to the weights. Not
done: convolutions that part again (one Conv and a Split took 1.04 to 1.10 times the time of two to three Convs or
MatMuls in onnxruntime 1.32). Equal nodes are merged by `normalize`.
Source: structural re-parameterization after Ding et al., "RepVGG" (2021), section 3.3.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import ClassVar, Literal, final

import numpy as np
import onnx_ir as ir

from onnxslim_core.channels.records import BATCHNORM, BatchNormRecord
from onnxslim_core.errors import RecipeError
from onnxslim_core.graph import attribute, is_op, label_of, opset_of
from onnxslim_core.rewrite import Change, Context, Edit, Guard, Kind, Rewrite, apply

from ._affine import constant, misfit, proven_sizes
from ._merge_chain import Chain, chain_at
from ._merge_copies import Copies, copies_at
from ._merge_parallel import Neighbours, Sum, neighbours_at, sum_at
from ._merge_place import Merge, Single
from ._merge_probe import Probe, freed_bytes

__all__ = ["MergeConvs"]

_NODE_BYTES = 32
"""About what a node takes in the file without its names."""


def bias_is_per_channel(m: Merge, options: MergeConvs) -> str | None:
    """The C of a Gemm may be computed, or differ per row, which no per-channel bias can say."""
    for term in m.terms if not isinstance(m, Copies) else ():
        value = term.bias_value
        array = constant(value)
        if value is not None and array is None:
            return f"'{value.name}' of {label_of(term.node)} is computed"
        if array is not None and array.size != 1 and (array.shape[-1] != array.size or array.size != term.outputs):
            return f"C of {label_of(term.node)} has the shape {array.shape}"
    return None


def border_stays(m: Merge, options: MergeConvs) -> str | None:
    """The second Conv pads with zeros what the merged one computes from beyond the border."""
    if not isinstance(m, Chain):
        return None
    first, second = (term.geometry for term in m.terms)
    if first is None or second is None or not (second.auto or any(second.begin) or any(second.end)):
        return None
    padded = [bool(second.auto) or b > 0 or e > 0 for b, e in zip(second.begin, second.end, strict=True)]
    if any(pads and taps > 1 for pads, taps in zip(padded, first.kernel, strict=True)):
        return (
            f"{label_of(m.terms[1].node)} pads with zeros what {label_of(m.terms[0].node)} makes of more than one pixel"
        )
    bias = m.terms[0].bias()
    if bias is None or not bias.any():
        return None
    return f"{label_of(m.terms[1].node)} pads with zeros where the bias of {label_of(m.terms[0].node)} would be"


def representable(m: Merge, options: MergeConvs) -> str | None:
    """The merged numbers must fit into the type of the weights: float16 ends at 65504 and thins out below 6e-5."""
    single = m.single()
    weights = [m.weight(term) for term in m.terms] if isinstance(m, Copies) else [single.weight]
    for exact in (*weights, single.bias):
        if exact is not None and (why := misfit(exact, single.dtype)) is not None:
            return f"the merged numbers {why}"
    return None


def pays(m: Merge, options: MergeConvs) -> str | None:
    """No more multiply-adds and no more bytes, or else measured to be faster."""
    before, after = m.work()
    freed, added = freed_bytes(m.nodes()), m.added_bytes()
    if after <= before and added <= freed + _NODE_BYTES * (len(m.nodes()) - 1):
        return None
    probe, growth = options._probe, added - freed
    if probe is not None and not probe.asks:
        return None
    cost = f"{after / before:.2f} times the multiply-adds and {growth:+d} bytes"
    if probe is None or options.measure == "never":
        return f"{cost}, not measured"
    if growth > probe.allowance:
        return f"{cost}, more than is allowed"
    timing = probe.time(m.nodes(), _merged)
    if timing is None:
        return f"{cost}, cannot be measured"
    if timing.high >= 1:
        return f"{cost}, {timing.ratio:.2f} of the time ({timing.low:.2f} to {timing.high:.2f})"
    probe.allowance -= max(growth, 0)
    return None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MergeConvs(Rewrite):
    """Make one linear node of several that follow each other, are added up, or lie beside each other in a Concat."""

    name: ClassVar[str] = "merge_convs"
    kind: ClassVar[Kind] = Kind.ALGEBRAIC
    ops: ClassVar[frozenset[str]] = frozenset({"Add", "Concat", "Conv", "Gemm", "MatMul"})
    guards: ClassVar[tuple[Guard, ...]] = (
        bias_is_per_channel,
        border_stays,
        pays,
        representable,
    )

    measure: Literal["auto", "never"] = "auto"
    """What takes more multiply-adds or bytes is measured and kept where it is faster; or never done."""
    _probe: Probe | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.measure not in ("auto", "never"):
            raise RecipeError(f"merge_convs: measure is auto or never, found '{self.measure}'")

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Merge to a fixpoint over the whole model, bodies included."""
        return _apply(_bound(self, Probe.of(model, context)), model)

    def match(self, node: ir.Node, model: ir.Model) -> Merge | None:
        """The place that this node ends (or begins, where a Concat holds a tensor twice)."""
        if opset_of(model) < 7:  # arithmetic broadcasts by an attribute
            return None
        if is_op(node, "Concat"):
            return copies_at(node, model) or neighbours_at(node, model)
        return sum_at(node, model) if is_op(node, "Add") else chain_at(node, model)

    def action(self, m: Merge) -> str:
        """What becomes one."""
        kinds = " and ".join(dict.fromkeys(term.node.op_type for term in m.terms))
        if isinstance(m, Copies):
            return f"read {len(m.node.inputs) - len(m.distinct)} copies once in {kinds}"
        if isinstance(m, Sum):
            return f"merge the sum of {kinds}{' and its input' if m.is_identity else ''} into one"
        where = " beside each other" if isinstance(m, Neighbours) else " in a row"
        return f"merge {len(m.terms)} {kinds}{where} into one"

    def rewrite(self, m: Merge, edit: Edit) -> None:
        """Put the one node in the place of several."""
        if isinstance(m, Copies):
            _read_once(m, edit)
            return
        result = _build(m, m.single(), edit)
        if isinstance(m, Neighbours):
            result = _behind(m, result, edit)
        _describe(result, m.taken_in())
        edit.replace(m.taken_in(), result)


def _merged(model: ir.Model) -> bool:
    """Merge whatever is there, without asking whether it pays."""
    found = _apply(_bound(MergeConvs(), Probe(model, Context(), 0.0, asks=False)), model)
    return any(change.applied for change in found)


def _apply(bound: MergeConvs, model: ir.Model) -> list[Change]:
    with proven_sizes(model):
        return apply(bound, model)


def _bound(options: MergeConvs, probe: Probe) -> MergeConvs:
    """The pass with what it measures by."""
    bound = copy.copy(options)
    object.__setattr__(bound, "_probe", probe)
    return bound


def _build(m: Merge, single: Single, edit: Edit) -> ir.Value:
    """The one linear node, with the Add of its bias where it is a MatMul; returns what it makes."""
    last = m.terms[-1].node
    base = m.terms[-1].node.inputs[1]
    hint = f"{base.name if base is not None and base.name else last.op_type}_merged".replace(
        "_merged_merged", "_merged"
    )
    turned = single.op_type == "Gemm" and bool(attribute(single.like.node, "transB", 0))
    stored = (single.weight.T if turned else single.weight).astype(single.dtype)
    inputs: list[ir.Value | None] = [m.terms[0].source, edit.constant(m.node, stored, hint)]
    bias = None
    if single.bias is not None:
        bias = edit.constant(m.node, single.bias.astype(single.dtype), f"{hint}_bias")
    elif single.op_type == "Gemm" and opset_of(m.model) < 11:  # C is not optional yet
        bias = edit.constant(m.node, np.zeros(1, single.dtype), f"{hint}_zero")
    if bias is not None and single.op_type != "MatMul":
        inputs.append(bias)
    made = edit.node(single.op_type, inputs, _attributes(single, turned), before=m.node, hint=last.name or "")
    made.metadata_props.update(last.metadata_props)
    _keep_record(m, made)
    if bias is None or single.op_type != "MatMul":
        return made.outputs[0]
    _describe(made.outputs[0], last.outputs[0])
    return edit.node("Add", [made.outputs[0], bias], before=m.node, hint=last.name or "").outputs[0]


def _attributes(single: Single, turned: bool) -> dict[str, object]:
    if single.geometry is not None:
        found: dict[str, object] = dict(single.geometry.attributes())
        if "kernel_shape" in single.like.node.attributes:
            found["kernel_shape"] = list(single.geometry.kernel)
        return found | ({"group": single.like.groups} if single.like.groups > 1 else {})
    if single.op_type != "Gemm":
        return {}
    return {key: 1 for key, on in (("transA", single.turned_input), ("transB", turned)) if on}


def _behind(m: Neighbours, value: ir.Value, edit: Edit) -> ir.Value:
    """The activation and the rest of the Concat behind the merged node."""
    if m.activations:
        act = m.activations[0]
        plain = {name: attribute(act, name) for name in act.attributes}
        _describe(value, m.terms[0].out, with_shape=False)
        value = edit.node(act.op_type, [value], plain, before=m.node, hint=act.name or "").outputs[0]
    if m.is_all:
        return value
    _describe(value, m.terms[0].out, with_shape=False)
    inputs = [*m.node.inputs[: m.start], value, *m.node.inputs[m.start + len(m.terms) :]]
    axis = attribute(m.node, "axis", 1)
    return edit.node("Concat", inputs, {"axis": axis}, before=m.node, hint=m.node.name or "").outputs[0]


def _read_once(m: Copies, edit: Edit) -> None:
    """Give each reader its smaller weight, and the Concat each input once."""
    distinct = m.distinct
    source = distinct[0]
    if len(distinct) > 1:
        axis = attribute(m.node, "axis", 1)
        source = edit.node("Concat", distinct, {"axis": axis}, before=m.node, hint=m.node.name or "").outputs[0]
        _describe(source, m.node.outputs[0], with_shape=False)
    for term in m.terms:
        weight, name = m.weight(term), term.node.inputs[1]
        turned = is_op(term.node, "Gemm") and bool(attribute(term.node, "transB", 0))
        if is_op(term.node, "Gemm"):
            weight = weight / float(attribute(term.node, "alpha", 1.0))
        stored = (weight.T if turned else weight).astype(term.array.dtype)
        edit.set_input(
            term.node, 1, edit.constant(term.node, stored, f"{name.name if name is not None else 'w'}_merged")
        )
        edit.set_input(term.node, 0, source)


def _describe(value: ir.Value, like: ir.Value, *, with_shape: bool = True) -> None:
    value.type = like.type
    if with_shape:
        value.shape = like.shape


def _keep_record(m: Merge, made: ir.Node) -> None:
    """Carry over how BatchNormalization left the outputs, where the merged node has the same ones."""
    records = [term.node.meta.get(BATCHNORM) for term in m.terms]
    if isinstance(m, Chain) and records[-1] is not None:
        made.meta[BATCHNORM] = records[-1]
    if isinstance(m, Neighbours) and all(isinstance(record, BatchNormRecord) for record in records):
        gammas, betas = zip(*((record.gamma, record.beta) for record in records if record is not None), strict=True)
        made.meta[BATCHNORM] = BatchNormRecord(np.concatenate(gammas), np.concatenate(betas))

"""Linear nodes of one input that meet again: added up in an Add, or beside each other in a Concat."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim_core.graph import attribute, is_op

from ._affine import coefficients, constant, rank_of
from ._merge_place import Merge, Single
from ._merge_terms import Geometry, Term, embed, only_reader, places, term_read_by

__all__ = ["Neighbours", "Sum", "along_channels", "neighbours_at", "sum_at"]

_ACTIVATIONS = (
    *("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Selu", "Softplus", "Softsign"),
    *("Abs", "Erf", "Mish", "Gelu", "Neg"),
)
"""Element by element, with one input."""


@dataclass(frozen=True, slots=True, eq=False)
class Sum(Merge):
    """Two Convs or matrices of one input are added: W1 x + W2 x = (W1 + W2) x, also where one is x itself."""

    plain: ir.Node | None = None
    """The BatchNormalization that is the other summand."""
    is_identity: bool = False
    """The other summand is the input, or a BatchNormalization of it."""

    def nodes(self) -> tuple[ir.Node, ...]:
        """Summands, then the sum."""
        extra = () if self.plain is None else (self.plain,)
        return (*(node for term in self.terms for node in term.nodes()), *extra, self.node)

    def work(self) -> tuple[int, int]:
        """Per output position."""
        return sum(term.array.size for term in self.terms), max(term.array.size for term in self.terms)

    def compute(self) -> Single:
        """The sum of the kernels, each where its taps belong."""
        big = _largest(self.terms)
        biases = [term.bias() for term in self.terms]
        weights = [_written_as(term, big) for term in self.terms]
        if self.is_identity:
            scale, shift = (np.ones(1), None) if self.plain is None else coefficients(self.plain)
            weights.append(_dirac(big, scale))
            biases.append(None if shift is None else np.broadcast_to(shift, (big.outputs,)))
        given = [bias for bias in biases if bias is not None]
        gemm = any(is_op(term.node, "Gemm") for term in self.terms)
        op_type = "Conv" if big.geometry is not None else "Gemm" if gemm else "MatMul"
        turned = bool(attribute(big.node, "transA", 0))
        with np.errstate(all="ignore"):
            bias = np.sum(given, axis=0) if given else None
            return Single(big, np.sum(weights, axis=0), bias, big.geometry, op_type, turned)


def _largest(terms: tuple[Term, ...]) -> Term:
    return max(terms, key=lambda term: term.array.size)


def _written_as(term: Term, big: Term) -> np.ndarray:
    if term.geometry is None or big.geometry is None:
        return term.weight()
    return embed(term, big.geometry)


def _dirac(term: Term, scale: np.ndarray) -> np.ndarray:
    """The kernel of a Conv that multiplies each channel by a number: one tap, where output and input index agree."""
    geometry = term.geometry
    assert geometry is not None
    found = np.zeros(term.array.shape, np.float64)
    channels = np.arange(term.outputs)
    at = tuple(b // d for b, d in zip(geometry.begin, geometry.dilations, strict=True))
    found[(channels, channels % term.array.shape[1], *at)] = np.broadcast_to(scale, (term.outputs,))
    return found


def _keeps_places(term: Term) -> bool:
    """True where a Conv can be the identity: as many channels and positions out as in, and a tap for each own place."""
    geometry = term.geometry
    if geometry is None or geometry.auto or term.inputs != term.outputs or set(geometry.strides) != {1}:
        return False
    axes = zip(geometry.kernel, geometry.dilations, geometry.begin, geometry.end, strict=True)
    return all(b + e == d * (k - 1) and b % d == 0 and 0 <= b // d < k for k, d, b, e in axes)


def sum_at(node: ir.Node, model: ir.Model) -> Sum | None:
    """This Add joins two linear nodes of one input, or one and its input."""
    if len(node.inputs) != 2:
        return None
    left, right = (term_read_by(value, node) for value in node.inputs)
    if left is not None and right is not None:
        return Sum(node, model, (left, right)) if _alike(left, right) else None
    term, other = (left, node.inputs[1]) if left is not None else (right, node.inputs[0])
    if term is None or other is None or not _keeps_places(term):
        return None
    norm = other.producer()
    if other is term.source:
        return Sum(node, model, (term,), is_identity=True)
    if (
        norm is None
        or not is_op(norm, "BatchNormalization")
        or norm.inputs[0] is not term.source
        or not _is_plain_norm(norm, term)
    ):
        return None
    return Sum(node, model, (term,), plain=norm, is_identity=True)


def _alike(left: Term, right: Term) -> bool:
    """True where two terms of one input add up element by element."""
    if left.source is not right.source or left.node is right.node:
        return False
    if left.outputs != right.outputs or left.groups != right.groups or left.array.dtype != right.array.dtype:
        return False
    if left.geometry is None or right.geometry is None:
        turned = [bool(attribute(term.node, "transA", 0)) for term in (left, right)]
        return left.geometry is right.geometry and turned[0] == turned[1]
    big = _largest((left, right))
    assert big.geometry is not None
    return all(_fits(term, big.geometry) for term in (left, right))


def _fits(term: Term, big: Geometry) -> bool:
    return term.geometry is not None and places(term.geometry, big) is not None


def _is_plain_norm(norm: ir.Node, term: Term) -> bool:
    """A BatchNormalization in inference mode with constant, finite parameters of the term's channels."""
    parameters = [constant(value) for value in norm.inputs[1:5]]
    if any(array is None or array.size != term.outputs for array in parameters):
        return False
    if (
        attribute(norm, "training_mode", 0)
        or not attribute(norm, "spatial", 1)
        or any(v.name for v in norm.outputs[1:])
    ):
        return False
    return all(np.isfinite(part).all() for part in coefficients(norm))


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours(Merge):
    """Neighbouring inputs of a Concat along the channels come from one input: their filters lie one after the other."""

    start: int = 0
    """Which input of the Concat is the first of them."""
    activations: tuple[ir.Node, ...] = ()
    """The like activations between the terms and the Concat; none, or one for each."""

    def nodes(self) -> tuple[ir.Node, ...]:
        """Terms, activations, Concat."""
        return (*(node for term in self.terms for node in term.nodes()), *self.activations, self.node)

    @property
    def is_all(self) -> bool:
        """True where nothing is left to concatenate."""
        return len(self.node.inputs) == len(self.terms)

    def work(self) -> tuple[int, int]:
        """Per output position."""
        taps = max(math.prod(t.geometry.kernel) if t.geometry is not None else 1 for t in self.terms)
        after = taps * self.terms[0].inputs * sum(term.outputs for term in self.terms)
        return sum(term.array.size for term in self.terms), after

    def outputs(self) -> int:
        """Those of all."""
        return sum(term.outputs for term in self.terms)

    def compute(self) -> Single:
        """The filters in order."""
        big = max(self.terms, key=lambda t: math.prod(t.geometry.kernel) if t.geometry is not None else 1)
        axis = 0 if big.geometry is not None else 1
        weight = np.concatenate([_written_as(term, big) for term in self.terms], axis=axis)
        biases = [term.bias() for term in self.terms]
        bias = None
        if any(part is not None for part in biases):
            parts = [np.zeros(t.outputs) if b is None else b for t, b in zip(self.terms, biases, strict=True)]
            bias = np.concatenate(parts)
        turned = bool(attribute(big.node, "transA", 0))
        return Single(big, weight, bias, big.geometry, big.node.op_type, turned)


def neighbours_at(node: ir.Node, model: ir.Model) -> Neighbours | None:
    """The first run of neighbouring inputs of this Concat that come from one input through like nodes."""
    ends = [_ending(value, node) for value in node.inputs]
    for start, end in enumerate(ends):
        if end is None or not along_channels(node, end[0]):
            continue
        run = [end]
        for other in ends[start + 1 :]:
            if other is None or not _joins(run, other):
                break
            run.append(other)
        if len(run) > 1:
            acts = tuple(act for _, act in run if act is not None)
            return Neighbours(node, model, tuple(term for term, _ in run), start=start, activations=acts)
    return None


def _ending(value: ir.Value | None, concat: ir.Node) -> tuple[Term, ir.Node | None] | None:
    """The term that a value is made by, perhaps through an activation."""
    node = value.producer() if value is not None else None
    if value is None or node is None or only_reader(value) is not concat:
        return None
    act = node if is_op(node, *_ACTIVATIONS) and len(node.inputs) == 1 else None
    term = term_read_by(value, concat) if act is None else term_read_by(act.inputs[0], act)
    return None if term is None or term.groups != 1 else (term, act)


def _joins(run: list[tuple[Term, ir.Node | None]], other: tuple[Term, ir.Node | None]) -> bool:
    (first, act), (term, its) = run[0], other
    if term.source is not first.source or term.array.dtype != first.array.dtype:
        return False
    if any(term.node is known.node for known, _ in run) or term.node.op_type != first.node.op_type:
        return False
    if (act is None) != (its is None) or (act is not None and its is not None and not _like(act, its)):
        return False
    if first.geometry is None:
        return bool(attribute(first.node, "transA", 0)) == bool(attribute(term.node, "transA", 0))
    parts = [known for known, _ in run] + [term]
    big = max(parts, key=lambda t: math.prod(t.geometry.kernel) if t.geometry is not None else 1).geometry
    return big is not None and all(_fits(part, big) for part in parts)


def _like(a: ir.Node, b: ir.Node) -> bool:
    """True where two nodes of one input do the same."""
    names = set(a.attributes) | set(b.attributes)
    return a.op_type == b.op_type and all(attribute(a, n) == attribute(b, n) is not None for n in names)


def along_channels(concat: ir.Node, term: Term) -> bool:
    axis = int(attribute(concat, "axis", 1))
    place = -1 if term.geometry is None else 1
    if axis == place:
        return True
    rank = 2 + len(term.geometry.kernel) if term.geometry is not None else rank_of(term.out)
    return rank is not None and axis % rank == place % rank

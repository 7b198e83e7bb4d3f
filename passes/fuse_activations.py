"""Write a hard sigmoid that an exporter spelled out in pieces as one HardSigmoid.

    s*clip(a*x + b, lo, hi) + t   ->   HardSigmoid(x)      alpha = s*a, beta = s*b + t, where s*lo + t = 0, s*hi + t = 1
    y*clip(a*x + b, 0, hi)*s      ->   y*HardSigmoid(x)    alpha = s*a, beta = s*b, where s*hi = 1; hard swish: y is x

where HardSigmoid(x) = max(0, min(1, alpha*x + beta)). A piece is an Add, Sub, Mul or Div by one number, a Clip, a Relu,
a Min or Max with one number; in any order. alpha and beta are computed in float64 from the stored numbers.

Exact up to rounding. Saves one node to four per match. NaN and infinity come out as of the pieces (onnxruntime 1.32,
also inside a Conv); only where y*clip(...) overflowed on the way, y*HardSigmoid(x) no longer does.

Time after over before (default session, one thread of an AVX-512 machine; bench/neighbours.py): Add, Clip, Mul, Div .55
to .57, behind a Conv and with it .75 to .77; Mul, Add, Clip .47, Add, Clip, Div .40, Clip, Div .50. But a Conv with a
HardSigmoid takes 1.10 to 1.12 of one with a Clip, which in int8 also vanishes into the range of the numbers: so a clip
stays where fuse_batchnorm lets the linear nodes beside it take in all the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import onnx_ir as ir

from onnxslim_core.errors import RecipeError
from onnxslim_core.graph import attribute, is_op, opset_of, users_of
from onnxslim_core.rewrite import Change, Context, Edit, Guard, Kind, Match, Rewrite

from ._affine import ARITHMETIC, coefficients, constant, proven_sizes, rank_of, source_index

__all__ = ["FuseActivations"]

_LIMITS = ("Clip", "Max", "Min", "Relu")
_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOATS = ("float32", "float64", "float16", "bfloat16")
_LONGEST = 8
"""Pieces to look at most."""
_NEAR = 0.01
"""Ends this close to 0 and 1 are meant to be them: then a guard says why nothing is done."""


@dataclass(frozen=True, slots=True)
class _Line:
    """The function clip(a*x + b, lo, hi)."""

    a: float = 1.0
    b: float = 0.0
    lo: float = -math.inf
    hi: float = math.inf

    def then(self, node: ir.Node) -> _Line | None:
        """This function with a piece behind it; None where that is no function of this kind."""
        if is_op(node, *_LIMITS):
            low, high = _limits(node)
            if math.isnan(low) or math.isnan(high):
                return None
            return _Line(self.a, self.b, *(min(max(end, low), high) for end in (self.lo, self.hi)))
        scale, shift = (float(values[0]) for values in coefficients(node))
        if scale == 0 or not (math.isfinite(scale) and math.isfinite(shift)):
            return None
        ends = (scale * self.lo + shift, scale * self.hi + shift)
        return _Line(scale * self.a, scale * self.b + shift, min(ends), max(ends))

    @property
    def error(self) -> float:
        """How far the ends are from 0 and 1."""
        return max(abs(self.lo), abs(self.hi - 1))


@dataclass(frozen=True, slots=True, eq=False)
class Activation(Match):
    """The pieces of a hard sigmoid; the anchor is the last one.

    Attributes:
        source: What the hard sigmoid is of.
        pieces: The nodes that work on it, in the order of the data, without the product.
        line: What they compute.
        product: The Mul by y between the last limit and the last scales, if there is one.
        place: The input of the product that the pieces before it make.
    """

    source: ir.Value
    pieces: tuple[ir.Node, ...]
    line: _Line
    product: ir.Node | None = None
    place: int = 0

    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes in the order of the data, the product last."""
        return (*self.pieces, *([self.product] if self.product is not None else []))


def single_precision(m: Activation, options: FuseActivations) -> str | None:
    """The attributes of HardSigmoid are float32: too coarse for double, and float16 rounds after every piece."""
    found = sorted({array.dtype.name for node in m.pieces if (array := _operand(node)) is not None} - {"float32"})
    return f"its numbers are {found[0]}, HardSigmoid's are float32" if found else None


def ends_are_zero_and_one(m: Activation, options: FuseActivations) -> str | None:
    """HardSigmoid ends at 0 and 1; a factor of .1667 in place of 1/6 ends elsewhere."""
    return f"it ends at {m.line.lo:.7g} and {m.line.hi:.7g}" if m.line.error > 1e-6 else None


def shape_stays(m: Activation, options: FuseActivations) -> str | None:
    """A number of shape [1, 1, 1] also turns a vector into a tensor of three dimensions."""
    wanted = max((array.ndim for node in m.pieces if (array := _operand(node)) is not None), default=0)
    rank = rank_of(m.source) if wanted else 0
    if rank is None:
        return "the rank of its input is not known"
    return f"the number of shape {(1,) * wanted} broadcasts its input of {rank} dimensions" if wanted > rank else None


def moderate_offset(m: Activation, options: FuseActivations) -> str | None:
    """Where x is close to a large c, x - c is exact and alpha*x - alpha*c is not."""
    found = abs(m.line.b)
    return None if found <= options.max_offset else f"its input is moved by {found:.3g} of its steps, above max_offset"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FuseActivations(Rewrite):
    """Write the pieces of a hard sigmoid as one HardSigmoid."""

    name: ClassVar[str] = "fuse_activations"
    kind: ClassVar[Kind] = Kind.ALGEBRAIC
    ops: ClassVar[frozenset[str]] = frozenset({*ARITHMETIC, *_LIMITS})
    guards: ClassVar[tuple[Guard, ...]] = (single_precision, ends_are_zero_and_one, shape_stays, moderate_offset)

    max_offset: float = 32.0
    """Refuse where the input is moved by more, in units of the step from 0 to 1."""

    def __post_init__(self) -> None:
        if self.max_offset <= 0:
            raise RecipeError(f"fuse_activations: max_offset must be positive, found {self.max_offset}")

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Fuse to a fixpoint over the whole model, bodies included."""
        with proven_sizes(model):
            return Rewrite.run(self, model, context)

    def match(self, node: ir.Node, model: ir.Model) -> Activation | None:
        """The pieces that end at this node, where they are there as a whole and nobody reads what lies between."""
        if opset_of(model) < 7:  # arithmetic broadcast by an attribute
            return None
        found = _search(node, model, node, ())
        return None if found is None or _is_free(found) else found

    def action(self, m: Activation) -> str:
        """What becomes one."""
        return f"fuse {', '.join(node.op_type for node in m.pieces)} into a HardSigmoid"

    def rewrite(self, m: Activation, edit: Edit) -> None:
        """Put a HardSigmoid in the place of the pieces."""
        inner = m.node if m.product is None else m.product
        made = edit.node(
            "HardSigmoid",
            [m.source],
            {"alpha": float(np.float32(m.line.a)), "beta": float(np.float32(m.line.b))},
            before=inner,
            hint=m.node.name or "",
        ).outputs[0]
        old = m.node.outputs[0] if m.product is None else m.product.inputs[m.place]
        assert old is not None
        made.type, made.shape = old.type, old.shape
        if m.product is None:
            edit.replace(m.node.outputs[0], made)
            return
        edit.set_input(m.product, m.place, made)
        edit.replace(m.node.outputs[0], m.product.outputs[0])


def _search(
    node: ir.Node | None,
    model: ir.Model,
    anchor: ir.Node,
    pieces: tuple[ir.Node, ...],
    product: ir.Node | None = None,
    place: int = 0,
) -> Activation | None:
    """The longest chain of pieces up to the anchor that is a hard sigmoid; `pieces` are those behind the product."""
    found = None
    while node is not None and len(pieces) < _LONGEST and (index := _data_index(node)) is not None:
        pieces = (node, *pieces)
        source = node.inputs[index]
        line = _line(pieces)
        if source is None or line is None:
            return found
        if _is_hard_sigmoid(line, pieces):
            found = Activation(anchor, model, source, pieces, line, product, place)
        node = _maker(source, anchor)
    if found is not None or product is not None or not pieces or not is_op(node, "Mul"):
        return found
    assert node is not None
    if not all(is_op(piece, "Div", "Mul") for piece in pieces):
        return None
    for place, value in enumerate(node.inputs):
        maker = None if value is None else _maker(value, anchor)
        if (side := _search(maker, model, anchor, pieces, node, place)) is not None:
            return side
    return None


def _line(pieces: Sequence[ir.Node]) -> _Line | None:
    line: _Line | None = _Line()
    for node in pieces:
        line = None if line is None else line.then(node)
    return line


def _is_hard_sigmoid(line: _Line, pieces: Sequence[ir.Node]) -> bool:
    """True where the ends are 0 and 1; a clip alone stays one, and so does what float32 cannot say well."""
    return line.error <= _NEAR and any(is_op(node, *ARITHMETIC) for node in pieces) and 1e-30 < abs(line.a) < 1e30


def _data_index(node: ir.Node) -> int | None:
    """Which input of a piece is the data; None for a node that is no piece."""
    if is_op(node, "Relu"):
        return 0
    if is_op(node, "Clip"):
        return 0 if all(v is None or _number(v) is not None for v in node.inputs[1:]) else None
    if is_op(node, *ARITHMETIC):
        index = source_index(node)
        return index if index is not None and _number(node.inputs[1 - index]) is not None else None
    if is_op(node, "Max", "Min") and len(node.inputs) == 2:
        fixed = [_number(value) is not None for value in node.inputs]
        return fixed.index(False) if fixed.count(True) == 1 else None
    return None


def _operand(node: ir.Node) -> np.ndarray | None:
    """The number of a piece that broadcasts with its data: the bounds of a Clip do not."""
    index = None if is_op(node, "Clip", "Relu") else _data_index(node)
    return None if index is None else constant(node.inputs[1 - index])


def _number(value: ir.Value | None) -> np.ndarray | None:
    """The array of a constant that is one floating-point number."""
    array = constant(value)
    return array if array is not None and array.size == 1 and array.dtype.name in _FLOATS else None


def _limits(node: ir.Node) -> tuple[float, float]:
    """The range of a node that limits its data."""
    if is_op(node, "Relu"):
        return 0.0, math.inf
    if is_op(node, "Clip"):
        given = [None if (array := _number(value)) is None else float(array.item()) for value in node.inputs[1:3]]
        low, high = (*given, None, None)[:2]
        return (
            attribute(node, "min", -math.inf) if low is None else low,
            attribute(node, "max", math.inf) if high is None else high,
        )
    array = _operand(node)
    assert array is not None
    end = float(array.item())
    return (end, math.inf) if is_op(node, "Max") else (-math.inf, end)


def _maker(value: ir.Value, anchor: ir.Node) -> ir.Node | None:
    """The node of the anchor's graph that makes a value which is read once."""
    users, is_output = users_of(value)
    producer = value.producer()
    alone = len(users) == 1 and not is_output and producer is not None and producer.graph is anchor.graph
    return producer if alone else None


def _is_free(m: Activation) -> bool:
    """True where fuse_batchnorm lets the linear nodes beside it take all arithmetic in, so that only the limits run."""
    if m.product is not None:
        return False
    places = [index for index, node in enumerate(m.pieces) if is_op(node, *_LIMITS)]
    head, middle, tail = m.pieces[: places[0]], m.pieces[places[0] : places[-1] + 1], m.pieces[places[-1] + 1 :]
    if any(is_op(node, *ARITHMETIC) for node in middle) or any(is_op(node, "Add", "Sub") for node in tail):
        return False
    if head and not _is_linear(_maker(m.source, m.node)):
        return False
    users, is_output = users_of(m.node.outputs[0])
    return not tail or (len(users) == 1 and not is_output and is_op(users[0][0], *_LINEAR) and users[0][1] == 0)


def _is_linear(node: ir.Node | None) -> bool:
    """True for a linear node, also with a BatchNormalization or a bias behind it."""
    for _ in range(_LONGEST):
        if node is None or is_op(node, *_LINEAR):
            return node is not None
        if (index := source_index(node)) is None or (value := node.inputs[index]) is None:
            return False
        node = _maker(value, node)
    return False

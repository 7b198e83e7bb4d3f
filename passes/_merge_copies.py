"""A tensor that a Concat holds more than once: its readers add up the weights that meet the same numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim_core.graph import attribute, is_op, users_of

from ._affine import known_shape, rank_of
from ._merge_parallel import along_channels
from ._merge_place import Merge, Single
from ._merge_terms import Term, term_at, term_of

__all__ = ["Copies", "copies_at"]


@dataclass(frozen=True, slots=True, eq=False)
class Copies(Merge):
    """A Concat holds a tensor more than once: each reader adds up the weights that meet the same numbers."""

    widths: tuple[int, ...] = ()
    """Channels of each input of the Concat."""

    def nodes(self) -> tuple[ir.Node, ...]:
        """The Concat and its readers."""
        return (self.node, *(term.node for term in self.terms))

    @property
    def distinct(self) -> list[ir.Value]:
        """The inputs, each once."""
        return list(dict.fromkeys(value for value in self.node.inputs if value is not None))

    def work(self) -> tuple[int, int]:
        """Per position, in channels read."""
        first = dict(zip(self.node.inputs, self.widths, strict=True))
        return sum(self.widths), sum(first.values())

    def added_bytes(self) -> int:
        """All readers lose the same share of their weights."""
        before, after = self.work()
        return sum(round(term.array.nbytes * after / before) for term in self.terms)

    def weight(self, term: Term) -> np.ndarray:
        """The weight of a reader without the copies, float64."""
        weight = term.weight()
        axis = 1 if term.geometry is not None else 0
        parts = np.split(weight, np.cumsum(self.widths)[:-1], axis=axis)
        found: dict[ir.Value, np.ndarray] = {}
        with np.errstate(all="ignore"):
            for value, part in zip(self.node.inputs, parts, strict=True):
                assert value is not None
                found[value] = found[value] + part if value in found else part
        return np.concatenate(list(found.values()), axis=axis)

    def compute(self) -> Single:
        """Of the reader with the largest weight: all lose the same share."""
        term = max(self.terms, key=lambda term: term.array.size)
        return Single(term, self.weight(term), None, term.geometry, term.node.op_type)


def copies_at(node: ir.Node, model: ir.Model) -> Copies | None:
    """This Concat along the channels has an input twice, and all its readers are linear."""
    if len(set(node.inputs)) == len(node.inputs) or None in node.inputs:
        return None
    users, is_output = users_of(node.outputs[0])
    if is_output or not users:
        return None
    terms: list[Term] = []
    for user, index in users:
        term = term_of(user, with_add=False) if index == 0 and user.graph is node.graph else None
        if term is None or term.groups != 1 or attribute(user, "transA", 0) or not _reads_channels(node, term):
            return None
        if is_op(user, "Gemm") and not attribute(user, "alpha", 1.0):
            return None  # no weight makes up for it
        terms.append(term)
    widths = _widths(node, terms[0])
    if widths is None or any(term.inputs != sum(widths) for term in terms):
        return None
    return Copies(node, model, tuple(terms), widths=widths)


def _reads_channels(concat: ir.Node, term: Term) -> bool:
    axis = int(attribute(concat, "axis", 1))
    if term.geometry is not None:
        return axis in (1, -1 - len(term.geometry.kernel))
    if axis == -1:
        return True
    rank = 2 if is_op(term.node, "Gemm") else rank_of(concat.outputs[0]) or rank_of(concat.inputs[0])
    return rank is not None and axis == rank - 1


def _widths(concat: ir.Node, term: Term) -> tuple[int, ...] | None:
    """Channels of each input; of one that is not known, what is left if it is there a number of times."""
    axis = int(attribute(concat, "axis", 1))
    known: dict[ir.Value, int] = {}
    for value in concat.inputs:
        # what the file declares inside the graph may be stale; a caller cannot feed anything but what an input declares
        shape = known_shape(value) if value is not None and value.is_graph_input() else None
        size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
        made = term_at(value, concat.graph) if size is None else None
        size = made.outputs if made is not None and along_channels(concat, made) else size
        if value is not None and size is not None:
            known[value] = size
    unknown = {value for value in concat.inputs if value is not None and value not in known}
    if len(unknown) == 1:
        value = unknown.pop()
        times = sum(other is value for other in concat.inputs)
        rest = term.inputs - sum(known[v] for v in concat.inputs if v is not None and v in known)
        if rest <= 0 or rest % times:
            return None
        known[value] = rest // times
    elif unknown:
        return None
    return tuple(known[value] for value in concat.inputs if value is not None)

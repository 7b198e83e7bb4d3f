"""Einsum over one or two operands: what MatMul says, with letters for axes.

Letters that are not in the result are summed. Two activations are joined in all letters and then contracted; of a
constant, a letter that the activation has as well is summed (a sink) or meets it, any other makes channels. Left to
`freeze`: a letter twice in one term, three operands or more.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.ops.atoms import Labels
from onnxslim_core.ops.cut import Cut
from onnxslim_core.ops.flow import Flow, Rule
from onnxslim_core.ops.join import join

__all__ = ["RULES"]


def _terms(flow: Flow, node: ir.Node) -> tuple[list[str], str] | None:
    """Letters of every operand and of the result; None where the form is not covered."""
    equation = "".join(str(verbs.attribute(node, "equation", "")).split())
    left, arrow, result = equation.partition("->")
    operands = left.split(",")
    if len(operands) != len(node.inputs) or len(operands) > 2:
        return None
    if not arrow:
        single = sorted(letter for letter in set(left) - {",", "."} if left.count(letter) == 1)
        result = ("..." if "..." in left else "") + "".join(single)
    # an ellipsis stands for as many axes as are left, counted from behind: give them letters
    spare = [chr(code) for code in range(0x391, 0x3C9) if chr(code).isalpha()]
    ranks = [len(flow.shape(value)) for value in node.inputs]
    counts = [rank - len(term.replace("...", "")) for rank, term in zip(ranks, operands, strict=True)]
    widest = max((count for count, term in zip(counts, operands, strict=True) if "..." in term), default=0)
    operands = [
        term.replace("...", "".join(spare[widest - count : widest]))
        for count, term in zip(counts, operands, strict=True)
    ]
    result = result.replace("...", "".join(spare[:widest]))
    plain = all(term.isalpha() and len(set(term)) == len(term) for term in (*operands, result) if term)
    return (operands, result) if plain else None


def _spread(labels: Labels, term: str, letters: str) -> Labels:
    """Labels of a term with one axis for each of `letters`, in that order; 1 where the term has none."""
    order = [term.index(letter) for letter in letters if letter in term]
    moved = labels.transpose(order)
    shape = [labels.shape[term.index(letter)] if letter in term else 1 for letter in letters]
    return moved.reshape(shape)


def _label(flow: Flow, node: ir.Node) -> None:
    terms = _terms(flow, node)
    constants = [index for index, value in enumerate(node.inputs) if flow.is_constant(value)]
    if terms is None or len(constants) == len(node.inputs):
        flow.freeze(node, "its equation is not covered" if terms is None else "all its operands are constant")
        return
    operands, result = terms
    summed = "".join(dict.fromkeys(letter for term in operands for letter in term if letter not in result))
    letters = result + summed
    sizes: dict[str, int] = {}
    for value, term in zip(node.inputs, operands, strict=True):
        for letter, size in zip(term, flow.shape(value), strict=True):
            sizes[letter] = max(size, sizes.get(letter, size))
    macs = math.prod(sizes.values()) if len(operands) > 1 else 0
    axes = list(range(len(result), len(letters)))
    if constants:
        labels = _with_constant(flow, node, constants[0], operands, letters, axes, macs)
    else:
        labels = _activations(flow, node, operands, letters, axes, macs)
    flow.set(node.outputs[0], labels.reshape(labels.shape[: len(result)]))


def _rows(labels: Labels, axes: list[int]) -> Labels:
    """Labels as (rows, k) with k over the axes that are summed; empty where they do not vary."""
    others = [axis for axis in range(labels.ndim) if axis not in axes]
    width = math.prod(labels.shape[axis] for axis in axes)
    return np.ascontiguousarray(labels.transpose([*others, *axes])).reshape(-1, width)


def _activations(flow: Flow, node: ir.Node, operands: list[str], letters: str, axes: list[int], macs: int) -> Labels:
    joined: Labels | None = None
    shape: tuple[int, ...] = ()
    for value, term in zip(node.inputs, operands, strict=True):
        labels, full = flow.labels(value), flow.shape(value)
        assert labels is not None
        own = _spread(labels, term, letters)
        own_shape = tuple(full[term.index(letter)] if letter in term else 1 for letter in letters)
        joined, shape = (own, own_shape) if joined is None else join(flow.atoms, joined, shape, own, own_shape)
    assert joined is not None
    flow.atoms.note(joined)
    if any(joined.shape[axis] > 1 for axis in axes):
        for index in range(len(operands)):
            flow.sink(node, index, _rows(joined, axes), None)
    flow.work(node, macs, joined.reshape(-1))
    return flow.atoms.contract(joined, axes)


def _with_constant(
    flow: Flow, node: ir.Node, constant: int, operands: list[str], letters: str, axes: list[int], macs: int
) -> Labels:
    value, term, weight = node.inputs[1 - constant], operands[1 - constant], operands[constant]
    labels = flow.labels(value)
    assert labels is not None
    spread = _spread(labels, term, letters)
    own = [axis for axis in axes if letters[axis] in term]
    rows = _rows(spread, own)
    factors = [rows[0]] if rows.shape[1] > 1 else []
    if rows.shape[1] > 1:
        rows = rows[:1] if (rows == rows[:1]).all() else rows
        wide = [axis for axis in own if spread.shape[axis] > 1]
        single = len(rows) == 1 and len(wide) == 1 and letters[wide[0]] in weight
        flow.sink(node, 1 - constant, rows, constant, weight.index(letters[wide[0]]) if single else None)
    result = flow.atoms.contract(spread, own)
    factors.append(result.reshape(-1))
    for axis, letter in enumerate(letters):
        if letter in weight and result.shape[axis] > 1 == result.size // result.shape[axis]:
            flow.use(node, constant, weight.index(letter), result.reshape(-1), "carry")
        if letter in term or axis in axes:
            continue
        new = flow.make(node, constant, weight.index(letter))
        factors.append(new)
        result = flow.atoms.grid(result, new, axis)
    flow.work(node, macs, *factors)
    return result


def _cut(cut: Cut, node: ir.Node) -> None:
    terms = _terms(cut.flow, node)
    if terms is None:
        return
    operands, result = terms
    keeps = {result[axis]: keep for axis, keep in cut.keeps(node.outputs[0]).items()}
    for value, term in zip(node.inputs, operands, strict=True):
        keeps.update({term[axis]: keep for axis, keep in cut.keeps(value).items()})
    for index, term in enumerate(operands):
        if cut.flow.is_constant(node.inputs[index]):
            shape = cut.flow.shape(node.inputs[index])
            own = {axis: keeps[letter] for axis, letter in enumerate(term) if letter in keeps and shape[axis] > 1}
            cut.constant(node, index, own)


RULES = {"Einsum": Rule(_label, _cut)}

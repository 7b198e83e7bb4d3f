"""The removal of atoms: every node is told what is left of its inputs and outputs and follows.

Exact in this sense: the result equals the original with zeros multiplied in at every sum over the removed channels.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.channels.groups import ChannelGraph
from onnxslim_core.channels.records import BATCHNORM, BatchNormRecord
from onnxslim_core.ops.cut import Cut
from onnxslim_core.ops.table import rule_of

__all__ = ["remove_atoms"]


def remove_atoms(channels: ChannelGraph, gone: NDArray[np.bool_]) -> int:
    """Take atoms out of the model that the channel graph was made from, in place.

    Args:
        channels: The channel graph; it no longer describes the model afterwards.
        gone: For every atom whether it goes, whole classes only; shape (atoms,).

    Returns:
        Bytes of weights saved.

    Raises:
        InternalError: if what is left of a tensor would be empty or no box; the model is spoiled then.
    """
    model = channels.flow.model
    before = _bytes(model)
    read = [value for graph in _graphs(model) for value in graph.initializers.values() if value.uses()]
    cut = Cut(channels.flow, gone, verbs.Names(model))
    for node in channels.flow.nodes:
        if cut.touches(node):
            rule = rule_of(node)
            if rule is not None and rule.cut is not None:
                rule.cut(cut, node)
            _cut_record(cut, node)
    outputs = set(model.graph.outputs)
    for value in channels.flow.table:
        if cut.keeps(value) and value not in outputs:
            value.shape = None
    _tidy(model, cut)
    for value in read:
        is_there = value.graph is not None and value.graph.initializers.get(str(value.name)) is value
        if is_there and not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            value.graph.initializers.pop(str(value.name))  # type: ignore[union-attr]
    return before - _bytes(model)


def _bytes(model: ir.Model) -> int:
    tensors = (value.const_value for graph in _graphs(model) for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _graphs(model: ir.Model) -> list[ir.Graph]:
    """The main graph and every body."""
    return [model.graph, *(body for node in verbs.all_nodes(model.graph) for body in verbs.bodies(node))]


def _cut_record(cut: Cut, node: ir.Node) -> None:
    """The remembered scale and shift of a fused BatchNormalization follow the channels they belong to."""
    record = node.meta.get(BATCHNORM)
    keeps = cut.keeps(node.outputs[0])
    if not isinstance(record, BatchNormRecord) or not keeps:
        return
    axis = 1 if node.op_type in ("Conv", "ConvTranspose") else len(cut.flow.shape(node.outputs[0])) - 1
    if (keep := keeps.get(axis)) is not None:
        node.meta[BATCHNORM] = BatchNormRecord(record.gamma[keep], record.beta[keep])


def _tidy(model: ir.Model, cut: Cut) -> None:
    """Drop what nobody reads any more, and let the smaller weights have the names of the ones they replace."""
    sources = {old for old, _ in cut.renamed}
    idle = [v.producer() for v in sources if v.producer() is not None and not v.uses() and not v.is_graph_output()]
    dead = [node for node in verbs.all_nodes(model.graph) if _is_idle(node)]
    verbs.remove({node for node in (*idle, *dead) if node is not None and node.graph is not None})
    _rename_copies(cut)
    copies: dict[ir.Value, list[ir.Value]] = {}
    for old, new in cut.renamed:
        copies.setdefault(old, []).append(new)
    for old, made in copies.items():
        if old.uses() or old.is_graph_output():
            continue
        graph, name = made[0].graph, str(old.name)
        assert isinstance(graph, ir.Graph)
        initializers = graph.initializers
        if initializers.get(name) is old:
            initializers.pop(name)
        used = [new for new in made if new.uses() or new.is_graph_output()]
        for new in made:
            if new not in used:
                initializers.pop(str(new.name), None)
        if len(used) == 1 and name not in initializers and old.producer() is None:
            initializers.pop(str(used[0].name), None)
            used[0].name = name
            graph.register_initializer(used[0])


def _rename_copies(cut: Cut) -> None:
    """What computes a smaller constant has the names of what computed the one that nobody reads any more."""
    copies: dict[ir.Node, list[ir.Node]] = {}
    for old, new in cut.copied:
        if new.graph is not None:
            copies.setdefault(old, []).append(new)
    for old, made in copies.items():
        if old.graph is not None or len(made) != 1:
            continue
        made[0].outputs[0].name = old.outputs[0].name
        if name := verbs.own_name(old):
            made[0].name = name
            made[0].meta.clear()


def _is_idle(node: ir.Node) -> bool:
    return bool(node.outputs) and not any(v.uses() or v.is_graph_output() for v in node.outputs)
